"""A sealed piece of the history: the samples of an hour or so in one file that is never changed.

The file holds blocks, a table and a footer. A block is the deflated columns of a few series, those of one metric
side by side, for they are alike and are asked for together; series that were sampled together share their times.
The table says where each column is. A file is there whole or not at all.
"""

from __future__ import annotations

import heapq
import os
import struct
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias, cast

import attrs

from mchannel import packing

from .columns import deflate, inflate, pack_times, pack_values, unpack_times, unpack_values
from .leisure import leisurely

__all__ = ["Columns", "Row", "Segment", "sync_folder"]

Columns: TypeAlias = "tuple[int, array[int], array[float]]"
"""A series, its times (code ``q``, ascending) and its values (code ``d``)."""
Row: TypeAlias = tuple[int, int, float]
"""A time, a series, a value."""

_FOOTER = struct.Struct("<QIIqqQ")  # where the table is, its bytes, deflated and not, begin, end, samples
_SEAL = struct.Struct("<I8s")  # checksum of the footer, magic
_MAGIC = b"mbhist\x01\n"  # the seventh byte is the version of the format
_BLOCK = 1 << 16  # bytes of columns that are deflated together, about
_LARGEST = 1 << 28  # bytes of a table or a block
_LIMITS = packing.Limits(binary=_LARGEST, items=64)
_FARTHEST = 1 << 62
_BLOCKS = "QII"  # of a block: offset, bytes deflated, bytes
_COLUMNS = "III"  # of a column: its block, offset in it, bytes
_SERIES = "IIIIqq"  # of a series: number, samples, its column of times and of values, first and last time


def sync_folder(folder: Path) -> None:
    """Return when the names in *folder* are on disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@attrs.frozen
class Segment:
    """A sealed file."""

    path: Path
    size: int
    """Bytes of the file."""
    begin: int
    """Time of the oldest sample."""
    end: int
    """Time of the newest sample."""
    samples: int

    @classmethod
    def write(cls, path: Path, series: Iterable[Columns]) -> Segment:
        """Write a file and return when it is on disk; raise OSError. Give series that are alike one after another."""
        spare = path.with_name(path.name + ".new")
        with open(spare, "wb", opener=_private) as file:
            begin, end, samples = _Writer(file.write).write(series)
            file.flush()
            os.fsync(file.fileno())
        spare.rename(path)
        sync_folder(path.parent)
        return cls(path, path.stat().st_size, begin, end, samples)

    @classmethod
    def open(cls, path: Path) -> Segment:
        """Return what the file at *path* holds; raise OSError, or ValueError if it is damaged."""
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            *_, begin, end, samples = _footer(file.fileno(), size)
        return cls(path, size, begin, end, samples)

    def numbers(self) -> set[int]:
        """Return the series of which there are samples; raise OSError or ValueError."""
        with self.path.open("rb", buffering=0) as file:
            return set(_Reader(file.fileno()).numbers)

    def weights(self) -> dict[int, int]:
        """Return about how many bytes each series takes; raise OSError or ValueError."""
        with self.path.open("rb", buffering=0) as file:
            return _Reader(file.fileno()).weights()

    def without(self, numbers: Collection[int]) -> Segment | None:
        """Return it when the series *numbers* are gone from the file, for good, or None if nothing would be left.

        Raises OSError, or ValueError if the file is damaged; then it is as before. Who reads it meanwhile finds all.
        """
        kept = self.numbers().difference(numbers)
        return Segment.write(self.path, self.columns(kept, self.begin, self.end + 1, rest=1.0)) if kept else None

    def rows(self, numbers: Collection[int], begin: int, end: int) -> Iterator[Row]:
        """Yield the samples of the series *numbers* from *begin* to before *end*, in time order.

        Raises OSError, or ValueError if the file is damaged.
        """
        with self.path.open("rb", buffering=0) as file:
            reader = _Reader(file.fileno())
            found = list(reader.series(numbers, begin, end))
        return heapq.merge(*(_between(columns, begin, end) for columns in found))

    def columns(self, numbers: Collection[int], begin: int, end: int, *, rest: float = 0.0) -> Iterator[Columns]:
        """Yield the columns of the series *numbers* from *begin* to before *end*; see :mod:`.leisure`.

        Raises what :meth:`rows` does.
        """
        with self.path.open("rb", buffering=0) as file:
            reader = _Reader(file.fileno())
            for number, times, values in leisurely(reader.series(numbers, begin, end), rest):
                first, last = bisect_left(times, begin), bisect_left(times, end)
                if first < last:
                    yield number, times[first:last], values[first:last]


def _footer(fd: int, size: int) -> tuple[int, ...]:
    start = size - _FOOTER.size - _SEAL.size
    data = os.pread(fd, _FOOTER.size + _SEAL.size, start) if start >= 0 else b""
    footer = data[: _FOOTER.size]
    if data != footer + _SEAL.pack(zlib.crc32(footer), _MAGIC):
        raise ValueError("it is damaged, or of another version")
    return _FOOTER.unpack(footer)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _between(columns: Columns, begin: int, end: int) -> Iterator[Row]:
    number, times, values = columns
    return ((at, number, value) for at, value in zip(times, values, strict=True) if begin <= at < end)


class _Writer:
    """Collects columns in blocks, and notes where each is."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._offset = 0
        self._block: list[bytes] = []
        self._filled = 0
        self._blocks: list[array[int]] = [array(code) for code in _BLOCKS]
        self._columns: list[array[int]] = [array(code) for code in _COLUMNS]
        self._times: dict[bytes, int] = {}

    def write(self, series: Iterable[Columns]) -> tuple[int, int, int]:
        """Write a file of *series*; return its first and last time and how many samples it has."""
        table: list[array[int]] = [array(code) for code in _SERIES]
        for number, times, values in series:
            packed = pack_times(times)
            if packed not in self._times:
                self._times[packed] = self._add(packed)
            row = (number, len(times), self._times[packed], self._add(pack_values(values)), times[0], times[-1])
            _append(table, row)
        self._flush()
        data = packing.pack([column.tobytes() for column in (*self._blocks, *self._columns, *table)])
        deflated = deflate(data)
        _, counts, _, _, begins, ends = table
        found = (min(begins, default=0), max(ends, default=0), sum(counts))
        footer = _FOOTER.pack(self._offset, len(deflated), len(data), *found)
        self._write(deflated + footer + _SEAL.pack(zlib.crc32(footer), _MAGIC))
        return found

    def _add(self, column: bytes) -> int:
        if self._filled and self._filled + len(column) > _BLOCK:
            self._flush()
        _append(self._columns, (len(self._blocks[0]), self._filled, len(column)))
        self._block.append(column)
        self._filled += len(column)
        return len(self._columns[0]) - 1

    def _flush(self) -> None:
        deflated = deflate(b"".join(self._block))
        _append(self._blocks, (self._offset, len(deflated), self._filled))
        self._write(deflated)
        self._offset += len(deflated)
        self._block.clear()
        self._filled = 0


class _Reader:
    """Finds columns again; what it finds damaged raises ValueError."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        at, deflated, length, *_ = _footer(fd, os.fstat(fd).st_size)
        fields = packing.unpack(inflate(self._read(at, deflated), min(length, _LARGEST)), _LIMITS)
        codes = _BLOCKS + _COLUMNS + _SERIES
        if len(fields) != len(codes) or not all(isinstance(field, bytes) for field in fields):
            raise ValueError("its table is damaged")
        table: list[array[int]] = [array(code, cast("bytes", field)) for code, field in zip(codes, fields, strict=True)]
        self._blocks, self._columns, self._series = table[:3], table[3:6], table[6:]
        self._inflated: dict[int, bytes] = {}
        self._times: dict[int, array[int]] = {}

    @property
    def numbers(self) -> array[int]:
        """The series that there are."""
        return self._series[0]

    def series(self, wanted: Collection[int], begin: int, end: int) -> Iterator[Columns]:
        """Yield the columns of those series that have samples from *begin* to before *end*."""
        for number, count, times, values, first, last in zip(*self._series, strict=True):
            if number in wanted and first < end and last >= begin:
                if times not in self._times:
                    self._times[times] = unpack_times(self._column(times), count)
                yield number, self._times[times], unpack_values(self._column(values), count)

    def weights(self) -> dict[int, int]:
        """Return about how many bytes each series takes; times that some share are the first one's."""
        try:
            shares = [deflated / max(size, 1) for _, deflated, size in zip(*self._blocks, strict=True)]
            sizes = [round(length * shares[block]) for block, _, length in zip(*self._columns, strict=True)]
            found = dict[int, int]()
            for number, _, times, values, _, _ in zip(*self._series, strict=True):
                found[number] = sizes[values] + sizes[times]
                sizes[times] = 0
        except IndexError:
            raise ValueError("its table is damaged") from None
        return found

    def _column(self, column: int) -> bytes:
        try:
            block, at, length = (field[column] for field in self._columns)
            if block not in self._inflated:
                offset, deflated, size = (field[block] for field in self._blocks)
                self._inflated[block] = inflate(self._read(offset, deflated), min(size, _LARGEST))
        except IndexError:
            raise ValueError("its table is damaged") from None
        return self._inflated[block][at : at + length]

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._fd, min(size, _LARGEST), min(offset, _FARTHEST))
        if len(data) != size:
            raise ValueError("it is shorter than it was")
        return data


def _append(fields: Sequence[array[int]], row: Sequence[int]) -> None:
    for field, value in zip(fields, row, strict=True):
        field.append(value)
