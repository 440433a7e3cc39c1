"""Words to the service manager: sd_notify(3) and its watchdog."""

from __future__ import annotations

import os
import time

from mchannel.agents.notify import sd_notify

__all__ = ["reloading", "sd_notify", "watchdog_interval"]


def reloading() -> None:
    """Say that a reload began; ``READY=1`` ends it."""
    sd_notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_interval() -> float | None:
    """Return how often, in seconds, the service manager wants a sign of life; None when it does not."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1e6 / 3
