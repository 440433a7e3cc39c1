"""The XML of a gmond, and XML that is meant to harm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mchannel.agents.ganglia import Gmond, from_xml
from mchannel.agents.publisher import Reading
from mchannel.samples import Named

NOW = 1_700_000_000_000
GMOND = """<?xml version="1.0" encoding="ISO-8859-1" standalone="yes"?>
<!DOCTYPE GANGLIA_XML [<!ELEMENT GANGLIA_XML (CLUSTER)*><!ATTLIST GANGLIA_XML VERSION CDATA #REQUIRED>]>
<GANGLIA_XML VERSION="3.7.2" SOURCE="gmond"><CLUSTER NAME="lab" LOCALTIME="1700000000">
<HOST NAME="n1" IP="10.0.0.1" REPORTED="1699999990" TN="10" TMAX="20"> {metrics} </HOST></CLUSTER></GANGLIA_XML>
"""
METRIC = """<METRIC NAME="{name}" VAL="{value}" TYPE="{kind}" TN="{age}" TMAX="70" SLOPE="both">
<EXTRA_DATA><EXTRA_ELEMENT NAME="GROUP" VAL="load"/></EXTRA_DATA></METRIC>"""


def gmond(metrics: str) -> bytes:
    return GMOND.format(metrics=metrics).encode()


def metric(name: str = "load_one", value: str = "0.25", kind: str = "float", age: str = "7") -> str:
    return METRIC.format(name=name, value=value, kind=kind, age=age)


def test_a_metric_is_a_series_of_its_node_taken_when_it_was_told() -> None:
    labels = (("cluster", "lab"), ("node", "n1"))
    assert from_xml(gmond(metric()), NOW) == [Reading(Named("load_one", labels), 0.25, NOW - 7000)]


def test_text_is_no_metric() -> None:
    assert from_xml(gmond(metric(value="5", kind="string") + metric(value="x")), NOW) == []


def test_odd_letters_of_a_name_become_underscores() -> None:
    (reading,) = from_xml(gmond(metric(name="disk-free /home")), NOW)
    assert reading.series.metric == "disk_free__home"


@pytest.mark.parametrize("age", ["-1", "nan", "inf", "1e300", "1000000", "x"])
def test_a_metric_of_which_it_is_not_known_when_it_was_taken_is_left_out(age: str) -> None:
    assert from_xml(gmond(metric(age=age) + metric(name="cpu_num")), NOW) == [
        Reading(Named("cpu_num", (("cluster", "lab"), ("node", "n1"))), 0.25, NOW - 7000)
    ]


def told(*looks: tuple[int, str, str]) -> list[list[tuple[float, int | None]]]:
    """Return value and time, after NOW, of what each look tells: at a time, of a value and its age."""
    read = Gmond().read
    return [
        [
            (reading.value, reading.at and reading.at - NOW)
            for reading in read(gmond(metric(value=value, age=age)), NOW + at)
        ]
        for at, value, age in looks
    ]


def test_a_measurement_is_told_once_although_its_age_is_in_whole_seconds() -> None:
    looks = [(0, "5", "7"), (1900, "5", "8"), (3000, "5", "11"), (20_000, "5", "27"), (500_000, "5", "505")]
    assert told(*looks) == [[(5, -7000)], [], [], [], []]


def test_the_next_measurement_is_told_although_its_value_is_the_same() -> None:
    assert told((0, "5", "7"), (10_000, "5", "2")) == [[(5, -7000)], [(5, 8000)]]


def test_another_value_is_another_measurement_and_later_than_the_one_before() -> None:
    assert told((0, "5", "0"), (900, "6", "1"), (1000, "6", "1")) == [[(5, 0)], [(6, 1)], []]


def test_a_clock_that_was_set_back_keeps_nothing_from_being_told() -> None:
    assert told((0, "5", "0"), (-3_600_000, "5", "0")) == [[(5, 0)], [(5, -3_600_000)]]


def test_a_metric_that_is_gone_from_the_document_is_forgotten() -> None:
    known = Gmond()
    assert known.read(gmond(metric()), NOW)
    assert known.read(gmond(""), NOW) == []
    assert known.read(gmond(metric()), NOW)


@pytest.mark.parametrize(
    "declaration",
    [
        '<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">',
        '<!ENTITY a SYSTEM "file:///etc/passwd">',
        '<!ENTITY % a SYSTEM "http://127.0.0.1/x"> %a;',
    ],
)
def test_a_document_that_declares_entities_is_refused(declaration: str) -> None:
    with pytest.raises(ValueError, match="declares entities"):
        from_xml(f"<!DOCTYPE GANGLIA_XML [{declaration}]><GANGLIA_XML/>".encode(), NOW)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b"", "no XML"),
        (b"<GANGLIA_XML>", "no XML"),
        (b"<html/>", "is that a gmond"),
        (b"<GANGLIA_XML>" + b"<a>" * 20, "too deep"),
        (b"<GANGLIA_XML a='" + b"x" * 2000 + b"'/>", "too long words"),
    ],
)
def test_what_no_gmond_says_is_refused_in_one_line(document: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        from_xml(document, NOW)


pieces = st.lists(
    st.sampled_from(
        [
            "<METRIC ",
            "NAME='a' ",
            "VAL='1' ",
            "TN='1'",
            ">",
            "/>",
            "</METRIC>",
            "<HOST NAME='n'>",
            "</HOST>",
            "&lt;",
            "&x;",
        ]
    )
    | st.text(max_size=5),
    max_size=20,
)


@given(pieces.map("".join) | st.text())
def test_any_document_is_read_or_refused(inside: str) -> None:
    try:
        found = from_xml(f"<GANGLIA_XML>{inside}</GANGLIA_XML>".encode(errors="replace"), NOW)
    except ValueError:
        return
    assert all(reading.at is not None for reading in found)
