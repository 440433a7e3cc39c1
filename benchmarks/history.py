"""``python -m benchmarks.history --json [--quick]``: what a stored sample takes, in bytes and in time.

Hosts report once a second what such tools report: loads and percentages of few decimals, bytes in pages,
counters that grow in bursts, temperatures in whole degrees, and what seldom changes. Times waver by
milliseconds. Beside them stands the worst that can be: doubles of which every bit is chance.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from benchmarks.harness import Sample
from benchmarks.report import Figure, Target, print_report
from mbroker.alerts.history import History
from mbroker.alerts.selector import Selector, Series

__all__ = ["TARGETS", "host", "main", "noise", "run"]

TARGETS = (Target("a stored sample of a host, in bytes", "host_bytes_per_sample", None, 1.0, "at most"),)
_BEGIN = 1_700_000_000_000

Step: TypeAlias = Callable[[random.Random, float], float]
Metrics: TypeAlias = "dict[str, tuple[float, Step]]"


def _gauge(mean: float, spread: float, digits: int) -> tuple[float, Step]:
    """Return where a value begins that is drawn back to *mean*, and its next one."""
    return mean, lambda dice, at: round(max(0.0, at + (mean - at) / 8 + dice.gauss(0, spread)), digits)


def _counter(rate: float) -> tuple[float, Step]:
    return 1e9, lambda dice, at: at + (int(dice.expovariate(1 / rate)) if dice.random() < 0.8 else 0)


def host() -> Metrics:
    """Return the metrics of a host: of each, where it begins and what it becomes."""
    cpus = {f"cpu{number}_percent": _gauge(20, 3, 1) for number in range(4)}
    seldom = {name: _gauge(value, 0, 1) for name, value in (("swap_percent", 0), ("disk_percent", 71.3), ("users", 2))}
    return {
        **cpus,
        **seldom,
        "load1": _gauge(1.5, 0.02, 2),
        "load15": _gauge(1.4, 0.002, 2),
        "memory_percent": _gauge(55, 0.05, 1),
        "memory_used": (4e9, lambda dice, at: at + 4096 * dice.choice((0, 0, 1, -1, 12, -12))),
        "processes": _gauge(240, 0.5, 0),
        "temperature": _gauge(55, 0.4, 0),
        "fan": _gauge(2400, 9, 0),
        "net_received": _counter(20_000),
        "net_sent": _counter(3000),
        "disk_read": (1e9, lambda dice, at: at + (4096 * dice.randrange(64) if dice.random() < 0.05 else 0)),
        "switches": _counter(4000),
    }


def noise() -> Metrics:
    """Return metrics that nothing can make smaller."""
    return {"noise": (0.5, lambda dice, _: dice.random())}


def _batches(metrics: Metrics, hosts: int, seconds: int) -> Iterator[tuple[array[int], array[float], array[int]]]:
    dice = random.Random(4)
    steps = [step for _, step in metrics.values()]
    values = [[begin for begin, _ in metrics.values()] for _ in range(hosts)]
    for second in range(seconds):
        for number, known in enumerate(values):
            known[:] = (step(dice, at) for step, at in zip(steps, known, strict=True))
            first = number * len(steps)
            at = _BEGIN + 1000 * second + number + dice.choice((0, 0, 0, 1, 2))
            yield array("I", range(first, first + len(steps))), array("d", known), array("q", [at] * len(steps))


def run(metrics: Metrics, hosts: int, seconds: int, folder: Path) -> tuple[float, float, float, float]:
    """Return bytes of a sample, and nanoseconds of a CPU to append, seal and read it."""
    batches = list(_batches(metrics, hosts, seconds))
    samples = sum(len(numbers) for numbers, _, _ in batches)
    with History(folder) as history:
        for number in range(hosts):
            for index, metric in enumerate(metrics):
                history.name(number * len(metrics) + index, Series(metric, frozenset({("host", f"h{number}")})))
        start = time.process_time_ns()
        for batch in batches:
            history.append(*batch)
        appended = time.process_time_ns()
        history.seal(_BEGIN + 1000 * seconds)
        sealed = time.process_time_ns()
        found = sum(1 for metric in metrics for _ in history.read(Selector(metric), 0, 1 << 50))
        read = time.process_time_ns()
        if found != samples or history.problem:
            raise RuntimeError(f"{samples} samples were stored, {found} were found; {history.problem}")
        spent = (appended - start, sealed - appended, read - sealed)
        return history.size / samples, spent[0] / samples, spent[1] / samples, spent[2] / samples


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history", description="What a stored sample takes.")
    parser.add_argument("--json", action="store_true", help="end with one JSON object (always so; for the record)")
    parser.add_argument("--quick", action="store_true", help="some seconds instead of half a minute")
    options = parser.parse_args(arguments)
    repetitions, seconds = (1, 300) if options.quick else (3, 1800)
    figures: dict[str, Figure] = {}
    for name, metrics, hosts in (("host", host(), 10), ("noise", noise(), 20)):
        with TemporaryDirectory(prefix="mchannel-bench-") as folder:
            rounds = [run(metrics, hosts, seconds, Path(folder) / str(number)) for number in range(repetitions)]
        for key, unit, values in zip(
            ("bytes_per_sample", "append_ns", "seal_ns", "read_ns"),
            ("B", "ns", "ns", "ns"),
            zip(*rounds, strict=True),
            strict=True,
        ):
            figures[f"{name}_{key}"] = Figure(unit, tuple(Sample(value) for value in values))
    print_report(figures, TARGETS, {})
    return 0


if __name__ == "__main__":
    sys.exit(main())
