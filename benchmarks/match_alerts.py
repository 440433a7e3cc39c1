"""From a publisher to a subscriber through mbrokerd: how long after a sample was sent its alert is told.

550 endpoints with seven metrics and 2,100 subscriptions, which are 231,000 alerts to watch, all calm; one more metric
rises above its threshold at one endpoint after the other, and the subscriber is a receiver that prints.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import mchannel
from benchmarks.harness import Sample, Unavailable
from mbroker.alerts.book import Book
from mbroker.alerts.language import Subscription
from mchannel.errors import MChannelError
from mchannel.samples import Named, Samples, declarations

__all__ = ["told"]

_ENDPOINTS, _METRICS, _RACKS, _EACH = 550, 7, 5, 60
_LONGEST = 120.0  # seconds for all alerts; on a machine too busy for that those that were told by then are counted
_CONFIG = """
[broker]
name = "bench"
state = "{folder}/state"
control = "shm://{folder}/control"
[[listen]]
address = "shm://{folder}/bench"
[alerts]
interval = 1
[alerts.bounds]
series = 100000
samples = 10000000
[alerts.receivers.us]
kind = "stdout"
group_wait = 0
group_interval = 0
rate = 1000
"""


def told(alerts: int) -> Sample:
    """Return the median and the 99th percentile in milliseconds, of so many *alerts*, about six a second.

    Raises Unavailable when the broker does not work.
    """
    with TemporaryDirectory(prefix="mchannel-bench-") as name:
        folder = Path(name)
        (folder / "mbroker.toml").write_text(_CONFIG.format(folder=folder))
        _subscribe(folder / "state" / "alerts")
        command = [sys.executable, "-m", "mbroker.daemon", "--config", str(folder / "mbroker.toml")]
        environment = {**os.environ, "XDG_RUNTIME_DIR": name}
        with (
            (folder / "log").open("wb") as log,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment) as daemon,
        ):
            try:
                times = sorted(_publish(f"shm://{folder}/bench", daemon, alerts))
            except (MChannelError, OSError) as error:
                raise Unavailable(f"no alerts: {error}; {(folder / 'log').read_text()[-500:]}") from None
            finally:
                daemon.send_signal(signal.SIGTERM)
                try:
                    daemon.wait(20)
                except subprocess.TimeoutExpired:
                    daemon.kill()
    return Sample(times[len(times) // 2], times[len(times) * 99 // 100])


def _subscribe(folder: Path) -> None:
    folder.mkdir(parents=True, mode=0o700)
    book = Book(folder / "book.db")
    texts = [
        f"{expression.format(f'm{metric}', rack)} > {90 + step / 10}"
        for metric in range(_METRICS)
        for rack in range(_RACKS)
        for step in range(_EACH // 6)
        for expression in (
            "mean({}{{rack='r{}'}}[15])",
            "median({}{{rack='r{}'}}[15])",
            "stddev({}{{rack='r{}'}}[15])",
            "variance({}{{rack='r{}'}}[15])",
            "max({}{{rack='r{}'}}[1])",
            "{}{{rack='r{}'}}",
        )
    ]
    for text in [*texts, "probe > 5"]:
        book.enrol("bench", Subscription.parse(text), ["us"], 0)
    book.close()


def _publish(address: str, daemon: subprocess.Popen[bytes], alerts: int) -> list[float]:
    """Return how long each alert took, in milliseconds."""
    names = [
        Named(f"m{metric}", (("disk", f"d{endpoint}"), ("rack", f"r{endpoint % _RACKS}")))
        for metric in range(_METRICS)
        for endpoint in range(_ENDPOINTS)
    ]
    names += [Named("probe", (("disk", f"p{number}"),)) for number in range(alerts)]
    dice = random.Random(1)
    run, calm = dice.getrandbits(62), _METRICS * _ENDPOINTS
    assert daemon.stdout is not None
    with mchannel.open(address, timeout=60) as channel:
        for declared in declarations(run, 0, names, 1 << 14):
            channel.write(declared.to_event(), timeout=60)

        def send(numbers: Sequence[int], values: Sequence[float]) -> None:
            at = int(time.time() * 1000)
            columns = array("I", numbers), array("d", values), array("q", [at]) * len(numbers)
            channel.write(Samples(run, *columns).to_event(), timeout=60)

        times: list[float] = []
        until = time.monotonic() + _LONGEST
        for number in range(alerts):
            if time.monotonic() > until:
                break
            for part in range(2):  # a fifth of all series, in two batches
                first = (number * 2 + part) % 10 * (calm // 10)
                send(range(first, first + calm // 10), [dice.gauss(50, 1) for _ in range(calm // 10)])
                time.sleep(0.05)
            channel.flush(timeout=60)
            start = time.perf_counter()
            send([calm + number], [9.0])
            if not select.select([daemon.stdout], [], [], 60)[0]:
                raise OSError("nothing was told within a minute")
            daemon.stdout.readline()
            times.append((time.perf_counter() - start) * 1e3)
    return times
