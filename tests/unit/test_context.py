"""What is kept around an alert comes back, and nothing that is damaged does more than be refused."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbroker.alerts.columns import deflate, pack_times, pack_values
from mbroker.alerts.context import Seen, packed, unpacked
from mbroker.alerts.sample import Sample
from mbroker.alerts.selector import Series
from mchannel import packing

SERIES = [Series(metric, frozenset({("host", "web1"), ("group", "a"), ("group", "b")})) for metric in ("load", "fan")]
rows = st.lists(st.tuples(st.integers(0, 1 << 45), st.floats(allow_nan=False)))


def column(series: Series, rows: Iterable[tuple[int, float]]) -> Seen:
    rows = list(rows)
    return series, array("q", [at for at, _ in rows]), array("d", [value for _, value in rows])


@given(st.lists(st.tuples(st.sampled_from(SERIES), rows)))
def test_it_comes_back_series_by_series(kept: list[tuple[Series, list[tuple[int, float]]]]) -> None:
    blob = packed(column(series, rows) for series, rows in kept)
    assert list(unpacked(blob)) == [Sample(series, *row) for series, rows in kept for row in rows]


def test_there_is_a_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbroker.alerts.context.MOST", 5)
    blob = packed(column(series, [(at, 1.0) for at in range(3)]) for series in (*SERIES, *SERIES))
    assert [(sample.series.metric, sample.at) for sample in unpacked(blob)] == [
        *(("load", at) for at in range(3)),
        *(("fan", at) for at in range(2)),
    ]


@given(st.binary(max_size=99))
def test_garbage_is_refused(blob: bytes) -> None:
    with suppress(ValueError):
        list(unpacked(blob))


OTHERS: list[object] = [
    1,
    ("load", (), 1),
    ("load", (), 1 << 40, b"", b""),
    ("load", (), 1 << 40, pack_times(array("q")), pack_values(array("d"))),
    ("load", (), 1, b"", b""),
    ("load", 5, 0, b"", b""),
    ("load", (), "x", b"", b""),
]


@pytest.mark.parametrize("other", OTHERS)
def test_other_things_are_refused(other: object) -> None:
    inner = packing.pack([other])
    with pytest.raises(ValueError, match=r"."):
        list(unpacked(packing.pack([len(inner), deflate(inner)])))


def test_what_was_damaged_is_refused() -> None:
    blob = bytearray(packed([column(SERIES[0], [(at, math.sin(at)) for at in range(99)])]))
    blob[-30] ^= 1
    with pytest.raises(ValueError, match="damaged"):
        list(unpacked(bytes(blob)))
