from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from mbroker.action import Action, Notify, SetFrequency, SetPState, Severity
from mbroker.values import Invalid, build, plain


@attrs.frozen
class Inner:
    rate: float = attrs.field(default=1.0, validator=attrs.validators.gt(0))
    folder: Path = Path("/")


@attrs.frozen
class Outer:
    name: str
    inner: dict[str, Inner] = attrs.field(factory=dict[str, Inner])
    many: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    "action",
    [
        SetFrequency("web1", step=-1),
        SetFrequency("web1", level=3),
        SetPState((0, 1), 2),
        Notify("web1", "hot", Severity.CRITICAL),
    ],
)
def test_an_action_survives_the_way_through_plain_data(action: Action) -> None:
    assert build(Action, plain(action, Action)) == action


@pytest.mark.parametrize(
    "data",
    [
        None,
        5,
        {},
        {"action": "Exec", "domain": "web1"},
        {"action": ["SetFrequency"]},
        {"action": "SetFrequency", "domain": "web1", "step": True},
        {"action": "SetFrequency", "domain": "web1", "step": "1"},
        {"action": "SetFrequency", "domain": "web1", "step": 1.0},
        {"action": "SetFrequency", "domain": 7},
        {"action": "SetPState", "cpus": "01", "level": 1},
        {"action": "Notify", "domain": "web1", "text": "x", "severity": "loud"},
    ],
)
def test_what_is_no_action_is_refused(data: object) -> None:
    with pytest.raises(Invalid):
        build(Action, data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"nam": "x", "name": "y"}, "nam: unknown key; did you mean name?"),
        ({"name": "y", "zzz": 1}, "zzz: unknown key; known are name, inner, many"),
        ({}, "name: is missing"),
        ({"name": 3}, "name: must be a text, not 3"),
        ({"name": "x", "inner": {"a": {"rate": "fast"}}}, "inner.a.rate: must be a number, not 'fast'"),
        ({"name": "x", "many": [{}, {"folder": 1}]}, "many.1.folder: must be a path, not 1"),
    ],
)
def test_an_error_names_the_key_and_what_it_must_be(data: object, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        build(Outer, data)
    assert str(caught.value) == message


def test_a_validator_of_the_class_is_heard() -> None:
    with pytest.raises(Invalid, match=r"inner\.a\.rate: must be > 0"):
        build(Outer, {"name": "x", "inner": {"a": {"rate": -1}}})
