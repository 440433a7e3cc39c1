"""The writing half of a session: numbers, the window, and what may have to be sent again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from mchannel.errors import ProtocolError
from mchannel.frame import MOST_TOGETHER, OVERHEAD, Terms

__all__ = ["Writer", "batches"]

_ITEM = 5
"""Most bytes that a message takes in a frame of several, besides itself; and that the frame takes for all."""


class Writer:
    """Messages from the first that the peer has not acknowledged, numbered without gaps."""

    def __init__(self, base: int = 1, unacked: Iterable[bytes] = (), foreign: int = 0) -> None:
        self.base = base
        """Number of the first in ``unacked``, or of the next one to be written."""
        self.unacked = deque(unacked)
        self.last = base + len(self.unacked) - 1
        """Highest number that was given."""
        self.size = foreign + sum(len(payload) + OVERHEAD for payload in self.unacked)
        """Bytes in ``unacked`` as the window counts them: with their headers, so that empty messages count too.

        And ``foreign``.
        """
        self.foreign = foreign
        """Most bytes that wait at the peer, unread, of writers that died: of them are the numbers before ``base``."""
        self.sent = 0
        """Highest number that ever left for the peer."""
        self.held = False
        """Latest only: whether the last of ``unacked`` has not left yet, so that a newer one may take its place."""

    def put(self, payload: bytes, window: int) -> int:
        """Return the number that *payload* gets; 0 when it does not fit into the *window*. One always does."""
        size = self.size + len(payload) + OVERHEAD
        if size > window and (self.unacked or self.foreign):
            return 0
        self.unacked.append(payload)
        self.size = size
        self.last += 1
        return self.last

    def put_many(self, payloads: Sequence[bytes], window: int) -> int:
        """Number as many of *payloads* as fit into the *window*; return how many."""
        for count, payload in enumerate(payloads):
            if not self.put(payload, window):
                return count
        return len(payloads)

    def put_newest(self, payload: bytes) -> None:
        """Latest only: number *payload*, in place of one that is held still, and hold it."""
        if self.held:
            self.size -= len(self.unacked.pop()) + OVERHEAD
            self.last -= 1
        self.unacked.append(payload)
        self.size += len(payload) + OVERHEAD
        self.last += 1
        self.held = True

    def may_let_go(self, window: int) -> bool:
        """Latest only: whether what is held fits into the *window* by now."""
        return self.held and (len(self.unacked) == 1 or self.size <= window)

    def acknowledge(self, number: int) -> None:
        """Forget all up to *number*; raise ProtocolError when there is no such message yet."""
        if number > self.last:
            raise ProtocolError("the peer acknowledges what was never sent")
        if self.foreign and number >= self.base - 1:
            self.size -= self.foreign
            self.foreign = 0
        while self.base <= number:
            self.size -= len(self.unacked.popleft()) + OVERHEAD
            self.base += 1

    def keep_newest(self) -> None:
        """Latest only: give up all but the newest."""
        while len(self.unacked) > 1:
            self.forget_first()

    def forget_first(self) -> None:
        """Give up the oldest."""
        self.size -= len(self.unacked.popleft()) + OVERHEAD
        self.base += 1

    def count_on(self, received: int, mine: int | None) -> None:
        """Go on after the numbers up to *received*, where other brokers used those after *mine*.

        What the peer has not received of this writer's gets new numbers. *mine* is None when the peer
        does not know this writer: nothing of it arrived, or so long ago that it was forgotten.
        """
        if mine is None:
            mine = self.base - 1
        if received > mine:
            while self.unacked and self.base <= mine:
                self.forget_first()
            self.base = received + 1
            self.last = received + len(self.unacked)

    def share(self, read: int, terms: Terms) -> None:
        """Leave room in the window for what others wrote, as the peer has *read* up to that number only.

        The window is what the peer has room for. How long those messages are it does not say, so
        each counts as the longest.
        """
        unread = max(0, self.base - 1 - read)
        foreign = min(terms.window, unread * (terms.max_message + OVERHEAD))
        self.size += foreign - self.foreign
        self.foreign = foreign

    def after(self, number: int) -> tuple[int, Iterable[bytes]]:
        """Return the messages after *number* with the number of the first."""
        skip = max(0, number - self.base + 1)
        return self.base + skip, islice(self.unacked, skip, None)


def batches(number: int, payloads: Iterable[bytes], most: int) -> Iterator[tuple[int, list[bytes]]]:
    """Divide *payloads*, the first of which has *number*, into what fits into frames of *most* bytes each."""
    most = min(most, MOST_TOGETHER) - _ITEM
    batch: list[bytes] = []
    size = 0
    for payload in payloads:
        size += len(payload) + _ITEM
        if size > most and batch:
            yield number, batch
            number += len(batch)
            batch, size = [], len(payload) + _ITEM
        batch.append(payload)
    if batch:
        yield number, batch
