"""Following a log file that grows, is truncated, and is replaced."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

__all__ = ["LONGEST", "Lines", "Tail"]

LONGEST = 65536
"""Bytes in the longest line that is read; a longer one is given as None."""

_CHUNK = 262144


class Lines:
    """Cuts bytes into lines; keeps what has no end yet, up to :data:`LONGEST` bytes."""

    def __init__(self) -> None:
        self._partial = b""
        self._skipping = False  # inside a line that is too long

    def feed(self, data: bytes) -> Iterator[str | None]:
        """Yield the lines that *data* completes, without their end; None for one that is too long."""
        *whole, last = (self._partial + data).split(b"\n")
        self._partial = b""
        for line in whole:
            yield self._line(line)
        if len(last) > LONGEST:
            self._skipping, last = True, b""
        self._partial = last

    def end(self) -> Iterator[str | None]:
        """Yield the last line, when it has no end; the next byte begins a new one."""
        partial, self._partial = self._partial, b""
        if partial or self._skipping:
            yield self._line(partial)

    def _line(self, line: bytes) -> str | None:
        too_long, self._skipping = self._skipping or len(line) > LONGEST, False
        return None if too_long else line.rstrip(b"\r").decode(errors="replace")


class Tail:
    """The lines of the file at *path*, now and as it grows.

    A file that is renamed away is read to its end before the new one at *path* is opened; one that is
    truncated (``copytruncate``) is read from its new start. While there is no file at *path*, nothing is
    read. Reading begins at the present end, or at the start with *from_start*.

    Raises OSError when there is no file at *path* or it cannot be read, ValueError when it is a
    directory, a pipe or a device.
    """

    def __init__(self, path: Path, *, from_start: bool = False) -> None:
        self._path = path
        self._lines = Lines()
        self._file = self._open()
        if not from_start:
            self._file.seek(0, os.SEEK_END)

    def _open(self) -> BinaryIO:
        if not self._path.is_file() and self._path.exists():
            raise ValueError(f"{self._path} is not a regular file; name the log file itself")
        return self._path.open("rb", buffering=0)

    def read(self) -> Iterator[str | None]:
        """Yield the lines that are complete by now; None stands for one that is too long."""
        while True:
            yield from self._read()
            successor = self._successor()
            if successor is None:
                return
            yield from self._read()  # written between the last read and the renaming
            yield from self._lines.end()
            self._file.close()
            self._file = successor

    def rest(self) -> Iterator[str | None]:
        """Yield what :meth:`read` does, and the last line even without its end."""
        yield from self.read()
        yield from self._lines.end()

    def close(self) -> None:
        """Let go of the file; idempotent."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _read(self) -> Iterator[str | None]:
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._lines = Lines()
            self._file.seek(0)
        while data := self._file.read(_CHUNK):
            yield from self._lines.feed(data)

    def _successor(self) -> BinaryIO | None:
        """Return the new file at the path when it is another than the one that is open."""
        try:
            here = os.fstat(self._file.fileno())
            there = self._path.stat()
            if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                return None
            return self._open()
        except (OSError, ValueError):
            return None  # renamed and not made again yet, or not readable yet
