"""The benchmarks measure what they say: every key is there, what fails is null, and no target judges itself."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import attrs
import pytest

import mchannel
from benchmarks import c_ring, channel, harness, peers, sla
from benchmarks.harness import Case, Connect, Contender, End, Measure, Sample, Unavailable, measure, together
from benchmarks.report import Figure, Target, print_report

KEYS = {
    "c_ring_64B_p50_us",
    "c_ring_wake_64B_p50_us",
    "event_64B_p50_us",
    "iceoryx2_1MiB_us",
    "iceoryx2_64B_p50_us",
    "ipc_64B_p50_us",
    "pyzmq_ipc_1MiB_us",
    "pyzmq_ipc_64B_p50_us",
    "pyzmq_ipc_msgs_s",
    "ring_64B_p50_us",
    "ring_batch_msgs_s",
    "ring_blob_msgs_s",
    "shm_1MiB_us",
    "shm_64B_p50_us",
    "shm_batch_msgs_s",
    "shm_each_msgs_s",
    "shm_wake_64B_p50_us",
}

needs_two_cpus = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")


def cpus() -> tuple[int, int]:
    first, second, *_ = sorted(os.sched_getaffinity(0))
    return first, second


def figures(**samples: list[float | None]) -> dict[str, Figure]:
    return {
        key: Figure("us", tuple(None if value is None else Sample(value) for value in values))
        for key, values in samples.items()
    }


# ---- the report


def test_every_key_of_the_report_is_measured() -> None:
    assert {case.key for case in channel.CASES} | set(c_ring.KEYS) >= KEYS


def test_a_target_names_only_figures_that_are_measured() -> None:
    known = {case.key for case in channel.CASES} | set(c_ring.KEYS)
    assert {key for target in channel.TARGETS for key in (target.over, target.under) if key} <= known


def test_a_ratio_is_that_of_each_repetition_so_that_drift_cancels_out() -> None:
    drifting = figures(slow=[20.0, 40.0, 80.0], fast=[2.0, 4.0, 8.0])
    verdict = Target("ten times faster", "slow", "fast", 10).judge(drifting)
    assert (verdict.value, verdict.reached) == (10.0, True)


@pytest.mark.parametrize(
    ("bound", "side", "reached"), [(9, "at least", True), (11, "at least", False), (9, "at most", False)]
)
def test_a_target_is_reached_on_its_own_side_only(
    bound: float, side: Literal["at least", "at most"], reached: bool
) -> None:
    target = Target("text", "slow", "fast", bound, side)
    assert target.judge(figures(slow=[20.0], fast=[2.0])).reached is reached


def test_a_target_whose_peer_is_missing_is_neither_reached_nor_short() -> None:
    verdict = Target("text", "slow", "fast", 10).judge(figures(slow=[20.0], fast=[None]))
    assert (verdict.value, verdict.reached) == (None, None)


def test_a_repetition_that_failed_is_left_out_of_the_median() -> None:
    figure = Figure("us", (Sample(1.0), None, Sample(3.0), Sample(2.0)))
    assert (figure.median, figure.iqr) == (2.0, 1.0)


def test_the_last_line_is_one_json_object_with_null_for_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(figures(slow=[20.0, 22.0], fast=[None, None]), [Target("text", "slow", "fast", 10)], {"fast": "why"})
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["slow"], told["fast"]) == (21.0, None)
    assert told["targets"]["text"]["met"] is None
    assert told["missing"] == {"fast": "why"}


# ---- the harness


LATE = 0.05
"""Seconds, which are long beside those that a busy machine adds."""


@contextmanager
def late_pipe(_: Path) -> Generator[Connect]:
    """A pipe whose every message is late."""
    with peers.pipe().prepare(Path()) as connect:

        def slow(side: int) -> End:
            end = connect(side)

            def send(message: bytes) -> None:
                time.sleep(LATE)
                end.send(message)

            return attrs.evolve(end, send=send)

        yield slow


@needs_two_cpus
def test_a_time_one_way_is_half_a_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_FIRST", 8)
    sample = measure(Case("late", Contender(late_pipe), Measure.PING), 0.05, cpus())
    assert LATE <= sample.value / 1e6 < 2 * LATE
    assert sample.p99 is not None
    assert sample.p99 >= sample.value


@needs_two_cpus
def test_a_wake_up_does_not_count_the_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_FIRST", 3)
    monkeypatch.setattr(harness, "_PAUSE", 0.3)
    sample = measure(Case("late", Contender(late_pipe), Measure.WAKE), 0.05, cpus())
    assert LATE <= sample.value / 1e6 < LATE + 0.15


@needs_two_cpus
def test_a_stream_is_counted_by_who_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_FIRST", 4)
    sample = measure(Case("late", Contender(late_pipe), Measure.STREAM), 0.05, cpus())
    assert 0 < sample.value <= 1 / LATE


@needs_two_cpus
@pytest.mark.parametrize(
    ("contender", "kind"),
    [
        (peers.ring(), Measure.PING),
        (peers.ring(), Measure.STREAM),
        (peers.ring(blob=True), Measure.STREAM),
        (peers.channel("shm"), Measure.WAKE),
        (peers.channel("shm", batch=True), Measure.STREAM),
        (peers.event("shm"), Measure.PING),
        (peers.channel("ipc"), Measure.PING),
        (peers.pyzmq("ipc"), Measure.PING),
        (peers.pyzmq("tcp"), Measure.PING),
        (peers.unix(), Measure.STREAM),
        (peers.pipe(), Measure.PING),
    ],
)
def test_a_wire_carries_what_it_is_given(contender: Contender, kind: Measure) -> None:
    pytest.importorskip("mchannel._ring")
    assert measure(Case("any", contender, kind), 0.01, cpus()).value > 0


@needs_two_cpus
def test_iceoryx2_leaves_nothing_in_shared_memory() -> None:
    pytest.importorskip("iceoryx2")
    assert measure(Case("any", peers.iceoryx2(), Measure.PING), 0.01, cpus()).value > 0
    assert not list(Path("/dev/shm").glob("mchannel-bench-*"))


def test_the_event_takes_the_bytes_that_it_is_measured_for() -> None:
    codec = mchannel.EventCodec()
    assert len(codec.encode(peers.event_of(64))) == 64


def test_a_wire_that_is_not_installed_is_unavailable() -> None:
    @contextmanager
    def missing(_: Path) -> Generator[Connect]:
        raise ImportError("no module of that name")
        yield peers.unix

    with pytest.raises(Unavailable, match="no module of that name"):
        measure(Case("any", Contender(missing), Measure.PING), 0.01, (0, 0))


def failing(_: Connection, __: Connection) -> None:
    raise OSError("no such wire")


def waiting(beside: Connection, _: Connection) -> None:
    beside.recv()


def test_a_failure_in_either_process_is_the_reason_and_both_end() -> None:
    for follow, lead in ((failing, waiting), (waiting, failing)):
        with pytest.raises(Unavailable, match="OSError: no such wire"):
            together(follow, lead, (None, None))


def test_two_that_say_nothing_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_DEADLINE", 0.2)
    with pytest.raises(Unavailable, match="no result within"):
        together(waiting, waiting, (None, None))


# ---- the programs


def test_without_a_compiler_the_c_ring_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/no/such/compiler")
    with pytest.raises(Unavailable, match="cannot compile"):
        c_ring.build()


@needs_two_cpus
def test_one_case_alone_is_measured_and_the_rest_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--json", "--repetitions", "1", "--seconds", "0.01", "--only", "pipe_64B"]
    assert channel.main(options) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["pipe_64B_p50_us"] > 0
    assert told["shm_64B_p50_us"] is None
    assert told.keys() >= KEYS


@needs_two_cpus
def test_every_violation_becomes_one_action(tmp_path: Path) -> None:
    pytest.importorskip("mchannel._ring")
    address = f"shm://{tmp_path}/web1"
    decide, violate = functools.partial(sla.decide, address, 40), functools.partial(sla.violate, address, 40)
    whole, in_agent = together(decide, violate, (None, None))
    assert 0 < in_agent.value < whole.value <= (whole.p99 or 0)
