"""Processes that are killed, and a peer that writes whatever it likes, seen from Python."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from bisect import bisect_right
from collections import Counter
from typing import Final

import pytest

from mchannel.errors import ProtocolError
from mchannel.transports.ring import Region, RingEnd, Side

VERIFY: Final = os.environ.get("MCHANNEL_VERIFY") == "1"
TAIL: Final = 128  # of the first lane, in the region
KILLS: Final = 300 if VERIFY else 25
HOSTILE_SECONDS: Final = 30 if VERIFY else 5
NUMBER: Final = struct.Struct("<QQ40x")  # with its header a record of 64 bytes: the index counts the messages

ATTACH: Final = """
import os, random, struct, sys, time
from mchannel.errors import ProtocolError
from mchannel.transports.ring import Region, RingEnd, Side
NUMBER = struct.Struct("<QQ40x")
region = Region.attach(int(sys.argv[1]))
"""

WRITER: Final = (
    ATTACH
    + """
end = RingEnd(region, Side.A, spin=0.0)
print("ready", flush=True)
number = end.written // 64  # the ring itself tells what was published
while True:
    if end.write(NUMBER.pack(number, int(sys.argv[2]))):
        number += 1
    else:
        end.wait_writable(None)
"""
)

READER: Final = (
    ATTACH
    + """
end = RingEnd(region, Side.B, spin=0.0)
print("ready", flush=True)
while True:
    message = end.read(None)
    os.write(1, struct.pack("<Q?", NUMBER.unpack(message)[0], bool(end.redelivered)))
"""
)

HOSTILE: Final = (
    ATTACH
    + """
memory, dice = region.memory, random.Random(int(sys.argv[2]))
end = RingEnd(region, Side.A)
words = [128 + 512 * lane + at for lane in (0, 1) for at in (0, 128, 136, 256, 384)]
lengths = (0, 8, 100, 1016, 1017, 4088, 1 << 31, (1 << 32) - 1)
print("ready", flush=True)
while True:
    chance = dice.random()
    at = dice.choice(words) if chance < 0.02 else dice.randrange(0, len(memory) - 8) & ~7
    record = dice.choice(lengths) | dice.randrange(3) << 32
    value = dice.choice((dice.getrandbits(64), dice.randrange(0, 8192) & ~7, record))
    memory[at : at + 8] = struct.pack("<Q", value & (1 << 64) - 1)
    if chance > 0.9:
        try:
            end = end or RingEnd(region, Side.A)
            end.write(bytes(dice.randrange(2000)))
            end.read()
        except ProtocolError:  # it believes no more than the victim does: begin anew
            memory[128:1152] = bytes(1024)
            end = None
"""
)


def start(program: str, region: Region, *arguments: str) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(region.fd), *arguments],
        bufsize=0,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=[region.fd],
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    return child


def kill(child: subprocess.Popen[bytes]) -> bytes:
    child.send_signal(signal.SIGKILL)
    output, _ = child.communicate(timeout=10)
    return output


@pytest.mark.timeout(600 if VERIFY else 120)
def test_killed_writers_are_succeeded_without_a_gap_or_a_repetition() -> None:
    dice = random.Random(1)
    expected = 0
    ends: list[int] = []  # where each generation of writers was killed
    with Region.create(capacity=1 << 12, pool=1 << 12) as region, RingEnd(region, Side.B, spin=0.0) as reader:
        for generation in range(KILLS):
            child = start(WRITER, region, str(generation))
            stop = time.monotonic() + dice.uniform(0, 0.02)
            while time.monotonic() < stop:
                for message in reader.read_many():
                    assert NUMBER.unpack(message) == (expected, bisect_right(ends, expected))
                    expected += 1
            time.sleep(dice.choice((0, 0.001)))  # let the ring fill, or not
            kill(child)  # what it left in the ring is read while its successor writes
            ends.append(int.from_bytes(region.memory[TAIL : TAIL + 8], "little") // 64)
    assert expected > KILLS


@pytest.mark.timeout(600 if VERIFY else 120)
def test_killed_readers_lose_nothing_and_what_comes_twice_says_so() -> None:
    dice = random.Random(2)
    number = expected = 0
    with Region.create(capacity=1 << 12, pool=1 << 12) as region, RingEnd(region, Side.A, spin=0.0) as writer:
        for _ in range(KILLS):
            child = start(READER, region)
            stop = time.monotonic() + dice.uniform(0, 0.02)
            while time.monotonic() < stop:
                if writer.write(NUMBER.pack(number, 0)):
                    number += 1
                else:
                    writer.wait_writable(0.001)
            for found, redelivered in struct.iter_unpack("<Q?", whole(kill(child), 9)):
                assert found == expected or (redelivered and found == expected - 1)
                expected = found + 1
            assert writer.acknowledged // 64 <= expected <= writer.taken // 64
    assert number > KILLS


def whole(output: bytes, size: int) -> bytes:
    return output[: len(output) // size * size]


@pytest.mark.timeout(HOSTILE_SECONDS + 60)
def test_a_hostile_peer_can_only_make_the_victim_raise_protocol_error() -> None:
    """The victim runs here: had it crashed, hung or left its memory, this process would have."""
    calls: Counter[str] = Counter()
    dice = random.Random(3)
    a, b = socket.socketpair()
    with Region.create(capacity=1 << 12, pool=1 << 12) as region, a, b:
        child = start(HOSTILE, region, "4")
        end: RingEnd | None = None
        stop = time.monotonic() + HOSTILE_SECONDS
        try:
            while time.monotonic() < stop:
                try:
                    if end is None:
                        end = RingEnd(region, Side.B, bell=a.fileno(), peer_bell=a.fileno(), spin=0.0)
                        calls["joined"] += 1
                    calls[attempt(end, dice)] += 1
                except ProtocolError:
                    calls["refused"] += 1
                    if end is not None:
                        with pytest.raises(ProtocolError):
                            end.read()
                        end.close()
                    end = None
        finally:
            assert child.poll() is None, "the hostile peer must live on"
            kill(child)
    assert calls["refused"] > 10
    assert calls["joined"] > 10
    assert calls["read"] + calls["read many"] > 10


def attempt(end: RingEnd, dice: random.Random) -> str:
    match dice.randrange(8):
        case 0 | 1:
            message = end.read()
            assert message is None or len(message) <= 1 << 12
            return "nothing" if message is None else "read"
        case 2:
            messages = end.read_many()
            assert sum(map(len, messages)) <= 1 << 14
            return "read many" if messages else "nothing"
        case 3:
            view = end.peek()
            if view is not None:
                assert len(bytes(view)) <= 1 << 12
                end.release()
            return "peek"
        case 4:
            end.write(bytes(dice.randrange(2000)))
            return "write"
        case 5:
            end.write_many([bytes(dice.randrange(100)) for _ in range(10)])
            return "write"
        case 6:
            end.wait_readable(0.001)
            end.wait_writable(0.001)
            return "wait"
        case _:
            end.arm_readable()
            end.disarm()
            end.drain()
            return f"index {end.taken >= end.acknowledged}"
