"""What an edge does to the book: an alert begins or ends, and its receivers are to be told."""

from __future__ import annotations

import json
import math
from collections import ChainMap
from collections.abc import Iterable, MutableMapping, Sequence
from typing import Any, NamedTuple

import attrs

from mbroker.action import Severity

from .alert import Alert, State, alert_id
from .database import Row, Write
from .selector import Endpoint
from .tree import Handling

__all__ = ["ALERT", "Edge", "Said", "alert_of", "begin", "cease", "end", "note", "number_of"]

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


class Said:
    """What a predecessor noted last, and may not have seen the last of: a kill lets it be said again.

    Only that is known when it comes: of one place there may be several ends, or begins, of one event time.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        """*rows* are what was noted, in order: enrolment, key, whether it began, and event time."""
        self._of: MutableMapping[tuple[int, str], tuple[tuple[bool, int], ...]] = {}
        for enrolment, key, firing, at in rows:
            self._of[enrolment, key] = (*self._of.get((enrolment, key), ()), (bool(firing), at))

    def attempt(self) -> Said:
        """Return a copy to try something with, which is for :meth:`become`."""
        made = Said()
        if self._of:
            made._of = ChainMap({}, self._of)
        return made

    def become(self, tried: Said) -> None:
        """Be as what :meth:`attempt` returned is now."""
        if isinstance(tried._of, ChainMap):
            self._of.update(tried._of.maps[0])

    def knows(self, edge: Edge) -> bool:
        """Tell whether *edge* is said again; what came before it will not be any more."""
        if not self._of:
            return False
        place = edge.enrolment, _text(edge.key)
        said, this = self._of.get(place, ()), (edge.firing, edge.at)
        if this not in said:
            return False
        self._of[place] = said[said.index(this) + 1 :]
        return True

    def forget(self, edge: Edge) -> None:
        """Take note that *edge* is new: at its place nothing is said again any more."""
        if self._of:
            self._of[edge.enrolment, _text(edge.key)] = ()


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
    """Note that an alert began and return it; None if it goes on already."""
    if _firing(write, edge) is not None:
        return None
    name, found = _names(write, edge)
    if found is None:
        alert = Alert(name, edge.enrolment, edge.key, handling.severity, edge.at, None, edge.value)
        write(
            f"INSERT INTO alert ({ALERT}, expire) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(name, edge.enrolment, _text(edge.key), handling.severity.value, edge.at, None, edge.value, ""),
            handling.expire.milliseconds,
        )
    else:
        alert = attrs.evolve(found, until=None, value=edge.value)
        write("UPDATE alert SET until = NULL, ended = NULL, value = ? WHERE id = ?", edge.value, name)
        write("DELETE FROM notice WHERE alert = ? AND state = ? AND told IS NULL", name, State.RESOLVED.value)
    _announce(write, alert, receivers)
    note(write, now, "", "began", name)
    return alert


def cease(write: Write, edge: Edge, receivers: Sequence[str], now: int) -> Alert | None:
    """Note that an alert ended and return it; None if there is none."""
    alert = _firing(write, edge)
    return None if alert is None else end(write, alert, edge.at, edge.value, receivers, now)


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


def _names(write: Write, edge: Edge) -> tuple[str, Alert | None]:
    """Return what to call the alert that begins, and the alert of that name if it ended in this moment and goes on."""
    before = 0
    while True:
        name = alert_id(edge.enrolment, edge.key, edge.at, before)
        found: Any = write(f"SELECT {ALERT} FROM alert WHERE id = ?", name).fetchone()
        if found is None:
            return name, None
        newest = "SELECT id, until = since FROM alert WHERE enrolment = ? AND key = ? ORDER BY rowid DESC LIMIT 1"
        if write(newest, edge.enrolment, _text(edge.key)).fetchone() == (name, True):
            return name, alert_of(found)
        before += 1


def _announce(write: Write, alert: Alert, receivers: Sequence[str]) -> None:
    for receiver in receivers:
        write(
            "INSERT INTO notice (alert, state, receiver, until, value, due) VALUES (?, ?, ?, ?, ?, 0)"
            " ON CONFLICT DO NOTHING",
            *(alert.id, alert.state.value, receiver, alert.until, alert.value),
        )
