"""A dead man's switch: a process of its own that tells people when the broker falls silent.

The broker sends a datagram a period to a socket of this host, from where it matches and tells, so that whatever
stops that (a crash, SIGSTOP, a deadlock, a disk that hangs) stops the datagrams. The watcher needs nothing of the
broker but its configuration. It tells once when the broker falls silent and once when it is back.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from mbroker.action import Severity

from .alert import Alert, Notice, alert_id
from .clock import unix_ms
from .delivery import Manner, Notifier
from .notify import Pipeline, Teller
from .outbox import Memory
from .selector import Endpoint
from .wording import BROKER

__all__ = ["PATIENCE", "DeadmanError", "DeadmanSection", "Heart", "Pulse", "guard"]

PATIENCE = 1.75
"""Periods without a heartbeat after which the broker is silent; what is left of the second is for telling."""

_BEAT = b"mbroker"

_log = logging.getLogger(__name__)


class DeadmanError(OSError):
    """The watcher cannot listen; one line says why."""


def _socket_path(_: object, attribute: attrs.Attribute[Path], value: Path) -> None:
    if not value.is_absolute() or len(os.fsencode(value)) > 100:
        raise ValueError(f"'{attribute.name}' must be an absolute path of at most 100 bytes, not {str(value)!r:.120}")


def _somebody(_: object, attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    if not value:
        raise ValueError(f"'{attribute.name}' must name somebody")


@attrs.frozen
class DeadmanSection:
    """``[alerts.deadman]``: who is told when the broker itself falls silent."""

    receivers: tuple[str, ...] = attrs.field(validator=_somebody)
    """Names of ``[alerts.receivers]``; best such that do not depend on this host."""
    period: float = attrs.field(default=5.0, validator=[attrs.validators.ge(0.1), attrs.validators.le(3600)])
    """Seconds between two heartbeats; silence is told within two of them."""
    socket: Path = attrs.field(default=Path("/run/mbroker/deadman.sock"), validator=_socket_path)
    """Where the watcher listens for heartbeats."""


class Heart:
    """The broker's part. Nothing that the watcher does, or fails to do, holds it up."""

    def __init__(self, path: Path) -> None:
        """Beat to the watcher at *path*, which need not be there yet."""
        self._path = str(path)

    def beat(self) -> bool:
        """Show that the broker lives; tell whether a watcher took it."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as speaker:
            try:
                speaker.sendto(_BEAT, self._path)
            except OSError:
                return False
        return True


@attrs.define
class Pulse:
    """Whether a broker lives, judged by its heartbeats. Times are seconds of a clock that is never set."""

    period: float
    heard: float
    """When the last heartbeat came or, before the first, when listening began."""
    silent: bool = False

    @property
    def due(self) -> float:
        """When it is silent unless a heartbeat comes before; infinity while it is."""
        return math.inf if self.silent else self.heard + PATIENCE * self.period

    def beat(self, now: float) -> bool:
        """Note a heartbeat; tell whether the broker was silent and is back."""
        back, self.silent, self.heard = self.silent, False, now
        return back

    def tick(self, now: float) -> bool:
        """Tell whether the broker falls silent now."""
        self.silent, before = self.silent or now >= self.due, self.silent
        return self.silent and not before


class _Hearing(asyncio.DatagramProtocol):
    """Turns heartbeats and their absence into notices."""

    def __init__(self, pulse: Pulse, broker: str, receivers: tuple[str, ...], outbox: Memory, teller: Teller) -> None:
        self.pulse = pulse
        self._key = Endpoint({("host", broker)})
        self._receivers = receivers
        self._outbox = outbox
        self._teller = teller
        self._alert: Alert | None = None

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Hear a heartbeat."""
        if self.pulse.beat(time.monotonic()) and self._alert is not None:
            _log.warning("the broker is back")
            self._tell(attrs.evolve(self._alert, until=max(unix_ms(), self._alert.since)))

    def tick(self) -> None:
        """Judge the silence."""
        now = time.monotonic()
        if not self.pulse.tick(now):
            return
        _log.error("the broker is silent")
        since = unix_ms() - round(1000 * (now - self.pulse.heard))
        self._tell(Alert(alert_id(BROKER, self._key, since), BROKER, self._key, Severity.CRITICAL, since))

    def _tell(self, alert: Alert) -> None:
        self._alert = alert
        self._outbox.put(Notice(alert, name) for name in self._receivers)
        self._teller.poke()


async def guard(
    section: DeadmanSection, broker: str, receivers: Mapping[str, Manner], notifiers: Mapping[str, Notifier]
) -> None:
    """Watch the broker called *broker* until cancelled, and tell *receivers*, each through its notifier.

    What is to be told lasts as long as this process: one that is restarted while the broker is silent tells again.
    Raises :exc:`DeadmanError` when it cannot listen.
    """
    prompt = {name: attrs.evolve(each, group_wait=0, group_interval=0, after=0) for name, each in receivers.items()}
    outbox = Memory()
    teller = Teller(outbox, Pipeline(prompt), notifiers)
    hearing = _Hearing(Pulse(section.period, time.monotonic()), broker, tuple(receivers), outbox, teller)
    listener = _listen(section.socket)
    try:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: hearing, sock=listener)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(teller.run())
                tasks.create_task(_ticking(hearing))
        finally:
            transport.close()
    finally:
        with suppress(OSError):
            section.socket.unlink()


async def _ticking(hearing: _Hearing) -> None:
    """Judge the silence when it has lasted long enough. After a sleep, heartbeats that wait are heard first."""
    while True:
        left = hearing.pulse.due - time.monotonic()
        if left > 0:
            await asyncio.sleep(min(left, hearing.pulse.period))
        await asyncio.sleep(0)
        hearing.tick()


def _listen(path: Path) -> socket.socket:
    """Return a socket at *path*, in the place of that of a watcher that died; nobody else may send to it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if Heart(path).beat():
            raise DeadmanError(errno.EADDRINUSE, "another watcher listens there")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_socket():
            path.unlink()
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
    except OSError as error:
        listener.close()
        raise DeadmanError(f"{path}: {error.strerror}") from None
    return listener
