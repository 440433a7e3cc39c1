"""The live end of the history: a journal of the samples that came last, held in memory too."""

from __future__ import annotations

import operator
from array import array
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import attrs

from mchannel.errors import JournalError
from mchannel.journal import MAX_RECORD, Journal

from .leisure import leisurely
from .segment import Columns, Row

__all__ = ["Live"]

_FULL = 1 << 20  # samples
_LONG = 3_600_000  # milliseconds
_ROW = 20  # bytes of a sample
_MOST = MAX_RECORD // _ROW
_FOREVER = 1 << 63
_SLICE = 1024  # samples that are looked at at once, in less than a stint of leisure


@attrs.define(eq=False)
class Live:
    """Samples in the order in which they came; what :meth:`append` took survives a kill."""

    number: int
    journal: Journal
    series: array[int] = attrs.field(factory=lambda: array("I"))
    times: array[int] = attrs.field(factory=lambda: array("q"))
    values: array[float] = attrs.field(factory=lambda: array("d"))

    @classmethod
    def open(cls, path: Path, number: int) -> Live:
        """Open the journal at *path*, making it when missing; raise :exc:`mchannel.errors.JournalError`."""
        live = cls(number, Journal.open(path))
        for record in live.journal.records:
            count = len(record) // _ROW
            if len(record) != count * _ROW:
                raise JournalError(f"journal {path} is of something else; move it away")
            live.series.frombytes(record[: 4 * count])
            live.times.frombytes(record[4 * count : 12 * count])
            live.values.frombytes(record[12 * count :])
        live.journal.records = ()
        return live

    @property
    def is_full(self) -> bool:
        """Whether it is to be sealed."""
        return len(self.series) >= _FULL or (len(self.times) > 0 and self.times[-1] - self.times[0] >= _LONG)

    @property
    def is_overfull(self) -> bool:
        """Whether it must be sealed at once, for it takes too much memory."""
        return len(self.series) >= 4 * _FULL

    @property
    def begin(self) -> int:
        """Time of the oldest sample."""
        return min(self.times)

    def append(self, series: array[int], values: array[float], times: array[int]) -> None:
        """Take samples; raise JournalError when the disk refuses them, which takes them all the same."""
        self.series.extend(series)
        self.times.extend(times)
        self.values.extend(values)
        for at in range(0, len(series), _MOST):
            columns = (column[at : at + _MOST].tobytes() for column in (series, times, values))
            self.journal.append(b"".join(columns), sync=False)

    def rows(self, numbers: Collection[int], begin: int, end: int) -> list[Row]:
        """Return the samples of those series from *begin* to before *end*, in time order."""
        # What another thread appends meanwhile is longer in some columns than in others, and left out.
        rows = zip(self.times, self.series, self.values, strict=False)
        return sorted(row for row in rows if row[1] in numbers and begin <= row[0] < end)

    def columns(
        self, order: Iterable[int], begin: int = -_FOREVER, end: int = _FOREVER, *, rest: float = 0.0
    ) -> Iterator[Columns]:
        """Yield the columns of each series, in that *order*, from *begin* to before *end*; see :mod:`.leisure`."""
        found: dict[int, tuple[array[int], array[float]]] = {
            number: (array("q"), array("d")) for number in leisurely(order, rest)
        }
        for first in leisurely(range(0, len(self.series), _SLICE), rest):
            when = self.times[first : first + _SLICE]
            if max(when, default=begin) < begin:
                continue  # mostly an hour is here, and some minutes of it are wanted
            some = self.series[first : first + _SLICE], when, self.values[first : first + _SLICE]
            for number, at, value in zip(*some, strict=False):  # as in rows
                if number in found and begin <= at < end:
                    times, values = found[number]
                    times.append(at)
                    values.append(value)
        for number, (times, values) in leisurely(found.items(), rest):
            if times:
                yield number, *_ascending(times, values)


def _ascending(times: array[int], values: array[float]) -> tuple[array[int], array[float]]:
    if all(map(operator.le, times, times[1:])):
        return times, values
    order = sorted(range(len(times)), key=times.__getitem__)
    return array("q", [times[at] for at in order]), array("d", [values[at] for at in order])
