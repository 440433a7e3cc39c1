"""Nothing that began is lost and nothing waits for ever, whatever fails and whoever is late."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from mbroker.alerts.book import Book, BookError
from mbroker.alerts.engine import Engine
from mbroker.alerts.sample import Sample
from mbroker.alerts.selector import Series
from mbroker.alerts.watch import HEARTBEAT, Settings
from mbroker.alerts.workers import InBroker
from mchannel.samples import Declared, Named
from tests.unit.test_alerts_watch import (
    NAMES,
    NOW,
    SETTINGS,
    SETTLED,
    WEB1,
    Failing,
    World,
    sample,
    seconds,
    shards,
)

HOUR = 3_600_000
LATE = attrs.evolve(SETTINGS, late=2000)


@pytest.fixture(params=[InBroker, shards(2)], ids=["engine", "shards"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    with Book(tmp_path / "book.db") as book:
        yield World(book, make=request.param)


def pass_time(world: World, hours: float) -> None:
    """Let the clock tick now and then."""
    for _ in range(round(hours * 6)):
        world.wait(HOUR // 6)


def send(world: World, second: int, value: float, source: str = "web1") -> None:
    """Let *source* publish a sample of *load* of a time that may be over, in a run of its own for each life."""
    world.watch.declare(source, Declared(world.lives, 0, tuple(map(Named, NAMES))), world.now)
    world.watch.samples(source, sample(world.lives, 0, value, NOW + 1000 * second), world.now)


def is_in_history(world: World, metric: str) -> list[int]:
    """Return the seconds of the samples that the history has of a metric."""
    return [seconds(each.at) for each in world.history.samples if each.series.metric == metric]


# -- rules that count silence in days


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("absent(load[2d])", 48),
        ("load > 100 nodata fire for 2d", 48),
        ("mean(load) > 1 nodata fire for 2d", 48),
        ("max(load[3d]) > 100 nodata fire", 72),
    ],
)
def test_a_rule_sees_days_of_silence_to_their_end(world: World, text: str, hours: int) -> None:
    world.subscribe(text)
    world.say("load", 0)
    pass_time(world, hours - 1)
    assert world.told == []
    pass_time(world, 2)
    ((_, _, begin, end),) = world.told
    assert (begin // 3600, end) == (hours, None)
    pass_time(world, 30)
    ((_, _, _, end),) = world.told
    assert end is None


def test_days_of_silence_begin_anew_with_each_sample(world: World) -> None:
    world.subscribe("absent(load[2d])")
    world.say("load", 0)
    pass_time(world, 26)
    world.say("load", 0)
    spoken = seconds(world.now)
    pass_time(world, 50)
    assert [begin - spoken for _, _, begin, _ in world.told] == [48 * 3600]


@pytest.mark.parametrize("restarts", [False, True])
def test_who_publishes_twice_a_day_is_silent_when_three_samples_are_missing(world: World, restarts: bool) -> None:
    world.subscribe("load > 100 nodata fire")
    world.now += 1000
    world.watch.declare("web1", Declared(1, 0, (Named("load"),), 12 * HOUR), world.now)
    world.watch.samples("web1", sample(1, 0, 0.0, world.now), world.now)
    pass_time(world, 1)
    if restarts:
        world.image = world.watch.snapshot(world.now)
        world.start()
    pass_time(world, 34)
    assert world.told == []
    pass_time(world, 2)
    ((_, _, begin, _),) = world.told
    assert begin // 3600 == 36


def test_only_what_a_rule_waits_for_stays_longer_and_only_while_it_does(world: World) -> None:
    number = world.subscribe("absent(load[7d])")
    world.say("load", 0)
    pass_time(world, 26)
    assert world.watch.places.metrics == {HEARTBEAT, "load"}
    world.watch.withdraw(number, "ann", world.now)
    pass_time(world, 1)
    assert world.watch.places.metrics == {HEARTBEAT}


# -- a full disk, and a kill


@pytest.fixture
def full(world: World) -> Failing:
    """The book of the world, which cannot be written for as long as it says."""
    failing = Failing(world.book)
    world.book = failing  # type: ignore[assignment]
    world.start()
    return failing


def test_what_a_full_disk_kept_out_of_the_book_is_told_when_its_publisher_says_it_again(
    world: World, full: Failing
) -> None:
    world.subscribe("load > 1")
    world.wait(SETTLED)
    world.image = world.watch.snapshot(world.now)
    full.full = True
    world.say("load", 2)
    begun = seconds(world.now)
    world.wait(1000)
    full.full = False
    world.start()
    send(world, begun, 2.0)
    world.say("load", 0)
    world.wait(SETTLED)
    assert world.told == [(1, WEB1, begun, begun + 2)]
    assert is_in_history(world, "load") == [begun, begun + 2]


def test_samples_are_stored_once_the_book_has_what_they_made_happen(world: World, full: Failing) -> None:
    world.subscribe("load > 1")
    full.full = True
    world.say("load", 2)
    world.say("cpu.busy", 1)
    world.wait(1000)
    assert world.history.samples == []
    full.full = False
    world.wait(1000)
    assert world.told == [(1, WEB1, 1, None)]
    assert [is_in_history(world, each) for each in ("load", "cpu.busy", HEARTBEAT)] == [[1], [2], [3, 4]]
    world.say("load", 3)
    assert is_in_history(world, "load") == [1, 5]


def test_samples_above_the_limit_are_not_stored(world: World, full: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbroker.alerts.watch._MOST_UNSTORED", 2)
    world.subscribe("load > 1")
    full.full = True
    for _ in range(3):
        world.say("load", 2)
    full.full = False
    world.wait(1000)
    assert (is_in_history(world, "load"), is_in_history(world, HEARTBEAT)) == ([1, 2], [4])


def test_a_subscription_that_cannot_be_noted_is_not_followed(
    world: World, full: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise BookError("the disk is full; make room")

    before = world.watch.counts
    monkeypatch.setattr(full, "enrol", refuse, raising=False)
    with pytest.raises(BookError):
        world.subscribe("load > 1")
    assert world.watch.counts == before


# -- kills


@pytest.mark.parametrize("kept", [True, False], ids=["with snapshot", "without snapshot"])
def test_what_the_book_has_and_the_history_lacks_is_not_told_again(world: World, kept: bool) -> None:
    world.subscribe("load > 1")
    world.wait(SETTLED + 999)
    world.image = world.watch.snapshot(world.now) if kept else b""
    world.say("load", 2)
    world.say("load", 0)
    before = world.told
    lost = [seconds(each.at) for each in world.history.samples[-2:]]
    del world.history.samples[-2:]
    world.start()
    for second, value in zip(lost, (2.0, 0.0), strict=True):
        send(world, second, value)
    world.wait(SETTLED)
    assert world.told == before


@pytest.mark.parametrize("kept", [True, False], ids=["with snapshot", "without snapshot"])
def test_what_waits_for_its_time_waits_again_after_a_kill(world: World, kept: bool) -> None:
    world.start(LATE)
    world.subscribe("load > 1")
    world.wait(SETTLED)
    world.image = world.watch.snapshot(world.now) if kept else b""
    world.wait(1000)
    at = seconds(world.now)
    for value in (2, 0, 0):
        world.say("load", value, after=300)
    world.wait(100)
    world.now += 60_000
    world.reach = 600_000
    world.start(LATE)
    for _ in range(5):
        world.wait(1000)
    ((_, _, begin, end),) = world.told
    assert (begin, end) == (at, at)


def test_what_was_matched_before_a_kill_is_not_told_again_though_it_waits_again(world: World) -> None:
    world.start(LATE)
    world.subscribe("load > 1")
    world.wait(SETTLED)
    for value in (2, 0):
        world.say("load", value, after=100)
    world.say("cpu.busy", 1, after=2500)  # no heartbeat is as late
    before = world.told
    assert len(before) == 1
    world.start(LATE)
    for _ in range(5):
        world.wait(1000)
    assert world.told == before


def test_what_was_over_before_windows_began_anew_is_not_told_again(world: World) -> None:
    world.start(LATE)
    world.subscribe("load > 1")
    for value in (*[2] * 20, 0, 0, 0):
        world.say("load", value, after=500)
        world.wait(500)
    before = world.told
    world.reach = 10_000
    world.start(LATE)
    for _ in range(5):
        world.wait(1000)
    assert (len(before), world.told) == (1, before)


def test_silence_that_was_over_before_a_kill_is_seen_again(world: World) -> None:
    world.subscribe("load > 5 clear < 1 nodata clear")
    world.image = world.watch.snapshot(world.now)
    host = frozenset({("domain", "web1")})
    past = {"load": {1: 9.0, 10: 3.0}, "cpu.busy": dict.fromkeys(range(1, 11), 0.0)}
    world.history.samples += [
        Sample(Series(metric, host), NOW + 1000 * at, value)
        for metric, values in past.items()
        for at, value in values.items()
    ]
    world.now += 11_000
    world.start()
    world.say("load", 3, after=100)
    world.wait(1500)
    world.say("load", 3, after=100)
    world.wait(1500)
    assert world.told == []


def test_what_time_alone_began_after_a_restart_began_then(world: World) -> None:
    world.subscribe("absent(load[1s])")
    world.say("load", 0)
    world.image = world.watch.snapshot(world.now)
    world.start()
    world.wait(1500)
    world.wait(500)
    world.wait(SETTLED)
    assert world.told == [(1, WEB1, 2, None)]


# -- places that change twice at one time


@pytest.fixture
def crowd(world: World) -> World:
    """Two hosts, of which one is late, in one group."""
    world.start(Settings("node1", frozenset({"h1", "h2"}), interval=1000))
    return world


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize(
    ("text", "value", "told"),
    [
        ("max(load) > 5 nodata fire", 1.0, [(9, 11), (14, 14)]),
        ("max(load) > 5 nodata clear", 9.0, [(11, 14), (11, None)]),
    ],
)
def test_what_comes_late_at_the_time_of_another_begins_and_ends_alerts(
    crowd: World, text: str, value: float, told: list[tuple[int, int | None]], restarts: bool
) -> None:
    crowd.subscribe(text)
    for _ in range(6):
        crowd.wait(1000)
    for source in ("h1", "h2"):
        send(crowd, 6, 1.0, source)
    for _ in range(5):
        crowd.wait(1000)
    send(crowd, 11, value, "h1")
    for _ in range(5):
        crowd.wait(1000)
    if restarts:
        crowd.image = crowd.watch.snapshot(crowd.now)
        crowd.start(crowd.watch.settings)
    send(crowd, 11, value, "h2")
    for _ in range(3):
        crowd.wait(1000)
        send(crowd, seconds(crowd.now), value, "h1")
    assert [(begin, end) for _, _, begin, end in crowd.told] == told


# -- what is in doubt


class Shown(InBroker):
    """Shows what it made."""

    matcher: Engine

    def fresh(self, now: int, *, interval: int, longest: int) -> Engine:
        self.matcher = super().fresh(now, interval=interval, longest=longest)
        return self.matcher


@pytest.mark.parametrize(("value", "end"), [(0, 5), (2, None)])
def test_nobody_looks_for_where_a_rule_is_false_once_nothing_is_in_doubt(
    tmp_path: Path, value: float, end: int | None
) -> None:
    shown = Shown()
    with Book(tmp_path / "book.db") as book:
        world = World(book, make=lambda: shown)
        world.subscribe("load > 1")
        world.say("load", 2)
        world.history.samples.clear()
        world.start()
        world.wait(SETTLED)
        assert len(shown.matcher.rules) == 2
        world.say("load", value)
        assert [told for *_, told in world.told] == [end]
        assert len(shown.matcher.rules) == 1


def test_what_is_known_to_be_over_is_in_doubt_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbroker.alerts.watch._MOST_WAITING", 1)
    shown = Shown()
    with Book(tmp_path / "book.db") as book:
        full = Failing(book)
        world = World(full, make=lambda: shown)  # type: ignore[arg-type]
        world.subscribe("load > 1")
        world.wait(SETTLED)
        for source in ("web1", "web2"):
            world.say("load", 2, source)
        full.full = True
        for source in ("web1", "web2"):
            world.say("load", 0, source)
        full.full = False
        for _ in range(3):
            world.wait(1000)
        assert [end is None for *_, end in world.told] == [False, False]
        assert len(shown.matcher.rules) == 1
