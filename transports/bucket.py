"""How often something may happen."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["TokenBucket"]


class TokenBucket:
    """Allows *rate* times a second in the long run, and *burst* times at once."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._since = clock()

    def take(self) -> bool:
        """Tell whether it may happen once more now; if so, it counts."""
        now = self._clock()
        self._tokens = min(self._tokens + (now - self._since) * self._rate, self._burst)
        self._since = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
