"""How busy the guest, or this process, was since it was last asked."""

from __future__ import annotations

import os
import time
from pathlib import Path

import attrs

__all__ = ["GuestCpu", "ProcessCpu"]


@attrs.define
class GuestCpu:
    """Utilisation of all virtual CPUs as the guest's own governor sees it: what was not idle.

    Stolen time counts as busy, as it does for ``ondemand``: that is why a guest believes itself to be
    busier than the MVM sees it (M-channels, section 4.1.1).
    """

    stat: Path = Path("/proc/stat")
    _last: tuple[int, int] | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        """Begin to count now."""
        self()

    def __call__(self) -> float | None:
        """Return 0.0..1.0 since the last call; None where it cannot be read, or when no time has passed."""
        try:
            name, *ticks = self.stat.read_text(encoding="ascii").split("\n", 1)[0].split()
            numbers = [int(tick) for tick in ticks[:8]]  # guest time, the rest, is part of user time
        except (OSError, ValueError):
            return None
        if name != "cpu" or len(numbers) < 4:
            return None
        idle, total = sum(numbers[3:5]), sum(numbers)
        last, self._last = self._last, (idle, total)
        if last is None or total <= last[1]:
            return None
        return min(1.0, max(0.0, 1.0 - (idle - last[0]) / (total - last[1])))


def _used_and_available() -> tuple[float, float]:
    return time.process_time(), time.monotonic() * len(os.sched_getaffinity(0))


@attrs.define
class ProcessCpu:
    """CPU time of this process, all its threads, against the CPUs that it may use."""

    _last: tuple[float, float] = attrs.field(factory=_used_and_available, init=False)

    def __call__(self) -> float | None:
        """Return 0.0..1.0 since the last call; None when no time has passed."""
        last, self._last = self._last, _used_and_available()
        available = self._last[1] - last[1]
        return min(1.0, max(0.0, (self._last[0] - last[0]) / available)) if available > 0 else None
