"""A machine gets its original settings back, wherever the process that changed them is killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import mbroker.actuators.cpu_bandwidth
import mbroker.actuators.originals
import mchannel.journal
from mbroker.actuators.originals import Originals
from tests.crash import originals_programs as programs
from tests.crash.disk import enumerate_disk_states
from tests.crash.lines import enumerate_lines
from tests.crash.points import Report
from tests.crash.syscalls import enumerate_syscalls, strace_missing

Seed = Callable[[Path], None]
MODULES = [mbroker.actuators.originals, mbroker.actuators.cpu_bandwidth, mchannel.journal]
FILES = ("cpu_bandwidth.originals", "cpu_bandwidth.originals.new", "", *programs.CONTROLS)

needs_strace = pytest.mark.skipif(bool(strace_missing()), reason=strace_missing())
starts = pytest.mark.parametrize("seed", [programs.seed, programs.seed_after_a_kill])


def at_lines(kind: type[Originals], folder: Path, seed: Seed, *, first: bool = False) -> Report:
    return enumerate_lines(
        programs.program(kind), programs.check, modules=MODULES, folder=folder, seed=seed, most=100, first=first
    )


def at_power_cuts(kind: type[Originals], folder: Path, seed: Seed, *, first: bool = False) -> Report:
    return enumerate_disk_states(
        programs.program(kind),
        programs.check,
        folder=folder,
        seed=seed,
        through=programs.is_control,
        most=4,
        first=first,
    )


@starts
@pytest.mark.timeout(900)
def test_a_kill_at_any_line(tmp_path: Path, seed: Seed) -> None:
    report = at_lines(Originals, tmp_path, seed)
    assert report.points > 90
    assert report.violations == ()


@starts
@pytest.mark.timeout(900)
def test_the_disk_holds_the_original_before_the_machine_is_changed(tmp_path: Path, seed: Seed) -> None:
    report = at_power_cuts(Originals, tmp_path, seed)
    assert report.points > 40
    assert report.violations == ()


@needs_strace
@pytest.mark.timeout(900)
def test_a_kill_or_an_error_at_any_system_call(tmp_path: Path) -> None:
    report = enumerate_syscalls(
        "tests.crash.originals_programs:good",
        programs.check,
        files=FILES,
        folder=tmp_path,
        seed=programs.seed_after_a_kill,
        faults=("signal=SIGKILL", "error=EIO", "error=ENOSPC"),
        most=5,
    )
    assert report.points >= 15
    assert report.violations == ()


@pytest.mark.parametrize("bug", programs.BUGS)
def test_killing_at_lines_finds_the_planted_bug(bug: type[Originals], tmp_path: Path) -> None:
    assert at_lines(bug, tmp_path, programs.seed_after_a_kill, first=True).violations


@pytest.mark.parametrize("bug", [*programs.BUGS, programs.NeverSyncs])
def test_cutting_the_power_finds_the_planted_bug(bug: type[Originals], tmp_path: Path) -> None:
    assert at_power_cuts(bug, tmp_path, programs.seed_after_a_kill, first=True).violations


@needs_strace
@pytest.mark.timeout(600)
def test_killing_at_system_calls_finds_the_planted_bug(tmp_path: Path) -> None:
    report = enumerate_syscalls(
        "tests.crash.originals_programs:writes_first",
        programs.check,
        files=FILES,
        folder=tmp_path,
        seed=programs.seed,
        most=24,
        first=True,
    )
    assert report.violations
