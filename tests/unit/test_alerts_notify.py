"""The pipeline: who is told what and when, and that nothing is lost whenever it is cut short."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mbroker.alerts.alert import Alert, Notice, State
from mbroker.alerts.book import Book, Edge
from mbroker.alerts.delivery import Delivery, Manner, NotDelivered, Remark
from mbroker.alerts.dispatcher import LOOK
from mbroker.alerts.language import Subscription
from mbroker.alerts.notify import Pipeline, Teller
from mbroker.alerts.outbox import Memory, Outbox
from mbroker.alerts.selector import Label, Relation
from mbroker.alerts.silence import Silence
from mbroker.alerts.stages import Damping
from tests.unit.notify_world import PROMPT, Ear, begun, ended, notices, plan, plan_from, refusal, silence, step

FIRST, OTHER = begun("a", 1000), begun("b", 1000)


def everything(outbox: Outbox) -> list[Notice]:
    return [notice for name in outbox.receivers() for _, notice in outbox.news(name, 0, 10**6)]


def told(delivery: Delivery) -> list[Alert]:
    return [story.alert for story in delivery.stories]


def test_a_group_waits_for_others_and_is_told_together() -> None:
    pipeline = Pipeline({"ops": Manner(group_wait=5, group_interval=60)})
    assert plan(pipeline, 1000, notices(FIRST)).wake == 6000
    (delivery,) = plan(pipeline, 6000, notices(FIRST, OTHER)).deliveries
    assert {alert.id for alert in told(delivery)} == {FIRST.id, OTHER.id}
    assert delivery.group == (("subscription", "1"),)


def test_the_next_delivery_of_a_group_waits_for_the_interval_and_those_of_others_do_not() -> None:
    pipeline = Pipeline({"ops": Manner(group_wait=0, group_interval=60)})
    (delivery,) = plan(pipeline, 1000, notices(FIRST)).deliveries
    pipeline.delivered(delivery, 1100)
    assert plan(pipeline, 2000, notices(OTHER)).wake == 61_100
    stranger = begun("c", 1000, enrolment=2)
    (delivery,) = plan(pipeline, 2000, notices(OTHER, stranger)).deliveries
    assert told(delivery) == [stranger]
    pipeline.delivered(delivery, 2000)
    assert plan(pipeline, 61_100, notices(OTHER)).deliveries


def test_what_need_not_wait_leaves_in_the_step_that_learns_of_it() -> None:
    pipeline, outbox = Pipeline({"ops": PROMPT}), Memory()
    outbox.put(notices(FIRST, OTHER))
    (delivery,) = step(pipeline, 1000, outbox).deliveries
    assert {alert.id for alert in told(delivery)} == {FIRST.id, OTHER.id}


def test_what_is_new_does_not_leave_before_what_waits_longer() -> None:
    pipeline, outbox = Pipeline({"ops": attrs.evolve(PROMPT, rate=1, burst=1, most=1)}), Memory()
    outbox.put(notices(FIRST))
    (delivery,) = step(pipeline, 1000, outbox).deliveries
    outbox.told(delivery.notices, 1000)
    pipeline.delivered(delivery, 1000)
    outbox.put(notices(OTHER))
    assert not step(pipeline, 1001, outbox).deliveries  # the rate
    outbox.put(notices(begun("c", 1000)))
    (delivery,) = plan_from(pipeline, 2000, outbox).deliveries
    assert told(delivery) == [OTHER]


def test_what_is_in_flight_is_not_told_twice_and_holds_back_its_receiver_alone() -> None:
    pipeline = Pipeline({"ops": PROMPT, "boss": PROMPT})
    assert len(plan(pipeline, 1000, notices(FIRST)).deliveries) == 1
    made = plan(pipeline, 1001, [*notices(FIRST, OTHER), *notices(FIRST, to="boss")])
    assert [delivery.receiver for delivery in made.deliveries] == ["boss"]


def test_more_alerts_than_go_into_a_delivery_follow_at_once() -> None:
    pipeline = Pipeline({"ops": attrs.evolve(PROMPT, most=2, group_interval=60)})
    waiting = notices(*(begun(f"h{number}", number) for number in range(5)))
    sizes: list[int] = []
    while waiting:
        (delivery,) = plan(pipeline, 1000, waiting).deliveries
        pipeline.delivered(delivery, 1000)
        sizes.append(len(delivery.stories))
        waiting = [notice for notice in waiting if notice not in delivery.notices]
    assert sizes == [2, 2, 1]


def test_the_rate_of_a_receiver_is_limited() -> None:
    pipeline = Pipeline({"ops": attrs.evolve(PROMPT, rate=0.1, burst=1)})
    (delivery,) = plan(pipeline, 1000, notices(FIRST)).deliveries
    pipeline.delivered(delivery, 1000)
    assert plan(pipeline, 2000, notices(OTHER)).wake == 11_000


def test_a_failure_backs_off_and_grows_with_the_attempts() -> None:
    pipeline = Pipeline({"ops": attrs.evolve(PROMPT, retry_first=8, retry_most=1000)})
    for attempts, shortest in [(0, 4), (3, 32)]:
        (delivery,) = plan(pipeline, 0, [Notice(FIRST, "ops", attempts)]).deliveries
        failed = pipeline.failed(delivery, 0, NotDelivered("down"))
        assert shortest * 1000 <= failed.due <= 2 * shortest * 1000
        assert (failed.postponed, failed.refused) == (Notice(FIRST, "ops", attempts), ())
        pipeline = Pipeline({"ops": attrs.evolve(PROMPT, retry_first=8, retry_most=1000)})


def test_a_receiver_that_is_down_is_left_alone_with_newer_alerts_too() -> None:
    pipeline = Pipeline({"ops": PROMPT, "boss": PROMPT})
    (delivery,) = plan(pipeline, 0, notices(FIRST)).deliveries
    due = pipeline.failed(delivery, 0, NotDelivered("down", wait=30)).due
    assert due == 30_000
    made = plan(pipeline, 1, [*notices(OTHER), *notices(OTHER, to="boss")])
    assert ([delivery.receiver for delivery in made.deliveries], made.wake) == (["boss"], 30_000)


def test_a_receiver_may_not_ask_for_more_rest_than_the_longest_wait() -> None:
    pipeline = Pipeline({"ops": attrs.evolve(PROMPT, retry_most=60)})
    (delivery,) = plan(pipeline, 0, notices(FIRST)).deliveries
    assert pipeline.failed(delivery, 0, NotDelivered("down", wait=1e9)).due == 60_000


def test_a_permanent_refusal_is_given_up_at_once() -> None:
    pipeline = Pipeline({"ops": PROMPT})
    (delivery,) = plan(pipeline, 0, notices(FIRST, OTHER)).deliveries
    assert set(pipeline.failed(delivery, 0, refusal()).refused) == set(notices(FIRST, OTHER))


def test_after_too_many_tries_the_notice_that_had_them_is_given_up_and_no_other() -> None:
    pipeline = Pipeline({"ops": attrs.evolve(PROMPT, tries=3)})
    eldest = Notice(FIRST, "ops", attempts=2)
    (delivery,) = plan(pipeline, 0, [eldest, *notices(OTHER)]).deliveries
    failed = pipeline.failed(delivery, 0, NotDelivered("down"))
    assert (failed.refused, failed.postponed) == ((eldest,), None)


def test_muted_and_short_alerts_are_dropped() -> None:
    pipeline = Pipeline({"ops": PROMPT, "boss": attrs.evolve(PROMPT, after=60)})
    short = [FIRST, ended(FIRST, 2000)]
    made = plan(pipeline, 3000, [*notices(*short), *notices(*short, to="boss")], [silence("a", 9000)])
    assert (made.deliveries, set(made.dropped)) == ((), {*notices(*short), *notices(*short, to="boss")})


def test_a_clock_that_is_set_back_stops_nothing() -> None:
    pipeline = Pipeline({"ops": attrs.evolve(PROMPT, rate=1, burst=1)})
    (delivery,) = plan(pipeline, 10**12, notices(FIRST)).deliveries
    pipeline.delivered(delivery, 10**12)
    plan(pipeline, 10**12 + 1000, ())
    assert plan(pipeline, 5000, notices(OTHER)).deliveries


def test_an_end_waits_for_its_begin() -> None:
    pipeline, waiting = Pipeline({"ops": PROMPT}), [Notice(FIRST, "ops", 1, 5000), *notices(ended(FIRST, 2000))]
    made = plan(pipeline, 3000, waiting)
    assert (made.deliveries, made.wake) == ((), 5000)
    (delivery,) = plan(pipeline, 5000, waiting).deliveries
    assert delivery.notices == tuple(waiting)


def test_what_comes_while_its_group_is_told_waits_anew() -> None:
    pipeline = Pipeline({"ops": Manner(group_wait=5, group_interval=0)})
    plan(pipeline, 1000, notices(FIRST))
    (delivery,) = plan(pipeline, 6000, notices(FIRST)).deliveries
    plan(pipeline, 6500, notices(FIRST, OTHER))
    pipeline.delivered(delivery, 9000)
    assert plan(pipeline, 9000, notices(OTHER)).wake == 14_000
    assert plan(pipeline, 14_000, notices(OTHER)).deliveries


def test_a_group_that_was_told_and_is_back_within_the_interval_waits() -> None:
    pipeline = Pipeline({"ops": Manner(group_wait=0, group_interval=30)})
    (delivery,) = plan(pipeline, 1000, notices(FIRST)).deliveries
    pipeline.delivered(delivery, 1000)
    assert plan(pipeline, 2000, ()).wake is None  # nothing waits
    (delivery,) = plan(pipeline, 3000, notices(begun("c", 1000, enrolment=2))).deliveries
    pipeline.delivered(delivery, 3000)
    assert plan(pipeline, 20_000, notices(OTHER)).wake == 31_000
    (delivery,) = plan(pipeline, 31_000, notices(OTHER)).deliveries
    pipeline.delivered(delivery, 31_000)
    (delivery,) = plan(pipeline, 32_000, notices(begun("c", 32_000, enrolment=3))).deliveries
    pipeline.delivered(delivery, 32_000)
    assert plan(pipeline, 40_000, notices(begun("d", 33_000))).wake == 61_000


def test_of_one_place_with_very_much_to_tell_the_rest_follows_at_once() -> None:
    pipeline = Pipeline({"ops": attrs.evolve(PROMPT, most=1, group_interval=60)})
    waiting = notices(FIRST, ended(FIRST, 1500), begun("a", 1800))
    for alert in (waiting[1].alert, waiting[2].alert):
        (delivery,) = plan(pipeline, 2000, waiting).deliveries
        pipeline.delivered(delivery, 2000)
        assert told(delivery) == [alert]
        waiting = [notice for notice in waiting if notice not in delivery.notices]


def test_what_left_the_outbox_by_itself_hides_nothing() -> None:
    pipeline, outbox = Pipeline({"ops": PROMPT}), Memory()
    gone = notices(*(begun("a", number) for number in range(LOOK)))
    outbox.put([*gone, *notices(begun("a", 10**6))])
    for _ in range(2):
        pipeline.learn("ops", outbox.news("ops", pipeline.idle(10**6)["ops"], LOOK))
    outbox.told(gone, 10**6)
    (delivery,) = plan_from(pipeline, 10**6, outbox).deliveries
    assert delivery.notices == tuple(notices(begun("a", 10**6)))


def test_an_acknowledgement_counts_until_the_alert_leaves() -> None:
    pipeline = Pipeline({"ops": Manner(group_wait=5)})
    plan(pipeline, 1000, notices(FIRST))
    made = plan(pipeline, 6000, notices(begun("a", 1000, by="ann")))
    assert (made.deliveries, made.wake) == ((), None)


def test_what_is_silenced_goes_when_somebody_ends_the_silence() -> None:
    pipeline, outbox = Pipeline({"ops": PROMPT}), Memory()
    outbox.put(notices(FIRST, OTHER))
    (delivery,) = plan_from(pipeline, 1000, outbox, [silence("a", 90_000)]).deliveries
    assert told(delivery) == [OTHER]
    outbox.told(delivery.notices, 1000)
    pipeline.delivered(delivery, 1000)
    assert plan_from(pipeline, 2000, outbox, [silence("a", 90_000)]).wake == 90_000
    (delivery,) = plan_from(pipeline, 3000, outbox).deliveries
    assert told(delivery) == [FIRST]


def test_however_many_are_muted_hide_none() -> None:
    pipeline, outbox = Pipeline({"ops": PROMPT}), Memory()
    outbox.put(notices(*(begun("a", number, enrolment=number) for number in range(1001)), OTHER))
    (delivery,) = plan_from(pipeline, 2000, outbox, [silence("a", 90_000)]).deliveries
    assert told(delivery) == [OTHER]


# -- whoever has very much to say delays others by one turn


def turns_until(pipeline: Pipeline, outbox: Memory, wanted: Alert) -> int:
    """Return how many deliveries it takes until *wanted* is told."""
    now = 10_000
    for count in range(1, 100):
        while not (deliveries := (made := plan_from(pipeline, now, outbox)).deliveries):
            assert made.wake is not None
            now = made.wake
        for delivery in deliveries:
            outbox.told(delivery.notices, now)
            pipeline.delivered(delivery, now)
        if any(wanted in told(delivery) for delivery in deliveries):
            return count
    raise AssertionError("it was never told")


def many(host: str, *, enrolment: int = 1) -> list[Alert]:
    """Return alerts of 500 disks of *host*."""
    keys = [frozenset({("host", host), ("disk", str(number))}) for number in range(500)]
    return [attrs.evolve(begun(host, 1000, enrolment=enrolment), id=f"{host} {n}", key=k) for n, k in enumerate(keys)]


def test_a_group_that_has_very_much_to_tell_delays_another_by_a_turn() -> None:
    pipeline, outbox, other = Pipeline({"ops": Manner(most=10)}), Memory(), begun("b", 1000, enrolment=2)
    outbox.put(notices(*many("evil"), other))
    assert turns_until(pipeline, outbox, other) <= 2


def test_a_group_with_more_than_one_delivery_takes_delays_another_by_a_turn_though_all_may_go_at_once() -> None:
    pipeline, outbox = Pipeline({"ops": attrs.evolve(PROMPT, most=2)}), Memory()
    other = begun("b", 1000, enrolment=2)
    outbox.put(notices(*(begun(f"h{number}", 1000) for number in range(6)), other))
    assert turns_until(pipeline, outbox, other) <= 2


def test_a_source_that_has_very_much_to_tell_delays_another_of_its_group_by_a_turn() -> None:
    pipeline, outbox = Pipeline({"ops": Manner(most=10)}), Memory()
    outbox.put(notices(*many("evil"), OTHER))
    assert turns_until(pipeline, outbox, OTHER) <= 2


def test_a_place_that_has_much_to_tell_delays_another_group_by_a_turn() -> None:
    pipeline, outbox, other = Pipeline({"ops": Manner(most=1)}), Memory(), begun("b", 1000, enrolment=2)
    outbox.put(notices(*(begun("a", number) for number in range(1, 6)), other))
    assert turns_until(pipeline, outbox, other) <= 2


def test_more_sources_than_go_into_a_delivery_take_turns() -> None:
    pipeline, outbox, alerts = Pipeline({"ops": Manner(most=3)}), Memory(), [*many("x"), *many("y"), *many("z")]
    outbox.put(notices(*alerts, OTHER))
    assert turns_until(pipeline, outbox, OTHER) <= 2


# -- a step is as long, whatever waits


class Counted(Memory):
    """An outbox that counts what it hands out."""

    def __init__(self) -> None:
        super().__init__()
        self.handed = 0

    def news(self, receiver: str, after: int = 0, limit: int = 1000) -> list[tuple[int, Notice]]:
        found = super().news(receiver, after, limit)
        self.handed += len(found)
        return found

    def untold(self, receiver: str, alerts: Iterable[str]) -> list[Notice]:
        found = super().untold(receiver, alerts)
        self.handed += len(found)
        return found


def test_a_step_looks_at_a_bounded_number_of_notices_and_all_steps_at_each_a_few_times() -> None:
    pipeline, outbox, handed = Pipeline({"ops": attrs.evolve(PROMPT, most=10)}), Counted(), list[int]()
    outbox.put(notices(*(begun(f"h{number}", 1000) for number in range(2000))))
    while True:
        outbox.handed = 0
        made = step(pipeline, 2000, outbox, [Silence(1, (Label("host", Relation.MATCHES, "h.*"),), 0, 9000, "", "")])
        handed.append(outbox.handed)
        if made.wake == 9000:
            break
    assert max(handed) <= 2 * LOOK + 10
    assert sum(handed) <= 3 * 2000
    outbox.handed = 0
    outbox.put(notices(OTHER))
    for _ in range(3):
        outbox.handed = 0
        for delivery in step(pipeline, 3000, outbox).deliveries:
            outbox.told(delivery.notices, 3000)
            pipeline.delivered(delivery, 3000)
        assert 0 < outbox.handed <= 2 * LOOK + 10


def test_a_step_looks_at_a_bounded_number_of_notices_of_one_place() -> None:
    pipeline, outbox, alerts = Pipeline({"ops": PROMPT}), Counted(), [begun("a", number) for number in range(4 * LOOK)]
    outbox.put(notices(*alerts))
    for _ in range(8):
        outbox.handed = 0
        step(pipeline, 2000, outbox, [silence("a", 9000)])
        assert outbox.handed <= 2 * LOOK


def test_what_waits_for_a_receiver_that_is_down_is_not_looked_at_for_another() -> None:
    pipeline, outbox = Pipeline({"down": PROMPT, "up": PROMPT}), Counted()
    outbox.put(notices(*(begun(f"h{number}", 1000) for number in range(2000)), to="down"))
    (delivery,) = plan_from(pipeline, 2000, outbox).deliveries
    pipeline.failed(delivery, 2000, NotDelivered("down", wait=600))
    outbox.put(notices(FIRST, to="up"))
    outbox.handed = 0
    (delivery,) = plan_from(pipeline, 3000, outbox).deliveries
    assert (delivery.receiver, outbox.handed) == ("up", 2)  # as news, and to see what may be told


def test_the_pipeline_learns_of_flapping_from_what_it_is_given() -> None:
    pipeline, heard, alerts = Pipeline({"ops": PROMPT}, Damping(changes=2, within=10)), list[Remark](), list[Alert]()
    for at in range(0, 5000, 1000):
        alerts.append(ended(alerts[-1], at) if at % 2000 else begun("a", at))
        for delivery in plan(pipeline, at, notices(alerts[-1])).deliveries:
            pipeline.delivered(delivery, at)
            heard += [story.remark for story in delivery.stories]
    assert heard == [Remark.NONE, Remark.NONE, Remark.FLAPPING]


def test_flapping_goes_on_over_a_restart() -> None:
    alerts: list[Alert] = []
    for at in range(0, 6000, 1000):
        alerts.append(ended(alerts[-1], at) if at % 2000 else begun("a", at))
    waiting = notices(*alerts[4:])
    forgetful = Pipeline({"ops": PROMPT}, Damping(changes=2, within=10))
    assert plan(forgetful, 6000, waiting).deliveries
    pipeline = Pipeline({"ops": PROMPT}, Damping(changes=2, within=10))
    pipeline.recall(reversed(alerts[1::2]))  # as a book knows them: ended, the newest first
    assert plan(pipeline, 6000, waiting).deliveries == ()
    (delivery,) = plan(pipeline, 15_000, waiting).deliveries
    assert [story.remark for story in delivery.stories] == [Remark.CALMED]


# -- whatever happens, whenever it is cut short


class Telling(RuleBasedStateMachine):
    """Alerts begin and end, receivers fail, somebody silences, the process dies: nothing is lost.

    The machine plays the world and keeps what must be true of it; an outbox is all that outlives a restart.
    """

    MANNERS = {  # noqa: RUF012 - constant
        "ops": attrs.evolve(PROMPT, most=2, tries=10**5),
        "mail": Manner(group_wait=2, group_interval=20, rate=0.2, burst=2, tries=10**5),
        "boss": attrs.evolve(PROMPT, after=15, tries=10**5),
    }

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000_000
        self.outbox = Memory()
        self.made: list[Notice] = []
        self.firing: dict[str, Alert] = {}
        self.past: list[Alert] = []
        self.silences: list[Silence] = []
        self.told: set[tuple[str, State, str]] = set()
        self.dropped: set[tuple[str, State, str]] = set()
        self.start()

    def start(self) -> None:
        self.pipeline = Pipeline(self.MANNERS, Damping(changes=4, within=30))
        self.pipeline.recall([*self.past, *self.firing.values()])
        self.flying: list[Delivery] = []

    def announce(self, alert: Alert) -> None:
        fresh = [notice for name in self.MANNERS for notice in notices(alert, to=name)]
        self.made += fresh
        self.outbox.put(fresh)

    @rule(host=st.sampled_from("ab"))
    def change(self, host: str) -> None:
        self.now += 1
        if host in self.firing:
            over = ended(self.firing.pop(host), self.now)
            self.past.append(over)
            self.announce(over)
        else:
            self.firing[host] = begun(host, self.now)
            self.announce(self.firing[host])

    @rule(seconds=st.sampled_from([1, 10, 100]))
    def wait(self, seconds: int) -> None:
        self.now += seconds * 1000

    @rule(host=st.sampled_from("ab"), seconds=st.integers(1, 60))
    def hush(self, host: str, seconds: int) -> None:
        label = Label("host", Relation.IS, host)
        self.silences.append(Silence(1, (label,), self.now, self.now + seconds * 1000, "ann", ""))

    @rule()
    def plan(self) -> None:
        made = plan_from(self.pipeline, self.now, self.outbox, self.silences)
        self.dropped |= {notice.id for notice in made.dropped}
        for delivery in made.deliveries:
            assert delivery.receiver not in {other.receiver for other in self.flying}
            self.flying.append(delivery)

    @precondition(lambda self: self.flying)
    @rule(recorded=st.booleans())
    def arrive(self, recorded: bool) -> None:
        delivery = self.flying.pop(0)
        self.told |= {notice.id for notice in delivery.notices}
        if recorded:
            self.outbox.told(delivery.notices, self.now)
            self.pipeline.delivered(delivery, self.now)
        else:
            self.start()  # died between telling and writing it down

    @precondition(lambda self: self.flying)
    @rule()
    def fail(self) -> None:
        delivery = self.flying.pop(0)
        failed = self.pipeline.failed(delivery, self.now, NotDelivered("down"))
        assert failed.postponed is not None
        self.outbox.postpone(failed.postponed, failed.due, "down")

    @rule()
    def die(self) -> None:
        self.start()

    @invariant()
    def nothing_is_lost(self) -> None:
        waiting = {notice.id for notice in everything(self.outbox)}
        assert {notice.id for notice in self.made} == waiting | self.told | self.dropped

    @invariant()
    def only_whole_stories_are_dropped(self) -> None:
        assert {id_ for id_, _, _ in self.dropped} <= {alert.id for alert in self.past}
        for id_, _, receiver in self.dropped - self.told:
            assert {(id_, State.FIRING, receiver), (id_, State.RESOLVED, receiver)} <= self.dropped | self.told

    def teardown(self) -> None:
        """With all receivers up and silences over, everything is told within a bounded number of plans."""
        self.start()
        self.silences.clear()
        for _ in range(4 * len(self.made) + 100):
            self.now += 10_000
            self.plan()
            while self.flying:
                self.arrive(recorded=True)
        assert not everything(self.outbox)


TestTelling = Telling.TestCase
TestTelling.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


# -- the thin face


@asynccontextmanager
async def telling(outbox: Memory, pipeline: Pipeline, ears: dict[str, Ear]) -> AsyncGenerator[Teller]:
    teller = Teller(outbox, pipeline, ears, lambda: 10_000)
    task = asyncio.create_task(teller.run())
    yield teller
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert all(ear.closed for ear in ears.values())


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.01)


async def test_what_is_told_leaves_the_outbox() -> None:
    outbox, ear = Memory(), Ear()
    async with telling(outbox, Pipeline({"ops": PROMPT}), {"ops": ear}) as teller:
        outbox.put(notices(FIRST))
        teller.poke()
        await until(lambda: teller.delivered == 1)
    assert [told(delivery) for delivery in ear.heard] == [[FIRST]]
    assert everything(outbox) == []


async def test_what_failed_is_tried_again_and_says_why_meanwhile() -> None:
    outbox, ear = Memory(), Ear(NotDelivered("host unreachable"))
    now = 10_000
    teller = Teller(outbox, Pipeline({"ops": PROMPT}), {"ops": ear}, lambda: now)
    task = asyncio.create_task(teller.run())
    outbox.put(notices(FIRST))
    teller.poke()
    await until(lambda: teller.failures)
    assert teller.failures == {"ops": "host unreachable"}
    now += 10_000
    teller.poke()
    await until(lambda: teller.delivered == 1)
    assert teller.failures == {}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_refusal_is_logged_and_leaves_the_outbox(caplog: pytest.LogCaptureFixture) -> None:
    outbox, ear = Memory(), Ear(refusal("404 Not Found"))
    async with telling(outbox, Pipeline({"ops": PROMPT}), {"ops": ear}) as teller:
        outbox.put([*notices(FIRST), *notices(FIRST, to="gone")])
        teller.poke()
        await until(lambda: not everything(outbox))
    assert "ops: 1 notices are given up: 404 Not Found" in caplog.messages
    assert "gone: no such receiver is configured, so that its 1 notices go" in caplog.messages


async def test_however_many_notices_are_for_nobody_they_go() -> None:
    outbox = Memory()
    outbox.put(notices(*(begun("a", number) for number in range(2 * LOOK + 1)), to="gone"))
    async with telling(outbox, Pipeline({}), {}):
        await until(lambda: not everything(outbox))


async def test_what_could_not_be_noted_as_unheard_is_noted_later() -> None:
    class Full(Memory):
        full = True

        def refuse(self, notices: Sequence[Notice], now: int, error: str) -> None:
            if self.full:
                self.full = False
                raise OSError(28, "No space left on device")
            super().refuse(notices, now, error)

    now, outbox = 10_000, Full()
    teller = Teller(outbox, Pipeline({"ops": attrs.evolve(PROMPT, after=60)}), {"ops": Ear()}, lambda: now)
    outbox.put(notices(FIRST, ended(FIRST, 2000)))
    task = asyncio.create_task(teller.run())
    await until(lambda: not outbox.full)
    now += 10_000
    teller.poke()
    await until(lambda: not everything(outbox))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_notifier_that_hangs_is_cut_off_and_one_that_breaks_does_not_show_its_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Deaf(Ear):
        async def tell(self, delivery: Delivery) -> None:
            await asyncio.sleep(3600)

    outbox, broken = Memory(), Ear(ValueError("token=hunter2"))
    manners = {"deaf": attrs.evolve(PROMPT, timeout=0.05), "broken": PROMPT, "ops": PROMPT}
    ear = Ear()
    async with telling(outbox, Pipeline(manners), {"deaf": Deaf(), "broken": broken, "ops": ear}) as teller:
        outbox.put([notice for name in manners for notice in notices(FIRST, to=name)])
        teller.poke()
        await until(lambda: len(teller.failures) == 2 and teller.delivered)
        assert teller.failures == {"deaf": "no answer within 0.05 s", "broken": "the notifier failed with ValueError"}
    assert "hunter2" not in caplog.text
    assert [told(delivery) for delivery in ear.heard] == [[FIRST]]


class Slow(Ear):
    """A notifier that tells when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.may = asyncio.Event(), asyncio.Event()

    async def tell(self, delivery: Delivery) -> None:
        self.began.set()
        await self.may.wait()
        await super().tell(delivery)


async def test_a_delivery_in_flight_when_telling_ends_may_end_and_is_not_told_again() -> None:
    outbox, ear = Memory(), Slow()
    teller = Teller(outbox, Pipeline({"ops": PROMPT}), {"ops": ear}, lambda: 10_000)
    task = asyncio.create_task(teller.run())
    outbox.put(notices(FIRST))
    teller.poke()
    await ear.began.wait()
    task.cancel()
    await asyncio.sleep(0.01)
    outbox.put(notices(ended(FIRST, 2000)))
    teller.poke()
    ear.may.set()
    await asyncio.gather(task, return_exceptions=True)
    assert ([told(delivery) for delivery in ear.heard], ear.closed, task.cancelled()) == ([[FIRST]], True, True)
    assert [notice.alert for _, notice in outbox.news("ops", 0, 9)] == [ended(FIRST, 2000)]


async def test_a_delivery_that_takes_too_long_when_telling_ends_is_left_for_the_next_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mbroker.alerts.notify._GRACE", 0.05)
    outbox, ear = Memory(), Slow()
    async with telling(outbox, Pipeline({"ops": PROMPT}), {"ops": ear}) as teller:
        outbox.put(notices(FIRST))
        teller.poke()
        await ear.began.wait()
    assert ear.heard == []
    assert everything(outbox) == notices(FIRST)


async def test_an_outbox_that_fails_neither_ends_the_teller_nor_makes_it_spin(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Full(Memory):
        full = True

        def told(self, notices: object, now: int) -> None:
            if self.full:
                raise OSError(28, "No space left on device")
            super().told(notices, now)  # type: ignore[arg-type]

    caplog.set_level(logging.WARNING)
    outbox, ear = Full(), Ear()
    async with telling(outbox, Pipeline({"ops": PROMPT}), {"ops": ear}) as teller:
        outbox.put(notices(FIRST))
        teller.poke()
        await until(lambda: teller.failures)
        await asyncio.sleep(0.2)
        assert teller.failures == {"ops": "told, but that could not be written down"}
        assert len(ear.heard) == 1  # the fixed clock never reaches the next try


async def test_the_book_is_an_outbox(tmp_path: Path) -> None:
    with Book(tmp_path / "book.sqlite") as book:
        number = book.enrol("ann", Subscription.parse("load > 8"), ["ops"], 1000).number
        key = frozenset({("host", "a")})
        book.record([Edge(number, key, firing=True, at=2000), Edge(number, key, firing=False, at=3000)], 3000)
        ear = Ear()
        teller = Teller(book, Pipeline({"ops": PROMPT}), {"ops": ear}, lambda: 10_000)
        task = asyncio.create_task(teller.run())
        await until(lambda: teller.delivered == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        (delivery,) = ear.heard
        assert [(alert.since, alert.until) for alert in told(delivery)] == [(2000, 3000)]
        assert len(delivery.notices) == 2
        assert everything(book) == []


class Died(BaseException):
    """The process ends here."""


class Mortal:
    """A book whose process dies at one of the calls: before it, or after it took effect."""

    def __init__(self, book: Book, deadline: int, *, after: bool) -> None:
        self._book, self._left, self._after = book, deadline, after

    def __getattr__(self, name: str) -> Callable[..., object]:
        method = getattr(self._book, name)

        def call(*arguments: object) -> object:
            self._left -= 1
            if self._left < 0 and not self._after:
                raise Died
            done = method(*arguments)
            if self._left < 0:
                raise Died
            return done

        return call


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_dying_at_any_call_loses_no_notice_and_repeats_none_under_another_name(
    tmp_path: Path, after: bool
) -> None:
    ticks = itertools.count(10_000, 1000)

    def clock() -> int:
        return next(ticks)

    for deadline in range(9):
        with Book(tmp_path / f"{deadline}" / "book.sqlite") as book:
            number = book.enrol("ann", Subscription.parse("load > 8"), ["ops", "mail", "gone"], 1000).number
            edges = [Edge(number, frozenset({("host", host)}), firing=True, at=2000) for host in "abc"]
            book.record([*edges, edges[0]._replace(firing=False, at=3000)], 3000)
            expected = {notice.id for notice in everything(book) if notice.receiver != "gone"}
            ops, mail = Ear(None, NotDelivered("busy")), Ear()
            manners = {"ops": attrs.evolve(PROMPT, most=1, retry_first=0.01), "mail": PROMPT}
            lives = 0
            while everything(book):
                mortal: Any = Mortal(book, deadline if lives == 0 else 10**6, after=after)
                teller = Teller(mortal, Pipeline(manners), {"ops": ops, "mail": mail}, clock)
                life = asyncio.create_task(teller.run())
                while not life.done() and everything(book):
                    teller.poke()
                    await asyncio.sleep(0.01)
                life.cancel()
                ended_by = (await asyncio.gather(life, return_exceptions=True))[0]
                assert isinstance(ended_by, asyncio.CancelledError | BaseExceptionGroup | Died)
                lives += 1
            heard = {notice.id for delivery in (*ops.heard, *mail.heard) for notice in delivery.notices}
            assert heard == expected
            assert lives == 2


async def test_the_book_remembers_what_was_never_told_and_why(tmp_path: Path) -> None:
    with Book(tmp_path / "book.sqlite") as book:
        number = book.enrol("ann", Subscription.parse("load > 8"), ["ops"], 1000).number
        book.record([Edge(number, frozenset({("host", "a")}), firing=True, at=2000)], 2000)
        teller = Teller(book, Pipeline({"ops": PROMPT}), {"ops": Ear(refusal("HTTP status 404"))}, lambda: 10_000)
        task = asyncio.create_task(teller.run())
        await until(lambda: not everything(book))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert "HTTP status 404" in book.audit(1)[0].what
