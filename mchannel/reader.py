"""The reading half of a session: what has arrived, what its reader took care of, and what the peer knows of that."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

from mchannel.errors import ProtocolError
from mchannel.frame import OVERHEAD

__all__ = ["Reader", "Received"]


Received: TypeAlias = tuple[int, bytes, bool]
"""A message on its way to the reader: its number, its payload, and whether it is redelivered."""


class Reader:
    """Messages that arrived and were not read yet, and the marks of those that were."""

    def __init__(self, done: int = 0, unsure: int = 0) -> None:
        self.inbox: deque[Received] = deque()
        self._arrived = 0
        """Bytes that ever came into the inbox, with their headers."""
        self.taken = 0
        """Bytes that ever left it."""
        self.told = 0
        """Bytes that had left it when something was acknowledged last."""
        self.expected = done + 1
        """Number of the message that has to come next."""
        self.done = done
        """Last number that was marked as taken care of."""
        self.acked = done
        """Last number that was acknowledged."""
        self.unsure = unsure
        """Messages up to this number may have been seen by a predecessor."""
        self.last = done
        """Number of the message that was returned last."""

    @property
    def owes(self) -> bool:
        """Whether something is marked that the peer was not told of."""
        return self.done > self.acked

    def begin(self, base: int, sent: int) -> None:
        """Join a session in which *base* comes next and a predecessor may have seen all up to *sent*."""
        self.expected, self.unsure = base, sent
        self.last = self.done = self.acked = base - 1

    def skip_to(self, base: int) -> None:
        """Expect nothing older than *base*, which the peer does not have any more."""
        self.expected = max(self.expected, base)

    def put(self, payload: bytes, limit: int) -> None:
        """Take in the message that is expected; raise ProtocolError when more than *limit* bytes wait then."""
        number = self.expected
        self.inbox.append((number, payload, number <= self.unsure))
        self.expected = number + 1
        self._arrived = arrived = self._arrived + len(payload) + OVERHEAD
        if arrived - self.taken > limit:
            raise ProtocolError("the peer sends more than the window that it agreed to")

    def put_many(self, number: int, payloads: Sequence[bytes], limit: int) -> None:
        """Take in messages from *number* on, less those that are here already; raises as :meth:`put`."""
        if number < self.expected:
            payloads = payloads[self.expected - number :]
        else:
            self.expected = number
        for payload in payloads:
            self.put(payload, limit)

    def next(self) -> Received | None:
        """Return the next message, if it is there; the one before is marked already."""
        if not self.inbox:
            return None
        message = self.inbox.popleft()
        self.last, payload, _ = message
        self.taken += len(payload) + OVERHEAD
        return message

    def take(self, limit: int) -> list[Received]:
        """Return up to *limit* messages, which are marked together; those before are marked already."""
        taken = [self.inbox.popleft() for _ in range(min(limit, len(self.inbox)))]
        if taken:
            self.taken += sum([len(payload) for _, payload, _ in taken]) + OVERHEAD * len(taken)
            self.last = taken[-1][0]
        return taken

    def displace(self, number: int) -> None:
        """Latest only: *number* is newer than what was not read, which counts as taken care of."""
        self.inbox.clear()
        self.taken = self._arrived
        self.last = self.done = number - 1

    def acknowledged(self) -> int:
        """Return what the peer is being told now: the last number that was marked."""
        self.acked, self.told = self.done, self.taken
        return self.done
