"""A durable channel records each message once and loses none, wherever it dies."""

from __future__ import annotations

from pathlib import Path

import pytest

import mchannel.durable
import mchannel.inbox
import mchannel.journal
from mchannel.durable import DurableLink
from mchannel.inbox import Inbox
from tests.crash import inbox_programs as programs
from tests.crash.disk import enumerate_disk_states
from tests.crash.lines import enumerate_lines
from tests.crash.points import Report


def at_lines(folder: Path, link_of: type[DurableLink] = DurableLink, inbox_of: type[Inbox] = Inbox) -> Report:
    return enumerate_lines(
        programs.program(link_of, inbox_of),
        programs.check(inbox_of),
        modules=[mchannel.durable, mchannel.inbox, mchannel.journal],
        folder=folder,
        most=120,
    )


def at_power_cuts(folder: Path, link_of: type[DurableLink] = DurableLink, inbox_of: type[Inbox] = Inbox) -> Report:
    return enumerate_disk_states(programs.program(link_of, inbox_of), programs.check_power_cut(inbox_of), folder=folder)


@pytest.mark.timeout(600)
def test_a_kill_at_any_line(tmp_path: Path) -> None:
    report = at_lines(tmp_path)
    assert report.points > 100
    assert report.violations == ()


@pytest.mark.timeout(600)
def test_a_power_cut_at_any_moment(tmp_path: Path) -> None:
    report = at_power_cuts(tmp_path)
    assert report.points > 50
    assert report.violations == ()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", programs.BUGS)
def test_cutting_the_power_finds_the_planted_bug(bug: type[DurableLink | Inbox], tmp_path: Path) -> None:
    if issubclass(bug, DurableLink):
        assert at_power_cuts(tmp_path, link_of=bug).violations
    else:
        assert at_power_cuts(tmp_path, inbox_of=bug).violations
