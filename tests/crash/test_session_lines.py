"""A broker is killed at any line while its agent writes, and started again: no message is lost."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import mchannel
from mchannel import RawCodec
from tests.crash import broker_process
from tests.crash.points import WHOLE, spread

MESSAGES = [b"%d" % number for number in range(20)]
SAMPLE = 15
AT_ONCE = 8
"""Brokers that are killed side by side: each waits more than it works."""
PROCESSES = multiprocessing.get_context("forkserver")  # which starts them without importing everything anew
PROCESSES.set_forkserver_preload(["tests.crash.broker_process", "mchannel.transports.zmq", "mchannel.transports.shm"])


@contextmanager
def broker(address: str, log: Path, kill: int = 0) -> Generator[Connection]:
    """Start a broker; it is gone afterwards. What it tells ends when it dies."""
    told, tell = PROCESSES.Pipe()
    process = PROCESSES.Process(target=broker_process.main, args=(address, log, tell, kill))
    with told, tell:
        process.start()
        tell.close()
        try:
            yield told
        finally:
            process.kill()
            process.join()


def run(address: str, log: Path, kill: int = 0) -> int:
    """Write all messages to a broker that is killed, and to its successor; return how many lines ran."""

    def agent() -> None:
        with mchannel.open(address, RawCodec(), timeout=60, heartbeat=0.2) as channel:
            for message in (*MESSAGES, b"end"):
                channel.write(message, timeout=60)
            channel.flush(timeout=60)

    with ThreadPoolExecutor() as threads:
        with broker(address, log, kill) as told:
            writing = threads.submit(agent)
            assert told.poll(60), "the broker neither died nor came to its end"
            try:
                lines = int(told.recv())
            except EOFError:  # it was killed
                lines = 0
            if lines:
                writing.result(60)
                return lines
        with broker(address, log):  # the first has let go of its place by now
            writing.result(60)  # all is acknowledged, so all is in the log
        return 0


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


@pytest.mark.timeout(1800 if WHOLE else 120)
@pytest.mark.parametrize("scheme", ["shm", "ipc"])
def test_a_broker_killed_at_any_line_and_started_again_loses_nothing(scheme: str, tmp_path: Path) -> None:
    whole = run(f"{scheme}://{tmp_path}/whole", tmp_path / "whole.log")
    assert whole > 500
    assert_none_lost(tmp_path / "whole.log", "no line")

    def check(point: int) -> None:
        log = tmp_path / f"{point}.log"
        try:
            run(f"{scheme}://{tmp_path}/at{point}", log, point)
        except Exception as error:
            error.add_note(f"killed at line event {point} of {whole}")
            raise
        assert_none_lost(log, f"line event {point} of {whole}")

    with ThreadPoolExecutor(AT_ONCE) as threads:
        for checked in [threads.submit(check, point) for point in spread(range(1, whole), None if WHOLE else SAMPLE)]:
            checked.result()


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
def test_a_session_handed_from_process_to_process_loses_and_repeats_nothing(scheme: str, tmp_path: Path) -> None:
    if scheme == "shm":
        pytest.importorskip("mchannel._ring")
    address = f"{scheme}://{tmp_path}/web1"
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
