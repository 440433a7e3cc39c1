"""What the machine's control files held before the first write, kept where a crash cannot lose it."""

from __future__ import annotations

import atexit
import errno
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Self

import attrs

from mbroker.action import Action
from mbroker.actuator import Outcome
from mchannel.errors import JournalError
from mchannel.journal import Journal

__all__ = ["Original", "Originals", "Restored", "boot_id", "is_root", "outcomes", "read_value", "settle", "write_value"]

_log = logging.getLogger(__name__)
_CONTROL_FILE = 4096  # bytes: sysfs and cgroupfs show one page at most


def boot_id(root: Path = Path("/")) -> str:
    """Return the kernel's name for this boot: after another boot the machine holds its defaults again."""
    return read_value(root / "proc/sys/kernel/random/boot_id")


def is_root(_: object, attribute: attrs.Attribute[Path], value: Path) -> None:
    """Raise ValueError unless a machine's files are found below *value*; a validator of attrs."""
    if not (value / "proc").is_dir():
        raise ValueError(f"'{attribute.name}' must be the folder in which /proc and /sys are found, not {value}")


def read_value(file: Path) -> str:
    """Return what a control file shows, without the newline; raises OSError."""
    with file.open("rb", buffering=0) as opened:
        return opened.read(_CONTROL_FILE).decode("ascii", "replace").strip()


def write_value(file: Path, value: str) -> None:
    """Write a control file, which must be there; raises OSError when the kernel refuses."""
    fd = os.open(file, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode("ascii"))  # a control file takes a value in one write or not at all
    finally:
        os.close(fd)


def settle(values: Mapping[Path, str]) -> dict[Path, str]:
    """Write each value into its file and return the refusals, each with the reason.

    Control files constrain each other (a minimum below its maximum, a quota within the parent's),
    so what is refused is tried again after the others, as long as that brings anything forward.
    """
    waiting = dict(values)
    while True:
        refused: dict[Path, str] = {}
        for file, value in waiting.items():
            try:
                write_value(file, value)
            except OSError as error:
                refused[file] = error.strerror or str(error)
        if not refused or len(refused) == len(waiting):
            return refused
        waiting = {file: values[file] for file in refused}


@attrs.frozen
class Original:
    """One control file as it was found."""

    subject: str
    """Whose setting it is: a domain, or physical CPUs (``0 1 2 3``)."""
    file: Path
    inode: int
    """Tells the file from a later one of the same name: a driver reloaded, a domain started anew."""
    value: str

    def encode(self) -> bytes:
        """Return the record for the journal."""
        return json.dumps([self.subject, str(self.file), self.inode, self.value]).encode()

    @classmethod
    def decode(cls, record: bytes) -> Self:
        """Return the original that *record* holds; raises ValueError or TypeError."""
        subject, file, inode, value = json.loads(record)
        return cls(str(subject), Path(file), int(inode), str(value))

    def still_there(self) -> bool:
        """Tell whether the file is the one that held this value."""
        try:
            return self.file.stat().st_ino == self.inode
        except OSError as error:
            return error.errno not in {errno.ENOENT, errno.ENODEV, errno.ENOTDIR}


@attrs.frozen
class Restored:
    """What became of one original."""

    original: Original
    actual: str
    """What the file reads now; empty when it is gone or cannot be read."""
    error: str = ""
    """Why it does not hold its original; empty when it does, or when there is nothing left to restore."""


class Originals:
    """The journal of originals of one actuator.

    :meth:`keep` comes before the first write to a file and returns when the original is on disk.
    Whatever happens afterwards, :meth:`restore` in this process, in the next one, or by
    ``python -m mbroker.restore`` finds it. An original that is known is never recorded again:
    after a crash the file holds a value of ours. Originals of another boot are dropped unread.
    """

    def __init__(self, path: Path, *, boot: str) -> None:
        """Open the journal at *path*; raises JournalError when it is in use, damaged or not writable."""
        self._boot = boot.encode()
        self._kept: dict[Path, Original] = {}
        self._journal = Journal.open(path)
        if self._journal.records[:1] == (self._boot,):
            try:
                found = [Original.decode(record) for record in self._journal.records[1:]]
            except (ValueError, TypeError):
                self._journal.close()
                raise JournalError(f"{path} is no journal of originals; move it away") from None
            self._kept = {original.file: original for original in found}
        self._owner = os.getpid()
        atexit.register(self.close)

    @property
    def kept(self) -> Mapping[Path, Original]:
        """Originals by file, in the order in which they were recorded."""
        return self._kept

    def keep(self, subject: str, values: Mapping[Path, str]) -> None:
        """Record that the files held *values*, except those whose original is known; durable on return.

        Raises JournalError or OSError; then nothing was recorded and the caller must not write.
        """
        new = {
            file: Original(subject, file, file.stat().st_ino, value)
            for file, value in values.items()
            if file not in self._kept or not self._kept[file].still_there()
        }
        if new:
            self._record({**self._kept, **new})

    def restore(self) -> list[Restored]:
        """Put every original back and forget those that the machine then shows; idempotent.

        An original that is refused stays in the journal for the next time. Raises JournalError when
        the journal cannot be written; the originals have been put back then, and will be again.
        """
        there = {file: original for file, original in self._kept.items() if original.still_there()}
        refused = settle({file: original.value for file, original in there.items()})
        results = [self._outcome(original, refused.get(file)) for file, original in self._kept.items()]
        left = {result.original.file: result.original for result in results if result.error}
        if left != self._kept:
            self._record(left)
        return results

    def recover(self) -> None:
        """Restore what a killed predecessor left, and log it."""
        for result in self.restore():
            if result.error:
                _log.error("%s was left changed by a killed broker: %s", result.original.subject, result.error)
            else:
                _log.warning(
                    "%s was left changed by a killed broker; restored %s", result.original.subject, result.original.file
                )

    def close(self) -> None:
        """Restore and let go of the journal; idempotent, and left undone in a forked child."""
        atexit.unregister(self.close)
        if self._owner != os.getpid():
            return
        try:
            if self._kept:
                self.restore()
        finally:
            self._kept = {}
            self._journal.close()

    def _record(self, kept: dict[Path, Original]) -> None:
        records: Iterable[bytes] = [original.encode() for original in kept.values()]
        self._journal.rewrite([self._boot, *records])
        self._kept = kept

    @staticmethod
    def _outcome(original: Original, refusal: str | None) -> Restored:
        if not original.still_there():
            return Restored(original, "")
        try:
            actual = read_value(original.file)
        except OSError as error:
            return Restored(original, "", f"cannot read {original.file}: {error.strerror}")
        if actual == original.value:
            return Restored(original, actual)
        reason = refusal or f"it reads {actual!r} afterwards"
        return Restored(original, actual, f"cannot write {original.value!r} to {original.file}: {reason}")


def outcomes(restored: Iterable[Restored], action: Callable[[str], Action]) -> list[Outcome]:
    """Return one outcome for each subject; *action* names the action whose effect was taken back."""
    subjects: dict[str, list[Restored]] = {}
    for result in restored:
        subjects.setdefault(result.original.subject, []).append(result)
    return [
        Outcome(
            action(subject),
            done=not any(result.error for result in results),
            actual=", ".join(f"{result.original.file.name} {result.actual or 'gone'}" for result in results),
            error="; ".join(result.error for result in results if result.error),
        )
        for subject, results in subjects.items()
    ]
