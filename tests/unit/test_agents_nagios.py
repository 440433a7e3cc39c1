"""Performance data as plug-ins write it."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mchannel.agents.nagios import Datum, Range, from_output, perfdata
from mchannel.agents.publisher import Reading
from mchannel.samples import Named


def one(text: str) -> Datum:
    (datum,) = perfdata(text)
    return datum


@pytest.mark.parametrize(
    ("text", "label", "value", "unit"),
    [
        ("load1=0.5", "load1", 0.5, ""),
        ("/=2643MB", "/", 2643 * 2**20, "B"),
        ("'C: %used'=5%", "C: %used", 5, "%"),
        ("'it''s'=1", "it's", 1, ""),
        ("time=12.5ms", "time", 0.0125, "s"),
        ("time=7us", "time", 7e-6, "s"),
        ("size=1KiB", "size", 1024, "B"),
        ("ifInOctets=123c", "ifInOctets", 123, "c"),
        ("t=-4.5e1C", "t", -45, "C"),
        ("x=1,5", "x", 1.5, ""),
        ("x=.5", "x", 0.5, ""),
        ("x=+3", "x", 3, ""),
    ],
)
def test_a_value_is_told_in_its_base_unit(text: str, label: str, value: float, unit: str) -> None:
    datum = one(text)
    assert (datum.label, datum.unit) == (label, unit)
    assert datum.value == pytest.approx(value)


@pytest.mark.parametrize(
    "text", ["x=" + "e" * 40, "x=1" + "e" * 40, "l" * 201 + "=1", "x=" + "1" * 65, "x=1;" + "2" * 81]
)
def test_a_datum_with_a_part_that_is_too_long_is_passed_over(text: str) -> None:
    assert [datum.label for datum in perfdata(f"a=1 {text} b=2")] == ["a", "b"]


@pytest.mark.parametrize("text", ["x=1-", "x=1,,", "x=1.2.", "x=+-1"])
def test_a_unit_does_not_begin_as_a_number_goes_on(text: str) -> None:
    assert list(perfdata(text)) == []


HARD = ["a=" + "e" * 60_000 + ";;;;;", "a=" + "1" * 60_000 + "x", "' " * 30_000, "'" * 60_001, "a" * 60_000]


@pytest.mark.parametrize("text", HARD, ids=["unit", "digits", "quotes", "a-quote", "label"])
def test_the_time_to_read_an_output_does_not_grow_with_its_square(text: str) -> None:
    code = "import sys; from mchannel.agents.nagios import perfdata; list(perfdata(sys.stdin.read()))"
    subprocess.run([sys.executable, "-c", code], input=text.encode(), check=True, timeout=60)  # it would be minutes


def test_a_value_that_is_unknown_has_none() -> None:
    assert one("x=U;1;2").value is None


def test_limits_and_ranges_are_scaled_as_the_value_is() -> None:
    assert one("t=5ms;10;20:30;1;100") == Datum("t", "s", 0.005, Range(0, 0.01), Range(0.02, 0.03), 0.001, 0.1)


def test_what_is_left_out_is_none() -> None:
    assert one("x=1;;;0") == Datum("x", "", 1, None, None, 0, None)


def test_all_data_of_a_line_are_read() -> None:
    assert [datum.label for datum in perfdata("a=1;2;3 'b c'=4 d=5s;;;;")] == ["a", "b c", "d"]


@pytest.mark.parametrize("text", ["", "x", "=1", "x=", "x=1..2", "x=one", "x=1;2;3;4;5;6", "x=1e999", "'x=1", "x=nan"])
def test_what_is_no_datum_is_passed_over(text: str) -> None:
    assert list(perfdata(text)) == []
    assert [datum.label for datum in perfdata(f"a=1 {text} b=2")][:1] == ["a"]


@pytest.mark.parametrize(
    ("text", "alerts", "quiet"),
    [
        ("10", [-1, 11], [0, 10]),
        ("10:", [9], [10, 1e9]),
        ("~:10", [11], [-1e9, 10]),
        ("10:20", [9, 21], [10, 20]),
        ("@10:20", [10, 20], [9, 21]),
        (":5", [-1, 6], [0, 5]),
    ],
)
def test_a_range_alerts_as_the_guidelines_say(text: str, alerts: list[float], quiet: list[float]) -> None:
    found = Range.parse(text)
    assert found is not None
    assert all(found.alerts(value) for value in alerts)
    assert not any(found.alerts(value) for value in quiet)


@pytest.mark.parametrize("text", ["", "@", "x", "20:10", "1:2:3", "~", "@@1"])
def test_what_is_no_range_is_none(text: str) -> None:
    assert Range.parse(text) is None


def test_the_output_of_many_lines_has_data_on_the_first_and_after_a_second_bar() -> None:
    output = "DISK OK x=1 | /=1MB\nlong text y=2\nmore z=3 | /boot=2MB\n/home=3MB\n"
    labels = [dict(reading.series.labels).get("label") for reading in from_output("disk", 0, output)]
    assert labels == [None, "/", "/boot", "/home"]


@pytest.mark.parametrize(("status", "state"), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 3), (127, 3), (-9, 3)])
def test_the_state_is_the_exit_status_or_unknown(status: int, state: float) -> None:
    assert list(from_output("ping", status, "")) == [Reading(Named("nagios.state", (("check", "ping"),)), state)]


def test_a_datum_is_a_series_with_what_its_limits_say() -> None:
    told = {
        (reading.series.metric, reading.series.labels[1:]): reading.value
        for reading in from_output("load", 1, "WARNING|load1=5;4;10;0;64")
    }
    label = (("label", "load1"),)
    assert told == {
        ("nagios.state", ()): 1,
        ("nagios.value", label): 5,
        ("nagios.warning", label): 1,
        ("nagios.critical", label): 0,
        ("nagios.min", label): 0,
        ("nagios.max", label): 64,
    }


@given(st.text(alphabet="ab'=;:@~|\n .,-+eU09%KMGBiscmu") | st.text())
def test_any_output_is_read_and_every_value_is_finite(output: str) -> None:
    assert all(math.isfinite(reading.value) for reading in from_output("x", 0, "|" + output))


def test_data_beyond_the_bound_are_left_out() -> None:
    assert len(list(from_output("x", 0, "|" + " ".join(f"a{n}=1" for n in range(2000))))) == 1001
