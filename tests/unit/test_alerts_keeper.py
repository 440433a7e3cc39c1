"""What is kept around alerts, and what is not."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from mbroker.alerts import Subscription
from mbroker.alerts.alert import Alert, State
from mbroker.alerts.book import Book, BookError, Edge
from mbroker.alerts.history import History
from mbroker.alerts.keeper import AROUND, Keeper
from mbroker.alerts.selector import Endpoint, Series

NOW = 1_700_000_000_000
WEB1, WEB2, HOST = ("domain", "web1"), ("domain", "web2"), ("host", "node1")
SERIES = (
    Series("load", Endpoint({WEB1})),
    Series("memory", Endpoint({WEB1})),
    Series("load", Endpoint({WEB2})),
    Series("domain.cpu", Endpoint({WEB1, HOST})),
    Series("load", Endpoint({HOST})),
    Series("cpu.busy", Endpoint({HOST, ("cpu", "0")})),
)


@attrs.define
class World:
    book: Book
    history: History
    keeper: Keeper = attrs.field(init=False)
    subscription: Subscription | None = None

    def __attrs_post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.keeper = Keeper(self.book, self.history, lambda _: self.subscription)

    def alert(self, text: str, key: Endpoint, at: int = NOW) -> Alert:
        self.subscription = Subscription.parse(text)
        number = self.book.enrol("ann", self.subscription, [], at).number
        (made,) = self.book.record([Edge(number, key, True, at)], at)
        return made

    def measure(self, at: int) -> None:
        """Let every series have a sample at that time."""
        count = len(SERIES)
        self.history.append(array("I", range(count)), array("d", range(count)), array("q", [at] * count))

    def seen(self, alert: Alert) -> set[tuple[Series, int]]:
        return {(sample.series, sample.at - NOW) for sample in self.book.context(alert.id)}

    def work(self, now: int) -> None:
        while (due := self.keeper.due(now)) is not None:
            self.keeper.keep(due, self.keeper.look(due, now), now)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with Book(tmp_path / "book.db") as book, History(tmp_path / "history") as history:
        for number, series in enumerate(SERIES):
            history.name(number, series)
        yield World(book, history)


@pytest.mark.parametrize(
    ("text", "key", "kept"),
    [
        ("load > 1", Endpoint({WEB1}), {0, 1, 3}),
        ("load > 1", Endpoint({HOST}), {4, 5}),
        ("cpu.busy > 1", Endpoint({HOST, ("cpu", "0")}), {4, 5}),
        ("load > 1 keep cpu.busy", Endpoint({WEB2}), {2, 5}),
        ("mean(load) > 1", Endpoint(), {0, 2, 4}),
        ("mean(load) by (domain) > 1", Endpoint({WEB1}), {0, 1, 3}),
    ],
)
def test_what_is_kept_is_the_source_and_what_was_asked_for(
    world: World, text: str, key: Endpoint, kept: set[int]
) -> None:
    world.measure(NOW)
    alert = world.alert(text, key)
    world.keeper.add([alert], NOW)
    world.work(NOW)
    assert world.seen(alert) == {(SERIES[number], 0) for number in kept}


def test_what_was_named_is_kept_first_when_not_all_can_be(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbroker.alerts.context.MOST", 3)
    for at in range(3):
        world.measure(NOW - at)
    alert = world.alert("cpu.busy > 1", Endpoint({HOST, ("cpu", "0")}))
    world.keeper.add([alert], NOW)
    world.work(NOW)
    assert {series.metric for series, _ in world.seen(alert)} == {"cpu.busy"}


def test_ten_minutes_before_and_after_are_kept(world: World) -> None:
    for at in (-AROUND - 1, -AROUND, 0, AROUND, AROUND + 1):
        world.measure(NOW + at)
    alert = world.alert("load > 1", Endpoint({WEB2}))
    world.keeper.add([alert], NOW)
    world.work(NOW)
    assert {at for _, at in world.seen(alert)} == {-AROUND, 0}
    world.work(NOW + AROUND - 1)
    assert {at for _, at in world.seen(alert)} == {-AROUND, 0}
    world.work(NOW + AROUND)
    assert {at for _, at in world.seen(alert)} == {-AROUND, 0, AROUND}
    assert len(world.keeper) == 0


def test_the_surroundings_of_the_end_are_kept_too(world: World) -> None:
    alert = world.alert("load > 1", Endpoint({WEB2}))
    later = NOW + 3 * AROUND
    world.measure(NOW)
    world.measure(later)
    world.keeper.add([alert], NOW)
    (ended,) = world.book.record([Edge(alert.enrolment, alert.key, False, later)], later)
    world.keeper.add([ended], later)
    world.work(later + AROUND)
    assert {at for _, at in world.seen(alert)} == {0, 3 * AROUND}


def test_a_restart_goes_on_where_something_is_lacking(world: World) -> None:
    alert = world.alert("load > 1", Endpoint({WEB2}))
    world.keeper.add([alert], NOW)
    world.work(NOW)
    world.measure(NOW + 1000)
    world.restart()
    world.keeper.recall([alert], NOW + 2000)
    world.work(NOW + AROUND)
    assert {at for _, at in world.seen(alert)} == {1000}
    world.restart()
    world.keeper.recall([alert], NOW + AROUND)
    assert len(world.keeper) == 0


def test_an_alert_that_was_forgotten_meanwhile_is_nobody_s_fault(world: World) -> None:
    gone = Alert("gone", 1, Endpoint({WEB1}), world.alert("load > 1", Endpoint({WEB2})).severity, NOW)
    world.keeper.add([gone], NOW)
    world.work(NOW + AROUND)


def test_a_disk_that_fails_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.measure(NOW)
    alert = world.alert("load > 1", Endpoint({WEB2}))
    world.keeper.add([alert], NOW)
    with monkeypatch.context() as patched:

        def full(*_: object) -> None:
            raise BookError("the disk is full")

        patched.setattr(world.book, "keep", full)
        with pytest.raises(BookError):
            world.work(NOW)
    assert world.keeper.due(NOW) is None
    world.work(NOW + 60_000)
    assert world.book.kept(alert.id) == {State.FIRING: NOW + 60_000}


def test_a_storm_of_alerts_does_not_take_all_memory(world: World) -> None:
    alert = world.alert("load > 1", Endpoint({WEB2}))
    world.keeper.add([attrs.evolve(alert, id=f"{n:05}") for n in range(20_000)], NOW)
    assert len(world.keeper) == 10_000


def storm(world: World, source: tuple[str, str], count: int) -> None:
    alert = attrs.evolve(world.alert("load > 1", Endpoint({WEB2})), key=Endpoint({source}))
    world.keeper.add([attrs.evolve(alert, id=f"{source[1]}-{n:05}") for n in range(count)], NOW)


def test_a_storm_of_one_guest_costs_nobody_else_what_is_kept(world: World) -> None:
    storm(world, WEB1, 20_000)
    storm(world, WEB2, 1)
    assert len(world.keeper) == 10_000
    taken = [due for _ in range(2) if (due := world.keeper.due(NOW)) is not None]
    assert {due.alert.id[:4] for due in taken} == {"web1", "web2"}
    later = [due.alert.id for _ in range(10_000) if (due := world.keeper.due(NOW + AROUND)) is not None]
    assert "web2-00000" in later


def test_what_is_left_out_in_a_storm_is_said_while_it_lasts(world: World) -> None:
    assert world.keeper.problem == ""
    storm(world, WEB1, 5_003)
    storm(world, HOST, 2)
    assert world.keeper.problem == "too many alerts at once: 10 times context is not kept, 10 of them of web1"
    while world.keeper.due(NOW + AROUND) is not None:
        pass
    assert world.keeper.problem == ""
    storm(world, HOST, 1)
    assert world.keeper.problem == ""


def test_alerts_of_nobody_share_by_subscription(world: World) -> None:
    groups = world.alert("mean(load) > 1", Endpoint())
    world.keeper.add([attrs.evolve(groups, id=f"{n:05}") for n in range(20_000)], NOW)
    other = world.alert("mean(memory) > 1", Endpoint())
    world.keeper.add([other], NOW)
    assert [due.alert.enrolment for _ in range(2) if (due := world.keeper.due(NOW))] == [
        groups.enrolment,
        other.enrolment,
    ]
