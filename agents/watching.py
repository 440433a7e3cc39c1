"""``magent host``: the metrics of a host, of its domains and of what watches it already, to the broker."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import attrs

from mchannel.agents.apart import Apart
from mchannel.agents.discover import Nothing, Way, find
from mchannel.agents.exits import USAGE, Exit
from mchannel.agents.feed import Feed, either, ticks
from mchannel.agents.line import Line
from mchannel.agents.notify import sd_notify
from mchannel.agents.publisher import Reading
from mchannel.agents.reads import reader
from mchannel.agents.seek import Seek
from mchannel.agents.settings import Settings, load
from mchannel.samples import Named

__all__ = ["Watch", "run"]

_STREAM = "host"
_RATED = ("host", "domains")  # tell shares and rates, from the second look on

_log = logging.getLogger("magent")

Reader = Callable[[], Coroutine[Any, Any, list[Reading]]]


@attrs.frozen
class Source:
    """Something that is read every *interval* seconds, for *timeout* at most."""

    name: str
    interval: float
    timeout: float
    read: Reader

    async def look(self) -> tuple[list[Reading], str]:
        """Return what is read now, and what keeps it from being read, or nothing; how it went is among the readings."""
        began, why = time.monotonic(), ""
        found: list[Reading] = []
        try:
            async with asyncio.timeout(self.timeout):
                found = await self.read()
        except TimeoutError:
            why = f"no answer within {self.timeout:g} s"
        except Exception as error:  # whatever one reader meets, the others go on
            said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            why = " ".join(said.split())[:300] or type(error).__name__
        labels = (("read", self.name),)
        found.append(Reading(Named("read.up", labels), float(not why)))
        found.append(Reading(Named("read.seconds", labels), time.monotonic() - began))
        return found, why


def _sources(settings: Settings) -> Iterator[Source]:
    try:
        from mchannel.agents.host import HostMetrics  # noqa: PLC0415 - psutil is an extra
    except ImportError as error:
        raise Exit(USAGE, f"{error}; magent host needs it: pip install 'mchannel[host]'") from None
    host = settings.host
    yield Source("host", host.interval, 60.0, Apart(HostMetrics().read))
    if host.libvirt:
        try:
            from mchannel.agents.domains import DomainMetrics  # noqa: PLC0415 - libvirt is one, too
        except ImportError as error:
            raise Exit(USAGE, f"{error}; domains need it: pip install 'mchannel[libvirt]'") from None
        yield Source("domains", host.interval, 60.0, Apart(DomainMetrics(host.libvirt).read))
    for each in settings.read:
        yield Source(each.name, each.interval, each.timeout, reader(each))


@attrs.define(eq=False)
class Watch:
    """Does what *settings* say, over a channel to wherever *find* finds the broker."""

    settings: Settings
    find: Callable[[str], Way | Nothing] = find
    feed: Feed = attrs.field(factory=Feed)

    async def serve(self) -> None:
        """Work until it is cancelled."""
        line = Line(_STREAM, Seek(self.find, lambda: self.settings.agent.address))
        await either(line.keep(self.feed.send), *(self._watch(source) for source in _sources(self.settings)))

    async def _watch(self, source: Source) -> None:
        said = ""
        async for _ in ticks(source.interval):
            found, why = await source.look()
            self.feed.take(found, source.interval)
            if bool(why) != bool(said):
                _log.log(logging.WARNING if why else logging.INFO, "%s: %s", source.name, why or "can be read again")
            said = why


def run(options: argparse.Namespace) -> None:
    """Run ``magent host``; raises Exit for what cannot be done."""
    settings = _load(options)
    _log.setLevel(logging.INFO)
    if options.once:
        asyncio.run(_show(settings, as_json=options.output == "json"))
        return
    look: Callable[[str], Way | Nothing] = (lambda _: Way(options.address)) if options.address else find
    asyncio.run(_serve(settings, look, partial(_load, options)))


def _load(options: argparse.Namespace) -> Settings:
    settings = load(options.config)
    try:
        given = {name: value for name in ("interval", "libvirt") if (value := getattr(options, name)) is not None}
        return attrs.evolve(settings, host=attrs.evolve(settings.host, **given))
    except ValueError as error:
        raise Exit(USAGE, str(error)) from None


async def _show(settings: Settings, *, as_json: bool) -> None:
    """Print what would be sent; shares and rates are told by a second look."""
    sources = list(_sources(settings))
    found: dict[Named, Reading] = {}
    for repeated in (True, False):
        for source in sources:
            if repeated and source.name not in _RATED:
                continue
            readings, why = await source.look()
            found |= {reading.series: reading for reading in readings}
            if why and not repeated:
                _log.warning("%s: %s", source.name, why)
        await asyncio.sleep(min(settings.host.interval, 1.0) if repeated else 0)
    now = time.time_ns() // 1_000_000
    for reading in found.values():
        sys.stdout.write((_json if as_json else _text)(reading, now) + "\n")


def _json(reading: Reading, now: int) -> str:
    series = reading.series
    at = now if reading.at is None else reading.at
    return json.dumps({"metric": series.metric, "labels": dict(series.labels), "value": reading.value, "at": at})


def _text(reading: Reading, _now: int) -> str:
    labels = ",".join(f"{name}={json.dumps(value)}" for name, value in reading.series.labels)
    return f"{reading.series.metric}{f'{{{labels}}}' if labels else ''} {reading.value:g}"


async def _serve(settings: Settings, look: Callable[[str], Way | Nothing], again: Callable[[], Settings]) -> None:
    """Watch until SIGTERM or SIGINT; SIGHUP begins anew with the configuration as it is then."""
    loop = asyncio.get_running_loop()
    stop, reload, feed = asyncio.Event(), asyncio.Event(), Feed()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    while not stop.is_set():
        watch = Watch(settings, look, feed)
        loop.call_soon(sd_notify, "READY=1")
        await either(watch.serve(), _until(stop), _until(reload))
        if reload.is_set():
            reload.clear()
            sd_notify("RELOADING=1")
            try:
                settings = again()
                _log.info("read its configuration again")
            except Exit as error:
                _log.error("goes on with the configuration that it has: %s", error)
    sd_notify("STOPPING=1")


async def _until(event: asyncio.Event) -> None:
    await event.wait()
