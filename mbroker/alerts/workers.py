"""Where samples are matched: by one engine in the caller's thread, or by shards on as many hosts as have work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from .engine import Engine
from .engine_host import EngineHost, LostError
from .growth import Growth, Wish
from .matcher import Matcher
from .shards import Shards

__all__ = ["InBroker", "Matching", "Workers"]

_LOOKS = 10_000_000_000  # nanoseconds between two


class Matching(Protocol):
    """Makes what matches, one at a time, and keeps it in shape."""

    @property
    def form(self) -> str:
        """What its snapshots are of: one of another form is of no use."""
        ...

    @property
    def shares(self) -> Mapping[str, float]:
        """How much of a processor each host took of late, 1 being all of it; nothing is known of what is in process."""
        ...

    def fresh(self, now: int, *, interval: int, longest: int) -> Matcher:
        """Return one that knows nothing, as :class:`.engine.Engine` is made."""
        ...

    def load(self, image: bytes) -> Matcher:
        """Return what a snapshot is of; raise :exc:`.image.SnapshotError` when it is none, or damaged."""
        ...

    def look(self, clock: int) -> list[str]:
        """Do what hosts ask for, at *clock* nanoseconds of any clock; return what changed, a line each."""
        ...

    def close(self) -> None:
        """Give back what it takes. What was made matches no more."""
        ...


class InBroker:
    """One engine, in the caller's thread."""

    form = "engine"

    def __init__(self) -> None:
        self.shares: Mapping[str, float] = {}

    def fresh(self, now: int, *, interval: int, longest: int) -> Engine:
        """Return a new engine."""
        return Engine(now, interval=interval, longest=longest)

    def load(self, image: bytes) -> Engine:
        """Return the engine of a snapshot."""
        return Engine.load(image)

    def look(self, clock: int) -> list[str]:
        """Do nothing."""
        del clock
        return []

    def close(self) -> None:
        """Do nothing."""


class Workers:
    """Shards on hosts, of which there is one more when one has too much to do, and one less when they have little."""

    form = "shards"

    def __init__(self, make: Callable[[], EngineHost], growth: Growth) -> None:
        """Begin with as many hosts as *growth* says there are to be at least; each is what *make* returns."""
        self._make = make
        self._growth = growth
        self._shards: Shards | None = None
        self._looked: int | None = None
        self.shares: Mapping[str, float] = {}

    def fresh(self, now: int, *, interval: int, longest: int) -> Shards:
        """Return new shards; raises :exc:`.engine_host.LostError` when there are no hosts to be had."""
        return self._have(Shards(now, hosts=self._growth.least, make=self._make, interval=interval, longest=longest))

    def load(self, image: bytes) -> Shards:
        """Return the shards of a snapshot, on how many hosts they ever were; raises as :meth:`fresh` besides."""
        return self._have(Shards.load(image, hosts=self._growth.least, make=self._make))

    def _have(self, shards: Shards) -> Shards:
        self.close()
        self._shards = shards
        self.shares = dict.fromkeys(shards.where, 0.0)
        return shards

    def look(self, clock: int) -> list[str]:
        """Have one more host, or one less, if it is time; say of those that were lost."""
        shards, before = self._shards, self._looked
        if shards is None or (before is not None and clock - before < _LOOKS):
            return []
        self._looked = clock
        measured = shards.shares(clock - before if before is not None else _LOOKS)
        said = shards.losses()
        if before is None:  # nobody knows how long that took
            return said
        self.shares = measured
        self._growth = self._growth.after(self.shares)
        match self._growth.wish:
            case Wish.GROW:
                said.append(self._grown(shards))
            case Wish.SHRINK:
                said.append(self._shrunk(shards))
            case Wish.STAY:
                return said
        self.shares = {name: self.shares.get(name, 0.0) for name in shards.where}
        return said

    def _grown(self, shards: Shards) -> str:
        try:
            name = shards.grow()
        except LostError as error:
            return f"alerts should have one more host of engines, and have none: {error}"
        return f"{name} of engines is there, so that alerts have {len(shards.where)}; {self._busiest()}"

    def _shrunk(self, shards: Shards) -> str:
        name = min(self.shares, key=lambda host: self.shares[host])
        shards.shrink(name)
        return f"{name} of engines is there no more, so that alerts have {len(shards.where)}; {self._busiest()}"

    def _busiest(self) -> str:
        return f"the busiest took {max(self.shares.values(), default=0.0):.0%} of a processor"

    def close(self) -> None:
        """End all hosts."""
        if self._shards is not None:
            self._shards.close()
            self._shards = None
