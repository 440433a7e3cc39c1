"""``magent`` as an operator meets it: a process, its output, its exit status."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import mchannel
from mchannel.agents.main import main

FORMAT = "$msec $status $request_time"
LINES = "1700000000.100 200 0.004\n1700000000.700 200 0.007\nnonsense\n1700000001.700 200 0.001\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "access.log"
    path.write_text(LINES)
    return path


def run(*arguments: str | Path) -> int:
    """Return the exit status of ``magent sla`` in this process."""
    try:
        main(["sla", *map(str, arguments)])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 99
    return 0


def test_once_reports_a_log_by_its_own_times(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--once", "--dry-run", "--output", "json", "--source", "web1")
    assert run("--log", log, "--format", FORMAT, *options) == 0
    events: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["at"] for event in events] == [1700000000.5, 1700000001.0, 1700000001.5, 1700000002.0]
    assert {(event["topic"], event["source"]) for event in events} == {("sla.epoch", "web1")}
    details = [event["detail"] for event in events]
    assert [detail["requests"] for detail in details] == [1, 1, 0, 1]
    assert [detail["soft"] for detail in details] == [1, 1, 0, 0]
    assert [detail["hard"] for detail in details] == [0, 1, 0, 0]
    assert sum(detail.get("unparsed", 0) for detail in details) == 1


def test_thresholds_are_options(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--once", "--dry-run", "--output", "json", "--hard-ms", "0.9", "--soft-ms", "0.5")
    assert run("--log", log, "--format", FORMAT, *options) == 0
    details = [json.loads(line)["detail"] for line in capsys.readouterr().out.splitlines()]
    assert sum(detail["hard"] for detail in details) == 3


def test_events_are_printed_for_people(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--log", log, "--format", FORMAT, "--once", "--dry-run", "--source", "web1") == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "22:13:20.5  web1  requests 1  hard 0  soft 1  p99_ms 4.0"


@pytest.mark.parametrize(
    ("options", "status", "line"),
    [
        (["--log", "LOG", "--dry-run", "--format", "%T"], 2, "%T has a resolution of 1 s; log %D instead"),
        (["--log", "LOG", "--dry-run", "--format", "combined"], 2, "unknown log format 'combined'"),
        (["--log", "LOG", "--dry-run", "--once"], 2, "add $msec (nginx)"),
        (["--log", "LOG", "--dry-run", "--soft-ms", "7"], 2, "--soft-ms 7 is above --hard-ms 6"),
        (["--log", "LOG", "--dry-run", "--hard-ms", "0"], 2, "argument --hard-ms: '0' is no threshold; give milli"),
        (["--log", "LOG", "--dry-run", "--hard-ms", "nan"], 2, "argument --hard-ms: 'nan' is no threshold"),
        (["--log", "LOG", "--dry-run", "--soft-ms", "x"], 2, "argument --soft-ms: 'x' is no threshold"),
        (["--log", "LOG", "--dry-run", "--once", "--follow"], 2, "not allowed with"),
        (["--log", "LOG"], 2, "--address"),
        (["--log", "LOG", "--address", "nonsense"], 2, "'nonsense' is not an address"),
        (["--log", "LOG", "--address", "ipc://DIR/nobody.sock"], 3, "nobody.sock"),
        (["--log", "DIR/missing", "--dry-run"], 4, "missing"),
        (["--log", "DIR/missing", "--dry-run", "--once"], 4, "missing"),
        (["--log", "DIR", "--dry-run"], 1, "not a regular file"),
        (["--log", "LOG", "--dry-run", "--once", "--format", "$msec $request_time"], 1, "none of 4 lines"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_a_status(
    log: Path, capsys: pytest.CaptureFixture[str], options: list[str], status: int, line: str
) -> None:
    filled = [option.replace("LOG", str(log)).replace("DIR", str(log.parent)) for option in options]
    assert run(*filled) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert line in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["run", "host", "sla --log LOG"])
@pytest.mark.parametrize("address", ["shm:///", "", "nowhere", "tcp://10.0.0.7:0"])
def test_an_address_that_can_never_be_is_no_reason_to_wait(
    log: Path, capsys: pytest.CaptureFixture[str], command: str, address: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command.replace("LOG", str(log)).split(), "--address", address])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("magent: --address ")


@pytest.mark.parametrize("command", ["run", "host", "sla"])
def test_help_has_an_example_and_fits_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert f"magent {command}" in "".join(lines).partition("examples:")[2]
    assert max(map(len, lines)) <= 80


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert "magent sla --log /var/log/nginx/access.log --address shm:///web1" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"magent {version('mchannel')}\n"


@contextmanager
def following(*arguments: str | Path, notify: Path) -> Generator[tuple[subprocess.Popen[str], socket.socket]]:
    """Run ``magent sla`` as a process; the socket hears when it is ready."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(notify))
        manager.settimeout(60)
        process = subprocess.Popen(
            [sys.executable, "-c", "from mchannel.agents.main import main; main()", "sla", *map(str, arguments)],
            env={**os.environ, "NOTIFY_SOCKET": str(notify)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process, manager
        finally:
            process.kill()
            process.communicate()


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_log_is_followed_until_a_signal_and_nothing_is_left_unsaid(
    log: Path, tmp_path: Path, number: signal.Signals
) -> None:
    options = ("--format", FORMAT, "--dry-run", "--output", "json")
    with following("--log", log, *options, notify=tmp_path / "notify") as (process, manager):
        assert manager.recv(64) == b"READY=1"
        append(log, f"{time.time():.3f} 200 0.007\n")
        log.rename(tmp_path / "access.log.1")
        log.write_text(f"{time.time():.3f} 200 0.004\nnonsense\n")
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    details = [json.loads(line)["detail"] for line in out.splitlines()]
    assert (process.returncode, err) == (0, "")
    assert [sum(d[name] for d in details) for name in ("requests", "soft", "hard")] == [2, 2, 1]
    assert sum(detail.get("unparsed", 0) for detail in details) == 1


def test_a_broker_hears_what_is_in_the_log(log: Path, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/broker.sock"
    with mchannel.listen(address) as listener:
        options = ("--format", FORMAT, "--address", address, "--source", "web1")
        with following("--log", log, *options, notify=tmp_path / "notify") as (process, manager):
            with listener.accept(timeout=60) as channel:
                assert channel.peer.name == f"sla-{log.name}", "the broker knows it again after a restart"
                assert manager.recv(64) == b"READY=1"
                append(log, f"{time.time():.3f} 200 0.007\n")
                events = [channel.read(timeout=60)]
                while not events[-1].value:
                    events.append(channel.read(timeout=60))
                process.terminate()
                events += channel  # until the agent says goodbye
            assert process.wait(timeout=60) == 0
    assert {event.source for event in events} == {"web1"}
    assert [event.detail["hard"] for event in events if event.value] == [1]


def test_a_broker_that_comes_back_hears_what_it_missed(log: Path, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/broker.sock"
    heard: dict[int, int] = {}
    options = ("--format", FORMAT, "--address", address)
    with following("--log", log, *options, notify=tmp_path / "notify") as (_, manager):
        with mchannel.listen(address) as listener:
            first = listener.accept(timeout=60).read(timeout=60)
            assert manager.recv(64) == b"READY=1"
        for _ in range(3):
            append(log, f"{time.time():.3f} 200 0.007\n")
            time.sleep(0.5)
        with mchannel.listen(address) as listener, listener.accept(timeout=60) as channel:
            while sum(heard.values()) < 3:
                event = channel.read(timeout=60)
                number, hard = event.detail["epoch"], event.detail["hard"]
                assert isinstance(number, int)
                assert isinstance(hard, int)
                heard[number] = hard
    assert min(heard) == first.detail["epoch"]  # it was read and not marked as done
    assert len(heard) == max(heard) - min(heard) + 1


def test_reports_that_nobody_acknowledged_are_told_of_at_the_end(log: Path, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/broker.sock"
    options = ("--format", FORMAT, "--address", address)
    with following("--log", log, *options, notify=tmp_path / "notify") as (process, manager):
        with mchannel.listen(address) as listener:
            listener.accept(timeout=60).read(timeout=60)
            assert manager.recv(64) == b"READY=1"
            append(log, f"{time.time():.3f} 200 0.007\n")
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert re.fullmatch(r"magent: [1-9]\d* reports were not acknowledged by the broker at ipc://.*\n", err)
