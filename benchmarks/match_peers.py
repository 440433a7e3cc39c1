"""What others make of the same work: arrays in numpy, Prometheus, and sampling less often as Volley does."""

from __future__ import annotations

import json
import math
import random
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from array import array
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import numpy as np

from benchmarks.harness import Unavailable
from mbroker.alerts.engine import Engine
from mbroker.alerts.language import Subscription
from mbroker.alerts.selector import Series

__all__ = ["Sampled", "brute_force", "prometheus", "volley"]

WINDOW = 15
_TYPES = {  # middle, and how far from it about 2 % lie
    "mean": (50, 2.6),
    "median": (50, 3.2),
    "stddev": (10, 1.9),
    "variance": (100, 40),
    "max": (50, 10),
    "min": (50, -10),
}


def brute_force(series: int, each: int, ticks: int) -> float:
    """Return samples a second when every threshold is compared at every tick, as numpy does best."""
    dice = np.random.default_rng(1)
    share = each // len(_TYPES)
    bounds = {
        name: (middle + wide * (1.7 + 1.2 * dice.random((series, share)))) for name, (middle, wide) in _TYPES.items()
    }
    ring = dice.normal(50, 10, (WINDOW, series))
    held = {name: np.zeros((series, share), bool) for name in _TYPES}
    edges, start = 0, time.process_time()
    for tick in range(ticks):
        newest = ring[tick % WINDOW] = dice.normal(50, 10, series)
        variance = ring.var(axis=0, ddof=1)
        values = {
            "mean": ring.mean(axis=0),
            "median": np.partition(ring, WINDOW // 2, axis=0)[WINDOW // 2],
            "stddev": np.sqrt(variance),
            "variance": variance,
            "max": newest,
            "min": newest,
        }
        for name, value in values.items():
            holds = value[:, None] < bounds[name] if name == "min" else value[:, None] > bounds[name]
            edges += len(np.argwhere(holds != held[name]))
            held[name] = holds
    spent = time.process_time() - start
    assert edges > 0
    return series * ticks / spent


# ---- Prometheus

_QUERIES = (  # thresholds as series, so that one expression evaluates all of a type
    "threshold{{type='mean'}} < on(host, metric) group_left avg_over_time(value[{window}s])",
    "threshold{{type='median'}} < on(host, metric) group_left quantile_over_time(0.5, value[{window}s])",
    "threshold{{type='stddev'}} < on(host, metric) group_left stddev_over_time(value[{window}s])",
    "threshold{{type='variance'}} < on(host, metric) group_left stdvar_over_time(value[{window}s])",
    "threshold{{type='max'}} < on(host, metric) group_left value",
    "threshold{{type='min'}} > on(host, metric) group_left value",
)


def prometheus(series: int, each: int, rounds: int = 3) -> float:
    """Return how many seconds Prometheus takes to evaluate all thresholds once; raise Unavailable without it."""
    if not shutil.which("prometheus") or not shutil.which("promtool"):
        raise Unavailable("no prometheus or promtool (Debian: prometheus)")
    end = int(time.time()) // 7200 * 7200 - 3600  # inside one block
    with TemporaryDirectory(prefix="mchannel-bench-") as name:
        folder = Path(name)
        with (folder / "metrics").open("w") as file:
            file.writelines(_exposition(series, each, end))
        command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(folder / "metrics"), f"{name}/data"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"promtool failed: {getattr(error, 'stderr', None) or error}") from None
        with _serving(folder) as address:
            times: list[float] = []
            for _ in range(rounds):
                start = time.perf_counter()
                for query in _QUERIES:
                    _count(address, query.format(window=WINDOW), end)
                times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def _exposition(series: int, each: int, end: int) -> Iterator[str]:
    dice = random.Random(1)
    share = each // len(_TYPES)
    yield "# TYPE value gauge\n"
    for number in range(series):
        labels = f'host="h{number // 7}",metric="m{number % 7}"'
        for second in range(end - WINDOW + 1, end + 1):
            yield f"value{{{labels}}} {dice.gauss(50, 10):.6f} {second}\n"
    yield "# TYPE threshold gauge\n"
    for number in range(series):
        labels = f'host="h{number // 7}",metric="m{number % 7}"'
        for kind, (middle, wide) in _TYPES.items():
            for index in range(share):
                bound = middle + wide * (1.7 + 1.2 * dice.random())
                yield f'threshold{{{labels},type="{kind}",id="{index}"}} {bound:.6f} {end}\n'
    yield "# EOF\n"


@contextmanager
def _serving(folder: Path) -> Generator[str, None, None]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    (folder / "config.yml").write_text("scrape_configs: []\n")
    options = [f"--config.file={folder}/config.yml", f"--storage.tsdb.path={folder}/data"]
    options += ["--storage.tsdb.retention.time=10y", f"--web.listen-address={address}", "--log.level=error"]
    with subprocess.Popen(["prometheus", *options], stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"http://{address}/-/ready", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.1)
            else:
                raise Unavailable("prometheus did not become ready")
            yield address
        finally:
            server.terminate()


def _count(address: str, query: str, at: int) -> int:
    parameters = urllib.parse.urlencode({"query": f"count({query})", "time": at})
    try:
        with urllib.request.urlopen(f"http://{address}/api/v1/query?{parameters}", timeout=300) as answer:
            found = json.load(answer)["data"]["result"]
    except (OSError, ValueError, KeyError) as error:
        raise Unavailable(f"prometheus did not answer: {error}") from None
    if not found:
        raise Unavailable("prometheus found no threshold that holds")
    return int(found[0]["value"][1])


# ---- Volley

_ALLOWED = 0.05  # misses that Volley may make
_PATIENCE = 20  # calm samples before the interval grows
_LONGEST = 10


@attrs.frozen
class Sampled:
    """What became of a trace with short spikes."""

    missed: float
    """Share of the spikes that no sample showed."""
    taken: float
    """Share of the ticks that were sampled."""
    ns: float
    """CPU time of a tick."""


def volley(ticks: int, seed: int = 1) -> tuple[Sampled, Sampled]:
    """Return what Volley's dynamic sampling (Meng and Liu, ICDCS 2013) makes of a trace, and what the engine does.

    The trace wanders slowly far below its threshold and has spikes of one to three ticks that nothing announces: the
    likelihood of a violation, which Volley bounds by Chebyshev's inequality from the changes it saw, is small then.
    """
    dice = random.Random(seed)
    values, spikes = _trace(dice, ticks)
    start = time.process_time()
    sampled = _sampled(values)
    spent = time.process_time() - start
    seen = set(sampled)
    missed = sum(not any(tick in seen for tick in spike) for spike in spikes)
    theirs = Sampled(missed / len(spikes), len(sampled) / ticks, spent * 1e9 / ticks)

    engine = Engine()
    engine.add(Subscription.parse(f"load > {_THRESHOLD}").rule)
    number = engine.number(Series("load", frozenset({("host", "h1")})))
    columns = array("I", [number]) * ticks, array("d", values), array("q", range(1000, 1000 * ticks + 1000, 1000))
    start = time.process_time()
    fired = engine.push(0, *columns)
    spent = time.process_time() - start
    begun = sum(edge.firing for edge in fired)
    return theirs, Sampled(1 - begun / len(spikes), 1.0, spent * 1e9 / ticks)


_THRESHOLD = 90.0


def _trace(dice: random.Random, ticks: int) -> tuple[list[float], list[range]]:
    values: list[float] = []
    spikes: list[range] = []
    level = 30.0
    while len(values) < ticks:
        level += 0.05 * (30 - level) + dice.gauss(0, 1)
        values.append(level)
        if dice.random() < 0.001:
            spike = range(len(values), len(values) + dice.randint(1, 3))
            if spike.stop >= ticks:
                continue
            spikes.append(spike)
            values += [dice.uniform(95, 110) for _ in spike]
            values.append(level)  # so that the next one is another
    return values[:ticks], spikes


def _sampled(values: list[float]) -> list[int]:
    """Return the ticks that Volley looks at: the interval grows while a violation is unlikely, and falls to 1 else."""
    taken: list[int] = []
    mean = variance = 0.0
    count = calm = 0
    interval, at, last = 1, 0, None
    while at < len(values):
        taken.append(at)
        value = values[at]
        if last is not None:
            change = (value - last) / interval  # a tick
            count = min(count + 1, 1000)
            old = mean
            mean += (change - mean) / count
            variance += ((change - old) * (change - mean) - variance) / count
        likely = 1.0 - math.prod(1.0 - _bound(value, mean, variance, step) for step in range(1, interval + 2))
        calm = calm + 1 if likely < 0.8 * _ALLOWED else 0
        if likely > _ALLOWED:
            interval = 1
        elif calm >= _PATIENCE and interval < _LONGEST:
            interval, calm = interval + 1, 0
        last, at = value, at + interval
    return taken


def _bound(value: float, mean: float, variance: float, steps: int) -> float:
    """Return Chebyshev's bound for a violation so many ticks from now."""
    spare = _THRESHOLD - value - steps * mean
    if spare <= 0:
        return 1.0
    return 1 / (1 + (spare / (steps * math.sqrt(variance))) ** 2) if variance else 0.0
