"""The reading half of a session: what has arrived, what its reader took care of, and what the peer knows of that."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from mchannel.errors import ProtocolError
from mchannel.frame import OVERHEAD

__all__ = ["Reader", "Received"]


class Received(NamedTuple):
    """A message on its way to the reader."""

    number: int
    payload: bytes
    redelivered: bool


class Reader:
    """Messages that arrived and were not read yet, and the marks of those that were."""

    def __init__(self, done: int = 0, unsure: int = 0) -> None:
        self.inbox: deque[Received] = deque()
        self.size = 0
        """Bytes in the inbox, with their headers."""
        self.expected = done + 1
        """Number of the message that has to come next."""
        self.done = done
        """Last number that was marked as taken care of."""
        self.done_size = 0
        """Bytes that are marked and not yet acknowledged."""
        self.acked = done
        """Last number that was acknowledged."""
        self.unsure = unsure
        """Messages up to this number may have been seen by a predecessor."""
        self.last: Received | None = None
        """The message that was returned last, until it is marked."""

    @property
    def owes(self) -> bool:
        """Whether something is marked that the peer was not told of."""
        return self.done > self.acked

    def begin(self, base: int, sent: int) -> None:
        """Join a session in which *base* comes next and a predecessor may have seen all up to *sent*."""
        self.expected, self.done, self.acked, self.unsure = base, base - 1, base - 1, sent

    def skip_to(self, base: int) -> None:
        """Expect nothing older than *base*, which the peer does not have any more."""
        self.expected = max(self.expected, base)

    def put(self, number: int, payloads: Sequence[bytes], limit: int) -> None:
        """Take in messages from *number* on, less those that are here already.

        Raises ProtocolError when more than *limit* bytes wait to be read then.
        """
        if number < self.expected:
            payloads = payloads[self.expected - number :]
            number = self.expected
        for payload in payloads:
            self.size += len(payload) + OVERHEAD
            self.inbox.append(Received(number, payload, number <= self.unsure))
            number += 1
        self.expected = number
        if self.size > limit:
            raise ProtocolError("the peer sends more than the window that it agreed to")

    def next(self) -> Received:
        """Return the next message, which must be there; the one before is marked already."""
        self.last = message = self.inbox.popleft()
        size = len(message.payload) + OVERHEAD
        self.size -= size
        self.done_size += size
        return message

    def take(self, limit: int) -> list[Received]:
        """Return up to *limit* messages, which are marked together; those before are marked already."""
        taken = [self.inbox.popleft() for _ in range(min(limit, len(self.inbox)))]
        if taken:
            size = sum([len(message.payload) for message in taken]) + OVERHEAD * len(taken)
            self.size -= size
            self.done_size += size
            self.last = taken[-1]
        return taken

    def mark(self) -> None:
        """Mark what was returned last as taken care of."""
        if self.last is not None:
            self.done = max(self.done, self.last.number)
            self.last = None

    def displace(self, number: int) -> None:
        """Latest only: *number* is newer than what was not read, which counts as taken care of."""
        self.inbox.clear()
        self.done_size += self.size
        self.size = 0
        self.done = number - 1

    def acknowledged(self) -> int:
        """Return what the peer is being told now: the last number that was marked."""
        self.acked, self.done_size = self.done, 0
        return self.done
