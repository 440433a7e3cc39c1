"""A journal keeps what it promised, wherever it is killed and whatever the disk kept."""

from __future__ import annotations

from pathlib import Path

import pytest

import mchannel.journal
from mchannel.journal import Journal
from tests.crash import journal_programs as programs
from tests.crash.disk import enumerate_disk_states
from tests.crash.lines import enumerate_lines
from tests.crash.points import Report
from tests.crash.syscalls import enumerate_syscalls, strace_missing

FILES = ("log", "log.new", "")

needs_strace = pytest.mark.skipif(bool(strace_missing()), reason=strace_missing())


def at_lines(kind: type[Journal], folder: Path, *, first: bool = False) -> Report:
    return enumerate_lines(
        programs.program(kind), programs.check(kind), modules=[mchannel.journal], folder=folder, most=120, first=first
    )


def at_power_cuts(kind: type[Journal], folder: Path, *, first: bool = False) -> Report:
    return enumerate_disk_states(programs.program(kind), programs.check_power_cut(kind), folder=folder, first=first)


@pytest.mark.timeout(600)
def test_a_kill_at_any_line(tmp_path: Path) -> None:
    report = at_lines(Journal, tmp_path)
    assert report.points > 100
    assert report.violations == ()


@pytest.mark.timeout(600)
def test_a_power_cut_at_any_moment(tmp_path: Path) -> None:
    report = at_power_cuts(Journal, tmp_path)
    assert report.points > 100
    assert report.violations == ()


@needs_strace
@pytest.mark.timeout(600)
def test_a_kill_at_any_system_call(tmp_path: Path) -> None:
    report = enumerate_syscalls(
        "tests.crash.journal_programs:good", programs.check(Journal), files=FILES, folder=tmp_path
    )
    assert report.points > 20
    assert report.violations == ()


@needs_strace
@pytest.mark.timeout(600)
def test_an_error_or_a_full_disk_at_any_system_call(tmp_path: Path) -> None:
    report = enumerate_syscalls(
        "tests.crash.journal_programs:good",
        programs.check_power_cut(Journal),
        files=FILES,
        folder=tmp_path,
        faults=("error=EIO", "error=ENOSPC"),
        most=8,
    )
    assert report.points >= 16
    assert report.violations == ()


@pytest.mark.parametrize("bug", [programs.RewritesInPlace, programs.AcknowledgesFirst])
def test_killing_at_lines_finds_the_planted_bug(bug: type[Journal], tmp_path: Path) -> None:
    assert at_lines(bug, tmp_path, first=True).violations


@needs_strace
@pytest.mark.timeout(600)
def test_killing_at_system_calls_finds_the_planted_bug(tmp_path: Path) -> None:
    report = enumerate_syscalls(
        "tests.crash.journal_programs:rewrites_in_place",
        programs.check(Journal),
        files=FILES,
        folder=tmp_path,
        first=True,
    )
    assert report.violations


@pytest.mark.parametrize("bug", programs.BUGS)
def test_cutting_the_power_finds_the_planted_bug(bug: type[Journal], tmp_path: Path) -> None:
    assert at_power_cuts(bug, tmp_path, first=True).violations
