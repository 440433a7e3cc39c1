"""One SQLite file that belongs to one process: opened, checked and changed so that no kill loses anything.

The journal is a write-ahead log. :meth:`Database.change` syncs it at its commit (``synchronous=FULL``), so that what
it has left survives a power cut; :meth:`Database.change_unsynced` does not (``NORMAL``) and leaves that to
:meth:`Database.sync`. A kill or a power cut inside of either leaves the file as it was before.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from .segment import sync_folder

__all__ = ["BookError", "Database", "Row", "Write"]

Row: TypeAlias = tuple[Any, ...]
Write: TypeAlias = "Callable[..., sqlite3.Cursor]"
"""Executes one statement with its parameters."""

_LOG = 8 << 20  # bytes that the log may keep when it was longer
_PAGES = 8192  # in the log until it is copied into the file though nobody called shrink()
_SIZES = ("page_count", "freelist_count", "page_size")
_OURS = 0x6D62616C  # "mbal", in the header of the file

_REMEDIES = {
    sqlite3.SQLITE_FULL: "the disk is full; make room",
    sqlite3.SQLITE_READONLY: "the file or its folder cannot be written; check their owner and mode",
    sqlite3.SQLITE_CANTOPEN: "the file or its folder cannot be opened; check their owner and mode",
    sqlite3.SQLITE_PERM: "the file or its folder cannot be opened; check their owner and mode",
    sqlite3.SQLITE_BUSY: "it is open in another process; stop that one first",
    sqlite3.SQLITE_IOERR: "the disk has failed; look into the kernel's log",
    sqlite3.SQLITE_CORRUPT: "it is damaged; move it away, or restore it from a copy",
    sqlite3.SQLITE_NOTADB: "it is damaged; move it away, or restore it from a copy",
}


class BookError(OSError):
    """The book cannot be opened, read or written; one line says why and what to do. Nothing was changed."""


class Database:
    """An open database of the form that *scripts* make: each is a tuple of statements, one for every version."""

    def __init__(self, path: Path, scripts: Sequence[Sequence[str]]) -> None:
        """Open *path*, making it (mode 0600, its folder 0700) when missing; raise :exc:`BookError`.

        What an older version of the program made is brought to the form of today.
        """
        self.path = path
        self._log = -1  # a descriptor, once there was something to sync
        self._syncing = threading.Lock()
        self._is_unsynced = True  # by a predecessor that was killed
        self._is_doubtful = False  # what failed to be synced may be gone from the disk, and the kernel says so once
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make()
        except OSError as error:
            raise BookError(f"cannot open {path}: {error.strerror}; check its owner and mode") from None
        with self._explained("open"):
            self._connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            with self._explained("open"):
                self._prepare(scripts)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file; idempotent."""
        if self._log >= 0:
            os.close(self._log)
            self._log = -1
        with self._explained("close"):
            self._connection.close()

    @property
    def size(self) -> int:
        """Bytes of the file that are in use."""
        pages, free, page = (int(self.read(f"PRAGMA {of}")[0][0]) for of in _SIZES)
        return (pages - free) * page

    def read(self, statement: str, *parameters: object) -> list[Row]:
        """Return all rows of a query."""
        with self._explained("read"):
            return self._connection.execute(statement, parameters).fetchall()

    @contextmanager
    def change(self) -> Generator[Write]:
        """Lend what writes; it is on disk afterwards, with all that was before, or undone if anything is raised."""
        with self._explained("write"):
            self._write("PRAGMA synchronous = FULL")
        try:
            with self._changed() as write:
                yield write
        finally:
            with self._explained("write"):
                self._write("PRAGMA synchronous = NORMAL")

    @contextmanager
    def change_unsynced(self) -> Generator[Write]:
        """Lend what writes, without waiting for the disk: a kill loses nothing, a power cut what :meth:`sync` lacks.

        Whatever it loses are the last changes, whole ones.
        """
        with self._changed() as write:
            yield write
        self._is_unsynced = True  # not before: a sync in between would know nothing of it

    def sync(self) -> None:
        """Return when all that was changed is on disk; another thread may wait for that while this one goes on."""
        with self._syncing:
            if not self._is_unsynced:
                return
            self._is_unsynced = False
            try:
                if self._log < 0:
                    self._log = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                    sync_folder(self.path.parent)
                os.fdatasync(self._log)
            except OSError as error:
                self._is_unsynced = self._is_doubtful = True
                raise BookError(f"cannot sync {self.path}: {error.strerror}; look into the kernel's log") from None

    @contextmanager
    def _changed(self) -> Generator[Write]:
        with self._explained("write"):
            if self._is_doubtful:  # a gap in the log would end it there, for all that follows too
                self._write("PRAGMA wal_checkpoint(TRUNCATE)")
                self._is_doubtful = False
            self._write("BEGIN IMMEDIATE")
            try:
                yield self._write
                self._write("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._write("ROLLBACK")
                raise

    def shrink(self) -> None:
        """Give pages that are not used back to the file system."""
        with self._explained("write"):
            self._connection.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)")

    def _write(self, statement: str, *parameters: object) -> sqlite3.Cursor:
        return self._connection.execute(statement, parameters)

    def _make(self) -> None:
        """Make the file if there is none: SQLite would let others read it."""
        if self.path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        try:
            # An existing one is not opened here, for closing it again would end the locks of this process.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            self.path.chmod(0o600)

    def _prepare(self, scripts: Sequence[Sequence[str]]) -> None:
        execute = self._connection.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")
        execute("PRAGMA trusted_schema = OFF")
        execute("PRAGMA cell_size_check = ON")
        execute("PRAGMA foreign_keys = ON")
        (version,) = execute("PRAGMA user_version").fetchone()
        (owner,) = execute("PRAGMA application_id").fetchone()
        (tables,) = execute("SELECT count(*) FROM sqlite_master").fetchone()
        if (owner or tables or version) and owner != _OURS:
            raise BookError(f"cannot open {self.path}: it was made by another program; move it away")
        if version > len(scripts):
            raise BookError(
                f"cannot open {self.path}: a newer version of this program made it (form {version}, known are up to "
                f"{len(scripts)}); install that version"
            )
        if not tables:
            execute("PRAGMA auto_vacuum = INCREMENTAL")  # which only an empty file accepts
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")
        execute(f"PRAGMA journal_size_limit = {_LOG}")
        execute(f"PRAGMA wal_autocheckpoint = {_PAGES}")
        faults = [str(text) for (text,) in execute("PRAGMA quick_check(1)")]
        if faults != ["ok"]:
            raise BookError(
                f"cannot open {self.path}: {_REMEDIES[sqlite3.SQLITE_CORRUPT]} ({' '.join(faults[0].split())[:200]})"
            )
        if version < len(scripts):
            with self.change() as write:
                for statement in (statement for script in scripts[version:] for statement in script):
                    write(statement)
                write(f"PRAGMA application_id = {_OURS}")
                write(f"PRAGMA user_version = {len(scripts)}")

    @contextmanager
    def _explained(self, verb: str) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without what SQLite calls extended
            raise BookError(f"cannot {verb} {self.path}: {_REMEDIES.get(code, str(error))}") from error
