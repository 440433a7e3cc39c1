"""``magent run``: all that a guest says to its broker and is asked by it, in one event loop.

Nothing here knows of migration: the channels live through it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import attrs

from mchannel.agents.commands import Commands
from mchannel.agents.discover import Nothing, Way, find
from mchannel.agents.exits import UNREACHABLE, Exit
from mchannel.agents.feed import Feed, either
from mchannel.agents.follower import Follower
from mchannel.agents.line import Line, Talk
from mchannel.agents.metrics import Metrics, readings
from mchannel.agents.notify import sd_notify
from mchannel.agents.outbox import Labelled, Outbox
from mchannel.agents.pace import Pace
from mchannel.agents.printer import Printer
from mchannel.agents.seek import Seek
from mchannel.agents.settings import Settings, SlaSettings, load
from mchannel.agents.sla import Recorder
from mchannel.agents.tail import Tail
from mchannel.errors import CodecError, MessageTooBig
from mchannel.event import Detail, Event
from mchannel.samples import SAMPLES, SERIES
from mchannel.transport import State

__all__ = ["Daemon", "run"]

_LOOK_AGAIN = 5.0  # seconds between two looks for a log
_BUSY, _QUIET = 0.05, 0.25  # seconds until the next look at a log that has just grown, and at one that has not
_FLUSH = 1.0  # seconds that the end waits for the broker
_BOOT = Path("/proc/sys/kernel/random/boot_id")

_log = logging.getLogger("magent")


@attrs.frozen
class _Shown:
    """Stands for a channel at ``--dry-run``."""

    printer: Printer
    state: State = State.OPEN

    async def write(self, message: Event, timeout: float | None = None) -> None:
        if message.topic not in (SERIES, SAMPLES):  # the numbers of the groups once more
            self.printer.write(message)

    async def read(self, timeout: float | None = None) -> NoReturn:
        await asyncio.Event().wait()  # nobody asks
        raise AssertionError


@attrs.define(eq=False)
class Daemon:
    """Does what *settings* say, over channels to wherever *find* finds the broker."""

    settings: Settings
    find: Callable[[str], Way | Nothing] = find
    """Returns the way to take; given the configured address."""
    printer: Printer | None = None
    """Takes the events in place of channels."""
    _outbox: Outbox = attrs.field(factory=Outbox, init=False)
    _pace: Pace = attrs.field(init=False)
    _tasks: dict[tuple[object, ...], asyncio.Task[None]] = attrs.field(
        factory=dict[tuple[object, ...], "asyncio.Task[None]"], init=False
    )
    _group: asyncio.TaskGroup = attrs.field(factory=asyncio.TaskGroup, init=False)
    _seek: Seek = attrs.field(init=False)
    _left_out: set[str] = attrs.field(factory=set[str], init=False)
    """Topics of events that the broker cannot take."""

    def __attrs_post_init__(self) -> None:
        """Begin with the configured interval."""
        self._pace = Pace(self.settings.metrics.interval)
        self._seek = Seek(self.find, lambda: self.settings.agent.address)

    async def serve(self, stop: asyncio.Event) -> None:
        """Work until *stop* is set; then report what was counted, and wait a second for the broker to take it."""
        async with self._group:
            self._arrange()
            asyncio.get_running_loop().call_soon(sd_notify, "READY=1")  # after the logs were opened
            await stop.wait()
            await self._end()

    def reload(self, settings: Settings) -> None:
        """Go on with *settings*; what they leave as it was is not interrupted."""
        if settings.metrics.interval != self.settings.metrics.interval:
            self._pace.set(settings.metrics.interval)
        self.settings = settings
        self._arrange()

    def _arrange(self) -> None:
        """End what the settings do not ask for, and begin what they do."""
        wanted = self._wanted()
        for key in self._tasks.keys() - wanted.keys():
            self._tasks.pop(key).cancel()
        for key in wanted.keys() - self._tasks.keys():
            self._tasks[key] = self._group.create_task(wanted[key]())

    def _wanted(self) -> dict[tuple[object, ...], Callable[[], Coroutine[Any, Any, None]]]:
        settings, agent = self.settings, self.settings.agent
        wanted: dict[tuple[object, ...], Callable[[], Coroutine[Any, Any, None]]] = {
            (agent, section): partial(self._follow, section) for section in settings.sla
        }
        if settings.sla:
            wanted[agent, "sla"] = partial(self._keep, "sla", self._report)
        if settings.metrics.enabled:
            wanted[agent, "metrics"] = partial(self._keep, "metrics", self._measure)
        if settings.commands.enabled:
            wanted[agent, "commands", settings.metrics.enabled] = partial(self._keep, "commands", self._obey)
        return wanted

    async def _keep(self, stream: str, use: Callable[[Talk], Awaitable[None]]) -> None:
        if self.printer is not None:
            await use(_Shown(self.printer))
        else:
            await Line(stream, self._seek).keep(use)

    async def _report(self, channel: Talk) -> None:
        while (event := await self._outbox.first()) is not None:
            if await self._tell(channel, event):
                self._outbox.pop()
            else:
                self._outbox.leave_out()

    async def _measure(self, channel: Talk) -> None:
        """Tell the metrics, group by group and as samples; what nobody hears, or has no room for, is not measured."""
        metrics, feed = Metrics(self.settings.agent.domain), Feed()

        async def measure() -> None:
            while True:
                if channel.state is State.OPEN:
                    events = metrics.sample()
                    for event in events:
                        await self._tell(channel, event)
                    feed.take([reading for event in events for reading in readings(event)], self._pace.seconds)
                await self._pace.wait()

        await either(measure(), feed.send(channel))

    async def _obey(self, channel: Talk) -> None:
        pace = self._pace if self.settings.metrics.enabled else None
        commands = Commands(self.settings.agent.domain, pace, self._describe)
        while True:
            try:
                answer = commands.answer(await channel.read(), time.time())
            except CodecError as error:
                answer = commands.refuse(error, time.time())
            await self._tell(channel, answer)

    async def _tell(self, channel: Talk, event: Event) -> bool:
        """Write *event*, and return whether that can be: one that can never be written keeps no others back."""
        try:
            await channel.write(event)
        except (CodecError, MessageTooBig) as error:
            if event.topic not in self._left_out:
                self._left_out.add(event.topic)
                _log.warning("%s is left out, as the broker cannot take it: %s", event.topic, error)
            return False
        return True

    def _describe(self) -> Detail:
        streams = {key[1] for key in self._tasks if isinstance(key[1], str)}
        return {
            "version": installed_version(),
            "boot_id": _BOOT.read_text().strip() if _BOOT.exists() else "",
            "kernel": os.uname().release,
            "streams": tuple(sorted(streams)),
            "interval": self._pace.seconds,
            "logs": len(self.settings.sla),
        }

    async def _follow(self, section: SlaSettings) -> None:
        """Report one log as it grows, from when it is there; when cancelled, report the rest."""
        writer = Labelled(self._outbox, section.service)
        domain = self.settings.agent.domain
        recorder = Recorder(writer, source=domain, hard_ms=section.hard_ms, soft_ms=section.soft_ms)
        follower = Follower(section.reader(), recorder)
        said, is_new = "", False
        while True:
            try:
                with Tail(section.log, from_start=is_new) as tail:
                    said = ""
                    await _watch(follower, tail)
            except FileNotFoundError:
                why, is_new = f"there is no log {section.log}; it is followed once it is there", True
            except (OSError, ValueError) as error:
                why = f"cannot read the log: {error}"
            if why != said:
                said = why
                _log.warning("%s", why)
            await asyncio.sleep(_LOOK_AGAIN)

    async def _end(self) -> None:
        lines = {task for key, task in self._tasks.items() if key[1] == "sla"}
        others = set(self._tasks.values()) - lines
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others)  # the followers report what is left
        self._outbox.close()
        late = (await asyncio.wait(lines, timeout=_FLUSH))[1] if lines else lines
        for task in late:
            task.cancel()
        if late:
            _log.warning("the broker has not acknowledged all reports; %d were not even sent", len(self._outbox))


async def _watch(follower: Follower, tail: Tail) -> NoReturn:
    try:
        while True:  # a file rings no bell
            is_busy = follower.look(tail)
            await asyncio.sleep(_BUSY if is_busy else _QUIET)
    except asyncio.CancelledError:
        follower.end(tail, 0.0)
        raise


def installed_version() -> str:
    """Return the version of mchannel; empty when it runs from a bare checkout."""
    try:
        return version("mchannel")
    except PackageNotFoundError:
        return ""


def run(options: argparse.Namespace) -> None:
    """Run ``magent run``; raises Exit for what cannot be done."""
    settings = load(options.config)
    look: Callable[[str], Way | Nothing] = (lambda _: Way(options.address)) if options.address else find
    if options.dry_run and isinstance(found := look(settings.agent.address), Nothing):
        raise Exit(UNREACHABLE, str(found))
    printer = Printer(options.output == "json") if options.dry_run else None
    _log.setLevel(logging.INFO)
    asyncio.run(_serve(Daemon(settings, look, printer), partial(load, options.config)))


async def _serve(daemon: Daemon, again: Callable[[], Settings]) -> None:
    def reload() -> None:
        if stop.is_set():
            return
        sd_notify("RELOADING=1")
        try:
            daemon.reload(again())
            _log.info("read its configuration again")
        except Exit as error:
            _log.error("goes on with the configuration that it has: %s", error)
        loop.call_soon(sd_notify, "READY=1")

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    await daemon.serve(stop)
    sd_notify("STOPPING=1")
