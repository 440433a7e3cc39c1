"""From the lines of an access log to a recorder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import attrs

from mchannel.agents.accesslog import Access, Reader
from mchannel.agents.sla import Recorder

__all__ = ["Follower", "Lines", "read_line"]

_TURN = 1000  # lines after which epochs that are over are closed


class Lines(Protocol):
    """A log that grows; :class:`mchannel.agents.tail.Tail` is one."""

    def read(self) -> Iterable[str | None]:
        """Return the lines that are complete by now; None stands for one that is too long."""
        ...

    def rest(self) -> Iterable[str | None]:
        """Return these, and the last line even without its end."""
        ...


def read_line(reader: Reader, line: str | None) -> Access | None:
    """Return the request in *line*, None when it has none; raises ValueError when it cannot be read."""
    if line is None:
        raise ValueError("the line is too long")
    return reader.read(line)


@attrs.define(eq=False)
class Follower:
    """Counts the requests that are logged, epoch by epoch, as they are logged."""

    _reader: Reader
    recorder: Recorder

    def look(self, log: Lines) -> bool:
        """Count what is new and report the epochs that are over; return whether anything was new."""
        number = 0
        for number, line in enumerate(log.read(), start=1):
            self._count(line)
            if number % _TURN == 0:
                self.recorder.tick()
        self.recorder.tick()
        return number > 0

    def end(self, log: Lines, timeout: float) -> None:
        """Count what is left, and report it, waiting up to *timeout* seconds for each write."""
        for line in log.rest():
            self._count(line)
        self.recorder.flush(timeout)

    def _count(self, line: str | None) -> None:
        try:
            access = read_line(self._reader, line)
        except ValueError:
            self.recorder.note("unparsed")
            return
        if access is not None:
            now = self.recorder.clock()
            self.recorder.observe(access.seconds, min(now, access.finished or now))
