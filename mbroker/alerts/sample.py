"""One value of one series."""

from __future__ import annotations

import attrs

from .selector import Series

__all__ = ["Sample"]


@attrs.frozen
class Sample:
    """What a series was at a time."""

    series: Series
    at: int
    """Milliseconds of the Unix clock."""
    value: float
