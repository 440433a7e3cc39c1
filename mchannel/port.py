"""Waiting at a port, and one port to wait at while what lies behind it comes and goes."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from typing import Protocol, TypeAlias, runtime_checkable

from mchannel.transport import Port

__all__ = ["PatientPort", "StandingPort", "Wait", "waiter"]

Wait: TypeAlias = Callable[[float | None], bool]
"""Sleep until something arrives, at most so many seconds, and pump; return whether something may have come."""


@runtime_checkable
class PatientPort(Port, Protocol):
    """A port with a way of its own to wait, quicker than poll on its descriptor."""

    def wait(self, timeout: float | None) -> bool:
        """Sleep until something arrives, at most *timeout* seconds, and pump; False when nothing came."""
        ...


def waiter(port: Port) -> Wait:
    """Return how to wait at *port*."""
    if isinstance(port, PatientPort):
        return port.wait
    poll = select.poll()
    poll.register(port, select.POLLIN)

    def wait(timeout: float | None) -> bool:
        woken = poll.poll(None if timeout is None else timeout * 1000 + 0.5)
        port.pump()
        return bool(woken)

    return wait


class StandingPort:
    """A port that outlives the connections it stands for: a select loop registers it once."""

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._behind: Port | None = None
        self._fd = -1
        self._bell = -1
        self._nudged = self._closed = False
        self._wait: Wait = _wait_for_nothing

    def fileno(self) -> int:
        """Return the descriptor, the same for as long as the port is open."""
        return self._made().fileno()

    def pump(self) -> None:
        """Pump what lies behind it at present."""
        if self._behind is not None:
            self._behind.pump()

    def wait(self, timeout: float | None) -> bool:
        """Wait at what lies behind it at present."""
        return self._wait(timeout)

    def use(self, behind: Port | None) -> None:
        """Stand for *behind* from now on, or for nothing: then it never wakes. Call it before *behind* closes."""
        if self._behind is not None and self._epoll is not None:
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(self._fd)
        self._behind = behind
        self._wait = _wait_for_nothing if behind is None else waiter(behind)
        self._register()

    def nudge(self) -> None:
        """Make the descriptor readable until :meth:`settle`: something came that was not taken yet."""
        if self._nudged or self._closed:
            return
        if self._bell < 0:
            self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._made().register(self._bell, select.EPOLLIN)
        self._nudged = True
        os.eventfd_write(self._bell, 1)

    def settle(self) -> None:
        """Take the nudge back: from here on the descriptor tells what lies behind it alone."""
        if self._nudged:
            self._nudged = False
            os.eventfd_read(self._bell)

    def close(self) -> None:
        """Let go; idempotent."""
        self._behind, self._closed, self._nudged = None, True, False
        if self._epoll is not None:
            self._epoll.close()
        if self._bell >= 0:
            os.close(self._bell)
            self._bell = -1

    def _made(self) -> select.epoll:
        if self._epoll is None:
            self._epoll = select.epoll()
            self._register()
        return self._epoll

    def _register(self) -> None:
        if self._behind is not None and self._epoll is not None:
            self._fd = self._behind.fileno()
            self._epoll.register(self._fd, select.EPOLLIN)


def _wait_for_nothing(timeout: float | None) -> bool:
    select.select((), (), (), timeout)
    return False
