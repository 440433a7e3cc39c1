"""How the guest is: CPUs, load, memory, pressure, disks and network, out of /proc.

Each group is one event. What the kernel counts is told as it is counted since boot, so that an event
which is displaced by a newer one costs nothing; ``value`` is the group in one number.

====================  ==========================================================================
``metrics.cpu``       busy share of all CPUs, 0..1; per CPU in ``busy``; ``steal``, ``iowait``
``metrics.load``      load average over a minute
``metrics.memory``    used share, 0..1; ``total`` and ``available`` in bytes, swap too
``metrics.pressure``  largest share of time in which something waited for CPU, memory or I/O
``metrics.disk``      bytes a second, read and written; per device the counters
``metrics.network``   bytes a second, received and sent; per interface the counters
====================  ==========================================================================

Shares and rates are over the time since the sample before; the first has none. :func:`readings` takes an event
apart into series that can be subscribed to: ``cpu``, ``cpu.steal``, ``cpu.busy{cpu="0"}``, ``load.five``,
``disk.reads{device="vda"}``, ``network.sent_bytes{interface="eth0"}``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from mchannel.agents.publisher import Reading
from mchannel.event import Detail, Event, Scalar
from mchannel.samples import Named

__all__ = ["Metrics", "readings"]

_SECTOR = 512  # bytes; of /proc/diskstats, whatever the device has
_MOST = 64  # CPUs, disks or interfaces told one by one; more are counted as left out
_WAITS = (("cpu", "some"), ("memory", "some"), ("memory", "full"), ("io", "some"), ("io", "full"))
_EACH = {"cpus": "cpu", "devices": "device", "interfaces": "interface"}  # what columns are about, and its label
_MEMORY = {"total": "MemTotal", "available": "MemAvailable", "swap_total": "SwapTotal", "swap_free": "SwapFree"}

Counters = tuple[int, ...]


@attrs.frozen
class _Times:
    """Ticks of one CPU, or of all."""

    total: int
    idle: int
    iowait: int
    steal: int

    @classmethod
    def read(cls, words: Sequence[str]) -> _Times:
        ticks = [int(word) for word in words[:8]]  # guest time, the rest, is part of user time
        return cls(sum(ticks), ticks[3], ticks[4], ticks[7])

    def share(self, since: _Times | None, ticks: Callable[[_Times], int]) -> float | None:
        """Return which share of the ticks since *since* were such ones."""
        if since is None or self.total <= since.total:
            return None
        return round(min(1.0, max(0.0, (ticks(self) - ticks(since)) / (self.total - since.total))), 4)


def _busy(times: _Times) -> int:
    return times.total - times.idle - times.iowait


class Metrics:
    """Samples of one guest, called *source* in the events."""

    def __init__(
        self,
        source: str,
        *,
        proc: Path = Path("/proc"),
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source = source
        self._proc = proc
        self._clock = clock
        self._monotonic = monotonic
        self._sampled: float | None = None
        self._seconds: float | None = None
        self._times: dict[str, _Times] = {}
        self._counts: dict[str, Counters] = {}

    def sample(self) -> list[Event]:
        """Return an event for each group that this kernel tells of."""
        now, at = self._monotonic(), self._clock()
        self._seconds = None if self._sampled is None or now <= self._sampled else now - self._sampled
        self._sampled = now
        groups = (self._cpu, self._load, self._memory, self._pressure, self._disk, self._network)
        events: list[Event] = []
        for group in groups:
            try:
                value, detail = group()
            except (OSError, ValueError, IndexError, KeyError, ZeroDivisionError):
                continue  # not in this kernel, or not as it is known to be
            events.append(Event("metrics." + group.__name__[1:], self.source, value, at, detail))
        return events

    def _lines(self, name: str) -> list[list[str]]:
        with open(self._proc / name, encoding="ascii", errors="replace") as file:  # noqa: PTH123 - three times as fast
            return [line.split() for line in file]

    def _cpu(self) -> tuple[Scalar, Detail]:
        with open(self._proc / "stat", encoding="ascii") as file:  # noqa: PTH123 - no more lines than needed
            cpus = dict(_cpus(file))
        before, self._times = self._times, cpus
        whole, single = cpus.pop("cpu"), list(cpus.items())
        since = before.pop("cpu", None)
        detail: dict[str, Scalar | tuple[Scalar, ...]] = {
            "cpus": tuple(int(name[3:]) for name, _ in single[:_MOST]),
            "busy": tuple(times.share(before.get(name), _busy) for name, times in single[:_MOST]),
            "steal": whole.share(since, lambda times: times.steal),
            "iowait": whole.share(since, lambda times: times.iowait),
            **_left_out(single),
        }
        self._times["cpu"] = whole
        return whole.share(since, _busy), detail

    def _load(self) -> tuple[Scalar, Detail]:
        one, five, fifteen, tasks, *_ = self._lines("loadavg")[0]
        running, _, existing = tasks.partition("/")
        detail: Detail = {
            "five": float(five),
            "fifteen": float(fifteen),
            "running": int(running),
            "tasks": int(existing),
        }
        return float(one), detail

    def _memory(self) -> tuple[Scalar, Detail]:
        found = {words[0].rstrip(":"): int(words[1]) << 10 for words in self._lines("meminfo")}
        detail = {name: found[key] for name, key in _MEMORY.items()}
        return round(1 - detail["available"] / detail["total"], 4), detail

    def _pressure(self) -> tuple[Scalar, Detail]:
        stalled: dict[str, int] = {}
        for what in ("cpu", "memory", "io"):
            for kind, *words in self._lines(f"pressure/{what}"):
                stalled[f"{what}_{kind}"] = int(words[-1].removeprefix("total="))
        counts = tuple(stalled.get(f"{what}_{kind}", 0) for what, kind in _WAITS)
        rates = self._rates("pressure", counts)
        shares = None if rates is None else [min(1.0, rate / 1e6) for rate in rates]
        detail: Detail = {
            f"{what}_{kind}": None if shares is None else round(shares[n], 4) for n, (what, kind) in enumerate(_WAITS)
        }
        return None if shares is None else round(max(shares), 4), detail

    def _disk(self) -> tuple[Scalar, Detail]:
        whole = {path.name for path in (self._proc.parent / "sys/block").iterdir()}  # the rest are partitions
        disks = [(words[2], [int(word) for word in words[3:13]]) for words in self._lines("diskstats")]
        used = [(name, n) for name, n in disks if name in whole and (n[0] or n[4])]
        columns = {"reads": 0, "read_bytes": 2, "writes": 4, "written_bytes": 6, "busy_ms": 9}
        detail: dict[str, Scalar | tuple[Scalar, ...]] = {"devices": tuple(name for name, _ in used[:_MOST])}
        for name, column in columns.items():
            unit = _SECTOR if name.endswith("bytes") else 1
            detail[name] = tuple(n[column] * unit for _, n in used[:_MOST])
        total = sum((n[2] + n[6]) * _SECTOR for _, n in used)
        return self._rate("disk", total), {**detail, **_left_out(used)}

    def _network(self) -> tuple[Scalar, Detail]:
        found: list[tuple[str, list[int]]] = []
        with open(self._proc / "net/dev", encoding="ascii", errors="replace") as file:  # noqa: PTH123 - as above
            for line in file:
                name, colon, counts = line.partition(":")
                if colon and (name := name.strip()) != "lo":
                    found.append((name, [int(word) for word in counts.split()]))
        columns = {
            "received_bytes": 0,
            "received_packets": 1,
            "receive_errors": 2,
            "receive_drops": 3,
            "sent_bytes": 8,
            "sent_packets": 9,
            "send_errors": 10,
            "send_drops": 11,
        }
        detail: dict[str, Scalar | tuple[Scalar, ...]] = {"interfaces": tuple(name for name, _ in found[:_MOST])}
        detail |= {name: tuple(n[column] for _, n in found[:_MOST]) for name, column in columns.items()}
        return self._rate("network", sum(n[0] + n[8] for _, n in found)), {**detail, **_left_out(found)}

    def _rate(self, name: str, count: int) -> float | None:
        rates = self._rates(name, (count,))
        return None if rates is None else round(rates[0], 1)

    def _rates(self, name: str, counts: Counters) -> list[float] | None:
        """Return by how much each of *counts* grows a second; None the first time, and when one was set back."""
        before, self._counts[name] = self._counts.get(name), counts
        if before is None or self._seconds is None or any(a < b for a, b in zip(counts, before, strict=True)):
            return None
        return [(a - b) / self._seconds for a, b in zip(counts, before, strict=True)]


def _cpus(lines: Iterator[str]) -> Iterator[tuple[str, _Times]]:
    for line in lines:
        name, *words = line.split()
        if not name.startswith("cpu"):
            return
        yield name, _Times.read(words)


def _left_out(found: Sequence[object]) -> dict[str, int]:
    return {"left_out": len(found) - _MOST} if len(found) > _MOST else {}


def readings(event: Event) -> Iterator[Reading]:
    """Yield each number of an event of :class:`Metrics` as a reading of the series that it belongs to."""
    group, at = event.topic.removeprefix("metrics."), round(event.at * 1000)
    if isinstance(event.value, int | float):
        yield Reading(Named(group), float(event.value), at)
    for name, value in event.detail.items():
        if isinstance(value, int | float):
            yield Reading(Named(f"{group}.{name}"), float(value), at)
    for column, label in _EACH.items():
        which = event.detail.get(column)
        if isinstance(which, tuple):
            for name, values in event.detail.items():
                if isinstance(values, tuple) and name != column:
                    for one, value in zip(which, values, strict=True):
                        if isinstance(value, int | float):
                            yield Reading(Named(f"{group}.{name}", ((label, str(one)),)), float(value), at)
