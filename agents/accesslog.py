"""Response times out of the access logs of web servers.

A format is compiled once into one regular expression that has a single way to match any line: every
field ends where the character begins that follows it in the format. So a client cannot make a line slow
to read, and a field that smuggles in the following one makes the line unreadable instead of wrong.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Protocol, cast

import attrs

__all__ = ["Access", "FormatError", "JsonLines", "Pattern", "Reader", "reader"]

NGINX = (
    '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent '
    '"$http_referer" "$http_user_agent" $request_time'
)
APACHE = '%h %l %u %t "%r" %>s %b "%{Referer}i" "%{User-Agent}i" %D'

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}

_NUMBER = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,9})?")
_LAST_TIME = 1e11  # seconds: the year 5138
_TRIES = r"(?:-|[0-9.]{1,22})(?:(?:, | : )(?:-|[0-9.]{1,22}))*"  # upstreams that were asked in turn


class FormatError(ValueError):
    """A log format that cannot serve: malformed, ambiguous, or too coarse for epochs of 500 ms."""


@attrs.frozen
class Access:
    """One request."""

    seconds: float
    """Response time."""
    finished: float | None = None
    """Unix time of the response's end, None when the log does not say it finely enough."""


class Reader(Protocol):
    """Reads the lines of one format."""

    @property
    def dated(self) -> bool:
        """Whether lines say when they happened, finely enough to read a log after the fact."""
        ...

    def read(self, line: str) -> Access | None:
        """Return the request; None for one without a time to measure, such as a file served from disk.

        Raises ValueError when *line* is not of this format.
        """
        ...


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"not a number: {text[:40]!r}")
    return float(text)


def _bounded(seconds: float) -> float:
    if not seconds < _LAST_TIME:
        raise ValueError("not a time that can be")
    return seconds


def _total(text: str) -> float | None:
    """Return the sum of the times of all tries, None when there was none ("-")."""
    times = [_number(part) for part in re.split(r", | : ", text) if part != "-"]
    return math.fsum(times) if times else None


@attrs.frozen
class _Field:
    """A variable of a format: its name as written there and, when it is a time, its unit."""

    name: str
    pattern: str | None = None  # None: whatever does not hold the character that follows
    unit: float | None = None
    stamp: str = ""  # "begin" or "end": a Unix time in this unit
    coarse: str = ""  # why it cannot serve


_NGINX_FIELDS = {
    "request_time": _Field("request_time", r"[0-9.]{1,22}", 1.0),
    "upstream_response_time": _Field("upstream_response_time", _TRIES, 1.0),
    "msec": _Field("msec", r"[0-9.]{1,22}", 1.0, "end"),
}
_APACHE_UNITS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}


def _nginx_tokens(text: str) -> Iterator[str | _Field]:
    for token in re.finditer(r"\$(?:\{(\w+)\}|(\w+))|([^$]+)|\$", text):
        braced, bare, literal = token.groups()
        if literal is not None:
            yield literal
        elif name := braced or bare:
            yield _NGINX_FIELDS.get(name, _Field(name))
        else:
            raise FormatError("a $ without the name of a variable in the log format")


def _apache_field(argument: str | None, letter: str) -> _Field:
    name = f"%{{{argument}}}{letter}" if argument else f"%{letter}"
    if letter == "D":
        return _Field(name, r"[0-9]{1,12}", 1e-6)
    if letter == "T":
        if argument in {"ms", "us"}:
            return _Field(name, r"[0-9]{1,12}", UNITS[argument])
        return _Field(name, r"[0-9]{1,12}", coarse=f"{name} has a resolution of 1 s; log %D instead")
    if letter == "t":
        edge, _, unit = (argument or "").rpartition(":")
        if unit in _APACHE_UNITS:
            stamp = "end" if edge == "end" else "begin"
            return _Field(name, r"[0-9]{1,18}", _APACHE_UNITS[unit], stamp if unit != "sec" else "")
        if argument is None:
            return _Field(name, r"\[[^\]]*\]")
    return _Field(name)


def _apache_tokens(text: str) -> Iterator[str | _Field]:
    text = text.replace('\\"', '"')  # as written inside the quotes of a LogFormat directive
    directive = r"%[<>!,0-9]*(?:\{([^}]*)\})?(\^[a-zA-Z]{2}|[a-zA-Z])|%(%)|([^%]+)|%"
    for token in re.finditer(directive, text):
        argument, letter, percent, literal = token.groups()
        if literal or percent:
            yield literal or percent
        elif letter:
            yield _apache_field(argument, letter)
        else:
            raise FormatError("a % without a directive in the log format")


@attrs.frozen
class Pattern:
    """Lines of a format with variables, as nginx and Apache have them."""

    _pattern: re.Pattern[str]
    _time: _Field
    _stamp: _Field | None

    @classmethod
    def compile(cls, tokens: Iterator[str | _Field], time_field: str = "") -> Pattern:
        """Build the reader of a format; *time_field* chooses among several response times.

        Raises FormatError when the format has no response time, none that is fine enough, or two
        variables that nothing separates.
        """
        parts = list(tokens)
        fields = [part for part in parts if isinstance(part, _Field)]
        time, stamp = _choose(fields, time_field), next((field for field in fields if field.stamp), None)
        regex, quote = "", False
        for part, following in zip(parts, [*parts[1:], "\n"], strict=True):
            if isinstance(part, str):
                regex, quote = regex + re.escape(part), part.endswith('"')
                continue
            if isinstance(following, _Field):
                raise FormatError(f"nothing separates {part.name} from {following.name} in the log format")
            group = {id(time): "time", id(stamp): "stamp"}.get(id(part))
            pattern = part.pattern or _until(following[0], quoted=quote)
            regex += f"(?P<{group}>{pattern})" if group and f"<{group}>" not in regex else f"(?:{pattern})"
        return cls(re.compile(regex), time, stamp)

    @property
    def dated(self) -> bool:
        """Whether the format has the time of day in milliseconds or finer."""
        return self._stamp is not None

    def read(self, line: str) -> Access | None:
        """See :meth:`Reader.read`."""
        match = self._pattern.fullmatch(line)
        if match is None:
            raise ValueError("the line is not of this format")
        time = _total(match["time"])
        if time is None:
            return None
        seconds = time * (self._time.unit or 1.0)
        if self._stamp is None:
            return Access(_bounded(seconds))
        stamp = _number(match["stamp"]) * (self._stamp.unit or 1.0)
        return Access(_bounded(seconds), _bounded(stamp if self._stamp.stamp == "end" else stamp + seconds))


def _until(following: str, *, quoted: bool) -> str:
    """Return what a field may hold that ends where the character *following* begins."""
    if quoted and following == '"':
        return r'(?:[^"\\]|\\.)*'  # Apache escapes quotes with a backslash, nginx as \x22
    return f"[^{re.escape(following)}]*"


def _choose(fields: list[_Field], wanted: str) -> _Field:
    times = {field.name: field for field in reversed(fields) if field.unit and not field.stamp}
    coarse = [field.coarse for field in fields if field.coarse and wanted in {"", field.name}]
    if wanted in times:
        return times[wanted]
    if wanted:
        reason = coarse[0] if coarse else f"it has {', '.join(times) or 'none'}"
        raise FormatError(f"the log format has no usable response time {wanted}: {reason}")
    if times:
        return times.get("request_time") or next(reversed(times.values()))
    if coarse:
        raise FormatError(f"too coarse for epochs of 500 ms: {coarse[0]}")
    raise FormatError("no response time in the log format: add $request_time (nginx) or %D (Apache)")


@attrs.frozen
class JsonLines:
    """One JSON object a line."""

    time_field: str = "request_time"
    """Name of the response time; dots lead into nested objects."""
    unit: float = 1.0
    """Its unit in seconds."""
    at_field: str = ""
    """Name of the Unix time of the response's end, in seconds; empty when there is none."""

    @property
    def dated(self) -> bool:
        """Whether a name for the time of day was given."""
        return bool(self.at_field)

    def read(self, line: str) -> Access | None:
        """See :meth:`Reader.read`. Numbers may stand in quotes, as nginx writes them."""
        try:
            record: object = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError("the line is not JSON") from None
        seconds = _json_number(_member(record, self.time_field))
        if seconds is None:
            return None
        finished = _json_number(_member(record, self.at_field)) if self.at_field else None
        return Access(_bounded(seconds * self.unit), None if finished is None else _bounded(finished))


def _member(record: object, name: str) -> object:
    for part in name.split("."):
        if not isinstance(record, dict) or part not in record:
            raise ValueError(f"no {name} in the line")
        record = cast("dict[str, object]", record)[part]
    return record


def _json_number(value: object) -> float | None:
    if isinstance(value, str):
        return _total(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e18:
        raise ValueError("not a time")
    return float(value)


def reader(log_format: str, *, time_field: str = "", unit: str = "s", at_field: str = "") -> Reader:
    """Return the reader of ``nginx``, ``apache`` or ``json``, or of a format string of either server.

    ``nginx`` is the combined format with ``$request_time`` at its end, ``apache`` the combined one with
    ``%D``. *time_field* names the response time among several; *unit* (``s``, ``ms``, ``us``) and
    *at_field* are for JSON. Raises FormatError when the format cannot serve.
    """
    named: dict[str, Callable[[], Reader]] = {
        "nginx": lambda: Pattern.compile(_nginx_tokens(NGINX), time_field),
        "apache": lambda: Pattern.compile(_apache_tokens(APACHE), time_field),
        "json": lambda: JsonLines(time_field or "request_time", UNITS[unit], at_field),
    }
    if log_format in named:
        return named[log_format]()
    if "$" in log_format:
        return Pattern.compile(_nginx_tokens(log_format), time_field.lstrip("$"))
    if "%" in log_format:
        return Pattern.compile(_apache_tokens(log_format), time_field)
    raise FormatError(f"unknown log format {log_format!r}: use {', '.join(named)} or the server's format string")
