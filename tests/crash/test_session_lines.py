"""A broker is killed at any line while its agent writes, and started again: no message is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import mchannel
from mchannel import RawCodec
from tests.crash.points import WHOLE, spread

PROGRAM = Path(__file__).with_name("broker_process.py")
MESSAGES = [b"%d" % number for number in range(20)]
SAMPLE = 15


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test names of its own."""
    monkeypatch.setenv("MCHANNEL_RUNTIME_DIR", str(tmp_path))


def start(address: str, log: Path, kill: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), address, str(log), str(kill)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def run(address: str, log: Path, kill: int = 0) -> int:
    """Write all messages to a broker that is killed, and to its successor; return how many lines ran."""
    with start(address, log, kill) as broker, ThreadPoolExecutor() as threads:

        def agent() -> None:
            with mchannel.open(address, RawCodec(), timeout=60, heartbeat=0.2) as channel:
                for message in (*MESSAGES, b"end"):
                    channel.write(message, timeout=60)
                channel.flush(timeout=60)

        try:
            writing = threads.submit(agent)
            said = broker.communicate(timeout=60)[0]
            if kill and broker.returncode:
                with start(address, log) as successor:
                    try:
                        writing.result(60)  # all is acknowledged, so all is in the log
                    finally:
                        successor.kill()
            writing.result(60)
            return int(said or 0)
        finally:
            broker.kill()


def seen(log: Path) -> Iterator[tuple[bytes, bool]]:
    for line in log.read_bytes().splitlines():
        message, marked = line.split()
        yield message, marked == b"1"


def assert_none_lost(log: Path, point: str) -> None:
    fresh: list[bytes] = []
    for message, marked in seen(log):
        if message in fresh:
            assert marked, f"{message!r} came again without a mark, killed at {point}"
        else:
            fresh.append(message)
    assert fresh == [*MESSAGES, b"end"], f"killed at {point}"


@pytest.mark.timeout(7200 if WHOLE else 120)
@pytest.mark.parametrize("scheme", ["shm", "ipc"])
def test_a_broker_killed_at_any_line_and_started_again_loses_nothing(scheme: str, tmp_path: Path) -> None:
    whole = run(f"{scheme}:///whole", tmp_path / "whole.log")
    assert whole > 500
    assert_none_lost(tmp_path / "whole.log", "no line")
    for point in spread(range(1, whole), None if WHOLE else SAMPLE):
        log = tmp_path / f"{point}.log"
        run(f"{scheme}:///at{point}", log, point)
        assert_none_lost(log, f"line event {point} of {whole}")


HANDOFF = """
import sys, mchannel
from mchannel import RawCodec
address, role = sys.argv[1:]
listener = mchannel.listen(address, RawCodec(), heartbeat=0.2)
if role == "source":
    channel = listener.accept(timeout=60)
    for _ in range(7):
        print(channel.read(timeout=60).decode(), flush=True)
    channel.suspend(timeout=30)
    channel.write(b"from the source")
    handoff = channel.handoff()
    listener.close()
    print(handoff.hex())
else:
    listener.adopt(bytes.fromhex(sys.stdin.readline()))
    channel = listener.accept(timeout=60)
    channel.write(b"from the target")
    while True:
        message = channel.receive(timeout=60)
        print(message.value.decode(), "marked" * message.redelivered, flush=True)
        if message.value == b"end":
            break
    channel.close(timeout=30)
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("scheme", ["shm", "ipc"])
def test_a_session_handed_from_process_to_process_loses_and_repeats_nothing(scheme: str) -> None:
    address = f"{scheme}:///web1"
    command = [sys.executable, "-c", HANDOFF, address]
    with ThreadPoolExecutor() as threads:

        def agent() -> list[bytes]:
            with mchannel.open(address, RawCodec(), timeout=60, heartbeat=0.2) as channel:
                channel.write_many([*MESSAGES, b"end"], timeout=60)
                return [channel.read(timeout=60) for _ in range(2)]

        heard = threads.submit(agent)
        source = subprocess.run([*command, "source"], stdout=subprocess.PIPE, text=True, timeout=60, check=True)
        *before, handoff = source.stdout.splitlines()
        target = subprocess.run(
            [*command, "target"], input=handoff, stdout=subprocess.PIPE, text=True, timeout=60, check=True
        )
        assert heard.result(60) == [b"from the source", b"from the target"]
    after = [line.strip() for line in target.stdout.splitlines()]
    assert [each.encode() for each in (*before, *after)] == [*MESSAGES, b"end"]
