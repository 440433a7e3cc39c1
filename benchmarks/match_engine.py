"""``python -m benchmarks.match_engine HOSTS RACKS SAMPLES``: the whole engine in a process of its own, as JSON.

Seven metrics of each host; for each metric and rack 60 subscriptions of MAVIS' six types, each with its owner. So
there are 420 alerts to watch for each host, and the memory of all of it is that of this process.
"""

from __future__ import annotations

import gc
import itertools
import json
import random
import resource
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator, Sequence

from benchmarks.harness import Unavailable
from mbroker.alerts.alert import Enrolment
from mbroker.alerts.engine import Engine
from mbroker.alerts.language import Subscription
from mbroker.alerts.selector import Series
from mchannel.samples import MOST_SAMPLES

__all__ = ["main", "measured", "run", "texts"]

_METRICS = 7
_EACH = 60
_BATCH = MOST_SAMPLES
_TYPES = (  # expression, operator, middle, and how far from it about 2 % lie
    ("mean({}[15])", ">", 50, 2.6),
    ("median({}[15])", ">", 50, 3.2),
    ("stddev({}[15])", ">", 10, 1.9),
    ("variance({}[15])", ">", 100, 40),
    ("{}", ">", 50, 10),
    ("{}", "<", 50, -10),
)


def measured(hosts: int, racks: int, samples: int) -> dict[str, float]:
    """Run it in a process of its own and return what it found; raise Unavailable when it fails."""
    return run("benchmarks.match_engine", hosts, racks, samples)


def texts(dice: random.Random, label: str, racks: int) -> Iterator[str]:
    """Yield the subscriptions: of each metric and each value of *label*, from ``r0`` on."""
    for metric, rack, index in itertools.product(range(_METRICS), range(racks), range(_EACH)):
        expression, sign, middle, wide = _TYPES[index % len(_TYPES)]
        threshold = middle + wide * (1.7 + 1.2 * dice.random())
        selector = f"m{metric}{{{label}='r{rack}'}}"
        yield f"{expression.format(selector)} {sign} {threshold:.3f}"


def run(module: str, *numbers: int) -> dict[str, float]:
    """Run *module* in a process of its own and return the JSON that it prints; raise Unavailable when it fails."""
    command = [sys.executable, "-m", module, *map(str, numbers)]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=1800)
        found: dict[str, float] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise Unavailable(f"{module} failed: {error}") from None
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print one JSON object, and return the exit code."""
    hosts, racks, wanted = map(int, sys.argv[1:] if arguments is None else arguments)
    dice = random.Random(1)
    engine = Engine()
    for number in range(hosts):
        labels = {("host", f"h{number}"), ("rack", f"r{number % racks}"), ("site", f"s{number % 8}")}
        for metric in range(_METRICS):
            engine.number(Series(f"m{metric}", frozenset(labels)))
    start = time.process_time()
    owned: dict[int, Enrolment] = {}
    slowest = 0.0
    for text in texts(dice, "rack", racks):
        subscription = Subscription.parse(text)
        before = time.process_time()
        number = engine.add(subscription.rule)
        slowest = max(slowest, time.process_time() - before)
        owned[number] = Enrolment(number, f"owner{number}", subscription, ("phone",), 0)
    adding = time.process_time() - start
    series = hosts * _METRICS
    clock = done = edges = 0
    spent = 0.0
    gc.freeze()  # as the daemon does
    while done < wanted + 17 * series:
        columns = _drawn(dice, series)
        clock += 1000
        start = time.process_time()
        fired = engine.push(clock, *columns, array("q", [clock + offset for offset in range(_BATCH)]))
        if done >= 17 * series:
            spent += time.process_time() - start
            edges += len(fired)
        done += _BATCH
        clock += _BATCH
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.process_time()
    image = engine.save()
    saving = time.process_time() - start
    rules = engine.counters.rules
    del engine
    start = time.process_time()
    Engine.load(image)
    loading = time.process_time() - start
    counted = -(-wanted // _BATCH) * _BATCH
    found = {
        "rules": rules,
        "subscriptions": len(owned),
        "rss_mb": rss,
        "samples_s": counted / spent,
        "edges": edges / counted,
        "add_us": adding / rules * 1e6,
        "slowest_add_ms": slowest * 1e3,
        "save_s": saving,
        "load_s": loading,
        "image_mb": len(image) / 1e6,
    }
    print(json.dumps(found))
    return 0


def _drawn(dice: random.Random, series: int) -> tuple[array[int], array[float]]:
    numbers = array("I", [1 + int(dice.random() * series) for _ in range(_BATCH)])
    return numbers, array("d", [dice.gauss(50, 10) for _ in range(_BATCH)])


if __name__ == "__main__":
    sys.exit(main())
