"""Epochs, exact counts and the 99th percentile, without a clock."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mchannel import EventCodec
from mchannel.agents.meter import Meter, epoch_of
from mchannel.event import Event

START = 1_700_000_000.0
FIRST = epoch_of(START)


def take(meter: Meter, now: float) -> list[Event]:
    meter.advance(now)
    return meter.take()


def epochs(events: list[Event]) -> list[object]:
    return [event.detail["epoch"] for event in events]


def test_an_epoch_is_reported_when_it_is_over() -> None:
    meter = Meter("web1", START)
    meter.observe(START + 0.1, 0.001)
    assert take(meter, START + 0.499) == []
    (event,) = take(meter, START + 0.5)
    assert event == Event(
        "sla.epoch",
        "web1",
        0.0,
        START + 0.5,
        {
            "epoch": FIRST,
            "seconds": 0.5,
            "requests": 1,
            "hard": 0,
            "soft": 0,
            "hard_ms": 6.0,
            "soft_ms": 3.0,
            "p99_ms": 1.0,
            "utilization": None,
        },
    )


def test_epochs_are_aligned_to_the_unix_clock_whenever_counting_begins() -> None:
    (event,) = take(Meter("web1", START + 0.3), START + 0.6)
    assert event.at == START + 0.5


def test_a_violation_takes_strictly_longer_than_its_threshold() -> None:
    meter = Meter("web1", START)
    for milliseconds in (3.0, 3.001, 6.0, 6.001):
        meter.observe(START, milliseconds / 1000)
    (event,) = take(meter, START + 0.5)
    assert (event.detail["soft"], event.detail["hard"], event.value) == (3, 1, 0.25)


@given(st.integers(1, 10_000_000))
def test_a_time_written_as_the_threshold_is_written_is_never_a_violation(us: int) -> None:
    meter = Meter("web1", START, hard_ms=us / 1000, soft_ms=us / 1000)
    meter.observe(START, float(f"{us / 1e6:.6f}"))
    assert take(meter, START + 0.5)[0].detail["hard"] == 0


def test_epochs_without_requests_are_reported() -> None:
    events = take(Meter("web1", START), START + 1.5)
    assert epochs(events) == [FIRST, FIRST + 1, FIRST + 2]
    assert [event.detail["p99_ms"] for event in events] == [None] * 3


def test_a_request_counts_in_the_epoch_in_which_it_ended() -> None:
    meter = Meter("web1", START)
    meter.observe(START + 0.7, 0.001)
    meter.observe(START + 1.2, 0.001)
    assert [e.detail["requests"] for e in take(meter, START + 1.5)] == [0, 1, 1]


def test_a_late_observation_counts_in_the_present_epoch() -> None:
    meter = Meter("web1", START)
    take(meter, START + 0.5)
    meter.observe(START + 0.4, 0.001)
    (event,) = take(meter, START + 1.0)
    assert (event.detail["epoch"], event.detail["requests"]) == (FIRST + 1, 1)


def test_a_long_gap_is_skipped_and_said() -> None:
    meter = Meter("web1", START)
    (event,) = take(meter, START + 3600)
    assert (event.detail["epoch"], event.detail["skipped"]) == (FIRST, 7199)
    assert epochs(take(meter, START + 3600.5)) == [FIRST + 7200]


@pytest.mark.parametrize(("missing", "reported", "skipped"), [(10, 11, None), (11, 1, 11)])
def test_ten_epochs_without_a_look_are_reported_and_more_are_skipped(
    missing: int, reported: int, skipped: int | None
) -> None:
    events = take(Meter("web1", START), START + (missing + 1) / 2)
    assert epochs(events) == [FIRST + n for n in range(reported)]
    assert events[-1].detail.get("skipped") == skipped


def test_a_clock_that_is_set_back_goes_on_in_the_epoch_that_it_shows() -> None:
    meter = Meter("web1", START)
    meter.observe(START, 0.001)
    assert epochs(take(meter, START - 60)) == [FIRST]
    meter.observe(START - 59.9, 0.001)
    (event,) = take(meter, START - 59.5)
    assert (event.detail["epoch"], event.detail["requests"]) == (FIRST - 120, 1)


def test_a_clock_that_trembles_does_not_close_an_epoch_early() -> None:
    meter = Meter("web1", START)
    meter.observe(START + 0.5, 0.001)
    meter.take()
    assert take(meter, START + 0.499) == []


def test_a_flush_reports_the_epoch_that_is_not_over() -> None:
    meter = Meter("web1", START)
    meter.observe(START, 0.001)
    meter.flush()
    assert [e.detail["requests"] for e in meter.take()] == [1]


def test_notes_go_into_the_detail_of_the_next_event_only() -> None:
    meter = Meter("web1", START)
    meter.note("unparsed", 3)
    events = take(meter, START + 1.0)
    assert [e.detail.get("unparsed") for e in events] == [None, 3]
    assert "unparsed" not in take(meter, START + 1.5)[0].detail


@pytest.mark.parametrize("name", ["", "n" * 65])
def test_a_note_has_a_short_name(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 64 characters"):
        Meter("web1", START).note(name)


def test_names_of_notes_are_bounded_and_none_is_lost() -> None:
    meter = Meter("web1", START)
    for n in range(1000):
        meter.note(f"user {n}")
    meter.note("user 7")
    (event,) = take(meter, START + 0.5)
    assert (event.detail["user 7"], event.detail["others"]) == (2, 936)
    EventCodec().encode(event)


def test_closed_epochs_that_nobody_takes_are_bounded_and_counted() -> None:
    meter = Meter("web1", START)
    for n in range(200):
        meter.observe(START + n / 2, 0.001)
    events = meter.take()
    assert len(events) == 120
    assert events[-1].detail["dropped"] == 199 - 120
    assert sum(e.detail["requests"] == 1 for e in events) == 120


def test_utilisation_is_what_the_caller_says() -> None:
    meter = Meter("web1", START)
    meter.advance(START + 0.5)
    assert meter.take(0.25)[0].detail["utilization"] == 0.25


@pytest.mark.parametrize(("seconds", "p99"), [(-1.0, 0.0), (math.nan, 0.0), (math.inf, 86_400_000.0)])
def test_a_time_that_makes_no_sense_is_counted_and_bounded(seconds: float, p99: float) -> None:
    meter = Meter("web1", START)
    meter.observe(START, seconds)
    assert take(meter, START + 0.5)[0].detail["p99_ms"] == p99


@given(st.lists(st.integers(0, 10**11), min_size=1, max_size=300))
def test_p99_is_the_nearest_rank_at_most_one_percent_too_high(times: list[int]) -> None:
    meter = Meter("web1", START)
    for us in times:
        meter.observe(START, us / 1e6)
    exact = min(sorted(times)[math.ceil(0.99 * len(times)) - 1], 86_400_000_000)
    p99 = take(meter, START + 0.5)[0].detail["p99_ms"]
    assert isinstance(p99, float)
    assert exact / 1000 <= p99 <= exact / 1000 * 1.01


@given(st.lists(st.integers(0, 2**40), max_size=2000))
def test_memory_is_bounded_under_any_load(times: list[int]) -> None:
    meter = Meter("web1", START)
    for us in times:
        meter.observe(START, us / 1e6)
    assert len(meter._counts.buckets) < 4000


@given(st.lists(st.tuples(st.floats(-3, 8), st.floats(0, 0.02), st.booleans())))
def test_nothing_is_lost_and_nothing_counted_twice(steps: list[tuple[float, float, bool]]) -> None:
    meter, now, events = Meter("web1", START), START, list[Event]()
    for step, seconds, closes in steps:
        now += step
        meter.observe(now, seconds)
        if closes:
            events += take(meter, now)
    meter.flush()
    events += meter.take()

    def total(name: str) -> int:
        counts = [event.detail[name] for event in events]
        return sum(count for count in counts if isinstance(count, int))

    assert total("requests") == len(steps)
    assert total("hard") == sum(round(seconds * 1e6) > 6000 for _, seconds, _ in steps)
    assert total("soft") == sum(round(seconds * 1e6) > 3000 for _, seconds, _ in steps)


@pytest.mark.parametrize(("hard", "soft"), [(3.0, 6.0), (0.0, 0.0), (6.0, -1.0), (math.nan, 3.0), (math.inf, 3.0)])
def test_thresholds_that_make_no_sense_are_refused(hard: float, soft: float) -> None:
    with pytest.raises(ValueError, match="thresholds"):
        Meter("web1", START, hard_ms=hard, soft_ms=soft)
