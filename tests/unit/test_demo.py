"""The parts of the demo that can be wrong without anybody seeing it: its load, and its sums."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import attrs
import pytest

from examples.demo.load import arrivals, rate
from examples.demo.recording import Recording, host_power
from examples.demo.server import Busy
from examples.demo.stage import sweep_folders
from mbroker.host import Domain, Host
from mchannel.event import Event

HOST = Host("demo", domains={"web1": Domain("web1", 4)})


def epoch(at: float, *, requests: int = 100, hard: int = 0) -> Event:
    return Event("sla.epoch", "web1", hard / requests, at, {"requests": requests, "hard": hard, "p99_ms": 5.0})


def record(*levels: int) -> Recording:
    recording = Recording("test", start=1000.0)
    for number, level in enumerate(levels):
        assert not list(recording.decide(epoch(1000.5 + number / 2, hard=number), HOST.with_level("web1", level)))
    return recording


def test_the_same_seed_gives_the_same_requests() -> None:
    assert list(arrivals(5, 300, 1000, seed=7)) == list(arrivals(5, 300, 1000, seed=7))
    assert list(arrivals(5, 300, 1000, seed=7)) != list(arrivals(5, 300, 1000, seed=8))


def test_the_load_follows_its_plateaus() -> None:
    times = [arrival.at for arrival in arrivals(100, 400, 1000, seed=1)]
    burst = sum(56 <= at < 69 for at in times) / 13
    quiet = sum(at < 30 for at in times) / 30
    assert burst == pytest.approx(400 * rate(0.6), rel=0.1)
    assert quiet == pytest.approx(400 * rate(0.1), rel=0.1)
    assert times == sorted(times)


def test_work_has_the_mean_that_was_asked_for() -> None:
    work = [arrival.iterations for arrival in arrivals(100, 400, 1000, seed=1)]
    assert sum(work) / len(work) == pytest.approx(1000, rel=0.05)


def test_a_recording_counts_changes_of_level_from_the_top() -> None:
    assert record(4, 4, 4).summary().transitions == 0
    assert record(3, 3, 2, 4).summary().transitions == 3


def test_a_recording_sums_up_its_epochs() -> None:
    summary = record(3, 3, 2, 4).summary()
    assert (summary.requests, summary.violations, summary.mean_level) == (400, 0 + 1 + 2 + 3, 3.0)
    assert summary.levels == (3, 3, 2, 4)


def test_an_epoch_is_charged_with_the_level_that_it_ran_at() -> None:
    epochs = record(3, 2).epochs
    assert [each.power for each in epochs] == [1.0, host_power(3, HOST.p_states)]


def test_what_comes_before_the_load_is_not_recorded() -> None:
    recording = Recording("test", start=1000.0)
    assert not list(recording.decide(epoch(1000.0), HOST))
    assert recording.epochs == []


def test_what_is_modelled_says_so_beside_the_figure() -> None:
    assert attrs.asdict(record(4).summary())["energy"] == "modelled"


def test_a_run_without_a_change_saves_nothing() -> None:
    assert record(4, 4, 4).summary().energy_saving_pct == 0


def test_power_falls_with_every_step_down_and_keeps_its_constant_share() -> None:
    power = [host_power(level, HOST.p_states) for level in range(5)]
    assert power == sorted(power)
    assert power[-1] == 1.0
    assert power[0] > 0.7


def test_busy_is_the_share_of_time_with_a_request_in_hand() -> None:
    busy = Busy()
    assert busy() == pytest.approx(0.0, abs=0.5)
    with busy, busy:
        busy()
        time.sleep(0.02)
        assert busy() == pytest.approx(1.0, abs=0.5)
    assert 0.0 <= busy() <= 1.0


def test_folders_of_killed_demos_are_swept_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = (f"mchannel-demo-{dead.pid}-abc", f"mchannel-demo-{os.getpid()}-abc", "mchannel-demo-notes-abc")
    for name in names:
        (tmp_path / name / "within").mkdir(parents=True)
    sweep_folders(tmp_path)
    assert {folder.name for folder in tmp_path.iterdir()} == set(names[1:])
