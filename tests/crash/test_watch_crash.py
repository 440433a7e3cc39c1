"""Whatever begins is told, wherever the broker is killed, and when the book cannot be written just before."""

from __future__ import annotations

from pathlib import Path

import pytest

import mbroker.alerts.book
import mbroker.alerts.watch
from tests.crash import watch_programs as programs
from tests.crash.lines import enumerate_lines
from tests.crash.points import Program, Report
from tests.crash.syscalls import enumerate_syscalls, strace_missing


def at_lines(program: Program, folder: Path, *, first: bool = False) -> Report:
    modules = [mbroker.alerts.watch, mbroker.alerts.book, programs]
    return enumerate_lines(program, programs.check, modules=modules, folder=folder, most=60, first=first)


def with_a_full_disk(program: str, folder: Path, *, first: bool = False) -> Report:
    return enumerate_syscalls(
        f"tests.crash.watch_programs:{program}",
        programs.check,
        files=("book", "book-wal"),  # not the history
        folder=folder,
        faults=["error=ENOSPC"],
        most=16,
        first=first,
    )


@pytest.mark.timeout(900)
def test_a_kill_at_any_line(tmp_path: Path) -> None:
    report = at_lines(programs.good, tmp_path)
    assert report.points >= 60
    assert report.violations == ()


@pytest.mark.timeout(900)
def test_killing_at_lines_finds_samples_that_are_stored_too_soon(tmp_path: Path) -> None:
    assert at_lines(programs.stores_first, tmp_path, first=True).violations


@pytest.mark.skipif(bool(strace_missing()), reason=strace_missing())
@pytest.mark.timeout(900)
def test_a_kill_while_the_disk_of_the_book_is_full(tmp_path: Path) -> None:
    report = with_a_full_disk("good", tmp_path)
    assert report.points >= 16
    assert report.violations == ()


@pytest.mark.skipif(bool(strace_missing()), reason=strace_missing())
@pytest.mark.timeout(900)
def test_a_full_disk_finds_samples_that_are_stored_all_the_same(tmp_path: Path) -> None:
    assert with_a_full_disk("stores_anyway", tmp_path, first=True).violations
