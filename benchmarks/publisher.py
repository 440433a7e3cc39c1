"""``python -m benchmarks.publisher --json [--quick]``: what the publisher of a host takes of one CPU.

``magent host`` runs as it does on a host, once a second, and tells its CPU time itself: of the whole process, which
sleeps in between. Beside it stands, in CPU time of this process, what its parts cost when they are warm: a look at the
machine, a column of samples on the wire, a sample that is compared with thresholds, one of an exporter.
"""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from tempfile import TemporaryDirectory

import mchannel
from benchmarks.harness import Sample
from benchmarks.report import Figure, Target, print_report
from mchannel.agents.exposition import from_text
from mchannel.agents.host import HostMetrics
from mchannel.agents.offload import Sieve
from mchannel.agents.publisher import Publisher
from mchannel.samples import SERIES, Declared, Offload, Samples

__all__ = ["TARGETS", "main", "run", "share"]

TARGETS = (
    Target("CPU time of a look at the host once a second, in per cent", "host_cpu_percent", None, 1.0, "at most"),
)
_COLUMN = 10_000  # samples


def _spent(work: Callable[[], object], times: int) -> float:
    """Return the CPU time of one call, in seconds."""
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times


def share(seconds: int) -> float:
    """Return which share of one CPU ``magent host`` takes, by the median of so many *seconds*."""
    with TemporaryDirectory(prefix="mchannel-bench-") as folder:
        address = f"ipc://{folder}/host.sock"
        command = [sys.executable, "-c", "from mchannel.agents.main import main; main()", "host"]
        with (
            mchannel.listen(address) as listener,
            subprocess.Popen([*command, "--address", address], stderr=subprocess.DEVNULL) as agent,
        ):
            try:
                return median(itertools.islice(_shares(listener.accept(timeout=30)), 1, 1 + seconds))  # 0: it started
            finally:
                agent.terminate()


def _shares(channel: mchannel.Channel[mchannel.Event]) -> Iterator[float]:
    names: dict[int, str] = {}
    while True:
        event = channel.read(timeout=30)
        if event.topic == SERIES:
            declared = Declared.from_event(event)
            names.update((number, named.metric) for number, named in enumerate(declared.series, declared.first))
        else:
            samples = Samples.from_event(event)
            told = zip(samples.numbers, samples.values, strict=True)
            yield from (value for number, value in told if names[number] == "agent.cpu")


def run(seconds: int) -> dict[str, float]:
    """Measure once, for so many *seconds* and some."""
    codec, publisher, host = mchannel.EventCodec(), Publisher(), HostMetrics()

    def look() -> None:
        publisher.take(host.read(), time.time_ns() // 1_000_000)
        while event := publisher.first():
            codec.encode(event)
            publisher.pop()

    look()
    spent = _spent(look, 20 * seconds)
    sent = Samples(
        1, array("I", range(_COLUMN)), array("d", [0.5] * _COLUMN), array("q", [1_700_000_000_000] * _COLUMN)
    ).to_event()
    payload = codec.encode(sent)
    dice = random.Random(17)
    numbers, cuts = array("I", [n % 10 for n in range(1000)]), array("d", [dice.random() * 100 for _ in range(1000)])
    sieve = Sieve(Offload(1, 0, 1 << 40, numbers, cuts), 0)
    values = [50 + dice.gauss(0, 0.01) for _ in range(_COLUMN)]

    def sift() -> None:
        at = time.monotonic_ns()
        for n, value in enumerate(values):
            sieve.sift(n % 10, value, at + n)

    page = "".join(f'metric_{n}{{device="sda",mode="idle"}} {n}.5\n' for n in range(1000))
    return {
        "host_cpu_percent": 100 * share(seconds),
        "look_us": 1e6 * spent,
        "host_series": float(publisher.series),
        "encode_10k_us": 1e6 * _spent(lambda: codec.encode(sent), 50),
        "decode_10k_us": 1e6 * _spent(lambda: Samples.from_event(codec.decode(payload)), 50),
        "sift_ns": 1e9 * _spent(sift, 5) / _COLUMN,
        "exposition_us_per_sample": 1e6 * _spent(lambda: from_text(page), 5) / 1000,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.publisher", description="What the publisher of a host takes of one CPU."
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object (always so; for the record)")
    parser.add_argument("--quick", action="store_true", help="a quarter of a minute instead of a whole one")
    options = parser.parse_args(arguments)
    repetitions, seconds = (3, 3) if options.quick else (5, 10)
    rounds = [run(seconds) for _ in range(repetitions)]
    units = {"host_cpu_percent": "%", "host_series": "", "sift_ns": "ns"}
    figures = {key: Figure(units.get(key, "us"), tuple(Sample(round_[key]) for round_ in rounds)) for key in rounds[0]}
    print_report(figures, TARGETS, {})
    return 0


if __name__ == "__main__":
    sys.exit(main())
