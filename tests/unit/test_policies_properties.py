"""What holds for the policies whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbroker.action import Notify, SetFrequency
from mbroker.broker import Broker, Hosted
from mbroker.host import Host
from mbroker.policies.adaptive import Adaptive
from mbroker.policies.sla_dvfs import Basic, Richer, TopSpeed, Utilization
from mbroker.policy import Policy
from mchannel.event import Event, Scalar

ALL: list[Callable[[], Policy]] = [TopSpeed, Basic, Richer, Utilization, Adaptive]
DOMAINS = ("web1", "db1")

scalars: st.SearchStrategy[Scalar] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5)
)
sane = st.one_of(st.floats(0, 1), st.integers(0, 20), scalars)
details = st.dictionaries(
    st.sampled_from(["epoch", "requests", "hard", "soft", "hard_ms", "soft_ms", "p99_ms", "utilization"]), sane
)
anything = st.builds(
    Event,
    st.sampled_from(["sla.epoch", "cpu.usage", "agent.silent"]),
    st.sampled_from(DOMAINS),
    sane,
    st.just(1.0),
    details,
)
hosts = st.lists(st.integers(1, 5000), min_size=1, max_size=9, unique=True).map(
    lambda mhz: Host("h", tuple(sorted(mhz)))
)


def epoch(number: int, requests: int, hard: int, soft: int) -> Event:
    detail = {"epoch": number, "requests": requests, "hard": hard, "soft": max(hard, soft)}
    return Event("sla.epoch", "web1", hard / requests, number / 2, detail)


epochs = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10), st.floats(0, 1)), max_size=60)


@pytest.mark.parametrize("policy", ALL)
@given(hosts, st.lists(anything, max_size=40))
def test_whatever_guests_say_no_policy_raises_or_asks_for_a_level_that_is_not_there(
    policy: Callable[[], Policy], host: Host, events: Sequence[Event]
) -> None:
    hosted = policy()
    for event in events:
        for action in hosted.decide(event, host):
            assert isinstance(action, SetFrequency | Notify)
            assert action.domain == event.source
            if isinstance(action, SetFrequency):
                assert action.level in (None, *range(host.top + 1))
                assert action.level is not None or action.step in (-1, +1)
                level = host.level(action.domain) + action.step if action.level is None else action.level
                host = host.with_level(action.domain, min(max(level, 0), host.top))


@given(hosts, st.lists(anything, max_size=40))
def test_none_never_moves(host: Host, events: Sequence[Event]) -> None:
    policy = TopSpeed()
    assert [action for event in events for action in policy.decide(event, host)] == []


@pytest.mark.parametrize("policy", [Basic, Richer, Adaptive])
@given(epochs, st.integers(0, 4))
def test_a_hard_violation_never_lowers_the_speed(
    policy: Callable[[], Policy], past: list[tuple[int, int, float]], level: int
) -> None:
    hosted, host = policy(), Host("h").with_level("web1", level)
    for number, (hard, soft, usage) in enumerate(past):
        list(hosted.decide(Event("cpu.usage", "web1", usage), host))
        list(hosted.decide(epoch(number, 10, hard, soft), host))
    violation = Event("sla.epoch", "web1", 1.0, detail={"requests": 5, "hard": 5, "soft": 5, "p99_ms": 7.0})
    for action in hosted.decide(violation, host):
        assert isinstance(action, SetFrequency)
        assert action.step > 0 or (action.level or 0) > level


@pytest.mark.parametrize("policy", [TopSpeed, Basic, Richer, Utilization])
@given(epochs, st.lists(st.booleans(), min_size=60, max_size=60))
def test_it_does_not_matter_in_which_order_the_two_views_of_an_epoch_come(
    policy: Callable[[], Policy], run: list[tuple[int, int, float]], swaps: list[bool]
) -> None:
    def levels(swaps: Sequence[bool]) -> list[int]:
        # No policy takes part in a budget or a bench here: the picture of the host is all that is wanted.
        broker, seen = Broker(Host("h"), [Hosted(policy())]), list[int]()
        for number, ((hard, soft, usage), swap) in enumerate(zip(run, swaps, strict=False)):
            views = [epoch(number, 10, hard, soft), Event("cpu.usage", "web1", usage, number / 2)]
            for view in reversed(views) if swap else views:
                broker.handle(view)
            seen.append(broker.host.level("web1"))
        return seen

    assert levels([False] * 60) == levels(swaps)


@given(st.lists(anything, max_size=40))
def test_what_one_domain_says_does_not_change_what_another_gets(events: Sequence[Event]) -> None:
    host = Host("h").with_level("web1", 2).with_level("db1", 2)
    for make in ALL:
        together, alone = make(), make()
        for event in events:
            mixed = list(together.decide(event, host))
            if event.source == "web1":
                assert mixed == list(alone.decide(event, host))
