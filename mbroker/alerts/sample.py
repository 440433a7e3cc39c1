"""One value of one series, and what it means that there is none."""

from __future__ import annotations

import attrs

from .selector import Series

__all__ = ["SILENT", "Sample"]

SILENT = 3
"""Intervals without a sample after which a series is silent."""


@attrs.frozen
class Sample:
    """What a series was at a time."""

    series: Series
    at: int
    """Milliseconds of the Unix clock."""
    value: float
