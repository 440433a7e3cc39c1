"""Running a policy over a recorded trace: the same object, the same broker, no host.

A trace is a text file with one event a line, as a JSON object with the names of
:class:`mchannel.Event`: ``{"topic": "cpu.usage", "source": "web1", "value": 0.4, "at": 1700000000.5,
"detail": {"epoch": 3400000000}}``. All but ``topic`` may be left out. Empty lines are skipped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import cast

import attrs

from mbroker.action import Action
from mbroker.broker import Broker, Hosted
from mbroker.host import Host
from mbroker.policy import Policy
from mchannel.event import Event, Scalar

__all__ = ["read_trace", "replay", "trace_line"]

_LONGEST = 1 << 20  # characters in a line: as much as a frame may hold
_FIELDS = frozenset(field.name for field in attrs.fields(Event))


def replay(policy: Policy | Hosted, host: Host, events: Iterable[Event]) -> Iterator[tuple[Event, list[Action]]]:
    """Yield each event with the actions that a broker with *policy* would have taken.

    Steps are resolved, clamped and budgeted as they are live; *host* is the picture at the start and
    time is that of the events. A decision may take as long as it likes. The trace is open-ended: what it
    recorded does not change with what the policy decides.
    """
    hosted = policy if isinstance(policy, Hosted) else Hosted(policy, deadline=math.inf)
    broker = Broker(host, [hosted])
    for event in events:
        yield event, broker.handle(event)


def read_trace(lines: Iterable[str]) -> Iterator[Event]:
    """Yield the events of a trace.

    Raises ValueError, with the number of the line and what is wrong there, at the first bad line.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _event(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None


def trace_line(event: Event) -> str:
    """Return *event* as a line of a trace, without its end. Raises ValueError for bytes and for NaN."""
    try:
        return json.dumps(attrs.asdict(event, recurse=False), allow_nan=False)
    except TypeError:
        raise ValueError("a trace holds text and numbers, no bytes") from None


def _event(line: str) -> Event:
    if len(line) > _LONGEST:
        raise ValueError(f"longer than {_LONGEST} characters")
    try:
        record: object = json.loads(line, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON that an event can be: nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError('not an event: write {"topic": ...}')
    fields = cast("dict[str, object]", record)
    if unknown := sorted(fields.keys() - _FIELDS):
        raise ValueError(f"an event has no {unknown[0]!r}")
    topic, source, at = fields.get("topic"), fields.get("source", ""), fields.get("at", 0.0)
    detail = fields.get("detail", {})
    if not isinstance(topic, str) or not topic:
        raise ValueError("topic must be a text, such as cpu.usage")
    if not isinstance(source, str):
        raise ValueError("source must be a text")
    if isinstance(at, bool) or not isinstance(at, int | float) or not abs(at) < 1e12:
        raise ValueError("at must be Unix seconds")
    if not isinstance(detail, dict):
        raise ValueError("detail must be an object")
    members = {
        name: tuple(_scalar(name, item) for item in cast("list[object]", value))
        if isinstance(value, list)
        else _scalar(name, value)
        for name, value in cast("dict[str, object]", detail).items()
    }
    return Event(topic, source, _scalar("value", fields.get("value")), float(at), members)


def _scalar(name: str, value: object) -> Scalar:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError(f"{name} must be one number or word")


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")
