from __future__ import annotations

import itertools

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbroker.action import Severity
from mbroker.alerts.alert import Alert
from mbroker.alerts.delivery import Manner, Remark, Story, changed
from mbroker.alerts.stages import Damping, Pace, Place, back_off, escalate, group_of, mute, pair
from tests.unit.notify_world import PROMPT, begun, ended, notices, silence, story

MINUTE = 60_000
FIRST = begun("a", 1000)
OTHER = begun("b", 2000)


# -- deduplicate


def test_a_notice_that_comes_twice_is_told_once() -> None:
    assert pair(notices(FIRST, FIRST)) == [story(FIRST)]


def test_an_alert_that_ended_before_it_was_told_is_one_story() -> None:
    over = ended(FIRST, 5000)
    (told,) = pair(notices(over, FIRST))
    assert told.notices == tuple(notices(FIRST, over))
    assert (told.begins, told.ends, told.alert) == (True, True, over)


def test_stories_come_in_the_order_of_what_happened() -> None:
    over = ended(begun("c", 500), 1500)
    assert [changed(each.alert) for each in pair(notices(OTHER, over, FIRST))] == [1000, 1500, 2000]


# -- mute


def test_a_silenced_begin_waits_until_the_silence_is_over() -> None:
    sifted = mute([silence("a", 9000), silence("a", 7000)], 3000, [story(FIRST), story(OTHER)])
    assert (sifted.go, sifted.dropped, sifted.wake) == ([story(OTHER)], [], 9000)
    assert mute([silence("a", 9000)], 9000, [story(FIRST)]).go == [story(FIRST)]


def test_a_silence_that_has_not_begun_mutes_nothing() -> None:
    assert mute([silence("a", 9000, since=4000)], 3000, [story(FIRST)]).go == [story(FIRST)]


def test_an_alert_that_came_and_went_under_a_silence_is_told_neither_way() -> None:
    both = story(FIRST, ended(FIRST, 2000))
    sifted = mute([silence("a", 9000)], 3000, [both])
    assert (sifted.go, sifted.dropped) == ([], [both])


def test_the_end_of_an_alert_whose_begin_was_told_passes_a_silence() -> None:
    end = story(ended(FIRST, 2000))
    assert mute([silence("a", 9000)], 3000, [end]).go == [end]


def test_the_end_of_an_acknowledged_alert_whose_begin_was_told_is_told() -> None:
    end = story(ended(begun("a", 1000, by="ann"), 2000))
    assert mute([], 3000, [end]).go == [end]


def test_an_acknowledged_begin_waits_without_an_hour() -> None:
    sifted = mute([], 3000, [story(begun("a", 1000, by="ann"))])
    assert (sifted.go, sifted.dropped, sifted.wake) == ([], [], None)


# -- escalate


def test_an_alert_escalates_when_it_is_old_enough() -> None:
    assert escalate(60, 1000 + MINUTE - 1, [story(FIRST)]).wake == 1000 + MINUTE
    assert escalate(60, 1000 + MINUTE, [story(FIRST)]).go == [story(FIRST)]


def test_an_alert_that_did_not_last_is_not_escalated_however_late_it_is_looked_at() -> None:
    short, long = story(FIRST, ended(FIRST, 1000 + MINUTE - 1)), story(OTHER, ended(OTHER, 2000 + MINUTE))
    sifted = escalate(60, 100 * MINUTE, [short, long])
    assert (sifted.go, sifted.dropped) == ([long], [short])


def test_whoever_was_told_by_escalation_is_told_the_end() -> None:
    end = story(ended(FIRST, 1000 + MINUTE))
    assert escalate(60, 2 * MINUTE, [end]).go == [end]


# -- damp


def changes(*times: int, host: str = "a") -> list[Alert]:
    """Return the begins and ends, in turn, at *times*."""
    made: list[Alert] = []
    for number, at in enumerate(times):
        made.append(ended(made[-1], at) if number % 2 else begun(host, at))
    return made


def nobody(_: Place) -> bool:
    return False


def sifted(damping: Damping, now: int, alerts: list[Alert]) -> list[tuple[int, Remark]]:
    return [(changed(each.alert), each.remark) for each in damping.damp(now, pair(notices(*alerts))).go]


def test_as_many_changes_as_are_tolerated_pass() -> None:
    damping, alerts = Damping(changes=3, within=10), changes(0, 1000, 2000)
    damping.see(alerts)
    assert sifted(damping, 2000, alerts) == [(1000, Remark.NONE), (2000, Remark.NONE)]


def test_changes_that_are_far_apart_pass() -> None:
    damping, alerts = Damping(changes=1, within=10), changes(0, 10_000, 20_000, 30_000)
    damping.see(alerts)
    assert {remark for _, remark in sifted(damping, 30_000, alerts)} == {Remark.NONE}


def test_the_change_too_many_is_told_as_flapping_and_those_after_it_wait() -> None:
    damping, alerts = Damping(changes=2, within=10), changes(0, 1000, 2000, 3000, 4000)
    damping.see(alerts)
    # the third change begins an alert and is the one too many; the fourth, which ends it, is told with it
    assert sifted(damping, 4000, alerts) == [(1000, Remark.NONE), (3000, Remark.FLAPPING)]
    assert damping.damp(4000, pair(notices(*alerts))).wake == 4000 + 10_000


def test_what_calmed_is_told_once_and_stands_for_all_that_waited() -> None:
    damping, alerts = Damping(changes=2, within=10), changes(*range(0, 9000, 1000))
    damping.see(alerts)
    waited = pair(notices(*alerts[3:]))  # the first three were told, the third as flapping
    assert damping.damp(17_999, waited).go == []
    end, last = damping.damp(18_000, waited).go
    assert (end.alert, end.remark) == (alerts[3], Remark.CALMED)  # the receiver believes that this one goes on
    assert (last.alert, last.remark) == (alerts[8], Remark.CALMED)
    assert {notice.id for told in (end, last) for notice in told.settled} == {n.id for n in notices(*alerts[3:])}


def test_after_the_calm_changes_pass_again() -> None:
    damping = Damping(changes=2, within=10)
    damping.see(changes(0, 1000, 2000, 3000))
    damping.see(late := [begun("a", 13_000)])
    assert sifted(damping, 13_000, late) == [(13_000, Remark.NONE)]


def test_what_waited_when_flapping_ended_is_summed_up_though_a_new_change_came() -> None:
    damping, alerts = Damping(changes=2, within=10), changes(*range(0, 8000, 1000))
    damping.see(alerts)
    damping.see([begun("a", 17_000)])
    assert sifted(damping, 17_000, alerts[4:]) == [(7000, Remark.CALMED)]


def test_one_place_that_flaps_does_not_hold_another() -> None:
    damping, other = Damping(changes=1, within=10), changes(500, host="b")
    damping.see([*changes(0, 1000, 2000, 3000), *other])
    assert sifted(damping, 3000, other) == [(500, Remark.NONE)]


def test_seeing_a_change_twice_is_seeing_it_once() -> None:
    damping, alerts = Damping(changes=2, within=10), changes(0, 1000)
    for _ in range(5):
        damping.see(alerts)
    assert {remark for _, remark in sifted(damping, 1000, alerts)} == {Remark.NONE}


def test_places_that_are_calm_for_long_are_forgotten_unless_they_are_still_to_be_told_of() -> None:
    damping, alerts = Damping(changes=1, within=10), changes(0, 1000, 2000, 3000)
    damping.see(alerts)
    place = (1, alerts[0].key)
    damping.forget(30_000, [place].__contains__)
    assert sifted(damping, 30_000, alerts[2:]) == [(3000, Remark.CALMED)]
    damping.forget(30_000, nobody)
    assert sifted(damping, 30_000, alerts[2:]) == [(3000, Remark.NONE)]


def test_what_is_forgotten_may_still_be_flapping_when_its_span_is_not_over() -> None:
    damping, alerts = Damping(changes=2, within=10), changes(0, 1000, 2000, 3000, 4000)
    damping.see(alerts[:3])
    damping.forget(9000, nobody)
    damping.see(alerts[3:])
    assert sifted(damping, 9000, alerts[3:]) == []


def test_changes_are_counted_over_the_span_and_no_longer() -> None:
    minutes = [9 * MINUTE * number for number in range(7)]
    damping, alerts = Damping(changes=6, within=600), changes(*minutes)
    damping.see(alerts)
    assert {remark for _, remark in sifted(damping, minutes[-1], alerts)} == {Remark.NONE}


def test_each_time_some_of_what_is_old_is_forgotten_and_what_waits_is_in_nobodys_way() -> None:
    damping, waiting = Damping(changes=1, within=10), [begun(f"h{number}", 1000) for number in range(150)]
    damping.see([*waiting, begun("a", 2000)])
    asked: list[Place] = []

    def is_waiting(place: Place) -> bool:
        asked.append(place)
        return ("host", "a") not in place[1]

    for _ in range(2):
        damping.forget(10**6, is_waiting)
    assert len(asked) == 200
    assert ("host", "a") in asked[150][1]


@given(st.lists(st.integers(1, 15_000), min_size=1, max_size=40), st.integers(1, 5))
def test_every_change_is_settled_and_flapping_is_said_once_in_each_spell(gaps: list[int], tolerated: int) -> None:
    damping, now, times = Damping(changes=tolerated, within=10), 0, list[int]()
    for gap in gaps:
        times.append(now := now + gap)
    alerts, waiting, told = changes(*times), list[Alert](), list[Story]()
    for alert, after in zip(alerts, [*times[1:], now + 10_000], strict=True):
        damping.see([alert])
        waiting.append(alert)
        for moment in (changed(alert), after - 1 if after > changed(alert) else after):
            go = damping.damp(moment, pair(notices(*waiting))).go
            told += go
            done = {notice.id for each in go for notice in each.settled}
            waiting = [each for each in waiting if notices(each)[0].id not in done]
    told += damping.damp(now + 10_000, pair(notices(*waiting))).go
    settled = [notice.id for each in told for notice in each.settled]
    assert sorted(map(str, settled)) == sorted(str(notice.id) for notice in notices(*alerts))
    flaps = [changed(each.alert) for each in told if each.remark is Remark.FLAPPING]
    assert all(later - earlier >= 10_000 for earlier, later in itertools.pairwise(flaps))
    assert sum(each.remark is Remark.CALMED for each in told) <= 2 * len(flaps)  # an end that was owed, and the last


# -- group


def test_alerts_are_grouped_by_subscription_severity_and_labels() -> None:
    manner = Manner(group_by=("subscription", "severity", "host", "rack"))
    alert = begun("a", 0, enrolment=7, severity=Severity.CRITICAL)
    assert group_of(manner, alert) == (("subscription", "7"), ("severity", "critical"), ("host", "a"), ("rack", ""))


def test_no_group_by_is_one_group() -> None:
    assert group_of(Manner(group_by=()), FIRST) == group_of(Manner(group_by=()), OTHER) == ()


def test_a_group_by_that_is_no_name_is_refused() -> None:
    with pytest.raises(ValueError, match="'group_by' must be subscription, severity or names of labels"):
        Manner(group_by=("a b",))


# -- limit


def test_a_burst_passes_at_once_and_then_one_at_a_time() -> None:
    manner, pace = attrs.evolve(PROMPT, rate=0.5, burst=3), Pace()
    for _ in range(3):
        assert pace.ready(manner) <= 10_000
        pace.take(manner, 10_000)
    assert pace.ready(manner) == 12_000
    pace.take(manner, 12_000)
    assert pace.ready(manner) == 14_000


def test_rest_gives_the_burst_back() -> None:
    manner, pace = attrs.evolve(PROMPT, rate=1, burst=2), Pace()
    for _ in range(2):
        pace.take(manner, 0)
    assert pace.ready(manner) == 1000
    pace.take(manner, 5000)
    assert pace.ready(manner) <= 5000


# -- retry


def test_waits_double_from_the_first_to_the_longest() -> None:
    manner = Manner(retry_first=1, retry_most=60)
    for attempts, longest in [(0, 1000), (1, 2000), (5, 32_000), (6, 60_000), (10_000, 60_000)]:
        assert longest / 2 <= back_off(manner, "id", attempts) <= longest


def test_waits_of_different_alerts_are_spread_and_those_of_one_repeat() -> None:
    manner = Manner(retry_first=100, retry_most=100)
    waits = [back_off(manner, f"alert{number}", 0) for number in range(50)]
    assert len(set(waits)) > 40
    assert waits == [back_off(manner, f"alert{number}", 0) for number in range(50)]
