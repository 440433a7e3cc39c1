"""Samples that arrive out of order wait a little, so that they are matched in the order of their times."""

from __future__ import annotations

import heapq
from array import array

__all__ = ["Slack"]


class Slack:
    """Holds each sample until the broker's clock is *length* milliseconds past its time.

    A sample that is no later than that is in order then. What comes later still is passed on as it is, and whoever
    matches it finds that it is late. As nothing may be after the clock, there are as many times at the most as
    milliseconds that samples wait, and how many samples wait the intake bounds.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self._held: dict[int, tuple[array[int], array[float]]] = {}
        """For each time numbers and values, in the order in which they came."""
        self._times: list[int] = []  # a heap

    @property
    def numbers(self) -> set[int]:
        """The series of which it holds samples."""
        return set[int]().union(*(numbers for numbers, _ in self._held.values()))

    def put(self, numbers: array[int], values: array[float], times: array[int]) -> None:
        """Hold samples."""
        for number, value, at in zip(numbers, values, times, strict=True):
            together = self._held.get(at)
            if together is None:
                together = self._held[at] = array("I"), array("d")
                heapq.heappush(self._times, at)
            together[0].append(number)
            together[1].append(value)

    def due(self, now: int) -> tuple[array[int], array[float], array[int]]:
        """Return the samples that have waited long enough, in the order of their times: numbers, values, times."""
        numbers, values, times = array("I"), array("d"), array("q")
        while self._times and self._times[0] + self.length <= now:
            at = heapq.heappop(self._times)
            some, of_them = self._held.pop(at)
            numbers += some
            values += of_them
            times.extend([at] * len(some))
        return numbers, values, times
