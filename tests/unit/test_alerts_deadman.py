"""The dead man's switch, against real processes that stop, die and come back."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mbroker.alerts import deadman
from mbroker.alerts.alert import State
from mbroker.alerts.deadman import PATIENCE, DeadmanError, DeadmanSection, Heart, Pulse, guard
from mbroker.alerts.wording import Wording
from mbroker.cli import main
from mbroker.values import Invalid, build
from tests.unit.notify_world import PROMPT, Ear

# -- the core


def test_silence_is_noticed_within_two_periods_and_once() -> None:
    pulse = Pulse(10, heard=100)
    assert not pulse.tick(117.4)
    assert pulse.tick(117.5)
    assert not pulse.tick(130)
    assert PATIENCE < 2


def test_a_broker_that_never_beat_is_silent_too_and_one_that_is_back_is_told_once() -> None:
    pulse = Pulse(10, heard=0)
    assert pulse.tick(20)
    assert pulse.beat(21)
    assert not pulse.beat(31)
    assert not pulse.tick(40)


def test_whoever_beats_in_time_is_never_silent() -> None:
    pulse = Pulse(10, heard=0)
    for beat in range(10, 1000, 15):
        assert not pulse.tick(beat)
        assert not pulse.beat(beat)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 40)), max_size=30))
def test_silence_and_return_are_told_in_turn(happenings: list[tuple[bool, float]]) -> None:
    pulse, now, told = Pulse(10, heard=0), 0.0, list[str]()
    for beats, later in happenings:
        now += later
        if pulse.tick(now):
            told.append("silent")
        if beats and pulse.beat(now):
            told.append("back")
        assert pulse.silent or now - pulse.heard < 20
    assert told == ["silent", "back"] * (len(told) // 2) + ["silent"] * (len(told) % 2)


# -- one loop


def section(folder: Path, period: float = 0.5) -> DeadmanSection:
    return DeadmanSection(("ops",), period, folder / "run" / "deadman.sock")


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.01)


async def test_silence_and_return_are_told_once_each_although_the_receiver_fails_at_first(tmp_path: Path) -> None:
    ear, ours = Ear(OSError("down")), section(tmp_path)
    watching = asyncio.create_task(guard(ours, "node1", {"ops": attrs.evolve(PROMPT, retry_first=0.01)}, {"ops": ear}))
    await until(lambda: len(ear.heard) == 1)
    heart = Heart(ours.socket)
    await until(heart.beat)
    heart.beat()
    await until(lambda: len(ear.heard) == 2)
    assert [delivery.stories[0].alert.state for delivery in ear.heard] == [State.FIRING, State.RESOLVED]
    silent, back = (delivery.stories[0].alert for delivery in ear.heard)
    assert silent.id == back.id
    assert silent.key == {("host", "node1")}
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert not ours.socket.exists()
    assert ear.closed


async def test_what_is_told_says_which_broker_is_silent(tmp_path: Path) -> None:
    ear, ours = Ear(), section(tmp_path, 0.1)
    watching = asyncio.create_task(guard(ours, "node1", {"ops": PROMPT}, {"ops": ear}))
    await until(lambda: ear.heard)
    words = Wording("node1", lambda _: "")
    assert words.title(ear.heard[0]) == "node1: 1 firing: the broker on node1 is silent"
    assert words.lines(ear.heard[0])[0].startswith(
        "FIRING critical: the broker on node1 is silent at host=node1 since "
    )
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_a_receiver_that_hears_of_old_alerts_only_hears_of_silence_at_once(tmp_path: Path) -> None:
    ear, ours = Ear(), section(tmp_path, 0.1)
    slow = attrs.evolve(PROMPT, after=3600, group_wait=3600, group_interval=3600)
    watching = asyncio.create_task(guard(ours, "node1", {"ops": slow}, {"ops": ear}))
    await until(lambda: ear.heard)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_a_second_watcher_is_refused_and_the_first_stays(tmp_path: Path) -> None:
    ours = section(tmp_path, 3600)
    watching = asyncio.create_task(guard(ours, "node1", {"ops": PROMPT}, {"ops": Ear()}))
    await until(ours.socket.exists)
    with pytest.raises(DeadmanError, match="another watcher listens there"):
        await guard(ours, "node1", {"ops": PROMPT}, {"ops": Ear()})
    assert Heart(ours.socket).beat()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_nobody_else_may_beat(tmp_path: Path) -> None:
    ours = section(tmp_path, 3600)
    watching = asyncio.create_task(guard(ours, "node1", {"ops": PROMPT}, {"ops": Ear()}))
    await until(ours.socket.exists)
    assert ours.socket.stat().st_mode & 0o777 == 0o600
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    ours = attrs.evolve(section(tmp_path), socket=tmp_path / "file")
    ours.socket.write_text("precious")
    with pytest.raises(DeadmanError, match="Address already in use"):
        await guard(ours, "node1", {"ops": PROMPT}, {"ops": Ear()})
    assert ours.socket.read_text() == "precious"


def test_a_heart_without_a_watcher_beats_on(tmp_path: Path) -> None:
    assert not Heart(tmp_path / "nobody").beat()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"receivers": []}, "receivers: must name somebody"),
        ({"receivers": ["ops"], "period": 0}, "period: must be >= 0.1"),
        ({"receivers": ["ops"], "socket": "run/x"}, "socket: must be an absolute path"),
        ({"receivers": ["ops"], "socket": "/" + "x" * 120}, "socket: must be an absolute path of at most 100 bytes"),
    ],
)
def test_a_section_that_cannot_be_is_refused(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(Invalid) as caught:
        build(DeadmanSection, wrong)
    assert reason in str(caught.value)


# -- two processes

BROKER = """
import sys, time
from pathlib import Path
from mbroker.alerts.deadman import Heart
heart = Heart(Path(sys.argv[1]))
while True:
    heart.beat()
    time.sleep(0.2)
"""

WATCHER = """
import asyncio, sys
from pathlib import Path
from mbroker.alerts.deadman import DeadmanSection, guard
from mbroker.alerts.notifiers import Kind, ReceiverSection, make
from mbroker.alerts.wording import Wording
receiver = ReceiverSection(kind=Kind.STDOUT, options={"format": "json"})
words = Wording("node1", lambda _: "")
section = DeadmanSection(("ops",), 1.0, Path(sys.argv[1]))
asyncio.run(guard(section, "node1", {"ops": receiver}, {"ops": make(receiver.kind, receiver.options, words)}))
"""


@pytest.fixture
def start(tmp_path: Path) -> Generator[Callable[[str], subprocess.Popen[str]]]:
    """Return what starts a process that is given the path of the socket; all are ended with the test."""
    running: list[subprocess.Popen[str]] = []

    def started(code: str) -> subprocess.Popen[str]:
        running.append(
            subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "sock")], stdout=subprocess.PIPE, text=True)
        )
        return running[-1]

    yield started
    for process in running:
        process.kill()
        process.communicate()


def said(watcher: subprocess.Popen[str]) -> Iterator[str]:
    """Yield the status of what the watcher tells, as it is told."""
    assert watcher.stdout is not None
    for line in watcher.stdout:
        yield json.loads(line)["status"]


@pytest.mark.parametrize("end", [signal.SIGSTOP, signal.SIGKILL])
def test_a_broker_that_is_stopped_or_killed_is_told_once_and_so_is_its_return(
    start: Callable[[str], subprocess.Popen[str]], tmp_path: Path, end: signal.Signals
) -> None:
    broker = start(BROKER)
    watcher = start(WATCHER)
    told = said(watcher)
    deadline = time.monotonic() + 20
    while not (tmp_path / "sock").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(broker.pid, end)
    assert next(told) == "firing"
    time.sleep(1)
    if end is signal.SIGSTOP:
        os.kill(broker.pid, signal.SIGCONT)
    else:
        start(BROKER)
    assert next(told) == "resolved"
    time.sleep(1)
    watcher.terminate()
    assert list(told) == []


# -- its service


def test_the_unit_starts_what_there_is_where_the_socket_is_by_default() -> None:
    unit = (Path(deadman.__file__).resolve().parents[1] / "systemd/mbroker-deadman.service").read_text()
    (command,) = re.findall(r"^ExecStart=/usr/bin/env mbroker (.*)$", unit, re.MULTILINE)
    assert CliRunner().invoke(main, [command.split()[0], "--help"]).exit_code == 0
    (folder,) = re.findall(r"^RuntimeDirectory=(.*)$", unit, re.MULTILINE)
    assert DeadmanSection(("ops",)).socket.parent == Path("/run", folder)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, and setpriv of util-linux")
def test_watching_needs_no_capability_and_beating_only_those_of_the_broker(tmp_path: Path) -> None:
    code = """
import asyncio, sys
from pathlib import Path
from mbroker.alerts.deadman import DeadmanSection, Heart, guard
from mbroker.alerts.delivery import Manner
async def main():
    path = Path(sys.argv[1])
    watching = asyncio.create_task(guard(DeadmanSection(("ops",), 60, path), "node1", {"ops": Manner()}, {}))
    while not Heart(path).beat():
        if watching.done():
            watching.result()
        await asyncio.sleep(0.01)
asyncio.run(main())
"""
    bound = ["setpriv", "--no-new-privs", "--bounding-set", "-all", sys.executable, "-c", code]
    subprocess.run([*bound, str(tmp_path / "run" / "sock")], check=True, timeout=60)
