"""What waits for its time, shared out among those whom it concerns: they take turns, and none crowds out another."""

from __future__ import annotations

import heapq
from collections import OrderedDict, defaultdict
from collections.abc import Hashable
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Turns"]


class _Timed(Protocol):
    @property
    def at(self) -> int:
        """From when it may be taken, in milliseconds."""
        ...

    def __lt__(self, other: Any, /) -> bool: ...


Item = TypeVar("Item", bound=_Timed)
Owner = TypeVar("Owner", bound=Hashable)


class Turns(Generic[Owner, Item]):
    """At most *most* items, each of some owner; one more costs one of an owner with the most."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._waiting: OrderedDict[Owner, list[Item]] = OrderedDict()
        """A heap for each owner, beginning with the one whose turn is next."""
        self._owners: defaultdict[int, dict[Owner, None]] = defaultdict(dict[Owner, None])
        """For each length of these heaps whose are that long."""
        self._longest = 0

    def __len__(self) -> int:
        """Return how many items wait."""
        return self._count

    def push(self, owner: Owner, item: Item) -> Owner | None:
        """Add an item; return who had to give one up for it, one of those with the most, or None."""
        heap = self._waiting.setdefault(owner, [])
        heapq.heappush(heap, item)
        self._resized(owner, len(heap) - 1, len(heap))
        if self._count <= self._most:
            return None
        loser = owner if len(heap) == self._longest else next(iter(self._owners[self._longest]))
        self._waiting[loser].pop()  # a leaf of the heap, seldom what is next
        self._shrunk(loser)
        return loser

    def pop(self, now: int) -> Item | None:
        """Take the earliest item of the first owner who has one for which it is time *now*; None if there is none."""
        owner = next((owner for owner, heap in self._waiting.items() if heap[0].at <= now), None)
        if owner is None:
            return None
        item = heapq.heappop(self._waiting[owner])
        self._waiting.move_to_end(owner)
        self._shrunk(owner)
        return item

    def _shrunk(self, owner: Owner) -> None:
        length = len(self._waiting[owner])
        self._resized(owner, length + 1, length)
        if not length:
            del self._waiting[owner]

    def _resized(self, owner: Owner, before: int, after: int) -> None:
        self._count += after - before
        self._owners[before].pop(owner, None)
        if not self._owners[before]:
            del self._owners[before]
        if after:
            self._owners[after][owner] = None
        if after > self._longest or self._longest not in self._owners:  # it changes by one
            self._longest = after
