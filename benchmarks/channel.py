"""``python -m benchmarks.channel --json [--quick]``: what a message costs, side by side with other wires.

Two processes on two CPUs. All cases are measured in a new random order in each repetition, so that a
busy neighbour hits all alike, and targets that are ratios are judged repetition by repetition. Prints
tables, and one JSON object as the last line of stdout: medians by key, null for what is not here.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence

from benchmarks import c_ring, peers
from benchmarks.harness import Case, Measure, Sample, Unavailable, measure, two_cpus
from benchmarks.report import Figure, Target, print_report

__all__ = ["CASES", "TARGETS", "main"]

_MIB = 1 << 20

CASES = (
    Case("ring_64B_p50_us", peers.ring(), Measure.PING),
    Case("shm_64B_p50_us", peers.channel("shm"), Measure.PING),
    Case("event_64B_p50_us", peers.event("shm"), Measure.PING),
    Case("ipc_64B_p50_us", peers.channel("ipc"), Measure.PING),
    Case("pyzmq_ipc_64B_p50_us", peers.pyzmq("ipc"), Measure.PING),
    Case("pyzmq_tcp_64B_p50_us", peers.pyzmq("tcp"), Measure.PING),
    Case("iceoryx2_64B_p50_us", peers.iceoryx2(), Measure.PING),
    Case("unix_64B_p50_us", peers.unix(), Measure.PING),
    Case("pipe_64B_p50_us", peers.pipe(), Measure.PING),
    Case("ring_wake_64B_p50_us", peers.ring(spin=0.0), Measure.WAKE),
    Case("shm_wake_64B_p50_us", peers.channel("shm"), Measure.WAKE),
    Case("ring_batch_msgs_s", peers.ring(), Measure.STREAM),
    Case("ring_blob_msgs_s", peers.ring(blob=True), Measure.STREAM),
    Case("shm_batch_msgs_s", peers.channel("shm", batch=True), Measure.STREAM),
    Case("shm_each_msgs_s", peers.channel("shm"), Measure.STREAM),
    Case("event_each_msgs_s", peers.event("shm"), Measure.STREAM),
    Case("ipc_batch_msgs_s", peers.channel("ipc", batch=True), Measure.STREAM),
    Case("ipc_each_msgs_s", peers.channel("ipc"), Measure.STREAM),
    Case("pyzmq_ipc_msgs_s", peers.pyzmq("ipc"), Measure.STREAM),
    Case("iceoryx2_msgs_s", peers.iceoryx2(), Measure.STREAM),
    Case("unix_msgs_s", peers.unix(), Measure.STREAM),
    Case("pipe_msgs_s", peers.pipe(), Measure.STREAM),
    Case("shm_1MiB_us", peers.channel("shm"), Measure.PING, _MIB),
    Case("pyzmq_ipc_1MiB_us", peers.pyzmq("ipc"), Measure.PING, _MIB),
    Case("iceoryx2_1MiB_us", peers.iceoryx2(), Measure.PING, _MIB),
)

TARGETS = (
    Target("ring: times faster than raw pyzmq ipc", "pyzmq_ipc_64B_p50_us", "ring_64B_p50_us", 40),
    Target("ring: times faster than iceoryx2", "iceoryx2_64B_p50_us", "ring_64B_p50_us", 8),
    Target("ring: times its C", "ring_64B_p50_us", "c_ring_64B_p50_us", 1.3, "at most"),
    Target("ring: wake-up, times its C", "ring_wake_64B_p50_us", "c_ring_wake_64B_p50_us", 1.1, "at most"),
    Target("channel: wake-up, times the C ring", "shm_wake_64B_p50_us", "c_ring_wake_64B_p50_us", 1.1, "at most"),
    Target("ring: msgs/s in lists", "ring_batch_msgs_s", None, 5e6),
    Target("ring: msgs/s in blobs", "ring_blob_msgs_s", None, 40e6),
    Target("channel: times faster than raw pyzmq ipc", "pyzmq_ipc_64B_p50_us", "shm_64B_p50_us", 20),
    Target("channel: msgs/s one by one", "shm_each_msgs_s", None, 1e6),
    Target("channel: msgs/s in lists", "shm_batch_msgs_s", None, 3e6),
    Target("ipc channel: of raw pyzmq ipc", "pyzmq_ipc_64B_p50_us", "ipc_64B_p50_us", 0.8),
    Target("channel: 1 MiB, times iceoryx2 copied", "shm_1MiB_us", "iceoryx2_1MiB_us", 1.0, "at most"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.channel", description="What a message costs, side by side with other wires."
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object (always so; for the record)")
    parser.add_argument("--quick", action="store_true", help="a third of a minute instead of one")
    parser.add_argument("--repetitions", type=int, metavar="N", help="default 9, or 3 with --quick")
    parser.add_argument("--seconds", type=float, metavar="S", help="for one figure in one repetition")
    parser.add_argument("--realtime", action="store_true", help="keep neighbours off the two CPUs meanwhile (root)")
    parser.add_argument("--only", action="append", metavar="TEXT", help="only keys that contain TEXT; the rest is null")
    options = parser.parse_args(arguments)
    repetitions: int = options.repetitions or (3 if options.quick else 9)
    seconds: float = options.seconds or (0.05 if options.quick else 0.15)
    wanted: list[str] = options.only or [""]
    if repetitions < 1 or seconds <= 0:
        parser.error("--repetitions and --seconds must be above zero")
    cpus = two_cpus(parser, realtime=options.realtime)

    figures, missing = _measure_all(repetitions, seconds, cpus, wanted)
    print_report(figures, TARGETS, missing)
    return 0


def _measure_all(
    repetitions: int, seconds: float, cpus: tuple[int, int], wanted: Sequence[str]
) -> tuple[dict[str, Figure], dict[str, str]]:
    units = dict.fromkeys(c_ring.KEYS, Measure.PING.value) | {case.key: case.measure.value for case in CASES}
    samples: dict[str, list[Sample | None]] = {key: [] for key in units}
    missing: dict[str, str] = {}
    given_up: set[Case | None] = set()
    dice = random.Random()
    for repetition in range(repetitions):
        print(f"repetition {repetition + 1} of {repetitions}", file=sys.stderr, flush=True)
        runs: list[Case | None] = [case for case in CASES if any(part in case.key for part in wanted)]
        if any(part in key for part in wanted for key in c_ring.KEYS):
            runs.append(None)  # the C ring
        dice.shuffle(runs)
        for case in (each for each in runs if each not in given_up):
            try:
                if case is None:
                    measured = c_ring.run(c_ring.build(), int(seconds * 500_000), int(seconds * 5_000))
                else:
                    measured = {case.key: measure(case, seconds, cpus)}
                for key, sample in measured.items():
                    samples[key].append(sample)
            except Unavailable as error:
                missing["the C ring" if case is None else case.key] = str(error)
                given_up.add(case)
        for each in samples.values():
            each.extend([None] * (repetition + 1 - len(each)))
    return {key: Figure(unit, tuple(samples[key])) for key, unit in units.items()}, missing


if __name__ == "__main__":
    sys.exit(main())
