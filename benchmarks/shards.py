"""``python -m benchmarks.shards --json [--quick]``: what shards take more than one engine, and how long a loss lasts.

MAVIS' workload (section VII): hosts with seven metrics and 60 local rules on each, besides one rule on the hosts of
each rack for each metric. ``failover`` is the time from the loss of a host until its shards have done again, on
others in this process, all that they did since their snapshots, and have matched the batch that found it out. All of
that is work of one thread, and is measured in processor time, since neighbours take what is left of the clock.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from array import array
from collections.abc import Iterator, Sequence

from benchmarks.harness import Sample
from benchmarks.report import Figure, Target, print_report
from mbroker.alerts.engine import Engine
from mbroker.alerts.engine_host import InProcess
from mbroker.alerts.language import Subscription
from mbroker.alerts.selector import Series
from mbroker.alerts.shards import Shards

__all__ = ["TARGETS", "main"]

TARGETS = (Target("the longest loss of a host in process, in ms", "failover_ms", None, 500.0, "at most"),)
_METRICS, _EACH, _RACKS, _START = 7, 60, 20, 1_700_000_000_000
_FORMS = ("m{metric} > {bound}", "mean(m{metric}[15]) > {bound}", "stddev(m{metric}[15]) > {bound}")

Batch = tuple[int, "array[float]", "array[int]"]


def prepare(matcher: Engine | Shards, hosts: int) -> array[int]:
    """Have rules and series; return the numbers of the series."""
    for metric in range(_METRICS):
        for number in range(_EACH):
            text = _FORMS[number % 3].format(metric=metric, bound=98 + number / 10)
            matcher.add(Subscription.parse(text).rule)
        matcher.add(Subscription.parse(f"mean(m{metric}) by (rack) > 53").rule)
    series = [
        Series(f"m{metric}", frozenset({("host", f"h{host}"), ("rack", f"r{host % _RACKS}")}))
        for host in range(hosts)
        for metric in range(_METRICS)
    ]
    matcher.register(*series)
    matcher.tick(_START - 1000)  # shards hear of them
    return array("I", [matcher.number(each) for each in series])


def batches(count: int, series: int) -> Iterator[Batch]:
    """Yield a sample of each series a second, of which a few are above the rules' bounds."""
    dice = random.Random(4)
    for second in range(count):
        at = _START + 1000 * second
        yield at, array("d", [dice.random() * 100 for _ in range(series)]), array("q", [at] * series)


def rate(matcher: Engine | Shards, hosts: int, seconds: int) -> float:
    """Return how many samples it matches in a second of the processor."""
    numbers = prepare(matcher, hosts)
    prepared = list(batches(seconds, len(numbers)))
    begin = time.process_time()
    for now, values, times in prepared:
        matcher.push(now, numbers, values, times)
    return seconds * len(numbers) / (time.process_time() - begin)


def failovers(hosts: int, seconds: int) -> list[float]:
    """Return how many milliseconds matching stood still, a loss of one of two hosts at a time."""
    made: list[InProcess] = []

    def make() -> InProcess:
        made.append(InProcess())
        return made[-1]

    shards = Shards(_START, hosts=2, make=make)
    numbers = prepare(shards, hosts)
    usual = 0.0
    lost: list[float] = []
    for turn, (now, values, times) in enumerate(batches(seconds, len(numbers))):
        dies = turn % 10 == 9
        if dies:
            made[-1].close()
        begin = time.process_time()
        shards.push(now, numbers, values, times)
        taken = 1000 * (time.process_time() - begin)
        if dies:
            lost.append(max(0.0, taken - usual))
            shards.grow()
        else:
            usual = taken
    return lost


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards", description="What shards take.")
    parser.add_argument("--json", action="store_true", help="end with one JSON object (always so; for the record)")
    parser.add_argument("--quick", action="store_true", help="50 hosts and two losses instead of 550 and six")
    options = parser.parse_args(arguments)
    hosts, seconds = (50, 20) if options.quick else (550, 60)
    lost = failovers(hosts, seconds)
    figures = {
        "engine_samples_s": Figure("/s", (Sample(rate(Engine(_START), hosts, 20)),)),
        "shards_samples_s": Figure("/s", (Sample(rate(Shards(_START, hosts=2), hosts, 20)),)),
        "failover_ms": Figure("ms", (Sample(max(lost)),)),
    }
    print_report(figures, TARGETS, {})
    return 0


if __name__ == "__main__":
    sys.exit(main())
