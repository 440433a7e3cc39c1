"""The pipeline: who is told what and when, and that nothing is lost whenever it is cut short."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable
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
from mbroker.alerts.language import Subscription
from mbroker.alerts.notify import Pipeline, Teller
from mbroker.alerts.outbox import Memory
from mbroker.alerts.selector import Label, Relation
from mbroker.alerts.silence import Silence
from mbroker.alerts.stages import Damping
from tests.unit.notify_world import PROMPT, Ear, begun, ended, notices, refusal, silence

FIRST, OTHER = begun("a", 1000), begun("b", 1000)


def told(delivery: Delivery) -> list[Alert]:
    return [story.alert for story in delivery.stories]


def test_a_group_waits_for_others_and_is_told_together() -> None:
    pipeline = Pipeline({"ops": Manner(group_wait=5, group_interval=60)})
    assert pipeline.plan(1000, notices(FIRST)).wake == 6000
    (delivery,) = pipeline.plan(6000, notices(FIRST, OTHER)).deliveries
    assert {alert.id for alert in told(delivery)} == {FIRST.id, OTHER.id}
    assert delivery.group == (("subscription", "1"),)


def test_the_next_delivery_of_a_group_waits_for_the_interval_and_those_of_others_do_not() -> None:
    pipeline = Pipeline({"ops": Manner(group_wait=0, group_interval=60)})
    (delivery,) = pipeline.plan(1000, notices(FIRST)).deliveries
    pipeline.delivered(delivery, 1100)
    assert pipeline.plan(2000, notices(OTHER)).wake == 61_100
    stranger = begun("c", 1000, enrolment=2)
    (delivery,) = pipeline.plan(2000, notices(OTHER, stranger)).deliveries
    assert told(delivery) == [stranger]
    pipeline.delivered(delivery, 2000)
    assert pipeline.plan(61_100, notices(OTHER)).deliveries


def test_what_is_in_flight_is_not_told_twice_and_holds_back_its_receiver_alone() -> None:
    pipeline = Pipeline({"ops": PROMPT, "boss": PROMPT})
    assert len(pipeline.plan(1000, notices(FIRST)).deliveries) == 1
    plan = pipeline.plan(1001, [*notices(FIRST, OTHER), *notices(FIRST, to="boss")])
    assert [delivery.receiver for delivery in plan.deliveries] == ["boss"]


def test_more_alerts_than_go_into_a_delivery_follow_at_once() -> None:
    pipeline = Pipeline({"ops": attrs.evolve(PROMPT, most=2, group_interval=60)})
    waiting = notices(*(begun(f"h{number}", number) for number in range(5)))
    sizes: list[int] = []
    while waiting:
        (delivery,) = pipeline.plan(1000, waiting).deliveries
        pipeline.delivered(delivery, 1000)
        sizes.append(len(delivery.stories))
        waiting = [notice for notice in waiting if notice not in delivery.notices]
    assert sizes == [2, 2, 1]


def test_the_rate_of_a_receiver_is_limited() -> None:
    pipeline = Pipeline({"ops": attrs.evolve(PROMPT, rate=0.1, burst=1)})
    (delivery,) = pipeline.plan(1000, notices(FIRST)).deliveries
    pipeline.delivered(delivery, 1000)
    assert pipeline.plan(2000, notices(OTHER)).wake == 11_000


def test_a_failure_backs_off_and_grows_with_the_attempts() -> None:
    pipeline = Pipeline({"ops": attrs.evolve(PROMPT, retry_first=8, retry_most=1000)})
    for attempts, shortest in [(0, 4), (3, 32)]:
        (delivery,) = pipeline.plan(0, [Notice(FIRST, "ops", attempts)]).deliveries
        failed = pipeline.failed(delivery, 0, NotDelivered("down"))
        assert shortest * 1000 <= failed.due <= 2 * shortest * 1000
        assert (failed.postponed, failed.refused) == (Notice(FIRST, "ops", attempts), ())
        pipeline = Pipeline({"ops": attrs.evolve(PROMPT, retry_first=8, retry_most=1000)})


def test_a_receiver_that_is_down_is_left_alone_with_newer_alerts_too() -> None:
    pipeline = Pipeline({"ops": PROMPT, "boss": PROMPT})
    (delivery,) = pipeline.plan(0, notices(FIRST)).deliveries
    due = pipeline.failed(delivery, 0, NotDelivered("down", wait=30)).due
    assert due == 30_000
    plan = pipeline.plan(1, [*notices(OTHER), *notices(OTHER, to="boss")])
    assert ([delivery.receiver for delivery in plan.deliveries], plan.wake) == (["boss"], 30_000)


def test_a_receiver_may_not_ask_for_more_rest_than_the_longest_wait() -> None:
    pipeline = Pipeline({"ops": attrs.evolve(PROMPT, retry_most=60)})
    (delivery,) = pipeline.plan(0, notices(FIRST)).deliveries
    assert pipeline.failed(delivery, 0, NotDelivered("down", wait=1e9)).due == 60_000


def test_a_permanent_refusal_is_given_up_at_once() -> None:
    pipeline = Pipeline({"ops": PROMPT})
    (delivery,) = pipeline.plan(0, notices(FIRST, OTHER)).deliveries
    assert set(pipeline.failed(delivery, 0, refusal()).refused) == set(notices(FIRST, OTHER))


def test_after_too_many_tries_the_notice_that_had_them_is_given_up_and_no_other() -> None:
    pipeline = Pipeline({"ops": attrs.evolve(PROMPT, tries=3)})
    eldest = Notice(FIRST, "ops", attempts=2)
    (delivery,) = pipeline.plan(0, [eldest, *notices(OTHER)]).deliveries
    failed = pipeline.failed(delivery, 0, NotDelivered("down"))
    assert (failed.refused, failed.postponed) == ((eldest,), None)


def test_muted_and_short_alerts_are_dropped_and_unknown_receivers_named() -> None:
    pipeline = Pipeline({"ops": PROMPT, "boss": attrs.evolve(PROMPT, after=60)})
    short = [FIRST, ended(FIRST, 2000)]
    plan = pipeline.plan(3000, [*notices(*short), *notices(*short, to="boss")], [silence("a", 9000)])
    assert (plan.deliveries, set(plan.dropped)) == ((), {*notices(*short), *notices(*short, to="boss")})
    assert pipeline.plan(3000, notices(FIRST, to="gone")).strangers == tuple(notices(FIRST, to="gone"))


def test_a_clock_that_is_set_back_stops_nothing() -> None:
    pipeline = Pipeline({"ops": attrs.evolve(PROMPT, rate=1, burst=1)})
    (delivery,) = pipeline.plan(10**12, notices(FIRST)).deliveries
    pipeline.delivered(delivery, 10**12)
    pipeline.plan(10**12 + 1000, ())
    assert pipeline.plan(5000, notices(OTHER)).deliveries


def test_the_pipeline_learns_of_flapping_from_what_it_is_given() -> None:
    pipeline, heard, alerts = Pipeline({"ops": PROMPT}, Damping(changes=2, within=10)), list[Remark](), list[Alert]()
    for at in range(0, 5000, 1000):
        alerts.append(ended(alerts[-1], at) if at % 2000 else begun("a", at))
        for delivery in pipeline.plan(at, notices(alerts[-1])).deliveries:
            pipeline.delivered(delivery, at)
            heard += [story.remark for story in delivery.stories]
    assert heard == [Remark.NONE, Remark.NONE, Remark.FLAPPING]


def test_flapping_goes_on_over_a_restart() -> None:
    alerts: list[Alert] = []
    for at in range(0, 6000, 1000):
        alerts.append(ended(alerts[-1], at) if at % 2000 else begun("a", at))
    waiting = notices(*alerts[4:])
    forgetful = Pipeline({"ops": PROMPT}, Damping(changes=2, within=10))
    assert forgetful.plan(6000, waiting).deliveries
    pipeline = Pipeline({"ops": PROMPT}, Damping(changes=2, within=10))
    pipeline.recall(reversed(alerts[1::2]))  # as a book knows them: ended, the newest first
    assert pipeline.plan(6000, waiting).deliveries == ()
    (delivery,) = pipeline.plan(15_000, waiting).deliveries
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
        plan = self.pipeline.plan(self.now, self.outbox.notices(self.now), self.silences)
        assert not plan.strangers
        assert plan.wake is None or plan.wake > self.now
        self.outbox.told(plan.dropped, self.now)
        self.dropped |= {notice.id for notice in plan.dropped}
        for delivery in plan.deliveries:
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
        waiting = {notice.id for notice in self.outbox.notices(10**15, 10**6)}
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
        assert not self.outbox.notices(10**15, 10**6)


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
    assert outbox.notices(10**15) == []


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
        await until(lambda: not outbox.notices(10**15))
    assert "ops: 1 notices are given up: 404 Not Found" in caplog.messages
    assert "gone: no such receiver is configured, so that its 1 notices go" in caplog.messages


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
        assert book.notices(10**15) == []


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
            expected = {notice.id for notice in book.notices(10**15) if notice.receiver != "gone"}
            ops, mail = Ear(None, NotDelivered("busy")), Ear()
            manners = {"ops": attrs.evolve(PROMPT, most=1, retry_first=0.01), "mail": PROMPT}
            lives = 0
            while book.notices(10**15):
                mortal: Any = Mortal(book, deadline if lives == 0 else 10**6, after=after)
                teller = Teller(mortal, Pipeline(manners), {"ops": ops, "mail": mail}, clock)
                life = asyncio.create_task(teller.run())
                while not life.done() and book.notices(10**15):
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
        await until(lambda: not book.notices(10**15))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert "HTTP status 404" in book.audit(1)[0].what
