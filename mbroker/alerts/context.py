"""What is kept around an alert, so that somebody can find out why (MAVIS, section IV, *selective storage*)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from mchannel import packing

from .columns import deflate, inflate, pack_times, pack_values, unpack_times, unpack_values
from .leisure import leisurely
from .sample import Sample
from .selector import Series

__all__ = ["MOST", "REST", "Seen", "packed", "unpacked"]

Seen: TypeAlias = "tuple[Series, array[int], array[float]]"
"""A series, times (code ``q``) of samples of it and their values (code ``d``)."""

MOST = 100_000
"""Samples that are kept around one edge of an alert, at most."""
REST = 19.0
"""Times as long as it works whoever looks for what is to be kept and packs it rests; see :mod:`.leisure`."""
_LARGEST = 64 << 20
_LIMITS = packing.Limits(binary=_LARGEST, items=1_000_000)


def packed(seen: Iterable[Seen]) -> bytes:
    """Return the first of what was *seen*, at most :data:`MOST` samples, in few bytes; it takes its time."""
    columns: list[bytes] = []
    clocks: dict[bytes, bytes] = {}  # many series are sampled together
    room = MOST
    for series, times, values in leisurely(seen, REST):
        count = min(room, len(times))
        clock = times[:count].tobytes()
        if clock not in clocks:
            clocks[clock] = pack_times(times[:count])
        column = series.metric, sorted(series.endpoint), count, clocks[clock], pack_values(values[:count])
        columns.append(packing.pack(column))  # one by one: all at once would hold up other threads
        room -= count
        if not room:
            break
    data = packing.pack_array(columns)
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
