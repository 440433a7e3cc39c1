"""When alerts would have begun and ended on recorded traces.

    python examples/replay_traces.py                              # on the traces beside this file
    python examples/replay_traces.py cpu.csv 'value > 90 for 5m'  # on your own
    python examples/replay_traces.py --make                       # write the traces beside this file anew

A trace is a CSV file with a header and lines of ``timestamp,value``, the timestamp as ``2014-02-14 14:30:00`` in UTC:
those of the Numenta Anomaly Benchmark are such files. Its metric is called ``value``. The traces beside this file are
made up, by the seed below: spikes, a drift, and gaps.
"""

import csv
import itertools
import math
import random
import statistics
import sys
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path

from mbroker.alerts import Subscription
from mbroker.alerts.explain import Explanation, explain
from mbroker.alerts.history import Accepts
from mbroker.alerts.sample import Sample
from mbroker.alerts.selector import Endpoint, Series

SEED = 1
START, STEP, LENGTH = 1_400_000_000, 300, 600  # seconds of the Unix clock, seconds between samples, samples
FOLDER = Path(__file__).with_name("traces")
RULES = {
    "spikes": "value > 80",
    "drift": "mean(value[2h]) > 60 clear < 55",
    "gaps": "absent(value[20m])",
}


class Trace:
    """What :func:`explain` needs of a past: here one series out of a file."""

    def __init__(self, path: Path) -> None:
        series = Series("value", Endpoint({("trace", path.stem)}))
        try:
            with path.open(newline="") as file:
                rows = [(milliseconds(row["timestamp"]), float(row["value"])) for row in csv.DictReader(file)]
            self.samples = [Sample(series, at, value) for at, value in sorted(rows)]
            steps = (after.at - before.at for before, after in itertools.pairwise(self.samples))
            self.interval = round(statistics.median(steps))
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{path} is no CSV file of timestamp,value with a header and two lines or more") from None

    def read(self, wanted: Accepts, begin: int, end: int) -> Iterator[Sample]:
        """Yield samples in time order."""
        return (each for each in self.samples if begin <= each.at < end and wanted.accepts(each.series))

    def intervals(self, wanted: Accepts) -> dict[Series, int]:
        """Return how often series are read."""
        return {each.series: self.interval for each in self.samples[:1] if wanted.accepts(each.series)}


def milliseconds(timestamp: str) -> int:
    """Return a time of a trace as the matcher has it."""
    return round(datetime.fromisoformat(timestamp).replace(tzinfo=UTC).timestamp() * 1000)


def moment(at: int | None) -> str:
    """Return it again as the trace has it."""
    return "goes on" if at is None else f"{datetime.fromtimestamp(at / 1000, UTC):%Y-%m-%d %H:%M:%S}"


def replayed(path: Path, text: str) -> Generator[float, None, Explanation]:
    """Try the subscription *text* on all of a trace."""
    trace = Trace(path)
    first, last = trace.samples[0].at, trace.samples[-1].at
    return (yield from explain(Subscription.parse(text), trace, first, last + 1, interval=trace.interval))


def show(path: Path, text: str) -> None:
    """Print when alerts of the subscription *text* begin and end in a trace, and the value that began each."""
    steps = replayed(path, text)
    try:
        while True:
            next(steps)  # how much is done
    except StopIteration as end:
        found: Explanation = end.value
    print(f"{path.stem}: {text}: samples {found.samples}, alerts {len(found.alerts) + found.more}")
    for alert in found.alerts:
        value = "" if math.isnan(alert.value) else f"{alert.value:g}"
        print(f"  {moment(alert.since)}  {moment(alert.until):19}  {value}".rstrip())


def make() -> None:
    """Write the traces."""
    dice = random.Random(SEED)
    noise = [30 + dice.gauss(0, 5) for _ in range(LENGTH)]
    spiky = [value + 60 * (dice.random() < 0.01) for value in noise]
    values = {"spikes": spiky, "drift": [v + max(0, n - 300) * 0.15 for n, v in enumerate(noise)], "gaps": noise}
    gaps = {n + more for n in dice.sample(range(LENGTH - 20), 3) for more in range(dice.randint(6, 18))}
    FOLDER.mkdir(exist_ok=True)
    for name, column in values.items():
        with (FOLDER / f"{name}.csv").open("w", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(["timestamp", "value"])
            for n, value in enumerate(column):
                if name != "gaps" or n not in gaps:
                    lines.writerow(
                        [f"{datetime.fromtimestamp(START + n * STEP, UTC):%Y-%m-%d %H:%M:%S}", f"{value:.3f}"]
                    )


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    match arguments:
        case []:
            for name, text in RULES.items():
                show(FOLDER / f"{name}.csv", text)
        case ["--make"]:
            make()
        case [path, text]:
            show(Path(path), text)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, ValueError) as error:
        sys.exit(f"replay_traces: {error}")
