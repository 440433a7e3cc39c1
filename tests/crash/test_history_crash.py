"""The history loses what was not synced to a power cut, and nothing to a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

import mbroker.alerts
import mbroker.alerts.history
import mbroker.alerts.live
import mbroker.alerts.names
import mbroker.alerts.segment
from tests.crash import history_programs as programs
from tests.crash.lines import enumerate_lines
from tests.crash.points import Program, Report
from tests.crash.syscalls import strace_missing
from tests.crash.traced import enumerate_traced_states


def at_lines(program: Program, folder: Path, *, first: bool = False) -> Report:
    alerts = mbroker.alerts
    modules = [alerts.history, alerts.live, alerts.names, alerts.segment, programs]
    return enumerate_lines(program, programs.check, modules=modules, folder=folder, most=100, first=first)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("program", programs.GOOD)
def test_a_kill_at_any_line(program: str, tmp_path: Path) -> None:
    report = at_lines(programs.GOOD[program], tmp_path)
    assert report.points >= 100
    assert report.violations == ()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", programs.BUGS)
def test_killing_at_lines_finds_the_planted_bug(bug: str, tmp_path: Path) -> None:
    assert at_lines(programs.BUGS[bug], tmp_path, first=True).violations


@pytest.mark.skipif(bool(strace_missing()), reason=strace_missing())
@pytest.mark.timeout(900)
@pytest.mark.parametrize("program", programs.GOOD)
def test_a_power_cut_at_any_write(program: str, tmp_path: Path) -> None:
    report = enumerate_traced_states(
        f"tests.crash.history_programs:{program}", programs.check_power_cut, folder=tmp_path, most=3
    )
    assert report.points >= 50
    assert report.violations == ()
