"""What is kept around an alert, so that somebody can find out why (MAVIS, section IV, *selective storage*)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from mchannel import packing

from .columns import deflate, inflate, pack_times, pack_values, unpack_times, unpack_values
from .sample import Sample
from .selector import Series

__all__ = ["MOST", "packed", "unpacked"]

MOST = 1_000_000
"""Samples that are kept around one edge of an alert, at most."""
_LARGEST = 64 << 20
_LIMITS = packing.Limits(binary=_LARGEST, items=MOST)


def packed(samples: Iterable[Sample]) -> bytes:
    """Return *samples*, at most :data:`MOST` of them, in few bytes."""
    columns: dict[Series, tuple[array[int], array[float]]] = {}
    for _, sample in zip(range(MOST), samples, strict=False):
        times, values = columns.setdefault(sample.series, (array("q"), array("d")))
        times.append(sample.at)
        values.append(sample.value)
    data = packing.pack(
        [
            [series.metric, sorted(series.endpoint), len(times), pack_times(times), pack_values(values)]
            for series, (times, values) in columns.items()
        ]
    )
    return packing.pack([len(data), deflate(data)])


def unpacked(blob: bytes) -> Iterator[Sample]:
    """Yield the samples in *blob*, series by series; raise ValueError if it holds none."""
    try:
        size: Any
        deflated: Any
        size, deflated = packing.unpack(blob, _LIMITS)
        found: Any = packing.unpack(inflate(deflated, min(size, _LARGEST)), _LIMITS)
        for metric, endpoint, count, times, values in found:
            series = Series(metric, frozenset(endpoint))
            columns = unpack_times(times, count), unpack_values(values, count)
            yield from (Sample(series, at, value) for at, value in zip(*columns, strict=True))
    except TypeError as error:
        raise ValueError(f"no samples ({error})") from None
