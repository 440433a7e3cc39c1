"""``python -m benchmarks.match_watch SAMPLES``: encoded events in, edges out, in a process of its own, as JSON.

Five hosts speak for 110 domains each, with seven metrics, and send what they read of all of them in one event; the
subscriptions are those of :mod:`benchmarks.match_engine`. All that a broker does with an event is measured, stage by
stage, but the network, the book and the history.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
from array import array
from collections.abc import Iterable, Sequence

from benchmarks import match_engine
from mbroker.alerts.alert import Alert, Enrolment, State
from mbroker.alerts.edges import Edge
from mbroker.alerts.intake import Bounds
from mbroker.alerts.language import Subscription
from mbroker.alerts.selector import Series
from mbroker.alerts.watch import Settings, Watch
from mchannel import EventCodec
from mchannel.samples import Named, Samples, declarations

__all__ = ["main", "measured"]

_HOSTS, _DOMAINS = 5, 110
_BEGIN, _INTERVAL = 1_700_000_000_000, 10_000


class _Book:
    """Counts edges instead of storing them."""

    def __init__(self) -> None:
        self.edges = 0
        self._made: list[Enrolment] = []

    def enrol(self, owner: str, subscription: Subscription, receivers: Sequence[str], now: int) -> Enrolment:
        made = Enrolment(len(self._made) + 1, owner, subscription, tuple(receivers), now)
        self._made.append(made)
        return made

    def withdraw(self, number: int, by: str, now: int) -> None:
        raise NotImplementedError

    def enrolments(self) -> list[Enrolment]:
        return self._made

    def resume(self, since: int) -> None:
        pass

    def record(self, edges: Iterable[Edge], now: int) -> list[Alert]:
        self.edges += sum(1 for _ in edges)
        return []

    def alerts(
        self, state: State | None = None, enrolment: int | None = None, since: int | None = None, limit: int = 1000
    ) -> list[Alert]:
        return []


class _History:
    """Keeps nothing."""

    def name(self, number: int, series: Series) -> None:
        pass

    def pace(self, number: int, interval: int | None) -> None:
        pass

    def append(self, numbers: array[int], values: array[float], times: array[int]) -> None:
        pass


def measured(samples: int) -> dict[str, float]:
    """Run it in a process of its own and return what it found; raise Unavailable when it fails."""
    return match_engine.run("benchmarks.match_watch", samples)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print one JSON object, and return the exit code."""
    (wanted,) = map(int, sys.argv[1:] if arguments is None else arguments)
    dice, codec, book = random.Random(1), EventCodec(), _Book()
    hosts = [f"r{number}" for number in range(_HOSTS)]
    settings = Settings("broker", frozenset(hosts), interval=_INTERVAL, bounds=Bounds(samples=1 << 30))
    watch = Watch(settings, book, _History(), _BEGIN)
    names = [Named(f"m{m}", (("domain", f"d{d}"),)) for d in range(_DOMAINS) for m in range(7)]
    for host in hosts:
        for declared in declarations(1, 0, names, 60_000, _INTERVAL):
            watch.declare(host, declared, _BEGIN)
    for text in match_engine.texts(dice, "host", _HOSTS):
        watch.enrol("owner", Subscription.parse(text), ["phone"], _BEGIN)
    gc.freeze()  # as the daemon does
    decoding = watching = 0.0
    counted, now = 0, _BEGIN
    numbers = array("I", range(len(names)))
    while counted < wanted:
        now += _INTERVAL
        is_warm = now > _BEGIN + 17 * _INTERVAL  # windows are full
        for host in hosts:
            values = array("d", [dice.gauss(50, 10) for _ in names])
            raw = codec.encode(Samples(1, numbers, values, array("q", [now]) * len(names)).to_event())
            begin = time.process_time()
            samples = Samples.from_event(codec.decode(raw))
            decoded = time.process_time()
            watch.samples(host, samples, now)
            end = time.process_time()
            if is_warm:
                decoding += decoded - begin
                watching += end - decoded
                counted += len(names)
        book.edges *= is_warm
    found = {
        "end_to_end_samples_s": counted / (decoding + watching),
        "decode_samples_s": counted / decoding,
        "watch_samples_s": counted / watching,
        "edges": book.edges / counted,
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
