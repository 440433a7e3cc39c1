"""Samples that arrive out of order wait a little, so that they are matched in the order of their times."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable

__all__ = ["Slack"]


class Slack:
    """Holds each sample until the broker's clock is *length* milliseconds past its time.

    A sample that is no later than that is in order then. What comes later still is passed on as it is, and whoever
    matches it finds that it is late.
    """

    def __init__(self, length: int, held: Iterable[tuple[int, int, int, float]] = ()) -> None:
        self.length = length
        self.held = [*held]
        """A heap of time, order of arrival, number and value."""
        heapq.heapify(self.held)
        self._arrived = 1 + max((arrived for _, arrived, _, _ in self.held), default=0)

    @property
    def numbers(self) -> set[int]:
        """The series of which it holds samples."""
        return {number for _, _, number, _ in self.held}

    def put(self, numbers: array[int], values: array[float], times: array[int]) -> None:
        """Hold samples."""
        for number, value, at in zip(numbers, values, times, strict=True):
            heapq.heappush(self.held, (at, self._arrived, number, value))
            self._arrived += 1

    def due(self, now: int) -> tuple[array[int], array[float], array[int]]:
        """Return the samples that have waited long enough, in the order of their times: numbers, values, times."""
        numbers, values, times = array("I"), array("d"), array("q")
        while self.held and self.held[0][0] + self.length <= now:
            at, _, number, value = heapq.heappop(self.held)
            numbers.append(number)
            values.append(value)
            times.append(at)
        return numbers, values, times
