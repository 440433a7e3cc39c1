"""Feedback on p99: fast up, slow down, safe in silence."""

from __future__ import annotations

import pytest

from mbroker.action import Action, Notify, SetFrequency
from mbroker.host import Host
from mbroker.policies.adaptive import Adaptive
from mbroker.policy import Policy
from mchannel.event import Event, Scalar

HOST = Host("h").with_level("web1", 2)


def epoch(p99: float | None, usage: float | None = 0.3) -> Event:
    return Event("sla.epoch", "web1", 0.0, detail={"p99_ms": p99, "hard_ms": 6.0, "utilization": usage})


def silent(epochs: Scalar) -> Event:
    return Event("agent.silent", "web1", epochs)


def run(policy: Policy, *events: Event, host: Host = HOST) -> list[Action]:
    return [action for event in events for action in policy.decide(event, host)]


def to(level: int) -> list[Action]:
    return [SetFrequency("web1", level=level)]


def test_it_satisfies_the_protocol() -> None:
    assert isinstance(Adaptive(), Policy)


def test_p99_over_the_hard_threshold_raises_the_speed_at_once() -> None:
    assert run(Adaptive(), epoch(6.1)) == to(3)
    assert run(Adaptive(), epoch(6.0)) == []


def test_a_busy_domain_jumps_as_far_as_it_needs() -> None:
    # 2000 MHz fully used: 1.15 * 2000 / 0.75 is more than any p-state.
    assert run(Adaptive(), Event("cpu.usage", "web1", 1.0), epoch(9.0)) == to(4)


def test_nothing_is_asked_for_above_the_top() -> None:
    assert run(Adaptive(), epoch(9.0), host=HOST.with_level("web1", 4)) == []


def test_four_quiet_epochs_lower_the_speed_by_one() -> None:
    policy = Adaptive()
    assert run(policy, *[epoch(2.0)] * 3) == []
    assert run(policy, epoch(2.0)) == to(1)


def test_epochs_without_requests_are_quiet() -> None:
    assert run(Adaptive(), *[epoch(None, 0.0)] * 4) == to(1)


def test_between_quiet_and_violated_nothing_moves() -> None:
    assert run(Adaptive(), *[epoch(4.0)] * 50) == []


def test_an_unquiet_epoch_starts_the_count_anew() -> None:
    assert run(Adaptive(), *[epoch(2.0)] * 3, epoch(4.0), *[epoch(2.0)] * 3) == []


def test_the_speed_is_kept_when_the_slower_one_would_be_too_busy() -> None:
    assert run(Adaptive(), *[epoch(2.0, 0.65)] * 50) == []  # 0.65 * 2000 / 1800 is over 0.70


def test_the_view_of_the_mvm_counts_more_than_that_of_the_guest() -> None:
    assert run(Adaptive(), Event("cpu.usage", "web1", 0.2), *[epoch(2.0, 0.99)] * 4) == to(1)


def test_without_any_utilisation_the_speed_is_not_lowered() -> None:
    assert run(Adaptive(), *[epoch(2.0, None)] * 50) == []


def test_a_violation_soon_after_a_move_doubles_the_patience() -> None:
    policy = Adaptive()
    run(policy, *[epoch(2.0)] * 4)
    assert run(policy, epoch(7.0)) == to(3)
    assert run(policy, *[epoch(2.0)] * 7) == []
    assert run(policy, epoch(2.0)) == to(1)


@pytest.mark.parametrize(("held", "needed"), [(20, 8), (21, 4)])
def test_a_violation_counts_against_the_last_move_for_twenty_epochs(held: int, needed: int) -> None:
    policy = Adaptive()
    assert run(policy, *[epoch(2.0)] * 4) == to(1)
    run(policy, *[epoch(4.0)] * (held - 1), epoch(7.0))
    assert run(policy, *[epoch(2.0)] * (needed - 1)) == []
    assert run(policy, epoch(2.0)) == to(1)


@pytest.mark.parametrize("violations", [1, 5])
def test_violations_at_the_top_where_nothing_moves_leave_the_patience(violations: int) -> None:
    policy, top = Adaptive(), HOST.with_level("web1", 4)
    run(policy, *[epoch(9.0)] * violations, host=top)
    assert run(policy, *[epoch(2.0)] * 3, host=top) == []
    assert run(policy, epoch(2.0), host=top) == to(3)


def test_a_violation_at_the_top_puts_the_end_of_the_back_off_off() -> None:
    policy = Adaptive()
    run(policy, *[epoch(7.0)] * 10, *[epoch(4.0)] * 120)
    run(policy, epoch(7.0), host=HOST.with_level("web1", 4))
    assert run(policy, *[epoch(2.0)] * 63) == []
    assert run(policy, epoch(2.0)) == to(1)


def test_patience_grows_to_sixteen_times_at_most() -> None:
    policy = Adaptive()
    run(policy, *[epoch(7.0)] * 10)
    assert run(policy, *[epoch(2.0)] * 63) == []
    assert run(policy, epoch(2.0)) == to(1)


def test_a_minute_without_violation_forgives() -> None:
    policy = Adaptive()
    run(policy, *[epoch(7.0)] * 10)
    assert run(policy, *[epoch(4.0)] * 121, *[epoch(2.0)] * 3) == []
    assert run(policy, epoch(2.0)) == to(1)


def test_the_120th_epoch_after_a_violation_does_not_forgive_yet() -> None:
    policy = Adaptive()
    run(policy, *[epoch(7.0)] * 10)
    assert run(policy, *[epoch(4.0)] * 116, *[epoch(2.0)] * 4) == []
    assert run(policy, epoch(2.0)) == to(1)


def test_the_target_of_the_administrator_wins_over_that_of_the_guest() -> None:
    assert run(Adaptive(target_ms=5.0), epoch(5.5)) == to(3)


@pytest.mark.parametrize("epochs", range(1, 10))
def test_a_short_silence_holds_the_speed(epochs: int) -> None:
    assert run(Adaptive(), *[silent(n) for n in range(1, epochs + 1)]) == []


def test_three_silent_epochs_do_not_disturb_the_control() -> None:
    assert run(Adaptive(), *[epoch(2.0)] * 3, silent(1), silent(2), silent(3), epoch(2.0)) == to(1)


def test_after_more_than_three_what_was_said_before_no_longer_slows_down() -> None:
    assert run(Adaptive(), *[epoch(2.0)] * 3, *map(silent, range(1, 5)), epoch(2.0)) == []


def test_ten_silent_epochs_restore_the_top_and_tell_the_operator_once() -> None:
    policy = Adaptive()
    frequency, alert = run(policy, silent(10))
    assert [frequency] == to(4)
    assert isinstance(alert, Notify)
    assert "web1" in alert.text
    assert run(policy, silent(11), silent(12), host=HOST.with_level("web1", 4)) == []


def test_the_alert_comes_even_when_the_tenth_epoch_was_missed() -> None:
    assert len(run(Adaptive(), silent(12))) == 2


def test_an_agent_that_speaks_again_is_trusted_again() -> None:
    policy = Adaptive()
    run(policy, silent(10))
    assert run(policy, *[epoch(2.0)] * 4) == to(1)
    assert any(isinstance(action, Notify) for action in run(policy, silent(10)))


@pytest.mark.parametrize("value", [None, "10", 1e9, float("nan")])
def test_a_silence_of_no_whole_number_is_ignored(value: Scalar) -> None:
    assert run(Adaptive(), silent(value)) == []


def test_values_that_make_no_sense_are_ignored() -> None:
    nonsense = [epoch(float("nan")), Event("sla.epoch", "web1", "x"), Event("cpu.usage", "web1", -1)]
    assert run(Adaptive(), *nonsense) == []
