"""A descriptor that says whether a link has something to be read, whatever lies underneath."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mchannel.port import StandingPort
from mchannel.transport import Link

__all__ = ["Watch"]

Taken = TypeVar("Taken")


class Watch:
    """Reads from a link, and keeps a descriptor readable until a look found nothing.

    A wire wakes when something arrives, and what arrived may wait in the link for long after that. So the
    descriptor is readable from the news on, and rests only when nothing was there and the link was asked for news.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        if isinstance(link.port, StandingPort):
            self._port = link.port
        else:  # other links have it too
            self._port = StandingPort()
            self._port.use(link.port)
        link.on_news = self._port.nudge
        self._port.nudge()

    def fileno(self) -> int:
        """Return the descriptor, always the same."""
        return self._port.fileno()

    def recv(self) -> bytes | None:
        """Do as the link's."""
        return self._look(self._link.recv)

    def recv_many(self, limit: int) -> list[bytes]:
        """Do as the link's."""
        return self._look(lambda: self._link.recv_many(limit))

    def wait_readable(self, timeout: float | None) -> None:
        """Do as the link's; a wait that is interrupted leaves the descriptor readable."""
        self._port.nudge()
        self._link.wait_readable(timeout)

    def close(self) -> None:
        """Let go of the descriptor; idempotent."""
        self._link.on_news = None
        self._port.close()

    def _look(self, take: Callable[[], Taken]) -> Taken:
        self._port.nudge()  # first: it stays readable when this raises
        found = take()
        if (found is None or found == []) and not self._link.arm_readable():
            self._port.settle()
        return found
