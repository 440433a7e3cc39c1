"""Two processes on two CPUs that play one wire: what a message takes, asleep or awake, and how many pass.

A wire is prepared before the fork, so that it may be a descriptor that both inherit. Then each process
makes its end of it; one leads and takes the times, the other follows. How many messages a round has goes
through a pipe beside the wire, so that no loop has to look into a message for the end.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import time
from argparse import ArgumentParser
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import Enum
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import attrs

__all__ = ["Case", "Connect", "Contender", "End", "Measure", "Sample", "Unavailable", "measure", "together", "two_cpus"]

_PROCESSES = multiprocessing.get_context("fork")
_DEADLINE = 60.0  # seconds for one measurement, set-up included
_PAUSE = 100e-6  # seconds in which the peer falls asleep: five times as long as it spins
_FIRST = 64  # rounds that warm up and tell how many follow


class Unavailable(Exception):
    """This wire cannot be measured here; says why."""


@attrs.frozen
class End:
    """One end of a wire, as plain functions: what is measured is called without a layer in between."""

    send: Callable[[Any], object]
    """Send one message, and wait as long as there is no room."""
    recv: Callable[[], Any]
    """Wait for a message and return it."""
    send_all: Callable[[Any, int], object] | None = None
    """Send a message so many times in the wire's fastest way; None: one after the other."""
    recv_all: Callable[[int], object] | None = None
    """Receive so many messages in the wire's fastest way; None: one after the other."""
    close: Callable[[], object] = lambda: None


Role: TypeAlias = Callable[[Connection, Connection], None]
"""What a process does, with a pipe to the other one and a pipe for what is to be reported."""

Connect: TypeAlias = Callable[[int], End]
"""Make the end of side 0, which is there first and listens where one of them must, or of side 1."""


@attrs.frozen
class Contender:
    """A wire to be measured."""

    prepare: Callable[[Path], AbstractContextManager[Connect]]
    """Prepare it in an empty folder, before the fork; raises Unavailable or ImportError."""
    message: Callable[[int], Any] = bytes
    """Make the message whose encoding has so many bytes."""
    pinned: bool = True
    """False for a wire with threads of its own, which is faster when the kernel places them."""


class Measure(Enum):
    """What is measured, and its unit."""

    PING = "us"
    """Microseconds one way: half a round trip between two that are awake."""
    WAKE = "us, asleep"
    """The same between two that fall asleep before each message; how long they paused is taken off."""
    STREAM = "msgs/s"
    """Messages per second in one direction, from the first write until the last was read."""


@attrs.frozen
class Case:
    """One figure of the report."""

    key: str
    contender: Contender
    measure: Measure
    size: int = 64
    """Bytes in a message."""


@attrs.frozen
class Sample:
    """What one repetition gave."""

    value: float
    """The median, or the rate, in the unit of its measure."""
    p99: float | None = None
    """99th percentile of a time."""


def two_cpus(parser: ArgumentParser, *, realtime: bool) -> tuple[int, int]:
    """Return two CPUs to measure on, *realtime* with neighbours kept off; end the program when that is not possible."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        parser.error("two CPUs are needed: two processes that share one measure the scheduler")
    if realtime:
        try:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))  # the children inherit it
        except PermissionError:
            parser.error("--realtime needs root, or CAP_SYS_NICE")
    return cpus[0], cpus[1]


def measure(case: Case, seconds: float, cpus: tuple[int, int]) -> Sample:
    """Run *case* once for about *seconds*; raise Unavailable with the reason when that fails."""
    with TemporaryDirectory(prefix="mchannel-bench-") as folder:
        try:
            with case.contender.prepare(Path(folder)) as connect:
                # The scheduler for real-time processes leaves threads where they woke each other: there all are pinned.
                pinned = case.contender.pinned or os.sched_getscheduler(0) != os.SCHED_OTHER
                sample: Sample = together(
                    functools.partial(_follow, case, connect),
                    functools.partial(_lead, case, connect, seconds),
                    cpus if pinned else (None, None),
                )
                return sample
        except ImportError as error:
            raise Unavailable(str(error)) from None


def together(follow: Role, lead: Role, cpus: tuple[int | None, int | None]) -> Any:
    """Run two processes, joined by a pipe beside the wire, and return what one of them reports first.

    *cpus* are those of the leader and of the follower, None where the kernel shall choose. Raises
    Unavailable when one of them fails, and after a minute. Both have ended on return.
    """
    beside = _PROCESSES.Pipe()
    result, report = _PROCESSES.Pipe(duplex=False)
    children = [
        _PROCESSES.Process(target=_child, args=(follow, cpus[1], beside[0], report)),
        _PROCESSES.Process(target=_child, args=(lead, cpus[0], beside[1], report)),
    ]
    try:
        for child in children:
            child.start()
        if not result.poll(_DEADLINE):
            raise Unavailable(f"no result within {_DEADLINE:g} s")
        outcome = result.recv()
        for child in children:
            child.join(2)
    finally:
        for child in children:
            if child.is_alive():
                child.kill()
            if child.pid is not None:
                child.join()
        for connection in (*beside, result, report):
            connection.close()
    if isinstance(outcome, Unavailable):
        raise outcome
    return outcome


def _child(role: Role, cpu: int | None, beside: Connection, report: Connection) -> None:
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    try:
        role(beside, report)
    except Exception as error:  # whatever a library raises is the reason why there is no figure
        report.send(Unavailable(f"{type(error).__name__}: {error}"))


def _follow(case: Case, connect: Connect, beside: Connection, _: Connection) -> None:
    end = connect(0)
    recv_all = end.recv_all or functools.partial(_receive_each, end.recv)
    while count := beside.recv():
        if case.measure is Measure.STREAM:
            recv_all(count)
            beside.send(None)
        elif case.measure is Measure.PING:
            _echo(end, count)
        else:
            beside.send(_wake_back(end, count))
    end.close()


def _lead(case: Case, connect: Connect, seconds: float, beside: Connection, report: Connection) -> None:
    end = connect(1)
    message = case.contender.message(case.size)
    if case.measure is Measure.STREAM:
        send_all = end.send_all or functools.partial(_send_each, end.send)
        sample = Sample(_stream(send_all, message, beside, seconds))
    else:
        once = _ping if case.measure is Measure.PING else _wake
        rounds = once(end, message, beside, _FIRST)
        pause = 0.0 if case.measure is Measure.PING else 2 * _PAUSE + 100e-6
        rounds = once(end, message, beside, max(_FIRST, int(seconds / (2 * median(rounds) / 1e9 + pause))))
        ordered = sorted(rounds)
        sample = Sample(ordered[len(ordered) // 2] / 1e3, ordered[len(ordered) * 99 // 100] / 1e3)
    report.send(sample)
    beside.send(0)
    end.close()


# ---- awake


def _echo(end: End, count: int) -> None:
    send, recv = end.send, end.recv
    for _ in range(count):
        send(recv())


def _ping(end: End, message: object, beside: Connection, count: int) -> list[float]:
    send, recv, clock = end.send, end.recv, time.perf_counter_ns
    rounds: list[int] = []
    beside.send(count)
    for _ in range(count):
        start = clock()
        send(message)
        recv()
        rounds.append(clock() - start)
    return [nanoseconds / 2 for nanoseconds in rounds]


# ---- asleep: both write only after a pause, so that every message wakes its reader


def _wake_back(end: End, count: int) -> list[int]:
    """Return for each round how long the answer was held back."""
    send, recv, clock, sleep = end.send, end.recv, time.perf_counter_ns, time.sleep
    held: list[int] = []
    for _ in range(count):
        message = recv()
        start = clock()
        sleep(_PAUSE)
        held.append(clock() - start)
        send(message)
    return held


def _wake(end: End, message: object, beside: Connection, count: int) -> list[float]:
    send, recv, clock, sleep = end.send, end.recv, time.perf_counter_ns, time.sleep
    rounds: list[int] = []
    beside.send(count)
    for _ in range(count):
        sleep(_PAUSE)
        start = clock()
        send(message)
        recv()
        rounds.append(clock() - start)
    held: list[int] = beside.recv()
    return [(round_trip - pause) / 2 for round_trip, pause in zip(rounds, held, strict=True)]


# ---- streams


def _send_each(send: Callable[[Any], object], message: object, count: int) -> None:
    for _ in range(count):
        send(message)


def _receive_each(recv: Callable[[], Any], count: int) -> None:
    for _ in range(count):
        recv()


def _stream(send_all: Callable[[Any, int], object], message: object, beside: Connection, seconds: float) -> float:
    """Return messages per second: the median of five streams, so that a neighbour's burst counts once."""

    def stream(count: int) -> float:
        beside.send(count)
        start = time.perf_counter()
        send_all(message, count)
        beside.recv()
        return time.perf_counter() - start

    count, share = _FIRST, seconds / 5
    while (taken := stream(count)) < share / 2:
        count = int(count * min(16.0, share / taken))
    return median(count / stream(count) for _ in range(5))
