"""Which series the numbers in the history's files are, and how often each is read: a journal that they rely on."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from mchannel import packing
from mchannel.errors import JournalError
from mchannel.journal import Journal

from .selector import Series

__all__ = ["Names"]

_LIMITS = packing.Limits(text=1024, items=4096)
_TOGETHER = 1024  # names in a record


@attrs.define(eq=False)
class Names:
    """Series and their numbers; a number is on disk before any file says it."""

    journal: Journal
    word: str = attrs.field(factory=lambda: secrets.token_hex(4))
    """In the names of all files whose numbers these are."""
    series: dict[int, Series] = attrs.field(factory=dict[int, Series])
    intervals: dict[int, int] = attrs.field(factory=dict[int, int])
    """Milliseconds between samples of those that say it."""
    _numbers: dict[Series, int] = attrs.field(factory=dict[Series, int])
    _fresh: list[int] = attrs.field(factory=list[int])
    _paced: set[int] = attrs.field(factory=set[int])
    _next: int = 1

    @classmethod
    def open(cls, path: Path) -> Names:
        """Open the journal at *path*, making it when missing; raise :exc:`mchannel.errors.JournalError`."""
        journal = Journal.open(path)
        try:
            records: list[tuple[Any, ...]] = [packing.unpack(record, _LIMITS) for record in journal.records]
            journal.records = ()
            if not records:
                names = cls(journal)
                journal.append(packing.pack([names.word]))
                return names
            names = cls(journal, str(records[0][0]))
            for number, metric, endpoint, *interval in (name for record in records[1:] for name in record):
                names._add(int(number), Series(metric, frozenset(endpoint)))
                names._pace(int(number), int(interval[0]) if any(interval) else None)
        except (ValueError, TypeError):
            journal.close()
            raise JournalError(f"{path} is not of this version; move its folder away") from None
        return names

    def number(self, series: Series) -> int:
        """Return the number of *series*, a new one if need be."""
        number = self._numbers.get(series)
        if number is None:
            number = self._next
            self._add(number, series)
            self._fresh.append(number)
        return number

    def pace(self, number: int, interval: int | None) -> None:
        """Note how often a series is read; of one that is on disk already, :meth:`sync_intervals` writes it."""
        if self.intervals.get(number) != interval:
            self._pace(number, interval)
            self._paced.add(number)

    def sync(self) -> None:
        """Return when all are on disk; raise JournalError."""
        if self._fresh:
            self.journal.append_many(self._records(self._fresh))
            self._paced.difference_update(self._fresh)
            self._fresh.clear()

    def sync_intervals(self) -> None:
        """Return when intervals that changed are on disk; seldom, as publishers change them as they like."""
        if self._paced:
            self.journal.append_many(self._records(sorted(self._paced)))
            self._paced.clear()

    def keep(self, numbers: set[int]) -> None:
        """Forget all but *numbers*; raise JournalError."""
        self.series = {number: series for number, series in self.series.items() if number in numbers}
        self._numbers = {series: number for number, series in self.series.items()}
        self.intervals = {number: interval for number, interval in self.intervals.items() if number in numbers}
        self.journal.rewrite([packing.pack([self.word]), *self._records(list(self.series))])
        self._fresh.clear()
        self._paced.clear()

    def _add(self, number: int, series: Series) -> None:
        self.series[number] = series
        self._numbers[series] = number
        self._next = max(self._next, number + 1)

    def _pace(self, number: int, interval: int | None) -> None:
        if interval is None:
            self.intervals.pop(number, None)
        else:
            self.intervals[number] = interval

    def _records(self, numbers: list[int]) -> Iterator[bytes]:
        for at in range(0, len(numbers), _TOGETHER):
            some = ((number, self.series[number]) for number in numbers[at : at + _TOGETHER])
            yield packing.pack(
                [
                    [number, series.metric, sorted(series.endpoint), self.intervals.get(number)]
                    for number, series in some
                ]
            )
