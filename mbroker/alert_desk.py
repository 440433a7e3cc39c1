"""The alerts of one daemon, in a thread that has them all to itself: samples, questions, time, and who is told.

Only :attr:`Desk.status` may be read by other threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from typing import Any

import attrs

from mbroker import control
from mbroker.alert_answers import Answers
from mbroker.alert_matching import matching
from mbroker.alert_receivers import notifiers
from mbroker.alert_rows import AlertsStatus
from mbroker.alert_trials import Trials
from mbroker.alerts import Subscription
from mbroker.alerts.alert import Alert
from mbroker.alerts.book import Book
from mbroker.alerts.clock import unix_ms
from mbroker.alerts.deadman import Heart
from mbroker.alerts.delivery import Manner, Notifier
from mbroker.alerts.engine_host import LostError
from mbroker.alerts.explain import Place
from mbroker.alerts.history import History
from mbroker.alerts.keeper import Keeper
from mbroker.alerts.notify import Pipeline, Teller
from mbroker.alerts.sample import SILENT
from mbroker.alerts.selector import Series
from mbroker.alerts.watch import Settings, Watch
from mbroker.alerts.wording import Wording
from mbroker.config import AlertsSection, Loaded
from mbroker.values import Invalid
from mchannel.errors import MChannelError
from mchannel.event import Event
from mchannel.samples import OFFLOADED, SERIES, Again, Declared, Offloaded, Samples

__all__ = ["Desk"]

_TICK = 1.0  # seconds
_MINUTE, _DAY = 60_000, 86_400_000
_SLACK = 60_000  # before a snapshot: what was on its way when it was taken, the engine tells apart
_REPLAYED = 600_000  # of all metrics, before a start without a snapshot
_ALERTS = 10_000  # of late, that a restart looks at

_log = logging.getLogger("mbroker.alerts")


def _section(loaded: Loaded) -> AlertsSection:
    section = loaded.config.alerts
    assert section is not None
    return section


class _Everything:
    """Accepts every series."""

    def accepts(self, _: object) -> bool:
        """Accept it."""
        return True


@attrs.frozen
class _Metrics:
    """Accepts the series of some metrics."""

    names: Collection[str]

    def accepts(self, series: Series) -> bool:
        """Tell whether it is one of theirs."""
        return series.metric in self.names


@attrs.frozen
class _Listed:
    """Accepts these series."""

    series: Collection[Series]

    def accepts(self, series: Series) -> bool:
        """Tell whether it is one of them."""
        return series in self.series


class Desk:
    """Everything about alerts, while it is open."""

    def __init__(self, loaded: Loaded, announce: Callable[[Alert], object]) -> None:
        """Open the files in the folder of alerts, and go on where the last one ended; *announce* hears of alerts.

        Needs a running event loop. Raises :exc:`~mbroker.config.ConfigError`.
        """
        section = _section(loaded)
        now = unix_ms()
        folder = section.folder or loaded.config.broker.state / "alerts"
        self._announce = announce
        self._image = folder / "engine.snapshot"
        self._files = contextlib.ExitStack()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._book = Book(folder / "book.db", size=section.book_mib << 20)
            self._files.callback(self._book.close)
            span = round(section.history_hours * 3_600_000)
            self._history = History(folder / "history", span=span, size=section.history_mib << 20)
            self._files.callback(self._history.close)
            image = self._image.read_bytes() if self._image.exists() else b""
            self._matching = matching(loaded)
            self._files.callback(self._matching.close)
            self._watch = Watch(_settings(loaded, section), self._book, self._history, now, image, self._matching)
            self._replay(now)
            told = notifiers(loaded, self._wording(loaded))
        except (OSError, MChannelError, Invalid) as error:
            self._files.close()
            raise loaded.error("alerts", "folder", reason=error) from None
        except LostError as error:
            self._files.close()
            raise loaded.error("alerts", "shards", reason=error) from None
        except BaseException:
            self._files.close()
            raise
        if self._watch.problem:
            _log.warning("%s", self._watch.problem)
        self._keeper = Keeper(self._book, self._history, self._subscription)
        self._keeper.recall(self._lately(now), now)
        self._teller, self._telling = self._told_by(section.receivers, told)
        self._receivers = section.receivers
        home = Place.BROKER if section.shards is None else Place.ENGINES
        trials = Trials(self._history, round(section.interval * 1000), offload=section.offload, home=home)
        self._answers = Answers(self._watch, self._book, trials, lambda: self._receivers, self._changed, unix_ms)
        self._lost: LostError | None = None
        self._heart = Heart(section.deadman.socket) if section.deadman else None
        self._period = section.deadman.period if section.deadman else 1.0
        self._snapped = now
        self._aside = dict[Callable[..., object], asyncio.Task[None]]()
        self.status = self._now()

    # -- what the daemon asks of it

    async def take(self, event: Event) -> Event | None:
        """Match what a publisher sent; return what is to be answered. Raises CodecError, and as :meth:`answer`.

        While the book cannot be written it waits, so that nothing more is read of whoever sent it.
        """
        with self._whole():
            answer = self._take(event)
        await asyncio.sleep(0)  # the teller begins before the publisher's thread competes with this one
        while self._watch.is_behind:  # noqa: ASYNC110 - what it waits for is a disk, which is tried every tick
            await asyncio.sleep(_TICK)
        return answer

    def answer(self, topic: str, value: str) -> Any:
        """Return the answer to a question; raise :exc:`mbroker.control.Refused`, and Absent once engines are lost."""
        with self._whole():
            return self._answers.answer(topic, value)

    @contextlib.contextmanager
    def _whole(self) -> Generator[None]:
        """Lend the engines, unless they are lost: then :meth:`run` ends, and only a restart knows what they missed."""
        if self._lost is None:
            try:
                yield
                return
            except LostError as error:
                self._lost = error
        raise control.Absent(f"{self._lost}: the alerts of this broker are being started again; ask again soon")

    def _take(self, event: Event) -> Event | None:
        now = unix_ms()
        if event.topic == SERIES:
            self._happened(self._watch.declare(event.source, Declared.from_event(event), now))
            return None
        if event.topic == OFFLOADED:
            self._watch.offloaded(event.source, Offloaded.from_event(event))
            return None
        samples = Samples.from_event(event)
        self._happened(self._watch.samples(event.source, samples, now))
        if self._watch.asks_again(event.source, now):
            return Again(samples.run).to_event()
        offer = self._watch.offers(event.source, samples, now)
        return offer.to_event() if offer else None

    async def reload(self, loaded: Loaded) -> None:
        """Tell other receivers from now on; raises :exc:`~mbroker.config.ConfigError`."""
        told = notifiers(loaded, self._wording(loaded))
        self._telling.cancel()
        await asyncio.wait([self._telling])
        self._receivers = _section(loaded).receivers
        self._teller, self._telling = self._told_by(self._receivers, told)

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the time until *stop*, then close. Raises :exc:`mbroker.control.Absent` when engines are lost."""
        tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._keep())]
        try:
            while not stop.is_set():
                with self._whole():
                    self._tick()
                for task in (*tasks, self._telling):
                    if task.done() and not task.cancelled():  # a reload cancels the telling, and begins another
                        raise task.exception() or RuntimeError(f"{task} ended")
                self._do_aside(self._book.sync)
                if self._history.is_due:
                    self._do_aside(self._history.seal, unix_ms())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _TICK)
        finally:
            for task in (*tasks, self._telling):
                task.cancel()
            await asyncio.wait([*tasks, self._telling, *self._aside.values()])
            if self._lost is None:
                self._try(self._write, self._watch.snapshot(unix_ms()))
            self._files.close()

    # -- time

    async def _beat(self) -> None:
        """Show whoever watches that the alerts live."""
        while True:
            if self._heart is not None:
                self._heart.beat()
            await asyncio.sleep(self._period)

    async def _keep(self) -> None:
        """Keep what is around alerts, one after the other; another thread looks for it."""
        while True:
            while (due := self._keeper.due(unix_ms())) is not None:
                now = unix_ms()
                packed = await asyncio.to_thread(self._keeper.look, due, now)
                self._try(self._keeper.keep, due, packed, now)
            await asyncio.sleep(_TICK)

    def _tick(self) -> None:
        now = unix_ms()
        self._happened(self._watch.tick(now))
        for line in (*self._watch.complaints(now), *self._matching.look(time.monotonic_ns())):
            _log.warning("%s", line)
        if now - self._snapped >= _MINUTE:
            self._snapped = now
            for problem in filter(None, (self._history.problem, self._keeper.problem)):
                _log.warning("%s", problem)
            self._do_aside(self._write, self._watch.snapshot(now))
            self._try(self._book.trim, now)
        self.status = self._now()

    def _write(self, image: bytes) -> None:
        """Write a snapshot beside the last one, and put it in its place; the book knows before what it knows."""
        if not image:
            return
        self._book.sync()
        fresh = self._image.with_suffix(".new")
        with fresh.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(image)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._image)

    def _do_aside(self, do: Callable[..., object], *arguments: object) -> None:
        """Do what takes its time in another thread, unless it is still being done there."""
        task = self._aside.get(do)
        if task is None or task.done():
            self._aside[do] = asyncio.create_task(asyncio.to_thread(self._try, do, *arguments))

    def _try(self, do: Callable[..., object], *arguments: object) -> None:
        """Do what may fail with a disk; it is done again soon."""
        try:
            do(*arguments)
        except OSError as error:
            _log.error("%s", error)

    def _now(self) -> AlertsStatus:
        counts, teller = self._watch.counts, self._teller
        return AlertsStatus(
            counts.subscriptions,
            counts.rules,
            counts.series,
            counts.samples,
            counts.refused,
            teller.delivered,
            dict(teller.failures),
            self._watch.problem or self._book.problem or self._history.problem or self._keeper.problem,
            dict(self._matching.shares),
        )

    # -- parts

    def _replay(self, now: int) -> None:
        """Let the engine see what it has not seen, and of what its rules read as much as their windows hold.

        Of series that are read seldom that is as much as tells that they are not silent.
        """
        spans, since, intervals = self._watch.spans, self._watch.since, self._history.intervals(_Everything())
        seldom = {series: SILENT * interval for series, interval in intervals.items() if series.metric in spans}
        begin, recent = since - max(spans.values(), default=0), since - (_REPLAYED if spans else _SLACK)
        begin = min(begin, recent)
        first = self._history.read(_Listed(seldom.keys()), since - max(seldom.values(), default=0), begin)
        older = self._history.read(_Metrics(spans.keys()), begin, recent)
        newer = self._history.read(_Everything(), recent, now + _SLACK)
        self._watch.replay(itertools.chain(first, older, newer), now, intervals)

    def _happened(self, alerts: list[Alert]) -> None:
        if alerts:  # mostly there are none, and the teller need not look
            self._changed(alerts)

    def _changed(self, alerts: Iterable[Alert]) -> None:
        alerts, loop = list(alerts), asyncio.get_running_loop()
        self._teller.poke()
        self._keeper.add(alerts, unix_ms())
        for alert in alerts:
            loop.call_soon(self._announce, alert)  # in another thread, which would compete with the teller

    def _told_by(
        self, manners: Mapping[str, Manner], told: Mapping[str, Notifier]
    ) -> tuple[Teller, asyncio.Task[None]]:
        pipeline = Pipeline(manners)
        pipeline.recall(reversed(self._lately(unix_ms())))
        teller = Teller(self._book, pipeline, told, unix_ms)
        return teller, asyncio.create_task(teller.run())

    def _lately(self, now: int) -> list[Alert]:
        return self._book.alerts(since=now - _DAY, limit=_ALERTS)

    def _subscription(self, number: int) -> Subscription | None:
        enrolment = self._watch.enrolment(number)
        return None if enrolment is None else enrolment.subscription

    def _wording(self, loaded: Loaded) -> Wording:
        return Wording(loaded.config.broker.name, lambda number: str(self._subscription(number) or ""))


def _settings(loaded: Loaded, section: AlertsSection) -> Settings:
    config = loaded.config
    fleet = config.fleet.hosts if config.fleet else ()
    return Settings(
        config.broker.name,
        frozenset((*section.hosts, *fleet)),
        section.groups,
        interval=round(section.interval * 1000),
        forget=round(section.forget_hours * 3_600_000),
        late=round(section.late * 1000),
        longest=section.longest,
        broadest=section.broadest,
        bounds=section.bounds,
        offload=section.offload,
    )
