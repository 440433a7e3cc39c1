"""Shards say what the reference, and one engine, say: on any number of hosts, whatever happens to them."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import math
import random
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbroker.alerts.engine import Engine, Fired, TooMuchError
from mbroker.alerts.engine_host import EngineHost, InProcess, LostError, Report, Save, Step, Tasks
from mbroker.alerts.housing import Housing
from mbroker.alerts.image import SnapshotError
from mbroker.alerts.language import Subscription
from mbroker.alerts.placement import winner
from mbroker.alerts.reference import Change, Reference
from mbroker.alerts.sample import Sample
from mbroker.alerts.selector import Endpoint, Series
from mbroker.alerts.shards import Shards
from mbroker.alerts.tree import Comparison, Rule

START = 1_000_000
HOSTS = [
    frozenset({("host", f"h{n}"), ("rack", f"r{n % 3}"), ("group", "even" if n % 2 else "odd"), ("group", f"g{n % 4}")})
    for n in range(7)
]
SERIES = [Series(metric, host) for host in HOSTS for metric in ("load", "temp")]

RULES = [
    "load > 5",
    "load > 6 clear < 3",
    "mean(load[3]) > 4 for 2s",
    "stddev(load[4]) > 2",
    "ewma(2s, load) > 4",
    "absent(load[5s])",
    "load > 4 and not temp > 4",
    "load > 5 nodata fire",
    "all(load) by (rack) > 1",
    "any(load) > 7 clear < 5",
    "atleast(2, load) by (rack) <= 4 for 1s",
    "mean(load) > 4",
    "sum(load) by (rack) >= 9 nodata clear",
    "variance(load) by (group) > 2",
    "stddev(load) > 1",
    "count(load) by (group) < 3",
    "quantile(0.9, load) by (rack) > 5",
    "median(mean(load[3])) >= 4",
    "max(mean(load[4s])) by (rack) > 5",
    "min(load) by (host, rack) < 2",
    "mean(load) by (rack) > 4 and max(temp) > 6",
    "load > 4 and mean(temp) by (rack) > 3",
    "sum(load) by (group, rack) > 8 and min(temp) by (rack) < 5 or count(load) < 3",
    "not any(load) by (rack) > 5 for 1s",
    "load > 4 for 3s nodata fire",
    "max(mean(load[3s])) by (rack) > 3 clear < 2 for 2s nodata fire",
]

Columns = tuple["array[int]", "array[float]", "array[int]"]


def streams(dice: random.Random, batches: int, gap: int = 40_000) -> Iterable[tuple[int, list[Sample]]]:
    """Late, missing, infinite, repeated and reset values; gaps; clocks of hosts that differ."""
    now = START
    clocks: dict[Series, int] = defaultdict(lambda: START)
    values: dict[Series, float] = defaultdict(lambda: 4.0)
    for _ in range(batches):
        now += dice.randrange(1, gap) if dice.random() < 0.1 else dice.choice([0, 300, 1000, 1000, 2000])
        batch: list[Sample] = []
        for series in dice.sample(SERIES, dice.randrange(len(SERIES) + 1)):
            for _ in range(dice.choice([1, 1, 1, 3])):
                clocks[series] = max(
                    clocks[series] + dice.choice([1, 1000, 1000, -5, 0]), now - dice.choice([2000, 10**9])
                )
                values[series] = max(0.0, min(9.0, values[series] + dice.choice([-2, -1, 0, 0, 1, 2, 0.1, 0.3])))
                value = values[series] if dice.random() < 0.94 else dice.choice([math.nan, math.inf, -math.inf, 0.0])
                batch.append(Sample(series, clocks[series], value))
        dice.shuffle(batch)
        yield now, batch


def columns(engine: Engine | Shards, samples: Iterable[Sample]) -> Columns:
    known = list(samples)
    return (
        array("I", [engine.number(sample.series) for sample in known]),
        array("d", [sample.value for sample in known]),
        array("q", [sample.at for sample in known]),
    )


def by_alert(edges: Iterable[Change | Fired]) -> dict[tuple[int, Endpoint], list[tuple[bool, int]]]:
    """Return the edges of each alert in their order; that between alerts means nothing."""
    made: dict[tuple[int, Endpoint], list[tuple[bool, int]]] = defaultdict(list)
    for edge in edges:
        made[edge.rule if isinstance(edge, Fired) else 1, edge.key].append((edge.firing, edge.at))
    return made


def rule(text: str) -> Rule:
    return Subscription.parse(text).rule


class Mortal:
    """A host that can be killed: at once, or in the middle of what it does next."""

    def __init__(self) -> None:
        self.inner = InProcess()
        self.dies = ""

    def place(self, shard: int, image: bytes) -> None:
        if self.dies == "place":
            self.close()
        self.inner.place(shard, image)

    def drop(self, shard: int) -> None:
        self.inner.drop(shard)

    def start(self, tasks: Tasks) -> Callable[[], Report]:
        if self.dies == "before":
            self.close()
        wait = self.inner.start(tasks)
        if self.dies == "after":
            self.close()
            return self.inner.start(tasks)
        if self.dies == "waiting":
            self.close()
            return lambda: self.inner.start(tasks)()
        return wait

    def close(self) -> None:
        self.inner.close()


class Mortals:
    """Makes hosts, and remembers them."""

    def __init__(self) -> None:
        self.made: list[Mortal] = []

    def __call__(self) -> EngineHost:
        self.made.append(Mortal())
        return self.made[-1]


@pytest.mark.parametrize("text", RULES)
@pytest.mark.parametrize(("count", "hosts"), [(1, 1), (2, 2), (5, 3)])
def test_every_edge_is_that_of_the_reference(text: str, count: int, hosts: int) -> None:
    shards, reference = Shards(START, count=count, hosts=hosts), Reference(rule(text), START)
    assert shards.add(rule(text)) == 1
    edges = 0
    for now, samples in streams(random.Random(f"{count} {text}"), 30):
        assert by_alert(shards.tick(now)) == by_alert(reference.tick(now))
        reference.register(*(sample.series for sample in samples))
        told = by_alert(shards.push(now, *columns(shards, samples)))
        assert told == by_alert(reference.batch(now, samples)), (text, now, samples)
        edges += len(told)
        assert shards.firing(1) == {key for key, alert in reference._alerts.items() if alert.firing}
    assert edges


LATER = [text for text in RULES if "mean(load[" not in text]  # endpoints and groups do not share windows
MOMENTS = ["now", "before", "after", "waiting", "place"]
STEADY = 10_000_000  # of an interval: in this story, series of groups that come later were never silent

happenings = st.one_of(
    st.just(("samples", "")),
    st.just(("samples", "")),
    st.tuples(st.just("add"), st.sampled_from(LATER)),
    st.sampled_from([("remove", ""), ("snapshot", ""), ("grow", ""), ("shrink", "")]),
    st.tuples(st.just("kill"), st.sampled_from(MOMENTS)),
)


class Story:
    """The same happens to shards, to one engine, and to the reference of each rule of the first hour."""

    def __init__(self, count: int, hosts: int, texts: list[str]) -> None:
        self.make = Mortals()
        self.shards = Shards(START, count=count, hosts=hosts, make=self.make, interval=STEADY)
        self.engine = Engine(START, interval=STEADY)
        self.references: dict[int, Reference] = {}
        for text in texts:
            self.references[self.add(text)] = Reference(rule(text), START, interval=STEADY)

    def add(self, text: str) -> int:
        number = self.shards.add(rule(text))
        assert number == self.engine.add(rule(text))
        return number

    def remove(self) -> None:
        number = min(self.engine.rules, default=None)
        if number is not None:
            self.shards.remove(number)
            self.engine.remove(number)
            self.references.pop(number, None)

    def snapshot(self) -> None:
        hosts = len(self.shards.where)
        saved = self.shards.save()
        self.shards.close()
        self.shards = Shards.load(saved, hosts=1 + hosts % 3, make=self.make)

    def grow(self) -> None:
        self.shards.grow()

    def shrink(self) -> None:
        if len(self.shards.where) > 1:
            self.shards.shrink(max(self.shards.where))

    def kill(self, moment: str) -> None:
        there = [host for host in self.shards._housing._hosts.values() if isinstance(host, Mortal)]
        healthy = [host for host in there if not host.dies]
        if healthy and len(there) - len(healthy) < 2:  # of more at once a shard is given up
            healthy[0].dies = moment
            if moment == "now":
                healthy[0].close()

    def samples(self, now: int, samples: list[Sample]) -> None:
        told, wanted = self.shards.tick(now), self.engine.tick(now)
        expected = {number: reference.tick(now) for number, reference in self.references.items()}
        mine, one = columns(self.shards, samples), columns(self.engine, samples)
        told += self.shards.push(now, *mine)
        wanted += self.engine.push(now, *one)
        assert by_alert(told) == by_alert(wanted)
        for number, reference in self.references.items():
            reference.register(*(sample.series for sample in samples))
            edges = by_alert(expected[number] + reference.batch(now, samples))
            mine_of_it = by_alert(fired for fired in told if fired.rule == number)
            assert {key: found for (_, key), found in mine_of_it.items()} == {key: e for (_, key), e in edges.items()}
        for number in self.engine.rules:
            assert self.shards.firing(number) == self.engine.firing(number)
        for mine_of, of_one in zip(*(sorted(edges, key=order) for edges in (told, wanted)), strict=True):
            several = not isinstance(self.engine.rules[of_one.rule].condition, Comparison)
            assert several or mine_of.value == pytest.approx(of_one.value, rel=1e-9, abs=1e-9, nan_ok=True)


def order(edge: Fired) -> tuple[object, ...]:
    return edge.rule, sorted(edge.key), edge.at, edge.firing


@settings(max_examples=40)
@given(
    count=st.sampled_from([1, 2, 5]),
    hosts=st.integers(1, 4),
    texts=st.lists(st.sampled_from(RULES), max_size=5, unique=True),
    story=st.lists(happenings, min_size=5, max_size=40),
    seed=st.integers(0, 1 << 32),
)
def test_no_edge_is_missed_and_none_told_twice_whatever_happens(
    count: int, hosts: int, texts: list[str], story: list[tuple[str, str]], seed: int
) -> None:
    told = Story(count, hosts, texts)
    stream = iter(streams(random.Random(seed), len(story) + 1, gap=8000))
    for happens, what in [*story, ("samples", "")]:
        if happens == "samples":
            told.samples(*next(stream))
        else:
            getattr(told, happens)(*([what] if what else []))
    assert [*told.shards.places.metrics] == [*told.engine.places.metrics]
    assert told.shards.rules == told.engine.rules


def test_a_host_that_comes_takes_shards_and_moves_none_between_others() -> None:
    shards = Shards(START, hosts=3, count=32)
    shards.register(*(Series("load", frozenset({("host", f"h{n}")})) for n in range(300)))
    shards.tick(START)
    before = shards.where
    name = shards.grow()
    assert shards.where[name]
    assert {host: shards.where[host] | (before[host] & shards.where[name]) for host in before} == before
    shards.shrink(name)
    assert shards.where == before


@given(st.integers(0, 1000), st.lists(st.text(max_size=8), min_size=1, max_size=9, unique=True), st.text(max_size=8))
def test_a_shard_moves_only_to_a_host_that_comes_and_from_one_that_goes(shard: int, hosts: list[str], new: str) -> None:
    at = winner(shard, hosts)
    assert at in hosts
    assert winner(shard, reversed(hosts)) == at
    assert winner(shard, [*hosts, new]) in (at, new)
    assert winner(shard, [at, *(host for host in hosts if hash(host) % 2)]) == at


def test_shards_are_spread_evenly() -> None:
    hosts = [f"host {n}" for n in range(5)]
    won = [winner(shard, hosts) for shard in range(2000)]
    assert all(300 < won.count(host) < 500 for host in hosts)


def test_the_last_host_may_not_go() -> None:
    shards = Shards(START)
    with pytest.raises(ValueError, match=r"^host 1 cannot go and leave another one: the hosts are host 1$"):
        shards.shrink("host 1")
    with pytest.raises(ValueError, match=r"^host 7 cannot go"):
        Shards(START, hosts=2).shrink("host 7")


def test_the_last_host_that_is_lost_is_replaced() -> None:
    make = Mortals()
    shards = Shards(START, make=make)
    number = shards.add(rule("load > 5"))
    told = shards.push(START, *columns(shards, [Sample(SERIES[0], START, 9.0)]))
    make.made[0].close()
    assert [fired.firing for fired in told] == [True]
    assert shards.push(START + 1, *columns(shards, [Sample(SERIES[0], START + 1, 9.5)])) == []
    assert shards.firing(number) == {HOSTS[0]}
    assert [*shards.where] == ["host 2"]


def test_shards_that_are_lost_wherever_they_are_placed_are_given_up() -> None:
    make = Mortals()
    shards = Shards(START, make=make)
    shards.register(SERIES[0])
    shards.tick(START)

    def poisoned() -> EngineHost:
        host = make()
        make.made[-1].dies = "before"
        return host

    shards._housing._make = poisoned
    make.made[0].close()
    with pytest.raises(LostError, match=r"^shard \d+ is lost wherever it is placed; go on from a snapshot$"):
        shards.tick(START + 1)
    assert len(make.made) == 1 + 3, "three hosts are tried"


def test_hosts_that_are_lost_together_are_no_fault_of_a_shard() -> None:
    make = Mortals()
    shards = Shards(START, hosts=6, make=make)
    number = shards.add(rule("load > 5"))
    shards.push(START, *columns(shards, [Sample(series, START, 9.0) for series in SERIES]))
    firing = shards.firing(number)
    for host in make.made:
        host.close()
    assert shards.push(START + 1, *columns(shards, [Sample(series, START + 1, 9.0) for series in SERIES])) == []
    assert (len(shards.losses()), shards.firing(number)) == (6, firing)


class Slow(InProcess):
    """Says that whatever it does takes a millisecond, and a snapshot so many."""

    def __init__(self, snapshot: int) -> None:
        super().__init__()
        self.snapshot = snapshot

    def start(self, tasks: Tasks) -> Callable[[], Report]:
        results = super().start(tasks)().results
        busy = {shard: 10**6 * (self.snapshot if Save() in steps else 1) for shard, steps in tasks.items()}
        return lambda: Report(results, busy, sum(busy.values()))


@pytest.mark.parametrize(("snapshot", "again"), [(3, 10), (6, 18)])
def test_what_is_done_again_is_bounded_by_what_it_took_and_by_what_snapshots_take(snapshot: int, again: int) -> None:
    shards = Shards(START, count=2, make=lambda: Slow(snapshot))
    shards.add(rule("mean(load[3]) > 4"))
    most = 0
    for second in range(100):
        shards.push(START + second, *columns(shards, [Sample(SERIES[0], START + second, 9.0)] * 3))
        most = max(most, *(len(kept.done) for kept in shards._housing._shards.values()))
    assert most == again
    assert {kept.most for kept in shards._housing._shards.values()} == {again * 10**6}


def test_a_rule_that_asks_too_much_changes_nothing() -> None:
    shards = Shards(START, longest=100)
    shards.register(*SERIES)
    with pytest.raises(TooMuchError, match=r"^the rule cannot be matched: its window is longer"):
        shards.add(rule("mean(mean(load[1000])) > 4"))
    assert shards.rules == {}
    assert [shards.add(rule("mean(mean(load[100])) > 4"))] == list(shards.rules)


def test_a_rule_that_is_gone_keeps_no_series_at_its_groups() -> None:
    shards = Shards(START, count=4)
    shards.register(*SERIES)
    shards.tick(START)
    homes = [dict(routes) for routes in shards._routes]
    one, other = shards.add(rule("mean(load) by (rack) > 4")), shards.add(rule("max(load) by (rack) > 4"))
    shards.remove(one)
    assert [len(routes) for routes in shards._routes] == [2, 1] * len(HOSTS)
    shards.remove(other)
    assert shards._routes == homes


def test_a_local_rule_is_only_where_its_series_are() -> None:
    shards = Shards(START, count=64)
    number = shards.add(rule("load{host='h1'} > 5"))
    shards.register(*SERIES)
    shards.tick(START)
    assert len(shards._rules[number].at) == 1


def test_samples_of_numbers_that_nobody_has_are_dropped() -> None:
    shards = Shards(START)
    shards.add(rule("load > 5"))
    shards.register(SERIES[0])
    assert shards.push(START, array("I", [77]), array("d", [9.0]), array("q", [START])) == []


def test_edges_that_wait_are_part_of_a_snapshot() -> None:
    shards = Shards(START, count=3)
    shards.push(START, *columns(shards, [Sample(Series("load", host), START, 9.0) for host in HOSTS]))
    number = shards.add(rule("mean(load) > 5"))
    shards = Shards.load(shards.save())
    assert shards.tick(START + 1) == [Fired(number, frozenset(), True, START, 9.0)]
    assert shards.tick(START + 2) == []


@pytest.mark.parametrize("at", [0, 15, 17, 25, 60, -1])
def test_a_damaged_snapshot_is_refused(at: int) -> None:
    shards = Shards(START)
    shards.register(*SERIES)
    image = bytearray(shards.save())
    image[at] ^= 1
    with pytest.raises(SnapshotError, match=r"^it is no snapshot that this version wrote, or it is damaged$"):
        Shards.load(bytes(image))
    with pytest.raises(SnapshotError):
        Shards.load(Engine(START).save())


def test_an_engine_without_memory_loses_its_host_and_no_more() -> None:
    def fails(_: Engine) -> None:
        raise MemoryError("no room")

    housing = Housing(2, InProcess)
    for shard in range(8):
        housing.open(shard, Engine(START).save())
    housing.do({})
    crowded = housing.where["host 1"]
    failed: list[Step] = []

    def once(engine: Engine) -> str:
        if not failed:
            failed.append(once)
            fails(engine)
        return "done"

    assert housing.do({min(crowded): [once], min(housing.where["host 2"]): [lambda _: "fine"]}) == {
        min(crowded): ["done"],
        min(housing.where["host 2"] - crowded): ["fine"],
    }
    assert [*housing.where] == ["host 2"]


def test_hosts_say_which_share_of_a_processor_they_took() -> None:
    shards = Shards(START, hosts=2)
    shards.add(rule("load > 5"))
    shards.push(START, *columns(shards, [Sample(series, START, 9.0) for series in SERIES]))
    shares: dict[str, Any] = shards.shares(1000)
    assert shares.keys() == {"host 1", "host 2"}
    assert sum(shares.values()) > 0
    assert shards.shares(1000) == {"host 1": 0.0, "host 2": 0.0}


def test_series_that_are_seldom_read_are_not_silent_wherever_they_are_seen() -> None:
    shards, engine = Shards(START, count=3, hosts=2, interval=1000), Engine(START, interval=1000)
    seldom = [Series("load", host) for host in HOSTS[:4]]
    for each in (shards, engine):
        for text in ("load > 5 nodata fire", "max(load) by (rack) > 5 nodata fire"):
            each.add(rule(text))
        for series in seldom:
            each.pace(each.number(series), 60_000)
    told: list[int] = []
    for after in (100_000, 150_000, 1_000_000):
        mine, one = shards.tick(START + after), engine.tick(START + after)
        assert by_alert(mine) == by_alert(one)
        told.append(len(one))
        shards = Shards.load(shards.save(), hosts=3)
        for each in (shards, engine):  # as often as any other from now on
            each.pace(each.number(seldom[0]), None)
    assert told == [0, 1, 6]


def test_plans_of_batches_are_bounded_whatever_the_publishers_send(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbroker.alerts.shards._MOST_PLANNED", 100)
    shards, engine, dice = Shards(START, count=3), Engine(START), random.Random(2)
    for each in (shards, engine):
        each.add(rule("mean(load) by (rack) > 4"))
        each.register(*SERIES)
    for turn in range(30):
        samples = [Sample(one, START + turn, 1.0 + turn % 7) for one in dice.sample(SERIES, 8)]
        told = shards.push(START + turn, *columns(shards, samples))
        assert by_alert(told) == by_alert(engine.push(START + turn, *columns(engine, samples)))
        assert sum(len(there) for plan in shards._plans.values() for _, there in plan) <= 100


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^numbers, values and times must be of one length$"):
        Shards(START).push(START, array("I", [0]), array("d"), array("q"))


@pytest.mark.parametrize("text", RULES)
def test_series_that_are_gone_are_those_that_one_engine_forgets_and_their_numbers_are_free(text: str) -> None:
    dice = random.Random(f"gone {text}")
    shards, engine = Shards(START, count=5, hosts=2), Engine(START)
    assert shards.add(rule(text)) == engine.add(rule(text))
    gone = 0
    for now, samples in streams(dice, 60):
        told, wanted = shards.tick(now), engine.tick(now)
        told += shards.push(now, *columns(shards, samples))
        assert by_alert(told) == by_alert(wanted + engine.push(now, *columns(engine, samples))), (now, samples)
        if dice.random() < 0.3:
            before = now - dice.choice([-1, 500, 3000])
            ours = {one: shards.places.series(one) for one in shards.unheard(before)}
            theirs = {one: engine.places.series(one) for one in engine.unheard(before)}
            assert set(ours.values()) == set(theirs.values())
            forgotten = {theirs[one] for one in engine.forget(theirs)}
            assert {ours[one] for one in shards.forget(ours)} == forgotten
            gone += len(forgotten)
            assert by_alert(shards.tick(now)) == by_alert(engine.tick(now))
            assert shards.firing(1) == engine.firing(1)
        if dice.random() < 0.1:
            shards = Shards.load(shards.save(), hosts=3)
    assert gone
    assert len(shards._series) <= len(SERIES)


def test_a_number_that_is_free_again_is_of_a_series_that_is_read_as_often_as_any() -> None:
    shards = Shards(START, count=3, interval=1000)
    shards.add(rule("load > 5 nodata fire"))
    seldom = shards.number(SERIES[0])
    shards.pace(seldom, 60_000)
    shards.tick(START + 1)
    assert shards.forget([seldom, seldom]) == [seldom]
    assert shards.number(SERIES[2]) == seldom
    shards.tick(START + 2)
    assert [fired.key for fired in shards.tick(START + 4000)] == [SERIES[2].endpoint]


def test_a_rule_that_asks_too_much_of_series_that_come_later_is_said_and_stops_nothing() -> None:
    shards = Shards(START, count=9, longest=100)
    for text in ("max(load) by (rack) > 5", "mean(mean(load[1000])) by (group) > 4"):
        shards.add(rule(text))
    for turn, host in enumerate(HOSTS):
        shards.register(Series("load", host))
        shards.tick(START + turn)
    assert shards.problem == (  # of a shard that saw some of them for the other rule
        "a rule does not follow all of its series: "
        "the rule cannot be matched: its window is longer than the engine keeps samples"
    )
    assert len(shards.push(START + 9, *columns(shards, [Sample(SERIES[0], START + 9, 9.0)]))) == 1
