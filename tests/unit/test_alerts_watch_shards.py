"""What the book says is the same whatever matches: one engine, few shards or many, whoever is lost on the way."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbroker.alerts import Subscription
from mbroker.alerts.book import Book
from mbroker.alerts.engine_host import InProcess
from mbroker.alerts.growth import Growth
from mbroker.alerts.reference import Change, Reference
from mbroker.alerts.sample import Sample
from mbroker.alerts.selector import Endpoint, Series
from mbroker.alerts.workers import InBroker, Matching, Workers
from mchannel.samples import Declared, Named
from tests.unit.test_alerts_watch import NAMES, NOW, SETTINGS, SETTLED, World, sample, seconds, shards

TEXTS = [
    "load > 1",
    "mean(load[3]) > 1 clear < 0.8",
    "load > 1 for 300ms",
    "max(load) > 1",
    "sum(load) >= 3 nodata clear",
    "atleast(2, load) > 1",
    "load > 1 and not any(cpu.busy) > 1",
    "quantile(0.5, mean(load[2])) > 1",
    "absent(load[3s])",
]
SOURCES = ("web1", "web2", "web3", "web4")


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    with Book(tmp_path / "book.db") as made:
        yield made


def told(reference: list[Change]) -> list[tuple[dict[str, str], int, int | None]]:
    """Return begins and ends as the book would tell them."""
    begun: dict[Endpoint, int] = {}
    found: list[tuple[dict[str, str], int, int | None]] = []
    for change in reference:
        if change.firing:
            begun[change.key] = change.at
        else:
            found.append((dict(change.key), seconds(begun.pop(change.key)), seconds(change.at)))
    found += [(dict(key), seconds(at), None) for key, at in begun.items()]
    return sorted(found, key=lambda each: (each[1], sorted(each[0].items()), each[2] or 0))


@pytest.mark.parametrize("make", [InBroker, shards(1), shards(2), shards(5)], ids=["engine", "1", "2", "5"])
@pytest.mark.parametrize("text", TEXTS)
def test_the_book_says_what_the_reference_says(book: Book, text: str, make: Callable[[], Matching]) -> None:
    world = World(book, make=make)
    world.wait(SETTLED)
    world.subscribe(text)
    reference = Reference(Subscription.parse(text).canonical().rule, world.now, interval=SETTINGS.interval)
    changes: list[Change] = []
    dice = random.Random(text)
    known: defaultdict[str, list[Series]] = defaultdict(list)
    for _ in range(120):
        source, metric = dice.choice(SOURCES), dice.choice(("load", "load", "cpu.busy"))
        value, after = dice.choice([0.0, 0.5, 0.9, 1.5, 2.0]), dice.choice([100, 200, 300, 300, 4000])
        if not known[source]:
            known[source] = [Series(name, Endpoint({("domain", source)})) for name in NAMES]
            reference.register(*known[source])
        world.say(metric, value, source, after=after)
        series = known[source][NAMES.index(metric)]
        changes += reference.batch(world.now, [Sample(series, world.now, value)])
    changes += reference.tick(world.now + 60_000)
    world.wait(60_000)
    assert changes
    found = [(key, begin, end) for _, key, begin, end in world.told]
    assert sorted(found, key=lambda each: (each[1], sorted(each[0].items()), each[2] or 0)) == told(changes)


class Frail:
    """Shards on hosts of which one can be lost."""

    def __init__(self, hosts: int) -> None:
        self.made: list[InProcess] = []
        self.hosts = hosts

    def __call__(self) -> Matching:
        return Workers(self._host, Growth(least=self.hosts))

    def _host(self) -> InProcess:
        self.made.append(InProcess())
        return self.made[-1]

    def lose(self, which: int) -> None:
        self.made[which % len(self.made)].close()


steps = st.lists(
    st.one_of(
        st.sampled_from([0.0, 2.0, 1.5, 0.9]),
        st.sampled_from(["kill", "snapshot", "lose"]),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=30, deadline=None)
@given(
    steps=steps,
    text=st.sampled_from(TEXTS[:4]),
    hosts=st.sampled_from([1, 2, 5]),
)
def test_whoever_is_told_knows_nothing_of_shards(
    tmp_path_factory: pytest.TempPathFactory, steps: list[float | str], text: str, hosts: int
) -> None:
    found = list[object]()
    frail = Frail(hosts)
    for make in (frail, InBroker):
        with Book(tmp_path_factory.mktemp("book") / "book.db") as book:
            world = World(book, make=make)
            world.subscribe(text)
            for turn, step in enumerate(steps):
                if isinstance(step, float):
                    world.say("load", step, "web1", after=500)
                    world.say("load", 2.0 - step, "web2", after=500)
                elif make is InBroker:
                    continue
                elif step == "kill":
                    world.start()
                elif step == "snapshot":
                    world.image = world.watch.snapshot(world.now)
                else:
                    frail.lose(turn)
            world.say("load", 0.0, "web1", after=500)
            world.say("load", 0.0, "web2", after=500)
            world.wait(SETTLED)
            found.append(world.told)
    assert found[0] == found[1]


# -- restarts with another number


@pytest.mark.parametrize("after", [1, 5])
def test_windows_go_on_when_there_are_more_hosts_or_fewer_than_before(book: Book, after: int) -> None:
    world = World(book, make=shards(2))
    number = world.subscribe("mean(load[3]) > 1")
    for value in (2, 2):
        world.say("load", value)
    world.image = world.watch.snapshot(world.now)
    world.history.samples.clear()
    world.make = shards(after)
    world.start()
    assert (world.watch.problem, world.watch.spans, len(world.matching.shares)) == ("", {}, after)
    world.say("load", 2)
    world.wait(SETTLED)
    assert [each[:1] for each in world.told] == [(number,)]


@pytest.mark.parametrize(("before", "after"), [(InBroker, shards(2)), (shards(2), InBroker)])
def test_windows_begin_anew_from_the_history_between_an_engine_and_shards(
    book: Book, before: Callable[[], Matching], after: Callable[[], Matching]
) -> None:
    world = World(book, make=before)
    number = world.subscribe("mean(load[3]) > 1")
    for value in (2, 2, 2):
        world.say("load", value)
    world.image = world.watch.snapshot(world.now)
    world.make = after
    world.start()
    assert world.watch.problem == (
        "the engine's snapshot cannot be used, so that windows begin anew: "
        "it was made by another version, or with another interval, longest or shards"
    )
    world.say("load", 2)
    world.wait(SETTLED)
    for value in (0, 0, 0):
        world.say("load", value)
    ((_, _, begin, end),) = world.told
    assert (number, begin, end) == (1, 3, 9)


# -- samples that are late


@pytest.fixture(params=[InBroker, shards(2)], ids=["engine", "shards"])
def patient(book: Book, request: pytest.FixtureRequest) -> World:
    world = World(book, make=request.param)
    world.start(attrs.evolve(SETTINGS, late=2000))
    return world


def send(world: World, at: int, value: float) -> None:
    """Let *web1* publish a sample of a second that may be over."""
    world.watch.declare("web1", Declared(world.lives, 0, tuple(map(Named, NAMES))), world.now)
    world.watch.samples("web1", sample(world.lives, 0, value, NOW + 1000 * at), world.now)


def test_samples_that_come_late_are_matched_in_order_if_they_may_be(patient: World) -> None:
    patient.subscribe("delta(load[5s]) < 0")
    patient.wait(SETTLED)
    for at, value in ((3, 1.0), (5, 3.0), (4, 2.0)):
        send(patient, at, value)
    for _ in range(5):
        patient.wait(1000)
    assert patient.told == []
    send(patient, 6, 0.0)
    patient.wait(1000)
    assert patient.told == [(1, {"domain": "web1"}, 6, None)]


def test_a_sample_waits_until_it_is_so_old(patient: World) -> None:
    patient.subscribe("load > 1")
    patient.wait(SETTLED)
    patient.say("load", 2)
    at = seconds(patient.now)
    patient.wait(1999)
    assert patient.told == []
    patient.wait(1)
    assert patient.told == [(1, {"domain": "web1"}, at, None)]


@pytest.mark.parametrize("kept", [True, False], ids=["with snapshot", "without snapshot"])
def test_samples_that_wait_live_through_a_restart(patient: World, kept: bool) -> None:
    patient.subscribe("load > 1")
    patient.wait(SETTLED)
    patient.say("load", 2)
    at = seconds(patient.now)
    patient.image = patient.watch.snapshot(patient.now) if kept else b""
    patient.start(attrs.evolve(SETTINGS, late=2000))
    patient.say("load", 0)
    patient.wait(2000)
    assert patient.told == [(1, {"domain": "web1"}, at, at + 1)]
    patient.wait(SETTLED)
    assert patient.told == [(1, {"domain": "web1"}, at, at + 1)]
