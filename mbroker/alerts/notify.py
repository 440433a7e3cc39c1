"""Telling people: the pipeline from notices in the outbox to deliveries, and the task that carries it out.

At least once: a notice leaves the outbox when its delivery was confirmed, so that one in flight when the process
dies is told again. The ids of its alerts let whoever hears twice know. Each receiver has one delivery in flight at
most and its own back-off: one that is down delays only itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress

import attrs

from .alert import Alert, Notice
from .clock import unix_ms
from .delivery import Common, Delivery, Manner, NotDelivered, Notifier, Story
from .outbox import Outbox
from .silence import Silence
from .stages import Damping, Pace, back_off, escalate, group_of, mute, pair, sooner

__all__ = ["Failed", "Pipeline", "Plan", "Teller"]

_POLL = 10.0  # seconds between looks into the outbox when nobody says that there is news
_LEAST = 1000  # notices that are looked at at once
_LEISURE = 5  # times as long as a plan took: when very much waits, others have their share of the loop

_UNHEARD = "it came and went while it was silenced, acknowledged or too young to escalate"

_log = logging.getLogger(__name__)


@attrs.frozen
class Plan:
    """What is to be done now."""

    deliveries: tuple[Delivery, ...] = ()
    dropped: tuple[Notice, ...] = ()
    """Alerts that came and went while nobody wanted to hear of them."""
    strangers: tuple[Notice, ...] = ()
    """Notices to receivers that are not known any more."""
    wake: int | None = None
    """When to plan again, unless there is news before; in milliseconds of the Unix clock."""


@attrs.frozen
class Failed:
    """What becomes of a delivery that failed; notices that are named nowhere are due still."""

    postponed: Notice | None = None
    """The one that counts the failures, for all."""
    due: int = 0
    """When it is tried again."""
    refused: tuple[Notice, ...] = ()
    """Those that are given up."""


@attrs.define
class _Group:
    seen: int | None = None
    """Since when something waits."""
    last: int | None = None
    """When it was told last."""
    more: bool = False
    """Whether what is in flight is only the first part."""

    def ready(self, manner: Manner, now: int) -> int:
        """Return when it may be told."""
        if self.seen is None:
            self.seen = now
        waited = self.seen + round(manner.group_wait * 1000)
        return waited if self.last is None else max(waited, self.last + round(manner.group_interval * 1000))


@attrs.define
class _Desk:
    """Where the deliveries to one receiver leave from."""

    manner: Manner
    pace: Pace = attrs.field(factory=Pace)
    busy: bool = False
    rests_until: int = 0
    """The back-off after a failure, for the whole receiver."""
    groups: dict[Common, _Group] = attrs.field(factory=lambda: dict[Common, _Group]())

    def choose(self, receiver: str, now: int, stories: Iterable[Story]) -> tuple[Delivery | None, int | None]:
        """Return the delivery that may leave now, if any, and when to look again."""
        waiting: dict[Common, list[Story]] = {}
        for story in stories:
            waiting.setdefault(group_of(self.manner, story.alert), []).append(story)
        self._forget(now, waiting)
        ready = {group: self.groups.setdefault(group, _Group()).ready(self.manner, now) for group in waiting}
        if not ready:
            return None, None
        group = min(ready, key=lambda group: (ready[group], group))
        at = max(ready[group], self.pace.ready(self.manner))
        if at > now:
            return None, at
        self.pace.take(self.manner, now)
        self.busy = True
        self.groups[group].more = len(waiting[group]) > self.manner.most
        return Delivery(receiver, group, tuple(waiting[group][: self.manner.most])), None

    def _forget(self, now: int, waiting: Container[Common]) -> None:
        """Let go of groups that the interval does not hold back any more."""
        interval = round(self.manner.group_interval * 1000)
        for group in [group for group in self.groups if group not in waiting]:
            told = self.groups[group]
            told.seen = None
            if told.last is None or told.last + interval <= now:
                del self.groups[group]


class Pipeline:
    """Decides who is told what, and when. Pure: time and notices come in, plans go out.

    What it remembers (who was told when, which place flaps) only saves its hearers repetition; without it,
    after a restart, a group may be told sooner than its interval. :meth:`recall` restores what it knew of flapping.
    """

    def __init__(self, manners: Mapping[str, Manner], damping: Damping | None = None) -> None:
        self._desks = {name: _Desk(manner) for name, manner in manners.items()}
        self._damping = damping or Damping()
        self._waiting: frozenset[tuple[str, int | None]] = frozenset()  # what the last plan saw
        self._now = 0  # a clock that is set back must not stop what waits

    def recall(self, alerts: Iterable[Alert]) -> None:
        """Learn from *alerts* of the past, such as those of the last day, what flaps; before the first plan."""
        known = list(alerts)
        self._damping.see([attrs.evolve(alert, until=None) for alert in known] + known)

    def plan(self, now: int, notices: Iterable[Notice], silences: Sequence[Silence] = ()) -> Plan:
        """Return what to do of *notices*: all that are due, those of deliveries in flight included.

        For each delivery, :meth:`delivered` or :meth:`failed` has to be called before its receiver gets another.
        """
        now = self._now = max(self._now, now)
        mail: dict[str, list[Notice]] = {}
        for notice in notices:
            mail.setdefault(notice.receiver, []).append(notice)
        waiting = {(alert.id, alert.until): alert for letters in mail.values() for alert in (n.alert for n in letters)}
        self._damping.see(alert for name, alert in waiting.items() if name not in self._waiting)
        self._waiting = frozenset(waiting)
        self._damping.forget(now, frozenset((alert.enrolment, alert.key) for alert in waiting.values()))
        deliveries, dropped, wake = list[Delivery](), list[Notice](), None
        for name, desk in self._desks.items():
            if desk.busy or desk.rests_until > now:
                wake = wake if desk.busy else sooner(wake, desk.rests_until)
                continue
            muted = mute(silences, now, pair(mail.get(name, ())))
            ripe = escalate(desk.manner.after, now, muted.go)
            calm = self._damping.damp(now, ripe.go)
            delivery, again = desk.choose(name, now, calm.go)
            deliveries += [delivery] if delivery else []
            dropped += [notice for story in (*muted.dropped, *ripe.dropped) for notice in story.settled]
            wake = sooner(wake, muted.wake, ripe.wake, calm.wake, again)
        strangers = tuple(notice for name, letters in mail.items() if name not in self._desks for notice in letters)
        return Plan(tuple(deliveries), tuple(dropped), strangers, wake)

    def timeout(self, receiver: str) -> float:
        """Return how many seconds one attempt to tell *receiver* may take."""
        return self._desks[receiver].manner.timeout

    def delivered(self, delivery: Delivery, now: int) -> None:
        """Take note that *delivery* was told."""
        desk = self._desks[delivery.receiver]
        group = desk.groups[delivery.group]
        desk.busy, desk.rests_until = False, 0
        if not group.more:
            group.seen, group.last = None, now

    def failed(self, delivery: Delivery, now: int, failure: NotDelivered) -> Failed:
        """Return what becomes of the notices of *delivery*, which was not told."""
        desk = self._desks[delivery.receiver]
        desk.busy = False
        if failure.permanent:
            return Failed(refused=delivery.notices)
        eldest = delivery.eldest
        wait = back_off(desk.manner, eldest.alert.id, eldest.attempts)
        asked = round(min(failure.wait or 0.0, desk.manner.retry_most) * 1000)
        desk.rests_until = now + max(wait, asked)
        if eldest.attempts + 1 >= desk.manner.tries:
            return Failed(refused=(eldest,))
        return Failed(postponed=eldest, due=desk.rests_until)


class Teller:
    """Carries out what the pipeline plans: the thin face with a clock and tasks."""

    def __init__(
        self,
        outbox: Outbox,
        pipeline: Pipeline,
        notifiers: Mapping[str, Notifier],
        clock: Callable[[], int] = unix_ms,
    ) -> None:
        """Tell the notices of *outbox* through *notifiers*, which are known by the pipeline's names of receivers."""
        self._outbox = outbox
        self._pipeline = pipeline
        self._notifiers = notifiers
        self._clock = clock
        self._news = asyncio.Event()
        self._limit = _LEAST
        self.delivered = 0
        """Deliveries confirmed."""
        self.failures: dict[str, str] = {}
        """Receivers that were not told, and why, the last time that it was tried."""

    def poke(self) -> None:
        """Say that there are new notices, silences or acknowledgements."""
        self._news.set()

    async def run(self) -> None:
        """Tell until cancelled; what is in flight then is told again at the next start."""
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    self._news.clear()
                    began, worked = time.monotonic(), time.thread_time()
                    wake = self._step(tasks)
                    rest = began + _LEISURE * (time.thread_time() - worked)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_POLL if wake is None else min(_POLL, wake)):
                            await self._news.wait()
                    await asyncio.sleep(max(rest - time.monotonic(), 0))
        finally:
            for notifier in self._notifiers.values():
                await notifier.close()

    def _step(self, tasks: asyncio.TaskGroup) -> float | None:
        """Put one plan to work; return in how many seconds to plan again."""
        now = self._clock()
        try:
            notices = self._outbox.notices(now, self._limit)
            plan = self._pipeline.plan(now, notices, self._outbox.silences(now))
        except Exception as error:  # a disk that fails now may work later, and telling must not end
            _log.error("the outbox cannot be read: %s", error)
            return None
        self._limit = max(_LEAST, 2 * len(notices))  # those that wait must not hide the ones behind them
        for delivery in plan.deliveries:
            tasks.create_task(self._tell(delivery))
        if plan.dropped:
            self._record(lambda: self._outbox.refuse(plan.dropped, now, _UNHEARD))
        if plan.strangers:
            names = ", ".join(sorted({notice.receiver for notice in plan.strangers}))
            _log.error("%s: no such receiver is configured, so that its %d notices go", names, len(plan.strangers))
            self._record(lambda: self._outbox.refuse(plan.strangers, now, "no such receiver is configured"))
        return None if plan.wake is None else max(plan.wake - now, 0) / 1000

    async def _tell(self, delivery: Delivery) -> None:
        name, notices = delivery.receiver, delivery.notices
        failure = await self._attempt(delivery)
        now = self._clock()
        if failure is None and not self._record(lambda: self._outbox.told(notices, now)):
            failure = NotDelivered("told, but that could not be written down")
        if failure is None:
            self._pipeline.delivered(delivery, now)
            self.delivered += 1
            self.failures.pop(name, None)
        else:
            self._postpone(delivery, now, failure)
        self.poke()

    async def _attempt(self, delivery: Delivery) -> NotDelivered | None:
        seconds = self._pipeline.timeout(delivery.receiver)
        try:
            async with asyncio.timeout(seconds):
                await self._notifiers[delivery.receiver].tell(delivery)
        except NotDelivered as failure:
            return failure
        except TimeoutError:
            return NotDelivered(f"no answer within {seconds:g} s")
        except Exception as error:  # a notifier of others; its message may hold a secret
            return NotDelivered(f"the notifier failed with {type(error).__name__}")
        return None

    def _postpone(self, delivery: Delivery, now: int, failure: NotDelivered) -> None:
        name, reason = delivery.receiver, str(failure)
        self.failures[name] = reason
        failed = self._pipeline.failed(delivery, now, failure)
        if failed.refused:
            _log.error("%s: %d notices are given up: %s", name, len(failed.refused), reason)
            self._record(lambda: self._outbox.refuse(failed.refused, now, reason))
        if (eldest := failed.postponed) is not None:
            _log.warning("%s: not told, tried again in %.1f s: %s", name, (failed.due - now) / 1000, reason)
            self._record(lambda: self._outbox.postpone(eldest, failed.due, reason))

    def _record(self, write: Callable[[], None]) -> bool:
        """Tell whether the outbox took it; when not, what it holds is told once more, which is allowed."""
        try:
            write()
        except Exception as error:  # as in _step
            _log.error("the outbox cannot be written: %s", error)
            return False
        return True
