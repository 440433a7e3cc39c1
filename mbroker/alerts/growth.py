"""When to have one more host for engines, or one less: decided from how busy they are."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import attrs

__all__ = ["Growth", "Wish"]


class Wish(Enum):
    """What there should be of hosts."""

    STAY = "stay"
    GROW = "grow"
    SHRINK = "shrink"


@attrs.frozen
class Growth:
    """What it has seen so far; :meth:`after` says what it thinks after one more measurement.

    It asks for a host when one is busier than :attr:`high` in :attr:`patience` measurements in a row, and for one
    less when all that there is to do would still leave the rest below :attr:`low`. After either it waits as long
    again, for what moved makes work of its own. What is missing of :attr:`least` it asks for at once.
    """

    high: float = 0.9
    low: float = 0.6
    """Less than :attr:`high`, so that a host that went is not missed at once."""
    patience: int = 6
    least: int = 1
    """Hosts that there are to begin with, and not fewer later."""
    most: int = 64
    """Hosts that there may be."""
    wish: Wish = Wish.STAY
    leaning: Wish = Wish.STAY
    times: int = 0
    """Measurements in a row that lean there; less than 0: that are still to be ignored."""

    def after(self, shares: Mapping[str, float]) -> Growth:
        """Return what it thinks after *shares* of a processor, by host: 0 is idle, 1 all of it."""
        if len(shares) < self.least:
            return attrs.evolve(self, wish=Wish.GROW, leaning=Wish.STAY, times=-self.patience)
        if self.times < 0:
            return attrs.evolve(self, wish=Wish.STAY, times=self.times + 1)
        leaning = self._leaning(shares)
        times = 1 if leaning is not self.leaning else self.times + 1
        if leaning is Wish.STAY or times < self.patience:
            return attrs.evolve(self, wish=Wish.STAY, leaning=leaning, times=times)
        return attrs.evolve(self, wish=leaning, leaning=Wish.STAY, times=-self.patience)

    def _leaning(self, shares: Mapping[str, float]) -> Wish:
        if max(shares.values(), default=0.0) > self.high:
            return Wish.GROW if len(shares) < self.most else Wish.STAY
        if len(shares) > self.least and sum(shares.values()) < self.low * (len(shares) - 1):
            return Wish.SHRINK
        return Wish.STAY
