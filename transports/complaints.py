"""Log lines about peers that misbehave, so few that a peer cannot fill a disk with them."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict

__all__ = ["Complaints"]

_log = logging.getLogger("mchannel.transports")


class Complaints:
    """Log lines about peers that misbehave: each once a minute, and not more than *limit* of them."""

    def __init__(self, limit: int = 64, interval: float = 60.0, log: logging.Logger = _log) -> None:
        self._log = log
        self._limit = limit
        self._interval = interval
        self._made: OrderedDict[str, float] = OrderedDict()
        self._withheld = 0

    def make(self, text: str) -> None:
        """Log *text*, unless it or too many others were logged within the last minute."""
        now = time.monotonic()
        while self._made and now - next(iter(self._made.values())) >= self._interval:
            self._made.popitem(last=False)
        if text in self._made or len(self._made) >= self._limit:
            self._withheld += 1
            return
        self._made[text] = now
        self._log.warning("%s%s", text, f" ({self._withheld} more were not logged)" if self._withheld else "")
        self._withheld = 0
