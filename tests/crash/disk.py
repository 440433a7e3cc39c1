"""Every state in which a power cut may leave the disk.

The model is that of a file system which keeps what was synced and, of the rest, what it likes:
names change in order but only a sync of the directory makes that sure; of the writes to a file
since its last sync any beginning may be there, the last of them torn at any byte (of long ones, at some)
with nothing or with zeros in the place of the rest, and a later one without the earlier ones. While one
file is anywhere in between, the others are as old or as new as they can be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import attrs

from .points import WHOLE, Check, Program, Report, Seed, Violation, judged, spread

__all__ = ["Disk", "File", "Moment", "Truncate", "Write", "enumerate_disk_states", "judge_moments"]

_SHORT = 1024  # bytes of a write that is torn at every byte when every point is wanted; a page of 4096 is not


@attrs.frozen
class Write:
    offset: int
    data: bytes

    def on(self, content: bytes) -> bytes:
        if not self.data:
            return content
        before = content[: self.offset].ljust(self.offset, b"\0")
        return before + self.data + content[self.offset + len(self.data) :]


@attrs.frozen
class Truncate:
    size: int

    def on(self, content: bytes) -> bytes:
        return content[: self.size].ljust(self.size, b"\0")


@attrs.define(eq=False)
class File:
    synced: bytes = b""
    pending: list[Write | Truncate] = attrs.field(factory=list[Write | Truncate])
    through: bool = False

    def add(self, change: Write | Truncate) -> None:
        self.pending.append(change)
        if self.through:
            self.sync()

    def sync(self) -> None:
        for change in self.pending:
            self.synced = change.on(self.synced)
        self.pending.clear()

    def contents(self) -> tuple[bytes, ...]:
        """Return each content that the disk may hold now."""
        found = {self.synced: None}
        content = self.synced
        for index, change in enumerate(self.pending):
            if isinstance(change, Write):
                data = change.data
                for kept in spread(range(len(data)), None if WHOLE and len(data) <= _SHORT else 8):
                    found[Write(change.offset, data[:kept]).on(content)] = None
                    found[Write(change.offset, data[:kept] + bytes(len(data) - kept)).on(content)] = None
                if index:  # an earlier one is missing
                    found[change.on(self.synced)] = None
            content = change.on(content)
            found[content] = None
        return tuple(found)


Names = dict[str, File]
Moment: TypeAlias = "tuple[tuple[str, ...], Sequence[dict[str, bytes]]]"
"""What had been promised at a moment, and each state in which the disk may have been."""


@attrs.define
class Disk:
    """Follows what a program does to one directory by standing before the functions of ``os``."""

    folder: Path
    through: Callable[[str], bool]
    synced: Names = attrs.field(factory=dict[str, File])
    names: list[Names] = attrs.field(factory=lambda: list[Names]([{}]))  # since the last sync, in order
    open_files: dict[int, File | None] = attrs.field(factory=dict[int, "File | None"])
    changed: Callable[[], None] = lambda: None

    def name(self, path: Any) -> str | None:
        path = Path(os.fsdecode(path))
        return str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else None

    def rename(self, names: Names) -> None:
        self.names.append(names)
        self.changed()

    def states(self) -> Sequence[dict[str, bytes]]:
        """Return each content of each file, beside the oldest and beside the newest of the others."""
        found: dict[tuple[tuple[str, bytes], ...], None] = {}
        for names in self.names:
            options = {name: file.contents() for name, file in names.items()}
            for rest in (0, -1):
                base = {name: contents[rest] for name, contents in options.items()}
                found[tuple(base.items())] = None
                for name, contents in options.items():
                    found |= {tuple({**base, name: content}.items()): None for content in contents[1:]}
        return [dict(state) for state in found]

    @contextmanager
    def watching(self) -> Generator[None]:
        real = {name: getattr(os, name) for name in ("open", "close", "write", "pwrite", "ftruncate", "fsync")}
        real |= {name: getattr(os, name) for name in ("rename", "unlink")}
        for name, function in real.items():
            setattr(os, name, partial(getattr(self, f"on_{name}"), function))
        try:
            yield
        finally:
            for name, function in real.items():
                setattr(os, name, function)

    def on_open(self, real: Any, path: Any, flags: int, *more: Any, **named: Any) -> int:
        name = self.name(path)
        there = Path(path).exists()
        fd: int = real(path, flags, *more, **named)
        self.open_files.pop(fd, None)
        if name == ".":
            self.open_files[fd] = None
        elif name is not None:
            if not there:
                self.rename({**self.names[-1], name: File(through=self.through(name))})
            self.open_files[fd] = file = self.names[-1][name]
            if flags & os.O_TRUNC:
                file.add(Truncate(0))
                self.changed()
        return fd

    def on_close(self, real: Any, fd: int) -> None:
        self.open_files.pop(fd, None)
        real(fd)

    def on_write(self, real: Any, fd: int, data: Any) -> int:
        offset = os.lseek(fd, 0, os.SEEK_CUR) if self.open_files.get(fd) else 0
        written: int = real(fd, data)
        return self.wrote(fd, bytes(data)[:written], offset)

    def on_pwrite(self, real: Any, fd: int, data: Any, offset: int) -> int:
        written: int = real(fd, data, offset)
        return self.wrote(fd, bytes(data)[:written], offset)

    def wrote(self, fd: int, data: bytes, offset: int) -> int:
        if file := self.open_files.get(fd):
            file.add(Write(offset, data))
            self.changed()
        return len(data)

    def on_ftruncate(self, real: Any, fd: int, size: int) -> None:
        real(fd, size)
        if file := self.open_files.get(fd):
            file.add(Truncate(size))
            self.changed()

    def on_fsync(self, real: Any, fd: int) -> None:
        real(fd)
        if file := self.open_files.get(fd):
            file.sync()
        elif fd in self.open_files:
            self.names = [self.names[-1]]

    def on_rename(self, real: Any, old: Any, new: Any) -> None:
        real(old, new)
        source, target = self.name(old), self.name(new)
        if source is not None and target is not None:
            names = dict(self.names[-1])
            names[target] = names.pop(source)
            self.rename(names)

    def on_unlink(self, real: Any, path: Any, **named: Any) -> None:
        real(path, **named)
        if (name := self.name(path)) is not None:
            self.rename({other: file for other, file in self.names[-1].items() if other != name})


def enumerate_disk_states(
    program: Program,
    check: Check,
    *,
    folder: Path,
    seed: Seed = lambda _: None,
    through: Callable[[str], bool] = lambda _: False,
    most: int = 64,
    first: bool = False,
) -> Report:
    """Cut the power after each write, rename, truncation and promise of *program*; check each state.

    What *seed* leaves in the directory is on disk from the start. Files whose name *through* takes
    are no disk files but controls of the machine: a write to them works at once. *most* bounds the
    states of one moment unless MCHANNEL_VERIFY=1; *first* ends at the first violation. The program
    uses ``os`` and ``Path`` calls, with no ``open()`` for writing, and no folders below its own
    but those of controls.
    """
    work = folder / "program"
    work.mkdir(parents=True)
    seed(work)
    disk = Disk(work, through)
    files = [file for file in sorted(work.rglob("*")) if file.is_file()]
    disk.names = [
        {str(disk.name(file)): File(file.read_bytes(), through=through(str(disk.name(file)))) for file in files}
    ]
    acked: list[str] = []
    moments: list[Moment] = []

    def remember() -> None:
        moments.append((tuple(acked), spread(disk.states(), None if WHOLE else most)))

    def ack(text: str) -> None:
        acked.append(text)
        remember()

    disk.changed = remember
    with disk.watching():
        program(work, ack)
    return judge_moments(moments, check, folder=folder, first=first)


def judge_moments(moments: Iterable[Moment], check: Check, *, folder: Path, first: bool) -> Report:
    """Check each state of each moment once."""
    seen: set[tuple[object, ...]] = set()
    violations: list[Violation] = []
    for moment, (promised, states) in enumerate(moments):
        for number, state in enumerate(states):
            key = (promised, *sorted(state.items()))
            if key in seen:
                continue
            seen.add(key)
            place = folder / f"{moment}-{number}"
            for name, content in state.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(content)
            place.mkdir(exist_ok=True)
            sizes = {name: len(content) for name, content in state.items()}
            violations += judged(check, place, promised, f"moment {moment}, {sizes}")
            if first and violations:
                return Report(len(seen), tuple(violations))
    return Report(len(seen), tuple(violations))
