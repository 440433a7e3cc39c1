"""Readings on their way to the channel: taken at their own pace, sent at the broker's."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, NoReturn

import attrs

from mchannel.agents.line import Talk
from mchannel.agents.publisher import Publisher, Reading
from mchannel.errors import CodecError, MessageTooBig
from mchannel.samples import Named

__all__ = ["Feed", "either", "ticks"]

_MEASURED = 5.0  # seconds over which the CPU time of this process is taken

_log = logging.getLogger("magent")


async def ticks(seconds: float) -> AsyncIterator[None]:
    """Yield at once, and then every so many *seconds*; when that cannot be kept up with, later, but not oftener."""
    clock = asyncio.get_running_loop().time
    due = clock()
    while True:
        yield
        due = max(due + seconds, clock())
        await asyncio.sleep(due - clock())


async def either(*works: Coroutine[Any, Any, None]) -> None:
    """Run *works* until one of them returns or raises, as that does; the others are cancelled and have ended then."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@attrs.define(eq=False)
class Feed:
    """Joins those who read with the channel, whichever is open now."""

    publisher: Publisher = attrs.field(factory=Publisher)
    most_cpu: float = 0.05
    """Share of one CPU above which this process does nothing for the broker that the broker can do."""
    _news: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _lost: tuple[int, int] = attrs.field(default=(0, 0), init=False)
    _spent: tuple[float, float] = attrs.field(factory=lambda: (time.monotonic(), time.process_time()), init=False)
    _is_strained: bool = attrs.field(default=False, init=False)

    def take(self, readings: list[Reading], interval: float) -> None:
        """Take what was read now, and will be again in *interval* seconds."""
        self.measure(time.monotonic(), time.process_time())
        now = time.time_ns() // 1_000_000
        self.publisher.take(readings, now, max(1, round(1000 * interval)))
        if self.publisher.withheld:
            self.publisher.take([Reading(Named("agent.withheld"), float(self.publisher.withheld))], now)
        self._news.set()
        self._tell()

    async def send(self, channel: Talk) -> None:
        """Send what is there and what comes, and listen, until the channel ends."""
        self.publisher.again()
        await either(self._write(channel), self._listen(channel))

    async def _write(self, channel: Talk) -> NoReturn:
        while True:
            event = self.publisher.first()
            if event is None:
                self._news.clear()
                await self._news.wait()
                continue
            try:
                await channel.write(event)
            except MessageTooBig:
                if not self.publisher.narrow():
                    raise
            else:
                self.publisher.pop()

    async def _listen(self, channel: Talk) -> NoReturn:
        while True:
            try:
                self.publisher.heard(await channel.read())
            except CodecError as error:
                _log.warning("the broker asks what cannot be understood: %s", error)
            self._news.set()

    def measure(self, now: float, spent: float) -> None:
        """Look whether this process is too busy, by its CPU time; it is until it takes half of what is too much."""
        began, before = self._spent
        if now - began >= _MEASURED:
            self._spent = now, spent
            share = (spent - before) / (now - began)
            self._is_strained = share > self.most_cpu / (2 if self._is_strained else 1)
            self.publisher.strain(self._is_strained)

    def _tell(self) -> None:
        """Say that something was lost when it begins, and not again as long as it goes on."""
        publisher, before = self.publisher, self._lost
        self._lost = publisher.dropped, publisher.refused
        if publisher.dropped and not before[0]:
            _log.warning("the broker is away for long: the oldest of %d samples are dropped now", len(publisher))
        if publisher.refused and not before[1]:
            _log.warning("readings are left out: their series have no valid name, or are more than can be told")
