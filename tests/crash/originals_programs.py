"""What the actuators promise about a machine's settings, as a program and its check; and with bugs planted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from unittest import mock

from mbroker.action import SetFrequency
from mbroker.actuators import cpu_bandwidth, originals
from mbroker.actuators.cpu_bandwidth import CpuBandwidth
from mbroker.actuators.originals import Original, Originals, Restored
from mbroker.host import Host
from mchannel.journal import Journal

from .points import Ack, Program

__all__ = ["BUGS", "CONTROLS", "check", "good", "is_control", "program", "seed", "seed_after_a_kill"]

GROUPS = {"web1": "machine/web1", "db": "machine/db"}
CONTROLS = {
    f"cg/{group}/{name}": value
    for group in GROUPS.values()
    for name, value in {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}.items()
}


def is_control(name: str) -> bool:
    """Tell whether a file is a control of the machine: a write to it works at once and for good."""
    return name in CONTROLS


def seed(folder: Path) -> None:
    """Make a machine of control files with their original values."""
    files = CONTROLS | {
        "proc/self/mountinfo": "41 31 0:38 / /cg rw,relatime - cgroup cgroup rw,cpu,cpuacct\n",
        "proc/sys/kernel/random/boot_id": "this-boot\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def seed_after_a_kill(folder: Path) -> None:
    """Make a machine whose broker was killed after it had changed the speed of a domain."""
    seed(folder)
    if (child := os.fork()) == 0:
        try:
            _actuator(folder, folder).apply(SetFrequency("web1", level=1))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert _shown(folder) != CONTROLS


def _actuator(folder: Path, machine: Path) -> CpuBandwidth:
    return CpuBandwidth(host=Host("h"), state=folder, root=machine, cgroups=GROUPS)


def program(kind: type[Originals]) -> Program:
    """Return the program that changes speeds, restores, changes again and leaves, with originals of *kind*."""

    def run(folder: Path, _: Ack) -> None:
        with mock.patch.object(cpu_bandwidth, "Originals", kind):
            actuator = _actuator(folder, folder)
        actuator.apply(SetFrequency("web1", level=0))
        actuator.apply(SetFrequency("db", level=1))
        actuator.apply(SetFrequency("web1", level=2))
        actuator.restore()
        actuator.apply(SetFrequency("db", level=0))
        actuator.close()

    return run


def check(folder: Path, _: Sequence[str]) -> None:
    """After a restart that changes and restores again, every control holds its original."""
    machine = _machine(folder)
    actuator = _actuator(folder, machine)
    shown = _shown(machine)
    assert shown == CONTROLS, f"not restored at the start: {shown}"
    actuator.apply(SetFrequency("db", level=0))
    actuator.close()
    shown = _shown(machine)
    assert shown == CONTROLS, f"not restored at the end: {shown}"


def _shown(machine: Path) -> Mapping[str, str]:
    return {name: (machine / name).read_text() for name in CONTROLS}


def _machine(folder: Path) -> Path:
    """Return where the controls are: a disk state holds copies, and the machine outlives its disk."""
    machine = folder.parent / "program"
    if not machine.exists():
        return folder
    for name in CONTROLS:
        (machine / name).write_text((folder / name).read_text())
    return machine


class WritesFirst(Originals):
    """Lets the machine be changed before the original is on disk."""

    def _record(self, kept: dict[Path, Original]) -> None:
        if len(kept) > len(self._kept):
            self._kept = kept
        else:
            super()._record(kept)


class RecordsAgain(Originals):
    """Takes what it finds for the original, whatever it knows already."""

    def keep(self, subject: str, values: Mapping[Path, str]) -> None:
        self._kept = {file: original for file, original in self._kept.items() if file not in values}
        super().keep(subject, values)


class OverwritesWhatLives(Originals):
    """Starts with an empty journal, as if no predecessor had been killed."""

    def __init__(self, path: Path, *, boot: str) -> None:
        super().__init__(path, boot=boot)
        self._kept = {}


class ForgetsFirst(Originals):
    """Forgets the originals before they are back."""

    def restore(self) -> list[Restored]:
        kept = self._kept
        self._record({})
        self._kept = kept
        return super().restore()


BUGS = (WritesFirst, RecordsAgain, OverwritesWhatLives, ForgetsFirst)


class NeverSyncs(Originals):
    """Has the original in the page cache only when the machine is changed."""

    def __init__(self, path: Path, *, boot: str) -> None:
        with mock.patch.object(originals, "Journal", _NeverSyncs):
            super().__init__(path, boot=boot)


class _NeverSyncs(Journal):
    def _replace(self, records: Iterable[bytes]) -> None:
        with mock.patch.object(os, "fsync"):
            super()._replace(records)

    def _flush(self) -> None:
        pass


good = program(Originals)
writes_first = program(WritesFirst)
