"""The newest sample of each series: what a shard that sees a series later than others has to know of it."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from math import isnan
from typing import TypeAlias

import attrs

__all__ = ["Columns", "Newest"]

Columns: TypeAlias = "tuple[array[int], array[float], array[int]]"
"""Numbers, values and times of samples that arrived together, which nobody changes any more."""

_NEVER = -(1 << 63)
_MOST = 1 << 20  # samples that are kept in whole batches


@attrs.frozen(eq=False)
class _Batch:
    columns: Columns
    latest: int
    """The newest time of all."""


class Newest:
    """Numbers of series are counted from 0. Samples of others, and those that are no number, are passed over."""

    def __init__(self) -> None:
        self._values, self._times = array("d"), array("q")
        self._last: dict[bytes, _Batch] = {}  # by series, in the order in which they came: not looked through yet
        self._kept = 0  # how many samples that are

    def expect(self) -> None:
        """Have one more series."""
        self._values.append(0.0)
        self._times.append(_NEVER)

    def put(self, numbers: array[int], values: array[float], times: array[int]) -> None:
        """Note samples.

        Publishers send the same series again and again: a batch that is newer than the last one of the same
        series, and has no gap, takes its place, and nobody need look at each sample.
        """
        if not numbers:
            return
        columns, name = (numbers, values, times), numbers.tobytes()
        last = self._last.get(name)
        if last is not None and min(times) > last.latest and not isnan(sum(values)):
            del self._last[name]
            self._kept -= len(numbers)
        elif last is not None or not self._is_plain(numbers):
            self._settle()  # all in their order: of samples of one time the first one counts
            if last is None:
                self._note(columns)
                return
        self._last[name] = _Batch(columns, max(times))
        self._kept += len(numbers)
        if self._kept > _MOST:
            self._settle()

    def of(self, numbers: Iterable[int]) -> Iterator[tuple[int, float, int]]:
        """Yield number, value and time of those of *numbers* that had samples."""
        self._settle()
        for number in numbers:
            if self._times[number] != _NEVER:
                yield number, self._values[number], self._times[number]

    def forget(self, numbers: Iterable[int]) -> None:
        """Have the series of *numbers* had no samples."""
        self._settle()
        for number in numbers:
            self._times[number] = _NEVER

    def save(self) -> tuple[bytes, bytes]:
        """Return what :meth:`restore` takes."""
        self._settle()
        return self._values.tobytes(), self._times.tobytes()

    def restore(self, values: bytes, times: bytes) -> None:
        """Become what :meth:`save` was called on; raises ValueError for what is none."""
        self._values, self._times = array("d", values), array("q", times)

    def _is_plain(self, numbers: array[int]) -> bool:
        """Whether all are known, and each is there once."""
        return max(numbers) < len(self._times) and len(set(numbers)) == len(numbers)

    def _settle(self) -> None:
        for batch in self._last.values():
            self._note(batch.columns)
        self._last.clear()
        self._kept = 0

    def _note(self, columns: Columns) -> None:
        newest = self._times
        for number, value, at in zip(*columns, strict=True):
            if number < len(newest) and at > newest[number] and not isnan(value):
                newest[number] = at
                self._values[number] = value
