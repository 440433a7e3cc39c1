"""Telling people: the pipeline from notices in the outbox to deliveries, and the task that carries it out.

At least once: a notice leaves the outbox when its delivery was confirmed, so that one in flight when the process
dies is told again. The ids of its alerts let whoever hears twice know. Each receiver has one delivery in flight at
most and its own back-off: one that is down delays only itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

import attrs

from .alert import Alert, Notice
from .clock import unix_ms
from .delivery import Delivery, Manner, NotDelivered, Notifier
from .dispatcher import LOOK, Dispatcher, Failed
from .outbox import Outbox
from .silence import Silence
from .stages import Damping, Place, Sifted, escalate, mute, pair, sooner

__all__ = ["Failed", "Pipeline", "Plan", "Teller"]

_POLL = 10.0  # seconds between looks into the outbox when nobody says that there is news
_GRACE = 2.0  # seconds that deliveries in flight have to end in when telling does
_LEISURE = 5  # times as long as a plan took: when very much waits, others have their share of the loop

_UNHEARD = "it came and went while it was silenced, acknowledged or too young to escalate"
_STRANGER = "no such receiver is configured"

_log = logging.getLogger(__name__)


@attrs.frozen
class Plan:
    """What is to be done now."""

    deliveries: tuple[Delivery, ...] = ()
    dropped: tuple[Notice, ...] = ()
    """Alerts that came and went while nobody wanted to hear of them. What is not noted as dropped comes again."""
    wake: int | None = None
    """When to plan again, unless there is news before; in milliseconds of the Unix clock. It may be now."""


class Pipeline:
    """Decides who is told what, and when. Pure: time and notices come in, plans go out.

    A step is to :meth:`learn` what is new for those who are :meth:`idle`, and to :meth:`plan` with what is
    :meth:`wanted`. It takes a bounded time, whatever waits, for whomever.

    What it remembers (who was told when, which place flaps) only saves its hearers repetition; without it,
    after a restart, a group may be told sooner than its interval. :meth:`recall` restores what it knew of flapping.
    """

    def __init__(self, manners: Mapping[str, Manner], damping: Damping | None = None) -> None:
        self._dispatchers = {name: Dispatcher(name, manner) for name, manner in manners.items()}
        self._damping = damping or Damping()
        self._silences: list[Silence] = []
        self._now = 0  # a clock that is set back must not stop what waits

    def recall(self, alerts: Iterable[Alert]) -> None:
        """Learn from *alerts* of the past, such as those of the last day, what flaps; before the first plan."""
        known = list(alerts)
        self._damping.see([attrs.evolve(alert, until=None) for alert in known] + known)

    def idle(self, now: int) -> dict[str, int]:
        """Return who may be told something, and the highest number of a notice to each that was learned of."""
        now = self._now = max(self._now, now)
        return {name: dispatcher.newest for name, dispatcher in self._dispatchers.items() if dispatcher.is_idle(now)}

    def learn(self, receiver: str, news: Sequence[tuple[int, Notice]]) -> None:
        """Take note of notices and their numbers: the first :data:`.dispatcher.LOOK` of those higher than known."""
        self._damping.see([notice.alert for _, notice in news])
        self._dispatchers[receiver].learn(news)

    def wanted(self, now: int) -> dict[str, list[str]]:
        """Return the ids of the alerts of which to hand all notices that wait to :meth:`plan`, by receiver."""
        return {name: self._dispatchers[name].wanted(self._now) for name in self.idle(now)}

    def plan(self, now: int, notices: Mapping[str, Iterable[Notice]], silences: Iterable[Silence] = ()) -> Plan:
        """Return what to do, given the *notices* that were :meth:`wanted` of each receiver.

        For each delivery, :meth:`delivered` or :meth:`failed` has to be called before its receiver gets another.
        """
        said, now = now, max(self._now, now)
        self._now = now
        present = [silence for silence in silences if silence.since <= now < silence.until]
        if present != self._silences:
            self._silences = present
            for dispatcher in self._dispatchers.values():
                dispatcher.learn_silences()
        self._damping.forget(now, self._is_waiting)
        deliveries, dropped = list[Delivery](), list[Notice]()
        for name, found in notices.items():
            dispatcher = self._dispatchers[name]
            delivery, unheard = dispatcher.plan(now, found, partial(self._sift, dispatcher.manner, now))
            deliveries += [delivery] if delivery else []
            dropped += unheard
        wake = sooner(*(dispatcher.wake(now) for dispatcher in self._dispatchers.values()))
        return Plan(tuple(deliveries), tuple(dropped), None if wake is None else max(wake - now, 0) + said)

    def timeout(self, receiver: str) -> float:
        """Return how many seconds one attempt to tell *receiver* may take."""
        return self._dispatchers[receiver].manner.timeout

    def delivered(self, delivery: Delivery, now: int) -> None:
        """Take note that *delivery* was told and has left the outbox."""
        self._dispatchers[delivery.receiver].delivered(delivery, now)

    def failed(self, delivery: Delivery, now: int, failure: NotDelivered) -> Failed:
        """Return what becomes of the notices of *delivery*, which was not told."""
        return self._dispatchers[delivery.receiver].failed(delivery, now, failure)

    def _is_waiting(self, place: Place) -> bool:
        return any(place in dispatcher for dispatcher in self._dispatchers.values())

    def _sift(self, manner: Manner, now: int, notices: Iterable[Notice]) -> Sifted:
        muted = mute(self._silences, now, pair(notices))
        ripe = escalate(manner.after, now, muted.go)
        calm = self._damping.damp(now, ripe.go)
        return Sifted(calm.go, muted.dropped + ripe.dropped, sooner(muted.wake, ripe.wake, calm.wake))


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
        self._flying = set[asyncio.Task[None]]()
        self.delivered = 0
        """Deliveries confirmed."""
        self.failures: dict[str, str] = {}
        """Receivers that were not told, and why, the last time that it was tried."""

    def poke(self) -> None:
        """Say that there are new notices, silences or acknowledgements."""
        self._news.set()

    async def run(self) -> None:
        """Tell until cancelled; deliveries in flight then may end, and the slowest are told again at the next start."""
        try:
            async with asyncio.TaskGroup() as tasks:
                try:
                    await self._keep_telling(tasks)
                finally:
                    if self._flying:
                        await asyncio.wait(self._flying, timeout=_GRACE)
        finally:
            for notifier in self._notifiers.values():
                await notifier.close()

    async def _keep_telling(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            self._news.clear()
            began, worked = time.monotonic(), time.thread_time()
            wake = self._step(tasks)
            rest = began + _LEISURE * (time.thread_time() - worked)
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL if wake is None else min(_POLL, wake)):
                    await self._news.wait()
            if (left := rest - time.monotonic()) > 0:
                await asyncio.sleep(left)

    def _step(self, tasks: asyncio.TaskGroup) -> float | None:
        """Put one plan to work; return in how many seconds to plan again."""
        now = self._clock()
        try:
            for receiver, newest in self._pipeline.idle(now).items():
                self._pipeline.learn(receiver, self._outbox.news(receiver, newest, LOOK))
            wanted = self._pipeline.wanted(now)
            notices = {name: self._outbox.untold(name, alerts) for name, alerts in wanted.items() if alerts}
            plan = self._pipeline.plan(now, notices, self._outbox.silences(now))
            more = not plan.deliveries and self._refuse_strangers(now)  # after a delivery comes another step
        except Exception as error:  # a disk that fails now may work later, and telling must not end
            _log.error("the outbox cannot be read: %s", error)
            return None
        for delivery in plan.deliveries:
            task = tasks.create_task(self._tell(delivery))
            self._flying.add(task)
            task.add_done_callback(self._flying.discard)
        if plan.dropped:
            self._record(lambda: self._outbox.refuse(plan.dropped, now, _UNHEARD))
        if more:
            return 0
        return None if plan.wake is None else max(plan.wake - now, 0) / 1000

    def _refuse_strangers(self, now: int) -> bool:
        """Let go of notices to receivers that are not known any more; tell whether there may be more of them."""
        more = False
        for name in self._outbox.receivers():
            if name not in self._notifiers:
                notices = [notice for _, notice in self._outbox.news(name, 0, LOOK)]
                _log.error("%s: %s, so that its %d notices go", name, _STRANGER, len(notices))
                more |= self._record(partial(self._outbox.refuse, notices, now, _STRANGER))
        return more

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
