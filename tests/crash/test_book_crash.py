"""No alert is lost and none is told again, wherever the broker is killed and whatever the disk refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

import mbroker.alerts.book
import mbroker.alerts.database
import mbroker.alerts.edges
from tests.crash import book_programs as programs
from tests.crash.lines import enumerate_lines
from tests.crash.points import Program, Report
from tests.crash.syscalls import Fault, enumerate_syscalls, strace_missing
from tests.crash.traced import enumerate_traced_states

FILES = ("book", "book-wal", "book-journal", "")


def at_lines(program: Program, folder: Path, *, first: bool = False) -> Report:
    modules = [mbroker.alerts.book, mbroker.alerts.database, mbroker.alerts.edges, programs]
    return enumerate_lines(program, programs.check, modules=modules, folder=folder, most=100, first=first)


@pytest.mark.timeout(900)
def test_a_kill_at_any_line(tmp_path: Path) -> None:
    report = at_lines(programs.good, tmp_path)
    assert report.points >= 100
    assert report.violations == ()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", programs.BUGS)
def test_killing_at_lines_finds_the_planted_bug(bug: str, tmp_path: Path) -> None:
    assert at_lines(programs.BUGS[bug], tmp_path, first=True).violations


@pytest.mark.skipif(bool(strace_missing()), reason=strace_missing())
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", ["signal=SIGKILL", "error=EIO", "error=ENOSPC"])
def test_a_kill_or_an_error_at_any_system_call(fault: Fault, tmp_path: Path) -> None:
    report = enumerate_syscalls(
        "tests.crash.book_programs:good",
        programs.check,
        files=FILES,
        folder=tmp_path,
        faults=[fault],
        most=10,
    )
    assert report.points >= 10
    assert report.violations == ()


@pytest.mark.skipif(bool(strace_missing()), reason=strace_missing())
@pytest.mark.timeout(900)
def test_a_power_cut_at_any_write(tmp_path: Path) -> None:
    report = enumerate_traced_states("tests.crash.book_programs:good", programs.check_synced, folder=tmp_path, most=3)
    assert report.points >= 100
    assert report.violations == ()


@pytest.mark.skipif(bool(strace_missing()), reason=strace_missing())
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", ["never_syncs", "acknowledges_unsynced"])
def test_cutting_the_power_finds_the_missing_sync(bug: str, tmp_path: Path) -> None:
    report = enumerate_traced_states(
        f"tests.crash.book_programs:{bug}", programs.check_synced, folder=tmp_path, most=3, first=True
    )
    assert report.violations
