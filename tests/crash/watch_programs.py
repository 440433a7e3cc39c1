"""What whoever subscribes is promised, as a program and its check; and the same with a bug planted."""

from __future__ import annotations

import os
import signal
from array import array
from collections.abc import Sequence
from pathlib import Path

from mbroker.alerts import Subscription
from mbroker.alerts.alert import Alert
from mbroker.alerts.book import Book
from mbroker.alerts.history import History
from mbroker.alerts.intake import Arrived
from mbroker.alerts.selector import Series
from mbroker.alerts.watch import Settings, Watch
from mchannel.samples import Declared, Named, Samples

from .points import Ack, Program

__all__ = ["check", "good", "stores_anyway", "stores_first"]

NOW = 1_700_000_000_000
RULE = Subscription.parse("load > 8")
VALUES = [0.0, 9.0, 9.0, 0.0, 9.0, 0.0]
"""One a second."""
TOLD = [(1, 3), (4, 5)]
"""When the alerts of them begin and end."""


def second(number: int) -> int:
    return NOW + 1000 * number


class _Everything:
    def accepts(self, _: Series) -> bool:
        return True


def live(kind: type[Watch], folder: Path, first: int, clock: int, ack: Ack) -> list[Alert]:
    """Take samples from the one of second *first* on, beginning at second *clock*; be killed when one cannot be noted.

    Returns the alerts that there are when all was taken, and time has passed.
    """
    with Book(folder / "book") as book, History(folder / "history") as history:
        watch = kind(Settings("node1", interval=1000), book, history, second(clock))
        watch.replay(history.read(_Everything(), 0, second(1000)), second(clock))
        if not book.enrolments():
            watch.enrol("ada", RULE, ["mail"], second(clock))
        ack("enrolled")
        watch.declare("web1", Declared(clock, 0, (Named("load"),)), second(clock))
        for number in range(first, len(VALUES)):
            now = second(clock + number)
            sample = array("I", [0]), array("d", [VALUES[number]]), array("q", [second(number)])
            watch.samples("web1", Samples(clock, *sample), now)
            if watch.is_behind:
                os.kill(os.getpid(), signal.SIGKILL)
            watch.tick(now)
            ack(f"took {number}")
        for number in range(5):
            watch.tick(second(clock + len(VALUES) + number))
        return book.alerts()


def program(kind: type[Watch]) -> Program:
    """Return the program in which one publisher sends its samples."""

    def run(folder: Path, ack: Ack) -> None:
        live(kind, folder, 0, 0, ack)

    return run


def check(folder: Path, acked: Sequence[str]) -> None:
    """Let the publisher send again what was not taken, and see that all is told that was to be told, and once."""
    taken = sum(line.startswith("took") for line in acked)
    with Book(folder / "book") as book:
        assert book.enrolments() or "enrolled" not in acked, "the subscription is lost"
    alerts = live(Watch, folder, taken, 10, lambda _: None)
    told = sorted((alert.since, alert.until) for alert in alerts)
    assert told == [(second(begin), second(end)) for begin, end in TOLD], f"told was {told}"


class StoresAnyway(Watch):
    """Puts samples into the history though the book lacks what they made happen."""

    def _take(self, columns: Arrived, now: int) -> list[Alert]:
        changed = super()._take(columns, now)
        if self._waiting:
            self._history.append(columns.numbers, columns.values, columns.times)
        return changed


class StoresFirst(Watch):
    """Puts samples into the history before it notes what they made happen."""

    def _take(self, columns: Arrived, now: int) -> list[Alert]:
        self._history.append(columns.numbers, columns.values, columns.times)
        return super()._take(columns, now)


good, stores_anyway, stores_first = program(Watch), program(StoresAnyway), program(StoresFirst)
