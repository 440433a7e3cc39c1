"""Every state in which a power cut may leave the disk, for programs that write by other means than Python's.

The program runs once under strace, which tells what it wrote and synced; :mod:`.disk` says what may be left of it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

from .disk import Disk, File, Moment, Truncate, Write, judge_moments
from .points import WHOLE, Check, Report, spread
from .syscalls import RUN

__all__ = ["enumerate_traced_states"]

_CALLS = "openat,pwrite64,write,fsync,fdatasync,ftruncate,rename,unlink"
_CALL = re.compile(r"(?:\d+ +)?(?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>\d+)(?:<(?P<opened>[^>]*)>)?$")
_FD = re.compile(r"\d+<(?P<path>[^>]*)>")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@attrs.frozen
class _Call:
    """A system call that succeeded."""

    name: str
    path: Path
    """Of the file that it is about."""
    texts: tuple[bytes, ...]
    """What it was given in quotes."""
    last: int
    """Its last argument, if that is a number."""
    result: int


def enumerate_traced_states(program: str, check: Check, *, folder: Path, most: int = 64, first: bool = False) -> Report:
    """Cut the power after each write, truncation, unlinking and promise of *program* (``package.module:function``).

    *most* bounds the states of one moment unless MCHANNEL_VERIFY=1; *first* ends at the first violation.
    """
    work = folder / "program"
    work.mkdir(parents=True)
    log = folder / "strace"
    command = ["strace", "-f", "-q", "-y", "-xx", "-s", "1000000", "-o", str(log), "-e", f"trace={_CALLS}"]
    command += [sys.executable, "-B", "-c", RUN, *program.split(":"), str(work)]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    return judge_moments(_moments(log, work, most), check, folder=folder, first=first)


def _moments(log: Path, work: Path, most: int) -> Iterator[Moment]:
    disk = Disk(work, lambda _: False)
    acked: list[str] = []
    for call in _calls(log):
        if call.path == Path(f"{work}.acks"):
            acked += b"".join(call.texts).decode().split("\n")[:-1] if call.name == "write" else []
        elif not _follow(disk, call):
            continue
        yield tuple(acked), spread(disk.states(), None if WHOLE else most)


def _calls(log: Path) -> Iterator[_Call]:
    for line in log.read_text().splitlines():
        if found := _CALL.match(line):
            texts = tuple(bytes.fromhex(text.replace(r"\x", "")) for text in _TEXT.findall(found["arguments"]))
            about = _FD.match(found["arguments"])
            path = found["opened"] or (about["path"] if about else texts[0].decode())
            name = bytes.fromhex(path.replace(r"\x", "")).decode() if path.startswith(r"\x") else path
            last = found["arguments"].rpartition(", ")[2]
            yield _Call(found["call"], Path(name), texts, int(last) if last.isdecimal() else 0, int(found["result"]))


def _follow(disk: Disk, call: _Call) -> bool:
    """Do to *disk* what *call* did; tell whether that was anything."""
    name = disk.name(call.path)
    if name is None:
        return False
    names = disk.names[-1]
    if name == ".":
        if synced := call.name in ("fsync", "fdatasync"):
            disk.names = [names]
        return synced
    match call.name:
        case "openat" if name not in names:
            disk.names.append({**names, name: File()})
        case "unlink":
            disk.names.append({other: file for other, file in names.items() if other != name})
        case "rename":
            kept = {other: file for other, file in names.items() if other != name}
            disk.names.append({**kept, str(disk.name(Path(call.texts[1].decode()))): names[name]})
        case "fsync" | "fdatasync":
            names[name].sync()
        case "ftruncate":
            names[name].add(Truncate(call.last))
        case "pwrite64":
            names[name].add(Write(call.last, call.texts[0][: call.result]))
        case "write":
            at = max((len(content) for content in names[name].contents()[-1:]), default=0)  # they append
            names[name].add(Write(at, call.texts[0][: call.result]))
        case _:
            return False
    return True
