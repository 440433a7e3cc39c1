"""The paper's policies, one event at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable

import attrs
import pytest

from mbroker.action import Action, SetFrequency
from mbroker.host import Host
from mbroker.policies.sla_dvfs import Basic, Richer, TopSpeed, Utilization
from mbroker.policy import Policy
from mchannel.event import Event, Scalar

HOST = Host("h").with_level("web1", 2)
UP = [SetFrequency("web1", step=+1)]
DOWN = [SetFrequency("web1", step=-1)]


def epoch(*, requests: int = 100, hard: int = 0, soft: int = 0, utilization: Scalar = None) -> Event:
    return Event(
        "sla.epoch",
        "web1",
        hard / requests if requests else 0.0,
        detail={"requests": requests, "hard": hard, "soft": soft, "utilization": utilization},
    )


def usage(value: Scalar, source: str = "web1") -> Event:
    return Event("cpu.usage", source, value)


def run(policy: Policy, *events: Event, host: Host = HOST) -> list[Action]:
    return [action for event in events for action in policy.decide(event, host)]


@pytest.mark.parametrize("policy", [TopSpeed(), Basic(), Richer(), Utilization()])
def test_a_policy_satisfies_the_protocol(policy: object) -> None:
    assert isinstance(policy, Policy)


def test_none_puts_a_slow_domain_to_the_top_and_then_leaves_it() -> None:
    policy = TopSpeed()
    assert run(policy, usage(0.1)) == [SetFrequency("web1", level=4)]
    assert run(policy, usage(0.1), epoch(hard=50), host=HOST.with_level("web1", 4)) == []


def test_basic_goes_up_when_more_than_one_percent_of_the_requests_are_late() -> None:
    assert run(Basic(), epoch(soft=2)) == UP


def test_one_percent_exactly_is_no_violation() -> None:
    assert run(Basic(), epoch(soft=1)) == []


def test_basic_goes_down_below_80_percent_utilisation() -> None:
    assert run(Basic(), epoch(), usage(0.79)) == DOWN
    assert run(Basic(), epoch(), usage(0.80)) == []


@pytest.mark.parametrize("reverse", [False, True])
def test_a_violation_wins_over_a_low_utilisation_in_whichever_order_they_come(reverse: bool) -> None:
    events = [epoch(soft=50), usage(0.1)]
    assert run(Basic(), *(reversed(events) if reverse else events)) == UP


def test_low_utilisation_waits_for_the_view_of_the_agent() -> None:
    policy = Basic()
    assert run(policy, usage(0.1)) == []
    assert run(policy, epoch()) == DOWN


def test_basic_holds_the_speed_of_a_domain_whose_agent_is_silent() -> None:
    assert run(Basic(), *[usage(0.1)] * 20) == []


def test_a_violation_is_remembered_when_the_mvm_misses_an_epoch() -> None:
    assert run(Basic(), epoch(soft=50), epoch(), usage(0.1)) == UP


def test_each_domain_has_its_own_epochs() -> None:
    assert run(Basic(), epoch(soft=50), usage(0.1, "db1"), usage(0.1)) == UP


def test_an_epoch_without_requests_is_no_violation() -> None:
    assert run(Basic(), epoch(requests=0), usage(0.0)) == DOWN


def test_an_agent_may_report_nothing_but_the_fraction() -> None:
    assert run(Basic(), Event("sla.epoch", "web1", 0.02)) == UP


def test_hard_violations_are_soft_ones_too() -> None:
    assert run(Basic(), epoch(hard=5, soft=0)) == UP


def test_richer_reacts_to_hard_violations_as_basic_does() -> None:
    assert run(Richer(), epoch(hard=2, soft=2), usage(0.1), epoch(), usage(0.1)) == UP + DOWN


def test_richer_ignores_soft_violations_in_3_of_10_epochs() -> None:
    assert run(Richer(), *[epoch(soft=50)] * 3, *[epoch()] * 7) == []


def test_richer_takes_soft_violations_in_4_of_10_epochs_as_one_hard_violation() -> None:
    assert run(Richer(), *[epoch(soft=50)] * 4, *[epoch()] * 5) == []
    policy = Richer()
    assert run(policy, *[epoch(soft=50)] * 4, *[epoch()] * 6) == UP


def test_richer_begins_a_new_recording_after_ten_epochs() -> None:
    policy = Richer()
    assert run(policy, *[epoch()] * 8, *[epoch(soft=50)] * 4, *[epoch()] * 8) == []
    assert run(policy, *[epoch(soft=50)] * 10) == UP


def test_richer_records_each_domain_apart() -> None:
    other = attrs.evolve(epoch(soft=50), source="db1")
    assert run(Richer(), *[other] * 5, *[epoch(soft=50)] * 3, *[epoch()] * 2) == []


def test_utilization_jumps_to_the_top_above_80_percent() -> None:
    assert run(Utilization(), epoch(utilization=0.81)) == [SetFrequency("web1", level=4)]


def test_utilization_takes_the_lowest_frequency_that_keeps_it_under_80_percent() -> None:
    # 2000 MHz at 40 % is 800 MHz of work: 1000 MHz would be at exactly 80 %.
    assert run(Utilization(), epoch(utilization=0.40)) == [SetFrequency("web1", level=0)]
    assert run(Utilization(), epoch(utilization=0.41)) == [SetFrequency("web1", level=1)]
    assert run(Utilization(), epoch(utilization=0.80)) == []


def test_utilization_does_not_look_at_violations() -> None:
    assert run(Utilization(), epoch(hard=100, soft=100, utilization=0.79)) == []


def test_utilization_does_nothing_when_the_guest_does_not_say() -> None:
    assert run(Utilization(), epoch(utilization=None)) == []


HOSTILE: list[Scalar] = [None, True, "1", b"", -1, -0.5, math.nan, math.inf, 10**400]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("policy", [Basic(), Richer(), Utilization()])
def test_values_that_make_no_sense_are_ignored(policy: Policy, value: Scalar) -> None:
    names = "requests", "hard", "soft", "p99_ms", "utilization"
    detail = {str(name): value for name in names}
    nonsense = [Event(topic, "web1", value, detail=detail) for topic in ("sla.epoch", "cpu.usage")]
    assert run(policy, *nonsense, Event("sla.epoch", "web1", 0.0, detail=detail)) == []


def fields(policy: type[attrs.AttrsInstance]) -> Iterable[str]:
    return [field.alias or field.name for field in attrs.fields(policy) if field.init]


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        (TopSpeed, []),
        (Basic, ["violations", "utilization"]),
        (Richer, ["violations", "utilization", "window", "tolerance"]),
        (Utilization, ["utilization"]),
    ],
)
def test_the_options_of_a_policy_are_its_keyword_arguments(
    policy: type[attrs.AttrsInstance], options: list[str]
) -> None:
    assert fields(policy) == options


@pytest.mark.parametrize("option", ["violations", "utilization", "tolerance"])
@pytest.mark.parametrize("value", [-0.1, 1.1, 80])
def test_an_option_that_is_no_fraction_is_refused(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=option):
        Richer(**{option: value})  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def test_options_cannot_change_later() -> None:
    with pytest.raises(attrs.exceptions.FrozenAttributeError):
        Basic().violations = 0.5
