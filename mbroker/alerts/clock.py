"""The clock of alerts."""

from __future__ import annotations

import time

__all__ = ["unix_ms"]


def unix_ms() -> int:
    """Return the time in milliseconds of the Unix clock."""
    return time.time_ns() // 1_000_000
