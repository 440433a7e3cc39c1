"""What is kept around an alert comes back, and nothing that is damaged does more than be refused."""

from __future__ import annotations

import math
from array import array
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbroker.alerts.columns import deflate, pack_times, pack_values
from mbroker.alerts.context import packed, unpacked
from mbroker.alerts.sample import Sample
from mbroker.alerts.selector import Series
from mchannel import packing

SERIES = [Series(metric, frozenset({("host", "web1"), ("group", "a"), ("group", "b")})) for metric in ("load", "fan")]
samples = st.builds(Sample, st.sampled_from(SERIES), st.integers(0, 1 << 45), st.floats(allow_nan=False))


@given(st.lists(samples))
def test_it_comes_back_series_by_series(kept: list[Sample]) -> None:
    expected = [
        sample for series in dict.fromkeys(one.series for one in kept) for sample in kept if sample.series == series
    ]
    assert list(unpacked(packed(kept))) == expected


def test_there_is_a_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbroker.alerts.context.MOST", 3)
    assert len(list(unpacked(packed(Sample(SERIES[0], at, 1.0) for at in range(9))))) == 3


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
    blob = bytearray(packed([Sample(SERIES[0], at, math.sin(at)) for at in range(99)]))
    blob[-30] ^= 1
    with pytest.raises(ValueError, match="damaged"):
        list(unpacked(bytes(blob)))
