"""How a host is: what :mod:`.metrics` tells of every machine, and what only a machine that is real has.

=====================================  ===================================================================
``cpu``, ``load``, ``memory``, ...     as a guest tells them, by the same names
``filesystem{mount}``                  used share, 0..1; ``.total`` and ``.free`` in bytes
``temperature{chip,sensor}``           degrees Celsius; ``.high`` and ``.critical`` where the chip says so
``fan{chip,sensor}``                   turns a minute
``cpu.frequency``                      MHz, the mean of all CPUs
``uptime``                             seconds since boot
``agent.cpu``, ``agent.memory``        share of one CPU, and bytes, that this process takes itself
=====================================  ===================================================================

Filesystems, temperatures, fans and the frequency are looked at every five seconds, and told as they were last seen in
between: a rule that waits for three intervals without a sample must not take them for gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol, TypeVar

import attrs
import psutil

from mchannel.agents.metrics import Metrics, readings
from mchannel.agents.publisher import Reading
from mchannel.samples import Labels, Named

__all__ = ["HostMetrics"]

_SLOW = 5.0
"""Seconds between two looks at what changes slowly, and takes long to ask for."""
_MOST = 64  # filesystems, sensors of a kind


class _Sensor(Protocol):
    @property
    def label(self) -> str: ...


S = TypeVar("S", bound=_Sensor)


@attrs.define(eq=False)
class HostMetrics:
    """Reads the metrics of this host; call it once an interval, from any one thread at a time."""

    metrics: Metrics = attrs.field(factory=lambda: Metrics(""))
    monotonic: Callable[[], float] = attrs.field(default=time.monotonic, kw_only=True)
    _slow_at: float | None = attrs.field(default=None, init=False)
    _seen: list[Reading] = attrs.field(factory=list[Reading], init=False)
    """What was so at the last look at what changes slowly."""
    _process: psutil.Process = attrs.field(factory=psutil.Process, init=False)
    _spent: tuple[float, float] | None = attrs.field(default=None, init=False)

    def read(self) -> list[Reading]:
        """Return what is so now."""
        found = [reading for event in self.metrics.sample() for reading in readings(event)]
        now = self.monotonic()
        found += self._self(now)
        if self._slow_at is None or now - self._slow_at >= _SLOW:
            self._slow_at, self._seen = now, list(_slow())
        return found + self._seen

    def _self(self, now: float) -> Iterator[Reading]:
        before, self._spent = self._spent, (now, time.process_time())
        if before is not None and now > before[0]:
            yield Reading(Named("agent.cpu"), (self._spent[1] - before[1]) / (now - before[0]))
        yield Reading(Named("agent.memory"), float(self._process.memory_info().rss))
        yield Reading(Named("uptime"), time.clock_gettime(time.CLOCK_BOOTTIME))


def _slow() -> Iterator[Reading]:
    for group in (_filesystems, _temperatures, _fans, _frequency):
        try:
            yield from group()
        except (OSError, RuntimeError, ValueError):
            continue  # not on this machine, or not as psutil knows it


def _filesystems() -> Iterator[Reading]:
    """Yield those on devices of this machine: one of a network could make us wait for it."""
    seen: set[str] = set()
    for partition in islice(psutil.disk_partitions(all=False), 4 * _MOST):
        if partition.device in seen or len(seen) == _MOST or partition.fstype in {"squashfs", "iso9660"}:
            continue  # bound elsewhere too, or full by nature
        seen.add(partition.device)
        try:
            usage = psutil.disk_usage(partition.mountpoint)
        except OSError:
            continue
        labels = (("mount", partition.mountpoint),)
        yield Reading(Named("filesystem", labels), usage.percent / 100)
        yield Reading(Named("filesystem.total", labels), float(usage.total))
        yield Reading(Named("filesystem.free", labels), float(usage.free))


def _temperatures() -> Iterator[Reading]:
    for labels, sensor in islice(_sensors(psutil.sensors_temperatures()), _MOST):
        yield Reading(Named("temperature", labels), float(sensor.current))
        if sensor.high is not None:
            yield Reading(Named("temperature.high", labels), float(sensor.high))
        if sensor.critical is not None:
            yield Reading(Named("temperature.critical", labels), float(sensor.critical))


def _fans() -> Iterator[Reading]:
    for labels, sensor in islice(_sensors(psutil.sensors_fans()), _MOST):
        yield Reading(Named("fan", labels), float(sensor.current))


def _frequency() -> Iterator[Reading]:
    frequency = psutil.cpu_freq()
    if frequency is not None:  # pyright: ignore[reportUnnecessaryComparison] - in many virtual machines
        yield Reading(Named("cpu.frequency"), float(frequency.current))


def _sensors(chips: Mapping[str, Sequence[S]]) -> Iterator[tuple[Labels, S]]:
    for chip, sensors in chips.items():
        for number, sensor in enumerate(sensors):
            yield (("chip", chip), ("sensor", f"{number} {sensor.label}".strip())), sensor
