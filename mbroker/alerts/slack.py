"""Samples that arrive out of order wait a little, so that they are matched in the order of their times."""

from __future__ import annotations

import heapq
from array import array

__all__ = ["Slack"]


class Slack:
    """Holds each sample until the broker's clock is *length* milliseconds past its time.

    A sample that is no later than that is in order then. What comes later still is passed on as it is, and whoever
    matches it finds that it is late.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self._held: list[tuple[int, int, int, float]] = []  # a heap of time, order of arrival, number and value
        self._arrived = 0

    @property
    def numbers(self) -> set[int]:
        """The series of which it holds samples."""
        return {number for _, _, number, _ in self._held}

    def put(self, numbers: array[int], values: array[float], times: array[int]) -> None:
        """Hold samples."""
        for number, value, at in zip(numbers, values, times, strict=True):
            heapq.heappush(self._held, (at, self._arrived, number, value))
            self._arrived += 1

    def due(self, now: int) -> tuple[array[int], array[float], array[int]]:
        """Return the samples that have waited long enough, in the order of their times: numbers, values, times."""
        numbers, values, times = array("I"), array("d"), array("q")
        while self._held and self._held[0][0] + self.length <= now:
            at, _, number, value = heapq.heappop(self._held)
            numbers.append(number)
            values.append(value)
            times.append(at)
        return numbers, values, times
