"""What an edge does to the book: an alert begins or ends, and its receivers are to be told."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import attrs

from mbroker.action import Severity

from .alert import Alert, State, alert_id
from .database import Row, Write
from .selector import Endpoint
from .tree import Handling

__all__ = ["ALERT", "Edge", "alert_of", "begin", "cease", "end", "note", "number_of"]

ALERT = "id, enrolment, key, severity, since, until, value, acknowledged"
"""Columns of an alert, for :func:`alert_of`."""


class Edge(NamedTuple):
    """The condition of an enrolment begins, or ceases, to hold."""

    enrolment: int
    key: Endpoint
    firing: bool
    at: int
    """Event time, in milliseconds of the Unix clock."""
    value: float = math.nan
    """What was compared last; NaN if nothing was."""


def number_of(value: float | None) -> float:
    """Return the number that SQLite holds, to which NaN is nothing."""
    return math.nan if value is None else value


def alert_of(row: Row) -> Alert:
    """Return the alert of a row of the columns :data:`ALERT`."""
    name, enrolment, key, severity, since, until, value, acknowledged = row
    endpoint = frozenset((label, text) for label, text in json.loads(key))
    return Alert(name, enrolment, endpoint, Severity(severity), since, until, number_of(value), acknowledged)


def note(write: Write, at: int, who: str, did: str, what: str) -> None:
    """Add a line to the audit trail."""
    write("INSERT INTO audit (at, who, did, what) VALUES (?, ?, ?, ?)", at, who, did, what)


def begin(write: Write, edge: Edge, handling: Handling, receivers: Sequence[str], now: int) -> Alert | None:
    """Note that an alert began and return it; None if that is known."""
    if _firing(write, edge) is not None:
        return None
    name = alert_id(edge.enrolment, edge.key, edge.at)
    found: Any = write(f"SELECT {ALERT} FROM alert WHERE id = ?", name).fetchone()
    if found is None:
        alert = Alert(name, edge.enrolment, edge.key, handling.severity, edge.at, None, edge.value)
        write(
            f"INSERT INTO alert ({ALERT}, expire) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(name, edge.enrolment, _text(edge.key), handling.severity.value, edge.at, None, edge.value, ""),
            handling.expire.milliseconds,
        )
    else:
        newest = "SELECT id, until = since FROM alert WHERE enrolment = ? AND key = ? ORDER BY rowid DESC LIMIT 1"
        if write(newest, edge.enrolment, _text(edge.key)).fetchone() != (name, True):
            return None
        alert = attrs.evolve(
            alert_of(found), until=None, value=edge.value
        )  # it ended and began in one moment: it goes on
        write("UPDATE alert SET until = NULL, ended = NULL, value = ? WHERE id = ?", edge.value, name)
        write("DELETE FROM notice WHERE alert = ? AND state = ? AND told IS NULL", name, State.RESOLVED.value)
    _announce(write, alert, receivers)
    note(write, now, "", "began", name)
    return alert


def cease(write: Write, edge: Edge, receivers: Sequence[str], now: int) -> Alert | None:
    """Note that an alert ended and return it; None if that is known."""
    alert = _firing(write, edge)
    if alert is None:
        return None
    known = "SELECT 1 FROM alert WHERE enrolment = ? AND key = ? AND ended = ?"
    if alert.since != edge.at and write(known, edge.enrolment, _text(edge.key), edge.at).fetchone():
        return None
    return end(write, alert, edge.at, edge.value, receivers, now)


def end(write: Write, alert: Alert, at: int, value: float, receivers: Sequence[str], now: int) -> Alert:
    """Note that *alert* ended, and return it as it is now.

    What silence began by the clock of the broker may end by that of a source, which may be behind.
    """
    ended = attrs.evolve(alert, until=max(at, alert.since), value=value)
    write("UPDATE alert SET until = ?, ended = ?, value = ? WHERE id = ?", ended.until, at, value, alert.id)
    _announce(write, ended, receivers)
    note(write, now, "", "ended", ended.id)
    return ended


def _text(key: Endpoint) -> str:
    return json.dumps(sorted(key), ensure_ascii=False, separators=(",", ":"))


def _firing(write: Write, edge: Edge) -> Alert | None:
    statement = f"SELECT {ALERT} FROM alert WHERE enrolment = ? AND key = ? AND until IS NULL"
    row: Any = write(statement, edge.enrolment, _text(edge.key)).fetchone()
    return None if row is None else alert_of(row)


def _announce(write: Write, alert: Alert, receivers: Sequence[str]) -> None:
    for receiver in receivers:
        write(
            "INSERT INTO notice (alert, state, receiver, until, value, due) VALUES (?, ?, ?, ?, ?, 0)"
            " ON CONFLICT DO NOTHING",
            *(alert.id, alert.state.value, receiver, alert.until, alert.value),
        )
