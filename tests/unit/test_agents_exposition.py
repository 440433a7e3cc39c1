"""The text format of Prometheus exporters."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mchannel.agents.exposition import from_text
from mchannel.agents.publisher import Reading
from mchannel.samples import Named

TEXT = """# HELP http_requests_total Requests.
# TYPE http_requests_total counter
http_requests_total{method="post",code="200"} 1027 1395066363000
# TYPE up counter
up 1
latency_bucket{le="+Inf"} 144
free{path="C:\\\\DIR",say="a \\"word\\""} +Inf
"""


def test_every_sample_keeps_its_name_and_labels_whatever_its_type() -> None:
    assert from_text(TEXT) == [
        Reading(Named("http_requests_total", (("code", "200"), ("method", "post"))), 1027, 1395066363000),
        Reading(Named("up"), 1),
        Reading(Named("latency_bucket", (("le", "+Inf"),)), 144),
        Reading(Named("free", (("path", "C:\\DIR"), ("say", 'a "word"'))), math.inf),
    ]


def test_nan_is_a_value() -> None:
    (reading,) = from_text("x NaN\n")
    assert math.isnan(reading.value)


def test_labels_that_belong_to_the_broker_are_exported_ones() -> None:
    (reading,) = from_text('x{host="other",domain="d",for="me",job="j"} 1\n')
    assert [name for name, _ in reading.series.labels] == ["exported_domain", "exported_for", "exported_host", "job"]


@pytest.mark.parametrize("text", ['host="a",exported_host="b"', 'exported_host="b",host="a"'])
def test_an_exported_label_leaves_one_of_that_name_as_it_is(text: str) -> None:
    (reading,) = from_text(f"x{{{text}}} 1\n")
    assert reading.series.labels == (("exported_exported_host", "a"), ("exported_host", "b"))
    reading.series.check()


def test_an_exported_label_takes_the_place_of_an_empty_one() -> None:
    (reading,) = from_text('x{host="a",exported_host=""} 1\n')
    assert reading.series.labels == (("exported_host", "a"),)


def test_an_empty_label_is_none() -> None:
    assert from_text('x{a=""} 1\n') == [Reading(Named("x"), 1)]


@pytest.mark.parametrize("text", ["x\n", "x one\n", 'x{a="b} 1\n', 'x{a="b",a="c"} 1\n', "x" * 9000 + " 1\n"])
def test_an_exposition_that_is_malformed_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^it (is no exposition|has a line)") as caught:
        from_text("up 1\n" + text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_an_exposition_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 100000 samples"):
        from_text("x 1\n" * 100_001)


@given(st.text(alphabet='x{}="\\,# 1e+-.\nNaNInf', max_size=80) | st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = from_text(text)
    except ValueError:
        return
    assert all(isinstance(reading.value, float) for reading in found)
