"""The newest samples are those that a look at each one finds."""

from __future__ import annotations

import math
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbroker.alerts.newest import Newest

KNOWN = 4
PATTERNS = [(0, 1, 2), (0, 1, 2), (0, 1, 2), (2, 3), (3, 2), (1, 1), (0, 7), ()]

batches = st.lists(
    st.tuples(
        st.sampled_from(PATTERNS),
        st.lists(st.sampled_from([1.0, 2.0, math.nan, math.inf, -math.inf]), min_size=3, max_size=3),
        st.lists(st.integers(0, 2), min_size=3, max_size=3),
        st.sampled_from([0, 0, 1, 5]),
        st.booleans(),
    ),
    max_size=30,
)


def columns(pattern: tuple[int, ...], values: list[float], times: list[int]) -> tuple[array[int], ...]:
    size = len(pattern)
    return array("I", pattern), array("d", values[:size]), array("q", times[:size])  # type: ignore[return-value]


def newest() -> Newest:
    made = Newest()
    for _ in range(KNOWN):
        made.expect()
    return made


@settings(max_examples=100)
@given(batches)
def test_they_are_what_a_look_at_each_sample_finds(
    told: list[tuple[tuple[int, ...], list[float], list[int], int, bool]],
) -> None:
    found, wanted = newest(), dict[int, tuple[float, int]]()
    now = 0
    for pattern, values, after, passed, asked in told:
        now += passed
        times = [now + at for at in after]
        found.put(*columns(pattern, values, times))  # type: ignore[arg-type]
        for number, value, at in zip(pattern, values, times, strict=False):
            if number < KNOWN and not math.isnan(value) and (number not in wanted or at > wanted[number][1]):
                wanted[number] = value, at
        if asked:
            assert {number: (value, at) for number, value, at in found.of(range(KNOWN))} == wanted
    again = newest()
    again.restore(*found.save())
    assert {number: (value, at) for number, value, at in again.of(range(KNOWN))} == wanted


def test_what_is_kept_whole_is_bounded_whatever_the_publishers_send(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbroker.alerts.newest._MOST", 5)
    made = newest()
    for pattern in ((0, 1), (1, 0), (2, 3), (3, 2), (0, 3)):
        made.put(*columns(pattern, [1.0, 2.0], [5, 6]))  # type: ignore[arg-type]
        assert sum(len(each.columns[0]) for each in made._last.values()) <= 5  # pyright: ignore[reportPrivateUsage]
    assert [number for number, _, _ in made.of(range(KNOWN))] == [0, 1, 2, 3]
