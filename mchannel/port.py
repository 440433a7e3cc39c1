"""One descriptor to wait on while what lies behind it comes and goes."""

from __future__ import annotations

import contextlib
import select

from mchannel.transport import Port

__all__ = ["StandingPort"]


class StandingPort:
    """A port that outlives the connections it stands for: a select loop registers it once."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._behind: Port | None = None
        self._fd = -1

    def fileno(self) -> int:
        """Return the descriptor, the same for as long as the port is open."""
        return self._epoll.fileno()

    def pump(self) -> None:
        """Pump what lies behind it at present."""
        if self._behind is not None:
            self._behind.pump()

    def use(self, behind: Port | None) -> None:
        """Stand for *behind* from now on, or for nothing: then it never wakes. Call it before *behind* closes."""
        if self._behind is not None:
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(self._fd)
        self._behind = behind
        if behind is not None:
            self._fd = behind.fileno()
            self._epoll.register(self._fd, select.EPOLLIN)

    def close(self) -> None:
        """Let go; idempotent."""
        self._behind = None
        self._epoll.close()
