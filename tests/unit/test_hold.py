"""What one process holds, no other gets; whatever becomes of the file that says so."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from mbroker.fleet.hold import Hold, HoldError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lanes" / "web1"


def test_what_is_held_is_refused_by_the_name_of_the_process_that_has_it(path: Path) -> None:
    held = Hold.take(path)
    with pytest.raises(HoldError, match=f"process {os.getpid()}"):
        Hold.take(path)
    held.release()


def test_what_was_released_can_be_had_again_and_leaves_no_file(path: Path) -> None:
    Hold.take(path).release()
    Hold.take(path).release()
    assert not path.exists()


def test_what_a_dead_process_left_can_be_had(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("4194305")
    held = Hold.take(path)
    assert path.read_text() == str(os.getpid())
    held.release()


@pytest.mark.parametrize("successor", [False, True], ids=["taken away", "another's by now"])
def test_a_file_that_its_last_holder_takes_away_meanwhile_holds_nothing(
    successor: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def late(fd: int, operation: int) -> None:
        """Lock when another has released the file that was opened, and perhaps a third made a new one."""
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        if successor:
            path.touch()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    held = Hold.take(path)
    assert path.read_text() == str(os.getpid())
    with pytest.raises(HoldError):
        Hold.take(path)
    held.release()
