"""What is kept around an alert, so that somebody can find out why (MAVIS, section IV, *selective storage*)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from mchannel import packing

from .columns import pack_times, pack_values, unpack_times, unpack_values
from .reference import Sample
from .selector import Series

__all__ = ["MOST", "packed", "unpacked"]

MOST = 1_000_000
"""Samples that are kept around one edge of an alert, at most."""
_LIMITS = packing.Limits(binary=16 << 20, items=1 << 20)


def packed(samples: Iterable[Sample]) -> bytes:
    """Return *samples*, at most :data:`MOST` of them, in few bytes."""
    columns: dict[Series, tuple[array[int], array[float]]] = {}
    for _, sample in zip(range(MOST), samples, strict=False):
        times, values = columns.setdefault(sample.series, (array("q"), array("d")))
        times.append(sample.at)
        values.append(sample.value)
    return packing.pack(
        [
            [series.metric, sorted(series.endpoint), len(times), pack_times(times), pack_values(values)]
            for series, (times, values) in columns.items()
        ]
    )


def unpacked(blob: bytes) -> Iterator[Sample]:
    """Yield the samples in *blob*, series by series; raise ValueError if it holds none."""
    try:
        found: Any = packing.unpack(blob, _LIMITS)
        for metric, endpoint, count, times, values in found:
            series = Series(metric, frozenset(endpoint))
            yield from map(Sample, [series] * count, unpack_times(times, count), unpack_values(values, count))
    except TypeError as error:
        raise ValueError(f"no samples ({error})") from None
