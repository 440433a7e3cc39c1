"""How long a series may say nothing before its rules hear of it, when that changes."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from mbroker.alerts._match import ffi, lib

_NODATA_FIRE = 2
_KINDS = {
    "newest": {"function": 0},
    "by count": {"function": 1, "samples": 2},
    "by time": {"function": 1, "span": 1000},
}


@attrs.frozen
class Watched:
    """A series with a patience of 1000 ms, and a rule that fires when it is silent."""

    engine: Any
    rule: int

    def hear(self, at: int) -> None:
        one = ffi.new("uint32_t[1]", [0]), ffi.new("double[1]", [1.0]), ffi.new("int64_t[1]", [at])
        lib.match_tick(self.engine, at)
        assert lib.match_push(self.engine, *one, 1, 16) == 1
        lib.match_settle(self.engine)

    def fires(self, clock: int) -> bool:
        lib.match_tick(self.engine, clock)
        return lib.match_fires(self.engine, self.rule)

    def patience(self, milliseconds: int) -> int:
        return lib.match_patience(self.engine, 0, milliseconds)


def watched(kind: str) -> Watched:
    engine = ffi.gc(lib.match_new(1024, 0), lib.match_free)
    assert lib.match_open_series(engine, 1000) == 0
    term = ffi.new("match_term *", {"threshold": 5.0, "view": _KINDS[kind], "source": 0, "compare": 0})
    rule = {"terms": term, "count": 1, "clears": 6, "nodata": _NODATA_FIRE}
    number = lib.match_add(engine, ffi.new("match_rule *", rule))
    return Watched(engine, number)


@pytest.fixture(params=["newest", "by count"])
def series(request: pytest.FixtureRequest) -> Iterator[Watched]:
    made = watched(request.param)
    for at in (1, 2, 3):
        made.hear(at)
    yield made
    assert not lib.match_broken(made.engine)


def test_a_shorter_patience_counts_from_the_newest_sample(series: Watched) -> None:
    assert series.patience(100) == 0
    assert not series.fires(102)
    assert series.fires(103)


def test_a_longer_patience_counts_from_the_newest_sample(series: Watched) -> None:
    assert series.patience(5000) == 0
    assert not series.fires(5002)
    assert series.fires(5003)


def test_what_is_silent_stays_so_until_its_next_sample(series: Watched) -> None:
    assert series.fires(1003)
    assert series.patience(5000) == 0
    assert series.fires(1004)
    series.hear(1005)
    assert not series.fires(6004)
    assert series.fires(6005)


def test_a_window_by_time_keeps_its_span() -> None:
    made = watched("by time")
    made.hear(1)
    assert made.patience(5000) == 0
    assert not made.fires(1000)
    assert made.fires(1001)


def test_a_snapshot_remembers_it(series: Watched) -> None:
    assert series.patience(100) == 0
    size = lib.match_save(series.engine, ffi.NULL, 0)
    image = ffi.from_buffer("uint8_t[]", array("B", bytes(size)))
    assert lib.match_save(series.engine, image, size) == size
    again = Watched(ffi.gc(lib.match_load(image, size), lib.match_free), series.rule)
    assert not again.fires(102)
    assert again.fires(103)


@pytest.mark.parametrize("milliseconds", [0, -1, 1 << 62])
def test_a_patience_out_of_range_changes_nothing(series: Watched, milliseconds: int) -> None:
    assert series.patience(milliseconds) == lib.MATCH_BAD
    assert not series.fires(1002)
    assert series.fires(1003)


def test_a_series_that_does_not_exist_has_none() -> None:
    assert lib.match_patience(watched("newest").engine, 1, 100) == lib.MATCH_BAD


def test_changing_it_ten_thousand_times_keeps_few_timers(series: Watched) -> None:
    before = lib.match_count(series.engine).bytes
    for turn in range(10_000):
        assert series.patience(100 + turn % 2) == 0
    assert lib.match_count(series.engine).bytes - before < 100_000
    assert series.fires(104)
