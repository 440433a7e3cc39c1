"""Reading access logs: formats, hostile lines, and files that are rotated under the reader."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mchannel.agents.accesslog import Access, FormatError, reader
from mchannel.agents.tail import LONGEST, Lines, Tail

NGINX = '10.0.0.7 - - [21/Nov/2026:13:00:00 +0000] "GET / HTTP/1.1" 200 612 "-" "curl/7.88.1" 0.004'
APACHE = '10.0.0.7 - bob [21/Nov/2026:13:00:00 +0000] "GET /a\\"b HTTP/1.1" 200 612 "-" "curl/7" 4321'


def test_nginx_gives_the_request_time_in_seconds() -> None:
    assert reader("nginx").read(NGINX) == Access(0.004)


def test_apache_gives_microseconds() -> None:
    access = reader("apache").read(APACHE)
    assert access is not None
    assert access.seconds == pytest.approx(0.004321)


def test_nginx_says_when_a_request_ended() -> None:
    log = reader("$msec ${status} $request_time")
    assert log.dated
    assert log.read("1700000000.123 200 0.050") == Access(0.05, 1700000000.123)


@pytest.mark.parametrize(("edge", "finished"), [("begin:", 1700000001.0), ("end:", 1700000000.5), ("", 1700000001.0)])
def test_apache_says_when_a_request_began_or_ended(edge: str, finished: float) -> None:
    log = reader(f"%{{{edge}usec}}t %D")
    assert log.dated
    access = log.read("1700000000500000 500000")
    assert access is not None
    assert access.finished == pytest.approx(finished, rel=0, abs=1e-6)


@pytest.mark.parametrize("log_format", ["nginx", "apache", "json", "%t %D", "[$time_iso8601] $request_time"])
def test_times_of_day_in_whole_seconds_date_nothing(log_format: str) -> None:
    assert not reader(log_format).dated


@pytest.mark.parametrize(("directive", "seconds"), [("%D", 0.5), ("%{us}T", 0.5), ("%{ms}T", 500.0)])
def test_apache_units(directive: str, seconds: float) -> None:
    access = reader(f"%>s {directive}").read("200 500000")
    assert access is not None
    assert access.seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0.005", 0.005), ("0.005, 0.003", 0.008), ("0.005 : 0.003", 0.008), ("-, 0.003", 0.003)],
)
def test_the_times_of_all_upstreams_that_were_tried_are_added(text: str, seconds: float) -> None:
    log = reader('$status $upstream_response_time "$http_user_agent"')
    assert log.read(f'200 {text} "curl"') == Access(seconds)


def test_a_request_without_upstream_has_no_time() -> None:
    assert reader("$status $upstream_response_time").read("200 -") is None


def test_the_request_time_is_preferred_to_that_of_the_upstream_unless_asked() -> None:
    log_format = "$upstream_response_time $request_time"
    assert reader(log_format).read("0.001 0.002") == Access(0.002)
    assert reader(log_format, time_field="upstream_response_time").read("0.001 0.002") == Access(0.001)


def test_a_log_format_directive_of_apache_may_have_escaped_quotes() -> None:
    access = reader(r"\"%r\" %% %400,501{User-agent}i %^FB %D").read('"GET / HTTP/1.1" % - - 5000')
    assert access == Access(0.005)


@pytest.mark.parametrize("log_format", ["%h %T", "%{s}T %h"])
def test_a_time_in_whole_seconds_is_refused_with_the_reason(log_format: str) -> None:
    with pytest.raises(FormatError, match=r"too coarse for epochs of 500 ms.*resolution of 1 s; log %D instead"):
        reader(log_format)


def test_a_coarse_time_beside_a_fine_one_does_no_harm() -> None:
    assert reader("%T %D").read("0 5000") == Access(0.005)
    with pytest.raises(FormatError, match="resolution of 1 s"):
        reader("%T %D", time_field="%T")


@pytest.mark.parametrize(
    ("log_format", "reason"),
    [
        ("$status $body_bytes_sent", "no response time"),
        ("%h %>s", "no response time"),
        ("$status$request_time", "nothing separates status from request_time"),
        ("%s%D", "nothing separates %s from %D"),
        ("$request_time $", "a \\$ without"),
        ("%D %", "a % without"),
        ("combined", "unknown log format 'combined': use nginx, apache, json or"),
    ],
)
def test_a_format_that_cannot_serve_is_refused_with_the_reason(log_format: str, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        reader(log_format)


def test_an_unknown_time_field_is_refused_with_those_there_are() -> None:
    with pytest.raises(FormatError, match="no usable response time took: it has request_time"):
        reader("nginx", time_field="took")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        NGINX.replace("0.004", "-"),
        NGINX.replace("0.004", "0.004 "),
        NGINX.replace("0.004", "-0.004"),
        NGINX.replace("0.004", "1e3"),
        NGINX.replace("0.004", "nan"),
        NGINX.replace("0.004", "0.0.4"),
        NGINX.replace("0.004", "9" * 12),
    ],
)
def test_a_line_of_another_format_is_a_value_error(line: str) -> None:
    with pytest.raises(ValueError, match="not"):
        reader("nginx").read(line)


def test_a_client_cannot_smuggle_a_response_time_into_its_name() -> None:
    smuggled = NGINX.replace("- - [", '- x [t] "r" 200 1 "-" "-" 9.999 [')
    with pytest.raises(ValueError, match="not of this format"):
        reader("nginx").read(smuggled)


@given(st.text(max_size=40), st.text(max_size=40))
def test_whatever_a_client_sends_is_read_right_or_not_at_all(user: str, agent: str) -> None:
    escaped = re.sub(r'["\\\x00-\x1f\x7f-\U0010ffff]', lambda m: f"\\x{ord(m[0]) & 255:02X}", agent)
    line = NGINX.replace("- -", f"- {user}").replace("curl/7.88.1", escaped)
    try:
        access = reader("nginx").read(line)
    except ValueError:
        return
    assert access == Access(0.004)


@given(st.text())
def test_garbage_raises_nothing_but_value_error(line: str) -> None:
    for log_format in ("nginx", "apache", "json"):
        try:
            reader(log_format).read(line)
        except ValueError:
            continue


@pytest.mark.parametrize("piece", ["a ", '"', '\\"', "0, ", "[", '" "'])
def test_no_line_takes_long_to_refuse(piece: str) -> None:
    # Doubling the choices at each field would never end; the test's own timeout is the judge.
    for log_format in ("nginx", "apache", '$upstream_response_time "$http_a" "$http_b" $request_time'):
        with pytest.raises(ValueError, match="not"):
            reader(log_format).read(piece * (LONGEST // len(piece)))


@pytest.mark.parametrize(
    ("record", "access"),
    [
        ({"request_time": 0.005}, Access(0.005)),
        ({"request_time": "0.005"}, Access(0.005)),
        ({"request_time": "-"}, None),
        ({"request_time": 0.005, "at": 1}, Access(0.005)),
    ],
)
def test_json(record: object, access: Access | None) -> None:
    assert reader("json").read(json.dumps(record)) == access


def test_json_names_units_and_times_are_configurable() -> None:
    log = reader("json", time_field="http.took", unit="ms", at_field="at")
    access = log.read('{"at": 1700000000.25, "http": {"took": 5}}')
    assert log.dated
    assert access == Access(0.005, 1700000000.25)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "5",
        "{",
        "{}",
        '{"request_time": null}',
        '{"request_time": true}',
        '{"request_time": -1}',
        '{"request_time": NaN}',
        '{"request_time": 1e999}',
        '{"request_time": "fast"}',
        "[" * 60000,
        '{"request_time": ' + "9" * 5000 + "}",
    ],
)
def test_a_json_line_without_a_time_is_a_value_error(line: str) -> None:
    with pytest.raises(ValueError, match="no"):
        reader("json").read(line)


def test_lines_are_cut_wherever_the_bytes_are_cut() -> None:
    data, lines = "one\r\ntwö\n\nthree".encode(), Lines()
    cut = [line for byte in data for line in lines.feed(bytes([byte]))]
    assert [*cut, *lines.end()] == ["one", "twö", "", "three"]


def test_a_line_is_as_long_as_it_may_be_and_no_longer_also_when_it_comes_whole() -> None:
    data = b"x" * LONGEST + b"\n" + b"y" * (LONGEST + 1) + b"\nz\n"
    assert list(Lines().feed(data)) == ["x" * LONGEST, None, "z"]


@given(st.lists(st.integers(1, 3 * LONGEST), max_size=4), st.integers(1000, 100_000))
def test_a_line_that_is_too_long_is_one_none_and_memory_is_bounded(lengths: list[int], step: int) -> None:
    data, lines, seen = b"".join(b"x" * length + b"\n" for length in lengths), Lines(), list[int]()
    for start in range(0, len(data), step):
        seen += [len(line) if line is not None else -1 for line in lines.feed(data[start : start + step])]
        assert len(lines._partial) <= LONGEST  # pyright: ignore[reportPrivateUsage]
    assert seen == [length if length <= LONGEST else -1 for length in lengths]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "access.log"
    path.write_text("old\n")
    return path


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_reading_begins_at_the_end(log: Path) -> None:
    with Tail(log) as tail:
        append(log, "new\n")
        assert list(tail.read()) == ["new"]


def test_reading_begins_at_the_start_when_asked(log: Path) -> None:
    with Tail(log, from_start=True) as tail:
        assert list(tail.read()) == ["old"]


def test_a_line_is_read_when_it_is_whole(log: Path) -> None:
    with Tail(log) as tail:
        append(log, "half")
        assert list(tail.read()) == []
        append(log, " and half\n")
        assert list(tail.read()) == ["half and half"]


def test_a_renamed_log_is_read_to_its_end_and_then_the_new_one(log: Path) -> None:
    with Tail(log) as tail:
        log.rename(log.with_suffix(".1"))
        append(log.with_suffix(".1"), "last of the old\nwithout end")
        log.write_text("first of the new\n")
        assert list(tail.read()) == ["last of the old", "without end", "first of the new"]


def test_between_renaming_and_reopening_the_old_log_is_followed(log: Path) -> None:
    with Tail(log) as tail:
        log.rename(log.with_suffix(".1"))
        append(log.with_suffix(".1"), "one\n")
        assert list(tail.read()) == ["one"]
        append(log.with_suffix(".1"), "two\n")
        log.write_text("three\n")
        assert list(tail.read()) == ["two", "three"]


def test_what_is_written_while_the_new_log_is_found_is_read_before_it(log: Path) -> None:
    class Late(Tail):
        def _successor(self) -> BinaryIO | None:
            if (successor := super()._successor()) is not None:
                append(log.with_suffix(".1"), "last of the old\n")
            return successor

    with Late(log) as tail:
        log.rename(log.with_suffix(".1"))
        log.write_text("first of the new\n")
        assert list(tail.read()) == ["last of the old", "first of the new"]


def test_a_truncated_log_is_read_from_its_new_start(log: Path) -> None:
    with Tail(log) as tail:
        append(log, "half")
        assert list(tail.read()) == []
        os.truncate(log, 0)
        append(log, "new\n")
        assert list(tail.read()) == ["new"]


def test_the_rest_includes_a_line_without_end(log: Path) -> None:
    with Tail(log) as tail:
        append(log, "one\ntwo")
        assert list(tail.rest()) == ["one", "two"]


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # opening it would hang
    for name in (".", "fifo"):
        with pytest.raises(ValueError, match="not a regular file"):
            Tail(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Tail(tmp_path / "missing")
