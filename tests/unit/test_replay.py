"""Replaying recorded events, and the trace that ships."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbroker.action import SetFrequency, SetPState
from mbroker.broker import Broker, Hosted
from mbroker.host import Domain, Host
from mbroker.policies.sla_dvfs import Basic, TopSpeed
from mbroker.replay import read_trace, replay, trace_line
from mchannel.event import Event

ROOT = Path(__file__).parents[2]
TRACE = ROOT / "examples" / "web1.trace.jsonl"


def test_a_line_is_an_event() -> None:
    line = '{"topic": "t", "source": "web1", "value": 0.5, "at": 7, "detail": {"a": 1, "b": [1, "x", null]}}'
    assert list(read_trace([line])) == [Event("t", "web1", 0.5, 7.0, {"a": 1, "b": (1, "x", None)})]


def test_all_but_the_topic_may_be_left_out() -> None:
    assert list(read_trace(['{"topic": "t"}', "\n"])) == [Event("t")]


@given(
    st.builds(
        Event,
        st.text(min_size=1),
        st.text(),
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        st.floats(-1e11, 1e11),
        st.dictionaries(st.text(), st.none() | st.integers() | st.tuples(st.text(), st.booleans())),
    )
)
def test_what_is_written_is_read(event: Event) -> None:
    assert list(read_trace([trace_line(event)])) == [event]


@pytest.mark.parametrize("value", [b"x", math.nan])
def test_what_json_cannot_say_is_not_written(value: bytes | float) -> None:
    with pytest.raises(ValueError, match=r"no bytes|not JSON compliant"):
        trace_line(Event("t", value=value))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "not an event"),
        ("{}", "topic must be"),
        ('{"topic": ""}', "topic must be"),
        ('{"topic": "t", "source": 1}', "source must be"),
        ('{"topic": "t", "at": "now"}', "at must be"),
        ('{"topic": "t", "at": 1e999}', "at must be"),
        ('{"topic": "t", "at": true}', "at must be"),
        ('{"topic": "t", "value": NaN}', "NaN is no"),
        ('{"topic": "t", "value": 1e999}', "value must be"),
        ('{"topic": "t", "value": [1]}', "value must be"),
        ('{"topic": "t", "detail": []}', "detail must be"),
        ('{"topic": "t", "detail": {"a": {}}}', "a must be"),
        ('{"topic": "t", "detail": {"a": [[]]}}', "a must be"),
        ('{"topic": "t", "values": 1}', "no 'values'"),
        ('{"topic": "' + "t" * (1 << 20) + '"}', "longer than"),
    ],
)
def test_a_bad_line_is_a_value_error_with_its_number(line: str, reason: str) -> None:
    events = read_trace(['{"topic": "t"}', line])
    assert next(events) == Event("t")
    with pytest.raises(ValueError, match=f"line 2: .*{reason}"):
        next(events)


@given(st.text())
def test_garbage_raises_nothing_but_value_error(line: str) -> None:
    try:
        list(read_trace([line]))
    except ValueError as error:
        assert "line 1: " in str(error)  # noqa: PT017 - garbage may be an empty line


def test_steps_are_resolved_and_clamped_as_they_are_live() -> None:
    host = Host("h", domains={"web1": Domain("web1", 3)})
    late = [Event("sla.epoch", "web1", 0.5, at) for at in (1.0, 1.5)]
    decisions = [actions for _, actions in replay(Basic(), host, late)]
    assert decisions == [[SetFrequency("web1", level=4), SetPState((0,), 4)], []]


def test_a_decision_may_take_as_long_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    hours = count(step=3600.0)
    defaults = Broker.__init__.__kwdefaults__ or {}
    monkeypatch.setitem(defaults, "stopwatch", lambda: next(hours))
    ((_, actions),) = replay(TopSpeed(), Host("h").with_level("web1", 0), [Event("cpu.usage", "web1")])
    assert SetFrequency("web1", level=4) in actions


def test_a_policy_may_be_hosted_on_other_terms() -> None:
    ((_, actions),) = replay(Hosted(Basic(violations=0.9)), Host("h"), [Event("sla.epoch", "web1", 0.5)])
    assert actions == []


def test_the_trace_that_ships_is_what_its_generator_writes() -> None:
    made = subprocess.run(
        [sys.executable, "examples/record_trace.py"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert made.stdout == TRACE.read_text()


def test_basic_raises_the_speed_in_the_trace_that_ships() -> None:
    with TRACE.open() as lines:
        levels = [
            action.level
            for _, actions in replay(Basic(), Host("h").with_level("web1", 0), read_trace(lines))
            for action in actions
            if isinstance(action, SetFrequency)
        ]
    assert max(level or 0 for level in levels) == 4
