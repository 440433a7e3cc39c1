"""As many hosts of engines as there is work for, whoever is lost."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest

from mbroker.alerts.engine_host import InProcess, LostError, Report, Tasks
from mbroker.alerts.growth import Growth
from mbroker.alerts.language import Subscription
from mbroker.alerts.selector import Series
from mbroker.alerts.workers import InBroker, Workers

SECOND = 1_000_000_000
LOOK = 10 * SECOND
NOW = 1_700_000_000_000
RULE = Subscription.parse("load > 5").rule
SERIES = [Series("load", frozenset({("host", f"h{n}")})) for n in range(40)]


class Busy(InProcess):
    """Takes as much of a processor as a test says."""

    def __init__(self, plant: Plant) -> None:
        super().__init__()
        self._plant = plant

    def start(self, tasks: Tasks) -> Callable[[], Report]:
        report = super().start(tasks)()
        share, self._plant.share[self] = self._plant.share.get(self, 0.0), 0.0
        return lambda: Report(report.results, report.busy, int(share * LOOK))


class Plant:
    """Workers, and the time."""

    def __init__(self, growth: Growth) -> None:
        self.made: list[Busy] = []
        self.share: dict[Busy, float] = {}
        self.scarce = False
        self.workers = Workers(self._host, growth)
        self.shards = self.workers.fresh(NOW, interval=10_000, longest=100)
        self.rule = self.shards.add(RULE)
        self.numbers = array("I", map(self.shards.number, SERIES))
        self.now = NOW
        self.clock = 7 * SECOND
        self.look()

    def _host(self) -> Busy:
        if self.scarce:
            raise LostError("no process can be had for engines: no room")
        self.made.append(Busy(self))
        return self.made[-1]

    def look(self, *busy: float) -> list[str]:
        """Let ten seconds pass in which hosts were so *busy*."""
        self.clock += LOOK
        self.now += 10_000
        there = [host for host in self.made if host._engines is not None]  # pyright: ignore[reportPrivateUsage]
        self.share = dict(zip(there, busy, strict=False))
        self.match(0.0)
        return self.workers.look(self.clock)

    def match(self, value: float) -> list[bool]:
        """Have each series say *value*; return what begins and ends."""
        self.now += 1
        times = array("q", [self.now] * len(SERIES))
        fired = self.shards.push(self.now, self.numbers, array("d", [value] * len(SERIES)), times)
        return [each.firing for each in fired]


def test_a_host_that_has_too_much_to_do_gets_another_one_and_no_edge_is_missed() -> None:
    plant = Plant(Growth(patience=2, most=2))
    plant.match(9.0)
    assert plant.look(0.95) == []
    plant.match(9.0)
    assert plant.look(0.97) == [
        "host 2 of engines is there, so that alerts have 2; the busiest took 97% of a processor"
    ]
    assert plant.workers.shares == {"host 1": 0.97, "host 2": 0.0}
    assert all(plant.shards.where.values())
    assert plant.shards.firing(plant.rule) == frozenset()
    assert plant.match(9.0) == [True] * len(SERIES)
    assert plant.match(9.0) == []


def test_there_are_no_more_than_the_operator_allows() -> None:
    plant = Plant(Growth(patience=1, most=1))
    assert [plant.look(0.99) for _ in range(4)] == [[]] * 4
    assert plant.workers.shares == {"host 1": 0.99}


def test_the_idlest_host_goes_when_the_rest_can_carry_all() -> None:
    plant = Plant(Growth(patience=1, most=2))
    plant.look(0.95)
    plant.match(9.0)
    plant.look(0.5, 0.1)
    assert plant.look(0.4, 0.1) == [
        "host 2 of engines is there no more, so that alerts have 1; the busiest took 40% of a processor"
    ]
    assert plant.workers.shares == {"host 1": 0.4}
    assert plant.match(9.0) == [True] * len(SERIES)


def test_it_looks_every_ten_seconds() -> None:
    plant = Plant(Growth(patience=1, most=9))
    plant.look(0.95)
    plant.share = dict.fromkeys(plant.made, 0.95)
    plant.match(0.0)
    assert plant.workers.look(plant.clock + LOOK - 1) == []
    assert plant.workers.shares == {"host 1": 0.95, "host 2": 0.0}


def test_a_host_that_is_lost_is_said_so_and_replaced_and_nothing_is_told_twice() -> None:
    plant = Plant(Growth(least=2, most=2))
    assert plant.match(9.0) == [True] * len(SERIES)
    plant.made[0].close()
    assert plant.match(9.0) == []
    plant.clock += LOOK
    assert plant.workers.look(plant.clock) == [
        "host 1 is lost, and its shards go on elsewhere: the engines of this host are gone",
        "host 3 of engines is there, so that alerts have 2; the busiest took 0% of a processor",
    ]
    assert plant.match(0.0) == [False] * len(SERIES)


def test_when_there_is_no_host_to_be_had_the_others_go_on() -> None:
    plant = Plant(Growth(patience=1, most=2))
    plant.scarce = True
    assert plant.look(0.95) == [
        "alerts should have one more host of engines, and have none: no process can be had for engines: no room"
    ]
    assert plant.match(9.0) == [True] * len(SERIES)


def test_what_was_closed_has_no_hosts_and_asks_for_none() -> None:
    plant = Plant(Growth(least=2))
    plant.workers.close()
    plant.workers.close()
    assert plant.workers.look(plant.clock + LOOK) == []
    with pytest.raises(LostError):
        plant.made[1].place(0, b"")


def test_another_one_takes_the_place_of_what_was_made_before() -> None:
    plant = Plant(Growth(least=2))
    saved = plant.shards.save()
    again = plant.workers.load(saved)
    assert (len(plant.made), again.rules) == (4, plant.shards.rules)
    with pytest.raises(LostError):
        plant.made[1].place(0, b"")


def test_one_engine_asks_for_nothing() -> None:
    matching = InBroker()
    engine = matching.fresh(NOW, interval=10_000, longest=100)
    number = engine.add(RULE)
    assert matching.load(engine.save()).rules == {number: RULE}
    assert (matching.look(1), matching.shares) == ([], {})
    matching.close()
