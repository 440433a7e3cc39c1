"""The book of alerts: who subscribed, what began and ended, who is still to be told, and what was seen around it.

Every method is one transaction: it survives a kill when the method returns, and was not begun when it raises
:exc:`BookError`. Nothing that matters is held in memory: what survives a kill is all there is. What people do waits
for the disk, and survives a power cut too; alerts and what was told do not wait, so that nobody waits for them, and
survive it after :meth:`Book.sync`. A book belongs to one process and, at a time, to one thread, but for that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Self

import attrs

from . import context
from .alert import Alert, Enrolment, Notice, State
from .clock import rfc3339
from .database import BookError, Database, Row
from .edges import ALERT, Edge, Said, alert_of, begin, cease, end, note, number_of
from .language import Subscription
from .sample import Sample
from .schema import SCRIPTS
from .selector import Label, Relation
from .silence import Silence

__all__ = ["Book", "BookError", "Edge", "Entry", "NotThere", "Receipt", "Silence"]

_SIZE = 256 << 20
_AUDITED = 100_000  # lines of the audit trail that are kept
_SILENCED = 7 * 86_400_000  # milliseconds that a silence is remembered after it is over
_BATCH = 256  # alerts that are forgotten at once to make room

_ENROLMENT = "number, owner, subscription, receivers, made"
_OVER = "until IS NOT NULL AND NOT EXISTS (SELECT 1 FROM notice WHERE alert = alert.id AND told IS NULL)"
_UNTOLD = "alert = ? AND state = ? AND receiver = ? AND told IS NULL"
_NOTICE = f"""
    {", ".join(f"alert.{column}" for column in ALERT.split(", "))},
    notice.until, notice.value, notice.receiver, notice.attempts, notice.due"""
_NEWS = f"""
    SELECT notice.number, {_NOTICE} FROM notice INDEXED BY untold JOIN alert ON alert.id = notice.alert
    WHERE receiver = ? AND told IS NULL AND notice.number > ? ORDER BY notice.number LIMIT ?"""
_UNTOLD_OF = f"""
    SELECT {_NOTICE} FROM json_each(?) AS wanted CROSS JOIN notice ON notice.alert = wanted.value
        JOIN alert ON alert.id = notice.alert
    WHERE +receiver = ? AND told IS NULL ORDER BY notice.number"""  # +: found by the alert
_RECEIVERS = """
    WITH RECURSIVE known (name) AS (
        SELECT min(receiver) FROM notice INDEXED BY untold WHERE told IS NULL
        UNION ALL
        SELECT (SELECT min(receiver) FROM notice INDEXED BY untold WHERE told IS NULL AND receiver > name)
        FROM known WHERE name IS NOT NULL)
    SELECT name FROM known WHERE name IS NOT NULL"""  # a step in the index for each of them, however much they wait for


class NotThere(LookupError):
    """What was named is not in the book."""


@attrs.frozen
class Entry:
    """One line of the audit trail."""

    at: int
    who: str
    """Empty when the broker did it."""
    did: str
    """``enrolled withdrew began ended told refused acknowledged silenced unsilenced``."""
    what: str


@attrs.frozen
class Receipt:
    """What became of a notice."""

    receiver: str
    state: State
    told: int | None
    """When it was or, if :attr:`error` says why, was given up; None while it is still to be told."""
    attempts: int
    """How often telling has failed."""
    error: str
    """Why it failed last; empty when it did not, or has not since."""


class Book:
    """An open book, of about *size* bytes at most: what fires and what is still to be told is never forgotten."""

    def __init__(self, path: Path, *, size: int = _SIZE) -> None:
        """Open the book at *path*, making it when missing; raise :exc:`BookError`."""
        self._database = Database(path, SCRIPTS)
        self._size = size
        self._said = Said()
        self.problem = ""
        """Why the book is larger than it may be, in one line; empty when it is not."""

    def close(self) -> None:
        """Let go of the file; idempotent."""
        self._database.close()

    def sync(self) -> None:
        """Return when all that was done before is on disk; another thread may wait for that. Raise :exc:`BookError`."""
        self._database.sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- enrolments

    def enrol(self, owner: str, subscription: Subscription, receivers: Sequence[str], now: int) -> Enrolment:
        """Note a subscription and return it with its number."""
        names = tuple(dict.fromkeys(receivers))
        with self._database.change() as write:
            number = write(
                "INSERT INTO enrolment (owner, subscription, receivers, made) VALUES (?, ?, ?, ?)",
                *(owner, subscription.to_json(), json.dumps(names), now),
            ).lastrowid
            assert number is not None
            note(write, now, owner, "enrolled", f"{number}: {subscription}")
        return Enrolment(number, owner, subscription, names, now)

    def withdraw(self, number: int, by: str, now: int) -> None:
        """End a subscription and its alerts, which is told; raise :exc:`NotThere` if there is none of that number."""
        enrolment = self.enrolment(number)
        with self._database.change() as write:
            statement = "UPDATE enrolment SET withdrawn = ? WHERE number = ? AND withdrawn IS NULL"
            if not write(statement, now, number).rowcount:
                raise NotThere(f"there is no subscription {number}")
            note(write, now, by, "withdrew", str(number))
            firing = f"SELECT {ALERT} FROM alert WHERE enrolment = ? AND until IS NULL"
            for alert in [alert_of(row) for row in write(firing, number)]:
                end(write, alert, now, alert.value, enrolment.receivers, now)

    def enrolment(self, number: int) -> Enrolment:
        """Return a subscription, or one that was withdrawn and has alerts still; raise :exc:`NotThere`."""
        rows = self._database.read(f"SELECT {_ENROLMENT} FROM enrolment WHERE number = ?", number)
        if not rows:
            raise NotThere(f"there is no subscription {number}")
        return _enrolment(rows[0])

    def enrolments(self) -> list[Enrolment]:
        """Return the subscriptions that were not withdrawn, oldest first."""
        rows = self._database.read(f"SELECT {_ENROLMENT} FROM enrolment WHERE withdrawn IS NULL ORDER BY number")
        return [_enrolment(row) for row in rows]

    # -- alerts

    def resume(self, since: int) -> None:
        """Take what was recorded at *since* or later, which is a time as *now* is, for what may be recorded again.

        That is for whoever goes on after a kill, and is not sure to have seen what made those edges: each changes
        nothing when it comes again, in order and up to the last one.
        """
        rows = self._database.read(
            "SELECT enrolment, key, did = 'began',"
            " iif(did = 'began' OR lead(number) OVER (PARTITION BY what ORDER BY number), since, ended)"  # it went on
            " FROM audit JOIN alert ON alert.id = what WHERE at >= ? AND did IN ('began', 'ended') ORDER BY number",
            since,
        )
        self._said = Said(rows)

    def record(self, edges: Iterable[Edge], now: int) -> list[Alert]:
        """Note what began and what ended, with the notices of it; return the alerts that this changed.

        A begin of what fires and an end of what does not change nothing, nor does what :meth:`resume` says. An alert
        that ends and begins again at one event time goes on; edges of subscriptions that were withdrawn are left out.
        """
        changed: dict[str, Alert] = {}
        known: dict[int, Enrolment | None] = {}
        said = self._said.attempt()
        with self._database.change_unsynced() as write:
            for edge in edges:
                if edge.enrolment not in known:
                    statement = f"SELECT {_ENROLMENT} FROM enrolment WHERE number = ? AND withdrawn IS NULL"
                    row = write(statement, edge.enrolment).fetchone()
                    known[edge.enrolment] = None if row is None else _enrolment(row)
                enrolment = known[edge.enrolment]
                if enrolment is None or said.knows(edge):
                    continue
                if edge.firing:
                    alert = begin(write, edge, enrolment.subscription.handling, enrolment.receivers, now)
                else:
                    alert = cease(write, edge, enrolment.receivers, now)
                if alert is not None:
                    changed[alert.id] = alert
                    said.forget(edge)
        self._said.become(said)
        return list(changed.values())

    def alerts(
        self, state: State | None = None, enrolment: int | None = None, since: int | None = None, limit: int = 1000
    ) -> list[Alert]:
        """Return alerts, the newest first: those in *state*, of one *enrolment*, that began at *since* or later."""
        wanted = {"enrolment = ?": enrolment, "since >= ?": since}
        conditions = [condition for condition, value in wanted.items() if value is not None]
        conditions += [] if state is None else [f"until IS {'NULL' if state is State.FIRING else 'NOT NULL'}"]
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        values = [value for value in wanted.values() if value is not None]
        statement = f"SELECT {ALERT} FROM alert {where} ORDER BY since DESC, id LIMIT ?"
        return [alert_of(row) for row in self._database.read(statement, *values, limit)]

    def alert(self, name: str) -> Alert:
        """Return the alert of that id; raise :exc:`NotThere`."""
        rows = self._database.read(f"SELECT {ALERT} FROM alert WHERE id = ?", name)
        if not rows:
            raise NotThere(f"there is no alert {name:.40}")
        return alert_of(rows[0])

    def alerts_named(self, beginning: str, limit: int = 10) -> list[Alert]:
        """Return the alerts whose ids begin so, those that fire and the newest first."""
        order = "ORDER BY until IS NOT NULL, since DESC LIMIT ?2"
        statement = f"SELECT {ALERT} FROM alert WHERE id BETWEEN ?1 AND ?1 || 'g' {order}"
        return [alert_of(row) for row in self._database.read(statement, beginning, limit)]

    def acknowledge(self, name: str, by: str, now: int) -> Alert:
        """Note that somebody cares and return the alert; the first who does is remembered. Raise :exc:`NotThere`."""
        with self._database.change() as write:
            if write("UPDATE alert SET acknowledged = ? WHERE id = ? AND acknowledged = ''", by, name).rowcount:
                note(write, now, by, "acknowledged", name)
        return self.alert(name)

    # -- what is to be told

    def receivers(self) -> list[str]:
        """Return the names of those who are to be told something."""
        return [name for (name,) in self._database.read(_RECEIVERS)]

    def news(self, receiver: str, after: int = 0, limit: int = 1000) -> list[tuple[int, Notice]]:
        """Return what *receiver* is to be told, oldest first: the first *limit* whose numbers are higher than *after*.

        What is noted later has a higher number; an end has a higher one than its begin.
        """
        return [(row[0], _notice(row[1:])) for row in self._database.read(_NEWS, receiver, after, limit)]

    def untold(self, receiver: str, alerts: Iterable[str]) -> list[Notice]:
        """Return what *receiver* is still to be told of *alerts*, given by their ids, as they are now; oldest first."""
        rows = self._database.read(_UNTOLD_OF, json.dumps(list(alerts)), receiver)
        return [_notice(row) for row in rows]

    def told(self, notices: Iterable[Notice], now: int) -> None:
        """Note that they were told: they are not among :meth:`news` again."""
        self._settle(notices, now, "told", "")

    def refuse(self, notices: Iterable[Notice], now: int, error: str) -> None:
        """Note that they will never be told, and why: they are not among :meth:`news` again either."""
        self._settle(notices, now, "refused", error)

    def _settle(self, notices: Iterable[Notice], now: int, did: str, error: str) -> None:
        statement = f"UPDATE notice SET told = ?, error = ? WHERE {_UNTOLD}"
        with self._database.change_unsynced() as write:
            for notice in notices:
                name, state, receiver = notice.id
                if write(statement, now, error, name, state.value, receiver).rowcount:
                    why = f": {error}" if error else ""
                    note(write, now, "", did, f"{receiver}: {name} {state.value}{why}")

    def postpone(self, notice: Notice, due: int, error: str = "") -> None:
        """Do not try it again before *due*; *error*, in one line, when trying has failed."""
        name, state, receiver = notice.id
        with self._database.change_unsynced() as write:
            statement = f"UPDATE notice SET due = ?, error = ?, attempts = attempts + ? WHERE {_UNTOLD}"
            write(statement, due, error, bool(error), name, state.value, receiver)

    def deliveries(self, name: str) -> list[Receipt]:
        """Return what became of the notices of an alert, oldest first."""
        columns = "receiver, state, told, attempts, error"
        rows = self._database.read(f"SELECT {columns} FROM notice WHERE alert = ? ORDER BY number", name)
        return [Receipt(receiver, State(state), *rest) for receiver, state, *rest in rows]

    # -- silences

    def silence(self, labels: Sequence[Label], since: int, until: int, by: str, why: str, now: int) -> Silence:
        """Note a silence and return it; raise ValueError if it has no labels or is over before it begins."""
        if until <= max(since, now):
            raise ValueError("a silence must end after it begins, and after now")
        silence = Silence(0, tuple(labels), since, until, by, why)
        triples = [[label.name, label.relation.value, label.value] for label in labels]
        with self._database.change() as write:
            number = write(
                "INSERT INTO silence (labels, since, until, owner, why) VALUES (?, ?, ?, ?, ?)",
                *(json.dumps(triples), since, until, by, why),
            ).lastrowid
            assert number is not None
            said = ", ".join(map("".join, triples))
            note(write, now, by, "silenced", f"{number}: {said} until {rfc3339(until)}: {why}")
        return attrs.evolve(silence, number=number)

    def silences(self, now: int) -> list[Silence]:
        """Return the silences that are not over, oldest first; some may not have begun."""
        rows = self._database.read(
            "SELECT number, labels, since, until, owner, why FROM silence WHERE until > ? ORDER BY number", now
        )
        return [
            Silence(number, tuple(Label(name, Relation(sign), text) for name, sign, text in json.loads(said)), *rest)
            for number, said, *rest in rows
        ]

    def unsilence(self, number: int, by: str, now: int) -> None:
        """End a silence now; raise :exc:`NotThere` if there is none of that number, or if it is over."""
        with self._database.change() as write:
            if not write("UPDATE silence SET until = ? WHERE number = ? AND until > ?", now, number, now).rowcount:
                raise NotThere(f"there is no silence {number}, or it is over")
            note(write, now, by, "unsilenced", str(number))

    def audit(self, limit: int = 1000) -> list[Entry]:
        """Return the last lines of the audit trail, the newest first."""
        rows = self._database.read("SELECT at, who, did, what FROM audit ORDER BY number DESC LIMIT ?", limit)
        return [Entry(*row) for row in rows]

    # -- what was seen around an alert

    def keep(self, name: str, state: State, packed: bytes, through: int) -> None:
        """Keep what :func:`.context.packed` made of samples around an alert's begin or end, in place of earlier ones.

        They were seen until the time *through*. Raises :exc:`NotThere` if the alert was forgotten meanwhile.
        """
        with self._database.change_unsynced() as write:
            if write("SELECT 1 FROM alert WHERE id = ?", name).fetchone() is None:
                raise NotThere(f"there is no alert {name:.40}")
            write("INSERT OR REPLACE INTO context VALUES (?, ?, ?, ?)", name, state.value, through, packed)

    def kept(self, name: str) -> dict[State, int]:
        """Return through when the samples around an alert's begin and end were seen, if any were."""
        rows = self._database.read("SELECT state, through FROM context WHERE alert = ?", name)
        return {State(state): through for state, through in rows}

    def context(self, name: str) -> list[Sample]:
        """Return what was kept around an alert, in time order; raise :exc:`NotThere`."""
        self.alert(name)
        rows = self._database.read("SELECT samples FROM context WHERE alert = ? ORDER BY state", name)
        found = {(sample.at, sample.series): sample for (blob,) in rows for sample in context.unpacked(blob)}
        return sorted(found.values(), key=lambda sample: sample.at)

    # -- retention

    def trim(self, now: int) -> int:
        """Forget alerts that ended, with their context, when their time is over, and return how many.

        While the book is too large, the oldest of them go before their time; :attr:`problem` says when not even
        that suffices. Never forgotten is what fires, and what somebody is still to be told.
        """
        with self._database.change_unsynced() as write:
            forgotten = write(f"DELETE FROM alert WHERE until + expire <= ? AND {_OVER}", now).rowcount
            write("DELETE FROM silence WHERE until <= ?", now - _SILENCED)
            write("DELETE FROM audit WHERE number <= (SELECT max(number) FROM audit) - ?", _AUDITED)
        oldest = f"DELETE FROM alert WHERE id IN (SELECT id FROM alert WHERE {_OVER} ORDER BY until LIMIT ?)"
        gone = 1
        while gone and self._database.size > self._size:
            with self._database.change_unsynced() as write:
                gone = write(oldest, _BATCH).rowcount
            forgotten += gone
        with self._database.change_unsynced() as write:
            write(
                "DELETE FROM enrolment WHERE withdrawn IS NOT NULL"
                " AND NOT EXISTS (SELECT 1 FROM alert WHERE enrolment = enrolment.number)"
            )
        self._database.shrink()
        size = self._database.size
        self.problem = (
            ""
            if size <= self._size
            else f"{self._database.path} has {size} bytes, more than {self._size}, of what fires or is still to be "
            "told, which is not forgotten; see to the receivers, or allow it more"
        )
        return forgotten


def _notice(row: Row) -> Notice:
    return Notice(attrs.evolve(alert_of(row[:8]), until=row[8], value=number_of(row[9])), *row[10:])


def _enrolment(row: Row) -> Enrolment:
    number, owner, subscription, receivers, made = row
    return Enrolment(number, owner, _subscription(subscription), tuple(json.loads(receivers)), made)


@lru_cache(maxsize=1024)  # those with alerts of late; to read one takes half as long as to record an alert
def _subscription(text: str) -> Subscription:
    return Subscription.from_json(text)
