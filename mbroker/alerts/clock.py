"""The clock of alerts, and how a time of it is written."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

__all__ = ["rfc3339", "unix_ms"]


def unix_ms() -> int:
    """Return the time in milliseconds of the Unix clock."""
    return time.time_ns() // 1_000_000


def rfc3339(at: int) -> str:
    """Return *at*, in milliseconds of the Unix clock, as RFC 3339 has it."""
    moment = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=at)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
