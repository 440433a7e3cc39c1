"""The live end of the history: which of its samples are found, whatever their order and whoever appends meanwhile."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from mbroker.alerts.live import Live

MANY = 3000  # samples: more than are looked at at once


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    live = Live.open(tmp_path / "samples.live", 1)
    yield live
    live.journal.close()


def fill(live: Live, times: range) -> None:
    live.append(array("I", [7] * len(times)), array("d", map(float, times)), array("q", times))


def found(live: Live, begin: int, end: int) -> list[int]:
    return [at for _, times, _ in live.columns([7], begin, end) for at in times]


@pytest.mark.parametrize("begin", [0, 1, 1023, 1024, 1025, MANY - 1, MANY])
def test_the_columns_of_a_series_hold_all_since_their_begin(live: Live, begin: int) -> None:
    fill(live, range(MANY))
    assert found(live, begin, MANY) == list(range(begin, MANY))


def test_what_came_late_is_found_among_what_is_older(live: Live) -> None:
    fill(live, range(MANY))
    fill(live, range(MANY, MANY + 1))
    fill(live, range(MANY))
    assert found(live, MANY, MANY + 1) == [MANY]


def test_a_sample_of_which_only_the_series_is_there_yet_is_left_out(live: Live) -> None:
    fill(live, range(1024))
    live.series.append(7)  # another thread is about to append its time and value
    assert found(live, 0, MANY) == list(range(1024))
