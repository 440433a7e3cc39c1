"""A registry knows after a crash what it knew before, wherever it is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

import mbroker.registry
import mchannel.journal
from mbroker.registry import Registry
from tests.crash import registry_programs as programs
from tests.crash.lines import enumerate_lines
from tests.crash.points import Report
from tests.crash.syscalls import enumerate_syscalls, strace_missing


def at_lines(kind: type[Registry], folder: Path, *, first: bool = False) -> Report:
    return enumerate_lines(
        programs.program(kind),
        programs.check,
        modules=[mbroker.registry, mchannel.journal, programs],
        folder=folder,
        most=100,
        first=first,
    )


@pytest.mark.timeout(900)
def test_a_kill_at_any_line(tmp_path: Path) -> None:
    report = at_lines(Registry, tmp_path)
    assert report.points >= 100
    assert report.violations == ()


@pytest.mark.skipif(bool(strace_missing()), reason=strace_missing())
@pytest.mark.timeout(900)
def test_a_kill_at_any_system_call(tmp_path: Path) -> None:
    report = enumerate_syscalls(
        "tests.crash.registry_programs:good",
        programs.check,
        files=("agents", "agents.new", ""),
        folder=tmp_path,
        most=12,
    )
    assert report.points >= 12
    assert report.violations == ()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", programs.BUGS)
def test_killing_at_lines_finds_the_planted_bug(bug: type[Registry], tmp_path: Path) -> None:
    assert at_lines(bug, tmp_path, first=True).violations
