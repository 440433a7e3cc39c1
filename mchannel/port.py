"""Waiting at a port, and one port to wait at while what lies behind it comes and goes."""

from __future__ import annotations

import contextlib
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
        self._wait: Wait = _wait_for_nothing

    def fileno(self) -> int:
        """Return the descriptor, the same for as long as the port is open."""
        if self._epoll is None:
            self._epoll = select.epoll()
            self._register()
        return self._epoll.fileno()

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

    def close(self) -> None:
        """Let go; idempotent."""
        self._behind = None
        if self._epoll is not None:
            self._epoll.close()

    def _register(self) -> None:
        if self._behind is not None and self._epoll is not None:
            self._fd = self._behind.fileno()
            self._epoll.register(self._fd, select.EPOLLIN)


def _wait_for_nothing(timeout: float | None) -> bool:
    select.select((), (), (), timeout)
    return False
