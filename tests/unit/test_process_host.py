"""Engines in processes of their own, which are killed, stopped and orphaned."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator

import pytest

from mbroker.alerts.engine import Engine
from mbroker.alerts.engine_host import LostError, Match, Save, Step
from mbroker.alerts.image import SnapshotError, packed
from mbroker.alerts.process_host import ProcessHost
from mbroker.alerts.shards import Shards
from tests.unit.test_shards import START, by_alert, columns, rule, streams

TEXTS = ["load > 5", "mean(load) by (rack) > 4", "mean(load[3]) > 4 for 2s", "absent(load[5s])"]
ENDS = 10  # seconds


class Hosts:
    """Makes processes, and remembers them."""

    def __init__(self) -> None:
        self.made: list[ProcessHost] = []

    def __call__(self) -> ProcessHost:
        self.made.append(ProcessHost())
        return self.made[-1]


@pytest.fixture
def host() -> Iterator[ProcessHost]:
    made = ProcessHost(patience=5.0)
    yield made
    made.close()


def ask(host: ProcessHost, *steps: Step) -> object:
    return host.start({1: steps})().results[1]


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def fails(_: Engine) -> None:
    raise MemoryError("no room")


def divides(_: Engine) -> float:
    return 1 / 0


@pytest.mark.parametrize("killed", [(), (11,), (5, 6, 20)], ids=["never", "once", "each in its turn"])
def test_what_processes_match_is_what_one_engine_does_whoever_is_killed(killed: tuple[int, ...]) -> None:
    hosts = Hosts()
    engine, shards = Engine(START), Shards(START, count=3, hosts=2, make=hosts)
    for text in TEXTS:
        assert shards.add(rule(text)) == engine.add(rule(text))
    edges = 0
    for turn, (now, samples) in enumerate(streams(random.Random(3), 30)):
        if turn in killed:
            os.kill(next(host.pid for host in hosts.made if is_there(host.pid)), signal.SIGKILL)
        told = by_alert(shards.push(now, *columns(shards, samples)))
        assert told == by_alert(engine.push(now, *columns(engine, samples)))
        edges += len(told)
    assert edges
    assert len(shards.losses()) == len(killed)
    assert len(hosts.made) == (4 if len(killed) == 3 else 2)  # the last one is replaced, twice
    shards.close()
    assert not any(is_there(host.pid) for host in hosts.made)


def test_it_says_what_it_spent_and_what_rules_lack(host: ProcessHost) -> None:
    host.place(1, Engine(START).save())
    report = host.start({1: [Match(START), Save()]})()
    assert report.spent > report.busy[1] > 0
    assert report.problem == ""


def test_a_process_that_was_killed_is_lost_and_stays_so(host: ProcessHost) -> None:
    host.place(1, Engine(START).save())
    os.kill(host.pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(LostError, match=rf"^process {host.pid} of engines is gone$"):
            ask(host, Match(START))


def test_a_process_that_stands_still_is_lost_and_killed(host: ProcessHost) -> None:
    host.place(1, Engine(START).save())
    os.kill(host.pid, signal.SIGSTOP)
    with pytest.raises(LostError, match=rf"^process {host.pid} of engines does not answer$"):
        ask(host, Match(START))
    assert not is_there(host.pid)


def test_what_the_operator_sends_to_all_of_a_session_does_not_end_it(host: ProcessHost) -> None:
    host.place(1, Engine(START).save())
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(host.pid, number)
    assert ask(host, Match(START)) == [[]]


def test_it_ends_with_whoever_started_it(host: ProcessHost) -> None:
    host.place(1, Engine(START).save())
    host._pipe.close()  # pyright: ignore[reportPrivateUsage]
    assert host._process.wait(ENDS) == 0  # pyright: ignore[reportPrivateUsage]


def test_an_engine_without_memory_loses_its_host(host: ProcessHost) -> None:
    host.place(1, Engine(START).save())
    with pytest.raises(LostError, match=r"^an engine ran out of memory: no room$"):
        ask(host, fails)
    assert not is_there(host.pid)


def test_what_is_a_mistake_is_raised_here(host: ProcessHost) -> None:
    host.place(1, Engine(START).save())
    with pytest.raises(ZeroDivisionError):
        ask(host, divides)


def test_no_process_for_engines_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    with pytest.raises(LostError, match=r"^no process can be had for engines: No such file or directory$"):
        ProcessHost()


def test_hosts_that_were_made_end_when_the_next_one_cannot_be_had() -> None:
    hosts = Hosts()

    def scarce() -> ProcessHost:
        if hosts.made:
            raise LostError("no more")
        return hosts()

    with pytest.raises(LostError, match=r"^no more$"):
        Shards(START, hosts=2, make=scarce)
    assert not is_there(hosts.made[0].pid)


def test_a_snapshot_that_makes_no_sense_leaves_no_process() -> None:
    hosts = Hosts()
    head, nowhere = [2, 1000, 100, START, 1], [["load", 7]]
    with pytest.raises(SnapshotError, match=r"^the snapshot makes no sense to this version"):
        Shards.load(packed([head, [], nowhere, [b"", b""], [], [], []], b""), make=hosts)
    assert not is_there(hosts.made[0].pid)
