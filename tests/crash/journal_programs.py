"""What a journal promises, as a program and its checks; and the same with bugs planted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import attrs

from mchannel.journal import Journal

from .points import Ack, Program

__all__ = ["BUGS", "check", "check_power_cut", "good", "program"]


@attrs.frozen
class Step:
    """One call, and the records that the journal has afterwards."""

    call: Callable[[Journal], None]
    records: tuple[bytes, ...]
    synced: int
    """How many of them are on disk for sure when the call has returned."""
    whole: bool = False
    """Whether the call replaces everything or nothing."""


def _steps() -> list[Step]:
    one, two, three, four = b"one", b"two" * 9, b"three", b"four" * 300
    return [
        Step(lambda j: j.append(one), (one,), 1),
        Step(lambda j: j.append(two), (one, two), 2),
        Step(lambda j: j.append(b"mark", sync=False), (one, two, b"mark"), 2),
        Step(lambda j: j.append_many([three, four]), (one, two, b"mark", three, four), 5),
        Step(lambda j: j.rewrite([three, b"sum"]), (three, b"sum"), 2, whole=True),
        Step(lambda j: j.append(b"mark", sync=False), (three, b"sum", b"mark"), 2),
        Step(lambda j: j.append(b"last"), (three, b"sum", b"mark", b"last"), 4),
    ]


STEPS = _steps()
_NOTHING = Step(lambda _: None, (), 0)


def program(kind: type[Journal]) -> Program:
    """Return the program that takes all steps with journals of *kind* and promises each."""

    def run(folder: Path, ack: Ack) -> None:
        with kind.open(folder / "log") as journal:
            for number, step in enumerate(STEPS):
                step.call(journal)
                ack(str(number))

    return run


def _legal(acked: int, *, power_cut: bool) -> set[tuple[bytes, ...]]:
    last = STEPS[acked - 1] if acked else _NOTHING
    least = last.synced if power_cut else len(last.records)
    before = {last.records[:count] for count in range(least, len(last.records) + 1)}
    if acked == len(STEPS):
        return before
    running = STEPS[acked]
    if running.whole:
        return before | {running.records}
    return before | {running.records[:count] for count in range(least, len(running.records) + 1)}


def _check(kind: type[Journal], folder: Path, acked: int, *, power_cut: bool) -> None:
    with kind.open(folder / "log") as journal:
        found = journal.records
        assert found in _legal(acked, power_cut=power_cut), f"after step {acked} recovered {found}"
        journal.append(b"going on")
    with kind.open(folder / "log") as journal:
        assert journal.records == (*found, b"going on"), "what was appended after the recovery is lost"
    assert [file.name for file in folder.iterdir()] == ["log"], "something was left behind"


def check(kind: type[Journal]) -> Callable[[Path, Sequence[str]], None]:
    """Return the check after a kill: even unsynced records are there."""
    return lambda folder, acked: _check(kind, folder, len(acked), power_cut=False)


def check_power_cut(kind: type[Journal]) -> Callable[[Path, Sequence[str]], None]:
    """Return the check after a power cut or an error of the disk: what was synced is there."""
    return lambda folder, acked: _check(kind, folder, len(acked), power_cut=True)


class NeverSyncs(Journal):
    """Acknowledges what is in the page cache only."""

    def _flush(self) -> None:
        self._durable = self._end


class NeverSyncsTheDirectory(Journal):
    """A rewrite, and the journal itself, may vanish with the name."""

    def _flush(self) -> None:
        self._named = True
        super()._flush()


class KeepsTheTornTail(Journal):
    """Appends after what was torn, where nobody will read it."""

    def _recover(self) -> None:
        super()._recover()
        self._end = self._found

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> KeepsTheTornTail:
        cls._found = Path(path).stat().st_size if Path(path).exists() else 0
        return super().open(path)

    _found = 0


class RewritesInPlace(Journal):
    """Empties the file and fills it again."""

    def _replace(self, records: Iterable[bytes]) -> None:
        if self._fd < 0:
            super()._replace(records)
        else:
            self._cut(32)
            self.append_many(records)


class AcknowledgesFirst(Journal):
    """Returns before anything was written, and writes at the next call."""

    _late: tuple[bytes, ...] = ()

    def append_many(self, records: Iterable[bytes], *, sync: bool = True) -> None:
        late, self._late = self._late, tuple(records)
        super().append_many(late, sync=sync)


BUGS = (NeverSyncs, NeverSyncsTheDirectory, KeepsTheTornTail, RewritesInPlace, AcknowledgesFirst)

good = program(Journal)
rewrites_in_place = program(RewritesInPlace)
