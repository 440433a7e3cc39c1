"""Matching at the source: of a series that only thresholds are watched of, only samples that cross one travel.

A rule on the newest sample of a series is a state machine fed by what holds and what does not: by which thresholds
the value is above. A sample that is above the same ones as the sample before changes nothing, and need not travel.
What does travel is matched by the broker as ever, so that the edges, their times and their values are the same, and
there is no state to hand over: not when a rule that fires is offloaded, not when it is taken back, and not when
either side begins anew. (MAVIS, section IV, *selective offloading*, with sorted lists and binary search.)
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator

import attrs

from mchannel.samples import Offload

__all__ = ["Sieve"]

_NEVER = -(1 << 62)

Row = tuple[float, int]
"""A value and its time."""


@attrs.define
class _Series:
    cuts: list[float]
    """Sorted."""
    newest: int
    """Time of the newest sample that was sent or held back."""
    above: int | None = None
    """How many cuts the last sample that was sent is above; None when the broker may know another one."""
    sent: int = _NEVER
    held: Row | None = None
    """The newest sample, if it was held back."""


class Sieve:
    """Holds back what the broker has no use for. No I/O, no clock: times are those of the samples."""

    def __init__(self, offer: Offload, newest: int) -> None:
        """Do what the *offer* asks; *newest* is the time of the newest sample that was sent so far."""
        self.cuts = len(offer.cuts)
        self._refresh = offer.refresh
        cuts: defaultdict[int, list[float]] = defaultdict(list)
        for number, cut in zip(offer.numbers, offer.cuts, strict=True):
            cuts[number].append(cut)
        since = max(offer.since, newest)
        self._series = {number: _Series(sorted(each), since) for number, each in cuts.items()}

    def __contains__(self, number: int) -> bool:
        """Whether something of that series may be held back."""
        return number in self._series

    def sift(self, number: int, value: float, at: int) -> tuple[Row, ...]:
        """Return what is to be sent of a series now that it has a new sample."""
        series = self._series[number]
        if math.isnan(value):
            return ()  # the broker would drop it
        if at <= series.newest:
            return self._late(series, value, at)
        series.newest = at
        above = bisect_left(series.cuts, value)
        if above == series.above and at - series.sent < self._refresh:
            series.held = (value, at)
            return ()
        series.above, series.sent, series.held = above, at, None
        return ((value, at),)

    def _late(self, series: _Series, value: float, at: int) -> tuple[Row, ...]:
        """Leave it to the broker what is late: it knows better what it has accepted, if it knows all that there was."""
        held, series.held, series.above = series.held, None, None
        return ((value, at),) if held is None else (held, (value, at))

    def lost(self, number: int, at: int) -> None:
        """Take note that a sample was thrown away; if it was the last that was sent of its series, the next one is."""
        series = self._series.get(number)
        if series is not None and series.sent == at:
            series.above = None

    def rest(self) -> Iterator[tuple[int, float, int]]:
        """Yield number, value and time of what is held back, the newest of each series."""
        for number, series in self._series.items():
            if series.held is not None:
                yield number, *series.held
