"""One connection to libvirt: opened, listened to, let go. All of it blocks; run it in threads.

libvirt's own event loop runs in one thread of the process, and what it hears is handed to whoever
asked. Its asyncio loop (``libvirtaio``) is no choice here: with calls that block in threads, as a migration does,
libvirt starts timers from those threads, which does not wake an asyncio loop, and the events of a
migration would wait for something else to happen.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

import attrs
import libvirt

from .domain import State
from .events import Kind
from .libvirt_words import happened, plain_error

__all__ = ["Ear", "Link", "open_connection", "plainly"]

_KEEPALIVE_SECONDS = 4
_KEEPALIVE_MISSES = 2
"""A daemon that is stopped, or behind a cut cable, is given up after three times the seconds."""


@functools.cache
def _listen() -> threading.Thread:
    """Start libvirt's event loop, once in a process and before its first connection."""

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # its own prints to stderr
    libvirt.virEventRegisterDefaultImpl()
    thread = threading.Thread(target=run, name="libvirt events", daemon=True)
    thread.start()
    return thread


@contextmanager
def plainly(uri: str) -> Generator[None]:
    """Raise libvirt's errors as ours."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise plain_error(error, uri) from error


def open_connection(uri: str, lost: Callable[[], None] | None = None) -> libvirt.virConnect:
    """Return a connection that notices when the other side is gone, and then calls *lost*. Raises HypervisorError."""
    _listen()
    with plainly(uri):
        connection = libvirt.open(uri)
        try:
            connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_MISSES)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise
            return connection  # to a driver inside this process, which cannot be lost
        if lost is not None:
            connection.registerCloseCallback(lambda _connection, _reason, _opaque: lost(), None)
    return connection


@attrs.frozen
class Ear:
    """Who is told what a connection hears; called in libvirt's thread."""

    event: Callable[[Kind, str, str, State | None], None]
    """Kind, UUID, name, and the state where the kind does not tell it."""
    detached: Callable[[str, str, bool], None]
    """UUID, alias, and whether the guest let go of the device or refused."""
    lost: Callable[[], None]


@attrs.define(eq=False)
class Link:
    """A connection whose events go to an :class:`Ear` until it is let go."""

    connection: libvirt.virConnect
    _registered: list[int] = attrs.field(factory=list[int], init=False)

    @classmethod
    def open(cls, uri: str, ear: Ear) -> Link:
        """Connect to *uri*, and register for each kind of event once. Raises HypervisorError."""
        made = cls(open_connection(uri, ear.lost))
        with plainly(uri):
            made._hear(ear)
        return made

    def _hear(self, ear: Ear) -> None:
        def lifecycle(_: object, domain: libvirt.virDomain, event: int, detail: int, __: object) -> None:
            if meaning := happened(event, detail):
                ear.event(meaning[0], domain.UUIDString(), domain.name(), meaning[1])

        def rebooted(_: object, domain: libvirt.virDomain, __: object) -> None:
            ear.event(Kind.REBOOTED, domain.UUIDString(), domain.name(), None)

        def removed(_: object, domain: libvirt.virDomain, alias: str, __: object) -> None:
            ear.detached(domain.UUIDString(), alias, True)

        def refused(_: object, domain: libvirt.virDomain, alias: str, __: object) -> None:
            ear.detached(domain.UUIDString(), alias, False)

        callbacks: dict[int, Callable[..., None]] = {
            libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE: lifecycle,
            libvirt.VIR_DOMAIN_EVENT_ID_REBOOT: rebooted,
            libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED: removed,
            libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED: refused,
        }
        for kind, callback in callbacks.items():
            self._registered.append(self.connection.domainEventRegisterAny(None, kind, callback, None))

    def let_go(self) -> None:
        """Hear nothing more; the connection closes when the last call on it has ended."""
        while self._registered:
            with suppress(libvirt.libvirtError):  # of a connection that is lost
                self.connection.domainEventDeregisterAny(self._registered.pop())
        with suppress(libvirt.libvirtError):
            self.connection.unregisterCloseCallback()
