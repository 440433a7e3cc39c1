"""mbrokerd whose alerts are matched by processes beside it, which are killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import mchannel
from mbroker.alerting import Alerting
from mbroker.config import ConfigError, load
from mchannel.samples import Named
from tests.unit.processes import is_running

pytest.importorskip("mbroker.alerts._match", reason="the C is not built here")

from tests.unit.test_alerting import CONFIG, Plant, Publisher, folder, plant, run, until

__all__ = ["folder", "plant"]

SHARDS = "[alerts.shards]\nengines = {}\n"


def shard(plant: Plant, engines: int) -> None:
    """Have the daemon begin with so many engines from its next start on."""
    text, _, _ = plant.config.read_text().partition("[alerts.shards]")
    plant.config.write_text(text + SHARDS.format(engines))


def children(plant: Plant) -> list[int]:
    """Return the processes that have the daemon's engines."""
    assert plant.daemon
    found: list[int] = []
    for thread in Path(f"/proc/{plant.daemon.pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
            found += map(int, (thread / "children").read_text().split())
    return [pid for pid in found if b"process_host" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_whoever_loses_its_engines_tells_nothing_twice_and_loses_nothing(plant: Plant) -> None:
    shard(plant, 2)
    plant.start()
    plant.ask("subscribe", "load > 1")
    plant.ask("subscribe", "mean(load) > 1")
    with mchannel.open("shm:///web1", timeout=20) as one, mchannel.open("shm:///web2", timeout=20) as other:
        publishers = Publisher(one), Publisher(other)
        for publisher in publishers:
            publisher.declare(Named("load"))
            publisher.say(0, 2.0)
        until(lambda: len(plant.told) == 3)
        for victim in children(plant):  # one after the other: the last one is replaced at once
            os.kill(victim, signal.SIGKILL)
            for publisher in publishers:
                publisher.say(0, 3.0)
                publisher.flush()
        assert len(plant.told) == 3
        for publisher in publishers:
            publisher.say(0, 0.5)
        until(lambda: len(plant.told) == 6)
    assert sorted(state for state, _ in plant.told) == ["firing"] * 3 + ["resolved"] * 3
    assert len({name for _, name in plant.told}) == 3
    until(lambda: "host 1 is lost, and its shards go on elsewhere" in plant.log)
    until(lambda: len(plant.ask("status")["alerts"]["engines"]) == 2)
    plant.end(signal.SIGTERM)
    assert (plant.daemon and plant.daemon.returncode, "Traceback" in plant.log) == (0, False), plant.log


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_with_another_number_of_engines_goes_on_with_windows_as_they_were(
    plant: Plant, ends: signal.Signals
) -> None:
    shard(plant, 1)
    plant.start()
    plant.ask("subscribe", "mean(load[3]) > 1")
    workers = children(plant)
    with mchannel.open("shm:///web1", timeout=20) as channel:
        publisher = Publisher(channel)
        publisher.declare(Named("load"))
        for _ in range(3):
            publisher.say(0, 2.0)
            time.sleep(0.01)
        until(lambda: plant.noted)
        plant.end(ends)
        until(lambda: not any(map(is_running, workers)))
        shard(plant, 2)
        plant.start()
        assert (len(workers), len(children(plant))) == (1, 2)
        publisher.say(0, 2.0)
        publisher.flush()
        assert channel.read(timeout=20).topic == "metrics.again"
        publisher.declare(Named("load"))
        for _ in range(3):
            publisher.say(0, 0.0)
            time.sleep(0.01)
        until(lambda: len(plant.told) > 1)
    assert [state for state, _ in plant.told] == ["firing", "resolved"]
    assert len({name for _, name in plant.told}) == 1


def test_status_shows_how_busy_engines_are(plant: Plant) -> None:
    shard(plant, 2)
    plant.start()
    result = run("status")
    assert "2 engines beside the broker, busy so much of a processor: host 1 0%, host 2 0%" in result.stdout


def test_another_number_of_engines_needs_a_restart(plant: Plant) -> None:
    plant.start()
    shard(plant, 2)
    assert plant.daemon
    plant.daemon.send_signal(signal.SIGHUP)
    plant.expect("RELOADING=1")
    plant.expect("READY=1")
    assert "alerts.shards: another one needs a restart of mbrokerd" in plant.ask("status")["problem"]
    assert children(plant) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("[alerts.shards]\nengines = 0", "alerts.shards.engines: must be >= 1"),
        ("[alerts.shards]\nengines = 65", "alerts.shards.engines: must be <= 64"),
        ("[alerts.shards]\nengines = 3\nmost = 2", "alerts.shards.most: must not be less than there are engines"),
        ('[alerts.shards]\non = "cloud"', "alerts.shards.on: must be one of processes, ray, not 'cloud'"),
        ("[alerts.shards]\nhosts = 2", "alerts.shards.hosts: unknown key"),
        ("[alerts]\nlate = -1", "alerts.late: must be >= 0"),
        ("[alerts]\nlate = 1.5", "alerts.late: must be less than 3 intervals"),
    ],
)
def test_a_wrong_number_of_engines_is_told_by_its_key(folder: Path, change: str, says: str) -> None:
    file = folder / "mbroker.toml"
    text = CONFIG.format(folder=folder, port=9)
    table, _, rest = change.partition("\n")
    file.write_text(text.replace(table, f"{table}\n{rest}", 1) if table in text else f"{text}{change}\n")
    result = run("check-config", str(file))
    assert (result.exit_code, f"{file}: {says}" in result.stderr) == (2, True), result.stderr


async def test_processes_that_cannot_be_had_are_told_by_the_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "mbroker.toml"
    file.write_text(CONFIG.format(folder=folder, port=9) + SHARDS.format(2))
    monkeypatch.setattr("sys.executable", "/nonexistent")
    with pytest.raises(ConfigError, match=r"alerts.shards: no process can be had for engines: No such file"):
        await Alerting(load(file), lambda _: None).open()


async def test_ray_that_is_not_installed_is_told_by_the_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "mbroker.toml"
    file.write_text(CONFIG.format(folder=folder, port=9) + SHARDS.format(2) + 'on = "ray"\n')
    monkeypatch.setitem(sys.modules, "mbroker.alerts.ray_host", None)
    with pytest.raises(ConfigError, match=r"alerts.shards.on: Ray is not installed; install it by: pip install"):
        await Alerting(load(file), lambda _: None).open()
