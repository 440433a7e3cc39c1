"""How often something may happen."""

from __future__ import annotations

import math

import attrs

__all__ = ["TokenBucket"]


@attrs.define(eq=False)
class TokenBucket:
    """Allows *rate* times a second in the long run, and *burst* times at once. Never reads a clock."""

    rate: float
    burst: int
    tokens: float = attrs.field(init=False)
    """How often it may happen at once, as of when something was taken last."""
    _since: float = attrs.field(init=False, default=-math.inf)

    def __attrs_post_init__(self) -> None:
        """Begin with a full bucket."""
        self.tokens = float(self.burst)

    def take(self, now: float) -> bool:
        """Tell whether it may happen once more at *now*, in seconds of any clock; if so, it counts.

        A clock that goes back adds nothing and takes nothing away.
        """
        self.tokens = min(self.tokens + max(now - self._since, 0.0) * self.rate, self.burst)
        self._since = max(now, self._since)
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True
