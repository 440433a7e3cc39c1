"""The rolling history: every sample of the last day in about a byte each, so that a new rule can be tried on yesterday.

What arrives is appended to a *live* journal, which survives a kill at once, and a power cut but for its last
seconds. When that holds an hour, or a million samples, it is *sealed* into a :class:`.segment.Segment`; the oldest
of these go when they are too old, or too large together. A third file says which series the numbers in them are.

The history is an aid, and what watches must go on without it: when the disk refuses, or a file is damaged, what
cannot be had is left out and :attr:`History.problem` says so.
"""

from __future__ import annotations

import errno
import heapq
import math
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, Self

from mchannel.errors import JournalError

from .context import REST, Seen
from .leisure import leisurely
from .live import Live
from .names import Names
from .sample import Sample
from .segment import Row, Segment
from .selector import Series
from .usage import Usage, speaker

__all__ = ["Accepts", "History"]

_SPAN = 86_400_000
_SIZE = 1 << 30
_WAITING = 4  # live journals that wait for being sealed, while the disk refuses


class Accepts(Protocol):
    """What says which series are wanted; a :class:`.selector.Selector` does."""

    def accepts(self, series: Series, /) -> bool:
        """Whether *series* is one of them."""
        ...


class History:
    """The samples of the last *span* milliseconds in at most about *size* bytes, which sources share.

    One thread appends; :meth:`seal` and :meth:`read` may be called in others meanwhile.
    """

    def __init__(self, folder: Path, span: int = _SPAN, size: int = _SIZE) -> None:
        """Open the history in *folder*, making it (mode 0700) when missing.

        Raises OSError if the folder cannot be written, another process has it open, or what says which series
        there are is damaged.
        """
        self._folder = folder
        self._span = span
        self._size = size
        self._lock = threading.Lock()  # for the fields below
        self._sealing = threading.Lock()
        self._numbers: dict[int, int] = {}
        self._lives: list[Live] = []
        self._segments: list[Segment] = []
        self._usage = Usage()
        self._tidied = 0  # names when they were looked through last
        self.problem = ""
        """Why some samples are not kept, or not found, in one line; empty when all is well."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._names = Names.open(folder / "names")
        self._find()

    def close(self) -> None:
        """Let go of the files; idempotent."""
        for live in self._lives:
            live.journal.close()
        self._names.journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        with self._lock:
            sealed = sum(segment.size for segment in self._segments)
            return sealed + sum(live.journal.size for live in self._lives) + self._names.journal.size

    @property
    def is_due(self) -> bool:
        """Whether :meth:`seal` should be called."""
        return self._lives[-1].is_full

    # -- what arrives

    def name(self, number: int, series: Series) -> None:
        """Say which series *number* is from now on in :meth:`append`."""
        with self._lock:
            self._numbers[number] = self._names.number(series)

    def pace(self, number: int, interval: int | None) -> None:
        """Say how often that series is read, in milliseconds; None: as any other. Raises KeyError as :meth:`append`."""
        with self._lock:
            self._names.pace(self._numbers[number], interval)

    def append(self, numbers: array[int], values: array[float], times: array[int]) -> None:
        """Keep samples; raise KeyError for a number that was not named.

        It takes microseconds and does not wait for the disk, but when there are new series, and when nobody calls
        :meth:`seal` though it is due.
        """
        series = array("I", map(self._numbers.__getitem__, numbers))
        with self._lock:
            live = self._lives[-1]
            try:
                self._names.sync()
                live.append(series, values, times)
            except JournalError as error:
                self.problem = str(error)
        if live.is_overfull:
            self.seal(max(times))

    def seal(self, now: int) -> None:
        """Put what is live into its final form, and forget what is too old or too much.

        This takes about a second for a million samples; others can append and read meanwhile.
        """
        with self._sealing:
            self.problem = ""
            with self._lock:
                if len(self._lives[-1].series):
                    self._rotate()
                waiting = self._lives[:-1]
                try:
                    self._names.sync_intervals()
                except JournalError as error:
                    self.problem = str(error)
            for live in waiting:
                self._seal(live)
            self._trim(now)

    def _rotate(self) -> None:
        number = self._lives[-1].number + 1 if self._lives else 1
        try:
            self._lives.append(Live.open(self._path(number, "live"), number))
        except JournalError as error:
            self.problem = str(error)

    def _seal(self, live: Live) -> None:
        with self._lock:
            series = dict(self._names.series)
        order = sorted(series, key=lambda number: (series[number].metric, sorted(series[number].endpoint)))
        try:
            rest = 0.0 if live.is_overfull else 1.0
            segment = Segment.write(self._path(live.number, "sealed"), live.columns(order, rest=rest))
        except OSError as error:
            self._explain(self._path(live.number, "sealed"), error)
            if error.errno == errno.ENOSPC and self._segments:
                self._drop(self._segments[0])
            if len(self._lives) > _WAITING:
                self._replace(live)
        else:
            self._replace(live, segment)

    def _replace(self, live: Live, *sealed: Segment) -> None:
        with self._lock:
            self._lives.remove(live)
            self._segments.extend(sealed)
        live.journal.close()
        live.journal.path.unlink(missing_ok=True)

    # -- what was

    def intervals(self, wanted: Accepts) -> dict[Series, int]:
        """Return how often those of the series that are *wanted* are read that said it, in milliseconds."""
        with self._lock:
            known = [(self._names.series[number], interval) for number, interval in self._names.intervals.items()]
        return {series: interval for series, interval in known if wanted.accepts(series)}

    def read(self, wanted: Accepts, begin: int, end: int) -> Iterator[Sample]:
        """Yield the samples of the series that are *wanted*, from *begin* to before *end*, in time order."""
        known, found = self._sources(begin, end)
        series = {number: one for number, one in known if wanted.accepts(one)}
        sources = sorted(((source.begin, source) for source in found), key=lambda source: source[0])
        later = [*(first for first, _ in sources[1:]), math.inf]
        rest: list[Row] = []  # samples that may not be told before those of a later source
        for (_, source), horizon in zip(sources, later, strict=False):
            rows = heapq.merge(rest, self._rows(source, series, begin, end))
            rest = []
            for row in rows:
                if row[0] >= horizon:
                    rest = [row, *rows]
                    break
                at, number, value = row
                yield Sample(series[number], at, value)

    def columns(self, wanted: Accepts, begin: int, end: int) -> Iterator[Seen]:
        """Yield the same samples series by series, at leisure; one may come several times, of different times."""
        known, sources = self._sources(begin, end)
        series = {number: one for number, one in leisurely(known, REST) if wanted.accepts(one)}
        for source in sources:
            try:
                for number, times, values in source.columns(series.keys(), begin, end, rest=REST):
                    yield series[number], times, values
            except FileNotFoundError:
                pass  # it became too old just now
            except (OSError, ValueError) as error:
                assert isinstance(source, Segment)
                self._explain(source.path, error)

    def _sources(self, begin: int, end: int) -> tuple[list[tuple[int, Series]], list[Segment | Live]]:
        with self._lock:
            known = list(self._names.series.items())
            segments = [one for one in self._segments if one.begin < end and one.end >= begin]
            lives = [live for live in self._lives if len(live.series)]
        return known, [*segments, *lives]

    def _rows(self, source: Segment | Live, series: dict[int, Series], begin: int, end: int) -> Iterator[Row]:
        try:
            return iter(source.rows(series.keys(), begin, end))
        except FileNotFoundError:
            return iter(())  # it became too old just now
        except (OSError, ValueError) as error:
            assert isinstance(source, Segment)
            self._explain(source.path, error)
            return iter(())

    # -- files

    def _path(self, number: int, kind: str) -> Path:
        return self._folder / f"{self._names.word}-{number:08}.{kind}"

    def _find(self) -> None:
        """Open what an earlier process left."""
        sealed: dict[int, Path] = {}
        live: dict[int, Path] = {}
        kinds = {"sealed": sealed, "live": live}
        for path in sorted(self._folder.iterdir()):
            word, _, rest = path.name.partition("-")
            digits, _, kind = rest.partition(".")
            if word == self._names.word and digits.isdecimal() and kind in kinds:
                kinds[kind][int(digits)] = path
            elif path.suffix in (".sealed", ".live", ".new"):
                path.unlink()  # nobody knows its series any more, or it was not finished
        for number, path in sealed.items():
            if number in live:
                live.pop(number).unlink()
            try:
                self._segments.append(Segment.open(path))
            except OSError as error:
                self._explain(path, error)
            except ValueError as error:
                self._explain(path, error)
                path.unlink()
        last = max([*sealed, *live], default=0)
        for number, path in live.items():
            try:
                self._lives.append(Live.open(path, number))
            except JournalError as error:
                self.problem = str(error)
        if not self._lives or self._lives[-1].number != last:
            self._lives.append(Live.open(self._path(last + 1, "live"), last + 1))

    def _trim(self, now: int) -> None:
        old = [segment for segment in self._segments if segment.end < now - self._span]
        for segment in old:
            self._drop(segment)
        self._make_room()
        if len(self._names.series) > 2 * self._tidied + 1024:
            self._tidy()

    def _make_room(self) -> None:
        """Forget the oldest, of a source that takes far more than others before that of all."""
        with self._lock:
            series = dict(self._names.series)
        while self._segments and self.size > self._size:
            self._usage.look(self._segments, series)
            greedy = self._usage.greedy(self._size)
            if greedy is None:
                self._drop(min(self._segments, key=lambda segment: segment.end))
            else:
                self.problem = (
                    f"the history of {greedy} is cut short, for it takes most of the {self._size >> 20} MiB that all "
                    "share; raise alerts.history_mib, or lower what it may send"
                )
                self._strip(self._usage.oldest(greedy), {n for n, one in series.items() if speaker(one) == greedy})

    def _strip(self, segment: Segment, gone: set[int]) -> None:
        """Forget what *segment* has of these series."""
        try:
            rest = segment.without(gone)
        except (OSError, ValueError) as error:
            self._explain(segment.path, error)
            rest = None
        if rest is None:
            self._drop(segment)
        else:
            with self._lock:
                self._segments[self._segments.index(segment)] = rest

    def _drop(self, segment: Segment) -> None:
        with self._lock:
            self._segments.remove(segment)
        try:
            segment.path.unlink(missing_ok=True)
        except OSError as error:
            self._explain(segment.path, error)

    def _tidy(self) -> None:
        """Forget the names of series of which no sample is left."""
        try:
            used = set[int]().union(*(segment.numbers() for segment in self._segments))
            with self._lock:
                used.update(self._numbers.values(), *(live.series for live in self._lives))
                self._names.keep(used)
        except (OSError, ValueError) as error:
            self._explain(self._names.journal.path, error)
        self._tidied = len(self._names.series)

    def _explain(self, path: Path, error: OSError | ValueError) -> None:
        reason = error.strerror if isinstance(error, OSError) else error
        self.problem = f"the history in {path}: {reason}"
