"""What the book promises, as a program and its check; and the same with bugs planted."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

from mbroker.alerts import Subscription, context
from mbroker.alerts.alert import Alert, Notice, State
from mbroker.alerts.book import Book, Edge
from mbroker.alerts.database import Database, Write
from mbroker.alerts.segment import sync_folder
from mbroker.alerts.selector import Series

from .points import Ack, Program

__all__ = ["BUGS", "acknowledges_unsynced", "check", "check_synced", "good", "never_syncs", "program"]

RULE = Subscription.parse("load > 8")
RECEIVERS = ("mail", "pager")
KEYS = [frozenset({("host", f"web{number}")}) for number in range(2)]
DURABLY = "durably "
"""Begins what is promised for a power cut too, with all that was promised before it."""
EDGES = [Edge(1, key, firing, 100 * turn, 9.0) for turn in range(2) for firing in (True, False) for key in KEYS]


def send(folder: Path, notices: Iterable[Notice]) -> None:
    """Be the receivers, on whom the power is not cut: they write down what they hear, and know it."""
    fd = os.open(folder / "heard", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for notice in notices:
        os.write(fd, f"\n{said(notice)}\n".encode())  # what a crash left unfinished is no line
    os.fsync(fd)
    os.close(fd)
    sync_folder(folder)


def notices(book: Book) -> list[Notice]:
    """Return what the receivers are to be told."""
    return [notice for name in book.receivers() for _, notice in book.news(name)]


def said(notice: Notice) -> str:
    """Return the notice's id in one word."""
    name, state, receiver = notice.id
    return f"{name}/{state.value}/{receiver}"


def program(kind: type[Book], deliver: Callable[[Book, Path, Ack], None] | None = None) -> Program:
    """Return the program in which alerts begin and end and are told, with one restart between."""

    def run(folder: Path, ack: Ack) -> None:
        for life in range(2):
            book = kind(folder / "book")
            book.resume(0)
            if not book.enrolments():
                book.enrol("ada", RULE, RECEIVERS, 0)
                ack(f"{DURABLY}enrolled")
            for number in range(4 * life, 4 * life + 4):
                (alert,) = book.record([EDGES[number]], number)
                ack(f"recorded {number}")
                if number % 2:
                    seen = (Series("load", alert.key), array("q", [number]), array("d", [9.0]))
                    book.keep(alert.id, alert.state, context.packed([seen]), number)
                    ack(f"kept {alert.id}")
                    book.sync()
                    ack(f"{DURABLY}synced")
                else:
                    (deliver or _deliver)(book, folder, ack)
                if number % 4 == 0:
                    book.acknowledge(alert.id, "ada", number)
                    ack(f"{DURABLY}acknowledged {alert.id}")
            book.trim(100)
            book.close()

    return run


def _deliver(book: Book, folder: Path, ack: Ack) -> None:
    waiting = notices(book)
    send(folder, waiting)
    book.told(waiting, 1000)
    for notice in waiting:
        ack(f"told {said(notice)}")


def check(folder: Path, acked: Sequence[str]) -> None:
    """See that nothing acknowledged is lost, that nothing is half there, and that everybody hears of everything."""
    promised = {verb: list[str]() for verb in ("enrolled", "recorded", "told", "kept", "acknowledged", "synced")}
    for verb, *what in (line.removeprefix(DURABLY).split() for line in acked):
        promised[verb] += what or [verb]
    with Book(folder / "book") as book:
        if promised["enrolled"]:
            assert [enrolment.subscription for enrolment in book.enrolments()] == [RULE]
        elif not book.enrolments():
            book.enrol("ada", RULE, RECEIVERS, 0)
        shapes = [shape(EDGES[:count]) for count in range(len(EDGES) + 1)]
        done = shapes.index(shape_of(book.alerts()))  # it is as after so many edges
        assert done >= len(promised["recorded"]), f"{len(promised['recorded'])} edges were promised, {done} are there"
        waiting = notices(book)
        assert not {said(notice) for notice in waiting} & set(promised["told"]), "told again"
        assert all(book.context(name) for name in promised["kept"]), "what was kept is lost"
        assert all(book.alert(name).acknowledged == "ada" for name in promised["acknowledged"]), "nobody cares"
        book.resume(0)
        book.record(EDGES, 2000)  # whoever saw them says all of them again
        assert shape_of(book.alerts()) == shapes[-1], "edges that were said again changed something"
        send(folder, notices(book))
        heard = (folder / "heard").read_text().split()
        expected = {
            f"{alert.id}/{state.value}/{receiver}"
            for alert in book.alerts()
            for state in State
            for receiver in RECEIVERS
        }
        assert expected <= set(heard), f"not heard: {expected - set(heard)}"
        for name in promised["told"]:
            assert heard.count(name) == 1, f"{name} was told again"


def check_synced(folder: Path, acked: Sequence[str]) -> None:
    """See that a power cut lost nothing that people did, and nothing before that or before a sync."""
    durable = [number for number, line in enumerate(acked, 1) if line.startswith(DURABLY)]
    check(folder, acked[: max(durable, default=0)])


Shape = frozenset[tuple[str, int, int | None]]


def shape_of(alerts: Iterable[Alert]) -> Shape:
    """Return begins and ends of alerts."""
    return frozenset((dict(alert.key)["host"], alert.since, alert.until) for alert in alerts)


def shape(edges: Iterable[Edge]) -> Shape:
    """Return what the alerts are after *edges*, by a model that is too plain to be wrong."""
    begun: dict[tuple[str, int], int | None] = {}
    for edge in edges:
        host = dict(edge.key)["host"]
        if edge.firing:
            begun[host, edge.at] = None
        else:
            begun[next(name for name, until in begun.items() if name[0] == host and until is None)] = edge.at
    return frozenset((host, since, until) for (host, since), until in begun.items())


class TellsLater(Book):
    """Notes alerts and their notices one after the other."""

    def record(self, edges: Iterable[Edge], now: int) -> list[Alert]:
        changed = super().record(edges, now)
        with self._database.change_unsynced() as write:
            names = [alert.id for alert in changed]
            states = [alert.state.value for alert in changed]
            rows = [
                row
                for name, state in zip(names, states, strict=True)
                for row in write("SELECT * FROM notice WHERE alert = ? AND state = ?", name, state)
            ]
            for name, state in zip(names, states, strict=True):
                write("DELETE FROM notice WHERE alert = ? AND state = ?", name, state)
        with self._database.change_unsynced() as write:
            for row in rows:
                write(f"INSERT INTO notice VALUES ({', '.join('?' * len(row))})", *row)
        return changed


class CommitsLater(Book):
    """Leaves the last transaction open, for the next one to end it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._database.__class__ = _Lazy


class _Lazy(Database):
    @contextmanager
    def change_unsynced(self) -> Generator[Write]:
        if self._connection.in_transaction:
            self._connection.execute("COMMIT")
        self._connection.execute("BEGIN IMMEDIATE")
        yield self._write

    @contextmanager
    def change(self) -> Generator[Write]:
        if self._connection.in_transaction:
            self._connection.execute("COMMIT")
        with super().change() as write:
            yield write

    def close(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("COMMIT")
        super().close()


class NeverSyncs(Book):
    """Does not wait for the disk when it is asked to."""

    def sync(self) -> None:
        pass


class AcknowledgesUnsynced(Book):
    """Does not wait for the disk when somebody acknowledges."""

    def acknowledge(self, name: str, by: str, now: int) -> Alert:
        with self._database.change_unsynced() as write:
            write("UPDATE alert SET acknowledged = ? WHERE id = ?", by, name)
        return self.alert(name)


def _marks_first(book: Book, folder: Path, ack: Ack) -> None:
    """Tell people after noting that they were told."""
    waiting = notices(book)
    book.told(waiting, 1000)
    send(folder, waiting)
    for notice in waiting:
        ack(f"told {said(notice)}")


BUGS = {
    "tells later": program(TellsLater),
    "commits later": program(CommitsLater),
    "marks first": program(Book, _marks_first),
}
good = program(Book)
never_syncs, acknowledges_unsynced = program(NeverSyncs), program(AcknowledgesUnsynced)
