"""One append-only file for everything that must survive a kill or a power cut.

A journal is a header and records. Each record carries its length, a checksum, and the offset up
to which the file was known to be on disk when the record was written. That offset tells the two
kinds of damage apart at the next open: an unfinished tail, which was never acknowledged and is
dropped, and damage to something acknowledged, which is reported and never repaired by guessing.

A journal belongs to one process (``flock``) and to one thread at a time.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import zlib
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from mchannel.errors import JournalError, MessageTooBig

__all__ = ["MAX_RECORD", "Journal"]

MAX_RECORD = 16 << 20
"""Bytes in the longest record."""

_MAGIC = b"mchjrnl\x01"  # the last byte is the version of the format
_HEADER = struct.Struct("<8s8sQI4x")  # magic, salt, offset sealed by a rewrite, checksum
_RECORD = struct.Struct("<8sIQI")  # salt, length, offset known to be on disk, checksum
# The salt marks where a record may start. It is drawn for each file, so that a payload which
# a guest wrote cannot pose as a record in the middle of a torn one.


def _header(salt: bytes, sealed: int) -> bytes:
    return _HEADER.pack(_MAGIC, salt, sealed, zlib.crc32(struct.pack("<8sQ", salt, sealed)))


def _record(salt: bytes, durable: int, payload: bytes) -> bytes:
    if len(payload) > MAX_RECORD:
        raise MessageTooBig(f"a journal record has at most {MAX_RECORD} bytes, not {len(payload)}")
    checksum = zlib.crc32(payload, zlib.crc32(struct.pack("<IQ", len(payload), durable)))
    return _RECORD.pack(salt, len(payload), durable, checksum) + payload


def _record_at(data: bytes, start: int, salt: bytes) -> tuple[bytes, int] | None:
    """Return the payload and the durable offset of the record at *start*, if a whole one is there."""
    body = start + _RECORD.size
    if body > len(data):
        return None
    _, length, durable, _ = _RECORD.unpack_from(data, start)
    payload = data[body : body + min(length, MAX_RECORD)]
    whole = len(payload) == length and data[start : body + length] == _record(salt, durable, payload)
    return (payload, durable) if whole else None


def _scan(data: bytes) -> tuple[bytes, list[bytes], int]:
    """Return the salt, the records and the offset where the torn tail starts; raise when damaged."""
    head = data[: _HEADER.size]
    _, salt, sealed, _ = _HEADER.unpack(head.ljust(_HEADER.size, b"\0"))
    if head != _header(salt, sealed):
        raise JournalError("is damaged at offset 0, or is no journal of this version; move it away")
    records: list[bytes] = []
    end = _HEADER.size
    while found := _record_at(data, end, salt):
        records.append(found[0])
        end += _RECORD.size + len(found[0])
    later = end
    while end >= sealed and (later := data.find(salt, later + 1)) >= 0:
        if found := _record_at(data, later, salt):
            sealed = max(sealed, found[1])
    if end < sealed:
        raise JournalError(f"is damaged at offset {end}, before its end; restore it from a copy or move it away")
    return salt, records, end


def _write(fd: int, offset: int, data: bytes) -> int:
    """Write all of *data* at *offset* and return where it ends."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        offset += written
        view = view[written:]
    return offset


class Journal:
    """An open journal: :meth:`append` returns when the record is on disk.

    Every method raises :exc:`~mchannel.errors.JournalError` when the disk refuses. The journal is
    then as it was before the call; what was appended with ``sync=False`` since the last
    successful sync may be gone too, as it would be after a crash.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: tuple[bytes, ...] = ()
        """What was found at open, oldest first."""
        self._fd = -1
        self._salt = b""
        self._end = self._durable = 0  # offsets: of the last whole record, of what is surely on disk
        self._named = False  # whether the directory entry is surely on disk too

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the journal at *path*, making it (mode 0600) when missing, and drop its torn tail.

        Raises :exc:`~mchannel.errors.JournalError` when another process has it open, when
        something acknowledged is damaged (naming the offset), and when it cannot be read or written.
        """
        self = cls(Path(path))
        try:
            with self._explained("open"), self._directory():
                self._spare.unlink(missing_ok=True)
                try:
                    self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
                except FileNotFoundError:
                    self._replace(())
                else:
                    self._recover()
                self._flush()  # what a killed predecessor wrote may be in the page cache only
        except BaseException:
            self.close()
            raise
        return self

    @property
    def size(self) -> int:
        """Bytes in the file; compact with :meth:`rewrite` when this outgrows what is still needed."""
        return self._end

    def append(self, record: bytes, *, sync: bool = True) -> None:
        """Add one record. With ``sync=False`` it survives a kill at once, a power cut after the next sync."""
        self.append_many((record,), sync=sync)

    def append_many(self, records: Iterable[bytes], *, sync: bool = True) -> None:
        """Add records in order with one sync; after a crash inside the call a prefix of them may be there."""
        blob = b"".join(_record(self._salt, self._durable, record) for record in records)
        with self._explained("append to"):
            keep = self._end
            try:
                self._end = _write(self._fd, keep, blob)
                if sync:
                    keep = self._durable  # a failed sync leaves everything after this in doubt
                    self._flush()
            except BaseException:
                self._cut(keep)
                raise

    def sync(self) -> None:
        """Return when everything appended so far is on disk."""
        self.append_many(())

    def rewrite(self, records: Iterable[bytes]) -> None:
        """Replace all records by *records*: after a crash inside the call the old or the new ones are there.

        Rewritten records are sealed: later damage to any of them, the last included, is detected.
        """
        with self._explained("rewrite"):
            with self._directory():
                self._replace(records)
            self._flush()

    def close(self) -> None:
        """Let go of the file and its lock; idempotent. What was not synced is left to the kernel."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _spare(self) -> Path:
        return self.path.with_name(self.path.name + ".new")

    @contextmanager
    def _directory(self, *, lock: bool = True) -> Generator[int]:
        """Lend the directory, locked while names in it change: an opener meets each file with its owner."""
        fd = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if lock:
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)

    def _recover(self) -> None:
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise JournalError("is not a regular file; move it away")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalError("is open in another process; stop that one first") from None
        with open(self._fd, "rb", closefd=False) as file:
            self._salt, records, self._end = _scan(file.read())
        os.ftruncate(self._fd, self._end)
        self.records = tuple(records)

    def _replace(self, records: Iterable[bytes]) -> None:
        """Put a new, locked, synced file in the place of the present one."""
        salt = os.urandom(8)
        blob = b"".join(_record(salt, 0, record) for record in records)
        fd = os.open(self._spare, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            end = _write(fd, 0, _header(salt, _HEADER.size + len(blob)) + blob)
            os.fsync(fd)
            self._spare.rename(self.path)
        except BaseException:
            os.close(fd)
            self._spare.unlink(missing_ok=True)
            raise
        self.close()
        self._fd, self._salt, self._end, self._durable, self._named = fd, salt, end, end, False

    def _flush(self) -> None:
        if self._durable < self._end:
            os.fsync(self._fd)
        if not self._named:
            with self._directory(lock=False) as directory:
                os.fsync(directory)
            self._named = True
        self._durable = self._end

    def _cut(self, end: int) -> None:
        """Forget what follows *end*; when even that fails, stop: the next open drops it."""
        self._end, self._durable = end, min(self._durable, end)
        try:
            os.ftruncate(self._fd, end)
        except OSError:
            self.close()

    @contextmanager
    def _explained(self, verb: str) -> Generator[None]:
        try:
            if self._fd < 0 and verb != "open":
                raise JournalError("is closed; open it again")
            yield
        except JournalError as error:
            raise JournalError(f"journal {self.path} {error}") from None
        except OSError as error:
            raise JournalError(f"cannot {verb} journal {self.path}: {error.strerror}") from error
