"""The engine says what the reference says, edge by edge."""

from __future__ import annotations

import math
import random
from array import array
from collections import defaultdict
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbroker.alerts.engine import Engine, Fired
from mbroker.alerts.image import SnapshotError
from mbroker.alerts.language import Subscription
from mbroker.alerts.reference import Change, Reference
from mbroker.alerts.sample import Sample
from mbroker.alerts.selector import Endpoint, Series, project
from mbroker.alerts.tree import leaves

START = 1_000_000
HOSTS = [frozenset({("host", f"h{n}"), ("rack", f"r{n % 2}")}) for n in range(4)]

RULES = [
    "load > 5",
    "load <= 3",
    "load == 4",
    "load != 4",
    "load > 6 clear < 3",
    "load >= 6 clear == 3",
    "load > 4 for 3s",
    "load > 5 clear < 3 for 2s",
    "mean(load[3]) > 4",
    "mean(load[5s]) <= 3.5",
    "sum(load[4]) == 16",
    "stddev(load[4]) > 2",
    "stddev(load[2]) == 0",
    "variance(load[5s]) < 2",
    "min(load[3]) > 2",
    "max(load[4s]) < 6",
    "median(load[4]) >= 4",
    "quantile(0.9, load[5]) > 6",
    "count(load[3s]) < 3",
    "rate(load[4]) > 1.5",
    "rate(load[4s]) > 2 for 1s",
    "delta(load[3]) < 0",
    "ewma(2s, load) > 4",
    "absent(load[5s])",
    "absent(load[3s]) and temp > 3",
    "absent(load[4s]) for 3s",
    "load > 4 and temp > 4",
    "load > 6 or not temp > 2",
    "(load > 3 and temp < 6) or mean(load[3]) > 5",
    "load > 4 and temp > 4 for 2s",
    "load > 5 nodata clear",
    "load > 5 nodata fire",
    "mean(load[4s]) > 5 nodata fire",
    "all(load) > 2",
    "any(load) > 7",
    "all(load) < 6 clear >= 7",
    "atleast(2, load) > 5",
    "atleast(3, load) <= 4 for 2s",
    "mean(load) > 4",
    "max(mean(load[3])) by (rack) > 5",
    "stddev(load) > 2",
    "count(load) < 4",
    "median(load) >= 4",
    "sum(max(load[3s])) > 20",
    "mean(load) > 4 and max(temp) > 6",
    "load > 4 and mean(temp) by (rack) > 3",
    "all(load) > 3 nodata fire",
    "load > 4 for 3s nodata fire",
    "mean(load[4s]) <= 4 clear >= 6 for 3s nodata fire",
    "count(load[3s]) <= 4 for 30s nodata fire",
    "rate(load[4]) <= 1 for 30s nodata clear",
    "max(mean(load[3s])) by (rack) > 4 clear < 2 for 3s nodata fire",
    "atleast(2, load) by (rack) > 4 clear < 2 for 2s nodata clear",
    "absent(load[4s]) or temp > 6 for 3s nodata fire",
    "load > 4 and max(mean(temp[3s])) by (rack) > 3 for 3s nodata fire",
    "sum(load) by (rack) > 4 and max(mean(temp[3])) < 6 for 2s",
]


def stream(dice: random.Random, batches: int) -> list[tuple[int, list[Sample]]]:
    """Late, missing, infinite and reset values; gaps; clocks of hosts that differ."""
    now = START
    made: list[tuple[int, list[Sample]]] = []
    clocks: dict[Series, int] = defaultdict(lambda: START)
    values: dict[Series, float] = defaultdict(lambda: 4.0)
    everything = [Series(metric, host) for host in HOSTS for metric in ("load", "temp")]
    for _ in range(batches):
        now += dice.choice([300, 1000, 1000, 2000, dice.randrange(1, 40_000) if dice.random() < 0.1 else 1000])
        batch: list[Sample] = []
        for series in dice.sample(everything, dice.randrange(len(everything) + 1)):
            for _ in range(dice.choice([1, 1, 1, 3])):
                clocks[series] = max(
                    clocks[series] + dice.choice([1, 1000, 1000, -5, 0]), now - 3000 * (dice.random() < 0.8)
                )
                values[series] = max(0.0, min(9.0, values[series] + dice.choice([-2, -1, 0, 0, 1, 2, 0.1, 0.3])))
                value = values[series] if dice.random() < 0.94 else dice.choice([math.nan, math.inf, -math.inf, 0.0])
                batch.append(Sample(series, clocks[series], value))
        made.append((now, batch))
    return made


class Columns:
    """Samples as :meth:`Engine.push` takes them."""

    def __init__(self, engine: Engine, samples: list[Sample]) -> None:
        self.numbers = array("I", [engine.number(sample.series) for sample in samples])
        self.values = array("d", [sample.value for sample in samples])
        self.times = array("q", [sample.at for sample in samples])


def by_key(edges: Iterable[Change | Fired]) -> dict[Endpoint, list[tuple[bool, int]]]:
    """Return the edges of each alert in their order; that between alerts means nothing."""
    made: dict[Endpoint, list[tuple[bool, int]]] = defaultdict(list)
    for edge in edges:
        made[edge.key].append((edge.firing, edge.at))
    return made


@pytest.mark.parametrize("text", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_every_edge_is_that_of_the_reference(text: str, seed: int) -> None:
    rule = Subscription.parse(text).rule
    engine, reference = Engine(START), Reference(rule, START)
    engine.add(rule)
    for now, samples in stream(random.Random(f"{seed} {text}"), 60):
        assert by_key(engine.batch(now, samples)) == by_key(reference.batch(now, samples)), (text, now, samples)


@pytest.mark.parametrize("text", RULES)
def test_columns_have_the_edges_of_samples_whose_series_were_registered(text: str) -> None:
    rule = Subscription.parse(text).rule
    engine, reference = Engine(START), Reference(rule, START)
    engine.add(rule)
    for now, samples in stream(random.Random(f"columns {text}"), 60):
        wanted = [*reference.tick(now)]
        edges = engine.tick(now)
        reference.register(*(sample.series for sample in samples))
        columns = Columns(engine, samples)
        wanted += reference.batch(now, samples)
        edges += engine.push(now, columns.numbers, columns.values, columns.times)
        assert by_key(edges) == by_key(wanted), (text, now, samples)


@pytest.mark.parametrize("text", [*RULES, *(f"{text} nodata clear" for text in RULES if "nodata" not in text)])
def test_series_of_other_intervals_have_the_edges_of_the_reference(text: str) -> None:
    rule, dice = Subscription.parse(text).rule, random.Random(f"paced {text}")
    engine, reference = Engine(START, interval=1000), Reference(rule, START, interval=1000)
    engine.add(rule)
    for now, samples in stream(dice, 60):
        for series in {sample.series for sample in samples if dice.random() < 0.1}:
            interval = dice.choice([None, 500, 1000, 5000, 20_000])
            number = engine.number(series)
            reference.register(series)
            engine.pace(number, interval)
            reference.pace(series, interval)
        engine = Engine.load(engine.save()) if dice.random() < 0.1 else engine
        assert by_key(engine.batch(now, samples)) == by_key(reference.batch(now, samples)), (text, now, samples)


@pytest.mark.parametrize(("interval", "patience"), [(60_000, 180_000), (1000, 30_000), (None, 30_000)])
def test_a_series_is_silent_after_three_intervals_of_its_own_if_they_are_longer(
    interval: int | None, patience: int
) -> None:
    engine = Engine(START, interval=10_000)
    engine.add(Subscription.parse("load > 5 nodata clear").rule)
    engine.pace(engine.number(Series("load", HOSTS[0])), interval)
    assert [fired.firing for fired in engine.batch(START, [Sample(Series("load", HOSTS[0]), START, 9.0)])] == [True]
    assert engine.tick(START + patience - 1) == []
    assert [(fired.firing, fired.at) for fired in engine.tick(START + patience)] == [(False, START + patience)]


@pytest.mark.parametrize("text", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_what_goes_on_without_series_that_are_gone_is_what_the_reference_says(text: str, seed: int) -> None:
    rule, dice = Subscription.parse(text).rule, random.Random(f"{seed} forgotten {text}")
    engine, reference = Engine(START), Reference(rule, START)
    number = engine.add(rule)
    gone = 0
    for now, samples in stream(dice, 60):
        assert by_key(engine.batch(now, samples)) == by_key(reference.batch(now, samples)), (text, now, samples)
        if dice.random() < 0.3:
            firing = engine.firing(number)
            unheard = {one: engine.places.series(one) for one in engine.unheard(now - dice.choice([-1, 500, 3000]))}
            forgotten = [series for one in engine.forget(unheard) if (series := unheard[one]) is not None]
            gone += len(forgotten)
            reference.forget(*forgotten)
            if all(leaf.by is None for leaf in leaves(rule.condition)):
                assert engine.firing(number) == firing
        engine = Engine.load(engine.save()) if dice.random() < 0.1 else engine
    assert gone
    engine.remove(number)
    assert engine.counters.rules == 0


CHURNED = [
    "load > 5 nodata clear",
    "load > 5 and temp > 5",
    "mean(load) > 5",
    "sum(load) by (job) > 5",
    "load > 5 and mean(temp) by (job) > 5",
]


@pytest.mark.parametrize("text", CHURNED)
def test_names_that_come_and_go_take_no_more_than_those_that_are_there(text: str) -> None:
    engine = Engine(START)
    engine.add(Subscription.parse(text).rule)
    taken, left = set[tuple[int, ...]](), set[int]()
    for life in range(20):
        now = START + life * 100_000
        jobs = [frozenset({("host", "h0"), ("job", f"j{life} {n}")}) for n in range(50)]
        engine.batch(now, [Sample(Series(metric, job), now, 1.0) for job in jobs for metric in ("load", "temp")])
        engine.tick(now + 90_000)
        counters, known = engine.counters, engine.places
        taken.add((counters.rules, counters.streams, counters.series, len(known.endpoints), len(known.of)))
        assert len(known.values("job")) == 50
        assert len(engine.forget(engine.unheard(now + 1))) == 100
        assert (len(known), known.values("job"), engine.counters.streams) == (0, set(), 0)
        left.add(len(engine.save()))
    assert (len(taken), len(left)) == (1, 1)


def test_a_group_that_never_had_a_value_is_silent_when_its_members_are() -> None:
    rule = Subscription.parse("mean(load) > 4 nodata fire").rule
    engine, reference = Engine(START), Reference(rule, START)
    engine.add(rule)
    samples = [Sample(Series("load", HOSTS[0]), START, -math.inf), Sample(Series("load", HOSTS[1]), START + 1, 3.0)]
    for now, batch in ((START + 1, samples), (START + 30_001, [])):
        edges = engine.batch(now, batch)
        assert by_key(edges) == by_key(reference.batch(now, batch))
    assert [fired.firing for fired in edges] == [True]


def test_a_wait_by_the_clock_is_not_prolonged_by_one_that_is_over() -> None:
    engine = Engine(START)
    engine.add(Subscription.parse("count(load[3s]) <= 1 for 30s nodata fire").rule)
    series = Series("load", HOSTS[0])
    engine.batch(START + 100, [Sample(series, START - 2000, 1.0), Sample(series, START - 1900, 1.0)])
    engine.batch(START + 3100, [Sample(series, START - 1000, 1.0)])  # silence began, and is over at once
    engine.batch(START + 5100, [Sample(series, START + 2100, 1.0)])  # true by time of the source, which is behind
    assert [(edge.firing, edge.at) for edge in engine.tick(START + 90_000)] == [(True, START + 32_100)]


def test_a_new_group_looks_only_at_those_who_may_be_its_members(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def counted(endpoint: Endpoint, names: Iterable[str]) -> frozenset[Endpoint]:
        nonlocal looks
        looks += 1
        return project(endpoint, names)

    engine = Engine(START)
    engine.register(*(Series("load", frozenset({("host", "h0"), ("job", f"j{n}")})) for n in range(300)))
    monkeypatch.setattr("mbroker.alerts.followed.project", counted)
    monkeypatch.setattr("mbroker.alerts.groups.project", counted)
    rule = engine.add(Subscription.parse("sum(load) by (job) > 5").rule)
    engine.register(*(Series("load", frozenset({("host", "h0"), ("job", f"k{n}")})) for n in range(300)))
    assert looks < 10 * 600
    engine.batch(START, [Sample(Series("load", frozenset({("host", "h0"), ("job", "j7")})), START, 9.0)])
    assert engine.firing(rule) == {Endpoint({("job", "j7")})}


def test_series_that_are_gone_are_looked_for_in_turn() -> None:
    engine = Engine(START)
    numbers = {engine.number(Series(f"m{n}", HOSTS[0])) for n in range(10_000)}
    engine.tick(START + 1)
    found = [engine.unheard(START + 1) for _ in range(4)]
    assert set().union(*found[:3]) == numbers
    assert (max(map(len, found)) < 5000, found[3]) == (True, found[0])
    assert engine.unheard(START) == []


@pytest.mark.parametrize(
    ("text", "metrics", "needed"),
    [
        ("load > 5", "load", True),
        ("load > 5", "temp", False),
        ("load > 5 and temp > 5", "load temp", True),
        ("load > 9 and temp > 5", "load temp", False),
        ("load > 9 and temp > 5", "load", True),  # the other series of the alert is still there
        ("mean(load) > 5", "load", True),
        ("mean(load) > 9", "load", False),
        ("absent(load[5s])", "load", True),
    ],
)
def test_a_series_stays_while_an_alert_needs_it(text: str, metrics: str, needed: bool) -> None:
    engine = Engine(START)
    rule = engine.add(Subscription.parse(text).rule)
    engine.batch(START, [Sample(Series(metric, HOSTS[0]), START, 7.0) for metric in ("load", "temp")])
    engine.tick(START + 5000)
    firing = engine.firing(rule)
    numbers = [engine.number(Series(metric, HOSTS[0])) for metric in metrics.split()]
    assert engine.forget(numbers) == ([] if needed else numbers)
    assert engine.firing(rule) == firing


def test_a_group_goes_on_without_a_member_that_is_gone() -> None:
    engine = Engine(START)
    rule = engine.add(Subscription.parse("all(load) > 5").rule)
    engine.batch(START, [Sample(Series("load", host), START, 9.0) for host in HOSTS[:2]])
    assert engine.firing(rule)
    engine.batch(START + 60_000, [Sample(Series("load", HOSTS[0]), START + 60_000, 1.0)])
    assert engine.firing(rule)  # one of two is silent, so that nobody knows
    assert engine.forget(engine.unheard(START + 1)) == [engine.number(Series("load", HOSTS[1]))]
    assert [fired.firing for fired in engine.tick(START + 60_001)] == [False]


def test_a_group_without_members_counts_none() -> None:
    engine = Engine(START)
    rule = engine.add(Subscription.parse("count(load) by (rack) > 1 or absent(temp[2s])").rule)
    temp = Series("temp", HOSTS[0])
    engine.batch(START, [Sample(Series("load", HOSTS[2]), START, 1.0), Sample(temp, START, 1.0)])
    engine.forget([engine.number(Series("load", HOSTS[2]))])
    edges = engine.tick(START + 2000) + engine.batch(START + 2000, [Sample(temp, START + 1, 1.0)])
    assert edges == [Fired(rule, HOSTS[0], True, START + 2000, 1.0)]  # and now nobody knows


def test_what_is_absent_is_so_until_the_instant_of_its_sample() -> None:
    engine = Engine(START)
    engine.add(Subscription.parse("min(load) > 1 and absent(load[1s])").rule)
    one, other = (Series("load", host) for host in HOSTS[:2])
    engine.batch(START, [Sample(one, START, 1.0), Sample(other, START, 2.0)])
    edges = engine.batch(START + 2000, [Sample(one, START + 1000, 2.0), Sample(other, START + 2000, 2.0)])
    assert by_key(edges) == {HOSTS[1]: [(True, START + 2000), (False, START + 2000)]}


def test_a_number_that_is_free_again_is_of_another_series() -> None:
    engine = Engine(START)
    rule = engine.add(Subscription.parse("load > 5").rule)
    first = engine.number(Series("load", HOSTS[0]))
    assert engine.forget([first]) == [first]
    assert engine.push(START, array("I", [first]), array("d", [9.0]), array("q", [START])) == []
    assert engine.number(Series("load", HOSTS[1])) == first
    edges = engine.push(START, array("I", [first]), array("d", [9.0]), array("q", [START]))
    assert edges == [Fired(rule, HOSTS[1], True, START, 9.0)]


def test_places_of_a_rule_that_is_removed_are_free_again() -> None:
    engine = Engine(START)
    engine.register(*(Series("load", host) for host in HOSTS))
    engine.remove(engine.add(Subscription.parse("sum(load) by (rack) > 5").rule))
    assert engine.places.packed[len(HOSTS) :] == [None, None]


def test_a_snapshot_has_the_places_that_are_free() -> None:
    engine = Engine(START)
    rule = engine.add(Subscription.parse("load > 5 or temp > 5").rule)
    numbers = [engine.number(Series("load", host)) for host in HOSTS]
    engine.forget(numbers[1:3])
    engine = Engine.load(engine.save())
    assert engine.places.endpoints == [HOSTS[0], Endpoint(), Endpoint(), HOSTS[3]]
    edges = engine.batch(START, [Sample(Series("load", host), START, 9.0) for host in HOSTS])
    assert {fired.key for fired in edges} == set(HOSTS) == engine.firing(rule)
    assert len(engine.places.endpoints) == 4


SHARING = [
    "mean(load) > 4",
    "mean(load) > 5 clear < 3",
    "mean(load) > 4 for 1s",
    "all(load) > 2",
    "count(load) < 3",
    "sum(load) by (rack) > 8",
    "mean(load) > 4 and max(temp) > 4",
    "all(load) > 2 and all(temp) > 2",
    "load > 4 and mean(load) > 5",
    "count(load) < 3 or max(temp) > 6",
    "sum(load) by (rack) > 8 and min(temp) by (rack) < 5 or count(load) < 3",
]

unsorted = st.lists(
    st.builds(
        Sample,
        series=st.builds(Series, st.sampled_from(["load", "load", "temp"]), st.sampled_from(HOSTS)),
        at=st.integers(0, 4).map(lambda seconds: START + seconds * 1000),
        value=st.integers(0, 9).map(float),
    ),
    max_size=8,
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from(SHARING), min_size=1, max_size=4, unique=True),
    st.lists(unsorted, max_size=3),
    st.booleans(),
)
def test_rules_that_share_groups_each_see_only_their_own_instants(
    texts: list[str], batches: list[list[Sample]], registered: bool
) -> None:
    engine = Engine(START)
    references = {
        engine.add(rule): Reference(rule, START) for rule in (Subscription.parse(text).rule for text in texts)
    }
    for series in [Series(metric, host) for host in HOSTS for metric in ("load", "temp")] if registered else []:
        engine.register(series)
        for reference in references.values():
            reference.register(series)
    for now, samples in enumerate(batches, START):
        edges = engine.batch(now, samples)
        for number, reference in references.items():
            mine = by_key(edge for edge in edges if edge.rule == number)
            assert mine == by_key(reference.batch(now, samples)), reference


def test_a_sample_that_concerns_another_rule_does_not_end_an_instant() -> None:
    engine = Engine(START)
    engine.add(Subscription.parse("mean(load) > 4").rule)
    engine.add(Subscription.parse("mean(load) > 8 and max(temp) > 4").rule)
    samples = [
        Sample(Series("load", HOSTS[0]), START + 1, 6.0),
        Sample(Series("temp", HOSTS[0]), START + 1000, 1.0),
        Sample(Series("load", HOSTS[1]), START, 2.0),
    ]
    assert engine.batch(START, samples) == []


def test_a_group_is_counted_without_a_member_that_comes_at_a_later_instant() -> None:
    engine = Engine(START)
    rule = engine.add(Subscription.parse("count(load) < 2 or max(temp) > 8").rule)
    engine.batch(START, [Sample(Series("temp", HOSTS[0]), START - 1, 1.0)])
    samples = [Sample(Series("load", host), START + at, 1.0) for at, host in enumerate(HOSTS[:2])]
    assert [(edge.rule, edge.firing, edge.at) for edge in engine.batch(START, samples)] == [
        (rule, True, START),
        (rule, False, START + 1),
    ]


def test_an_alert_that_a_new_member_brings_counts_it() -> None:
    engine = Engine(START)
    rule = engine.add(Subscription.parse("count(load) < 3 or sum(load) by (rack) > 8").rule)
    fired = [engine.batch(START, [Sample(Series("load", host), START, 1.0)]) for host in HOSTS[:2]]
    assert [[(edge.rule, edge.key, edge.firing) for edge in edges] for edges in fired] == [
        [(rule, Endpoint({("rack", rack)}), True)] for rack in ("r0", "r1")
    ]


@pytest.mark.parametrize("text", RULES)
def test_a_snapshot_goes_on_where_it_was_taken(text: str) -> None:
    rule = Subscription.parse(text).rule
    engine, reference = Engine(START), Reference(rule, START)
    number = engine.add(rule)
    for now, samples in stream(random.Random(f"saved {text}"), 40):
        engine = Engine.load(engine.save())
        assert by_key(engine.batch(now, samples)) == by_key(reference.batch(now, samples)), (text, now, samples)
    engine.remove(number)
    assert (engine.counters.rules, engine.counters.streams) == (0, 0)


def test_edges_that_wait_are_part_of_a_snapshot() -> None:
    engine = Engine(START)
    engine.batch(START, [Sample(Series("load", HOSTS[0]), START, 9.0)])
    rule = engine.add(Subscription.parse("load > 5").rule)
    engine = Engine.load(engine.save())
    assert engine.tick(START + 1) == [Fired(rule, HOSTS[0], True, START, 9.0)]
    assert engine.tick(START + 2) == []


@pytest.mark.parametrize("at", [0, 15, 17, 25, 60, -1])
def test_a_damaged_snapshot_is_refused_in_one_line(at: int) -> None:
    engine = Engine(START)
    engine.add(Subscription.parse("mean(load[3]) > 5").rule)
    engine.batch(START, [Sample(Series("load", host), START, 9.0) for host in HOSTS])
    image = bytearray(engine.save())
    image[at] ^= 1
    for damaged in (bytes(image), bytes(image[: at or 1]), b""):
        with pytest.raises(SnapshotError, match=r"^it is no snapshot that this version wrote, or it is damaged$"):
            Engine.load(damaged)


def test_edges_of_a_rule_that_is_removed_are_not_told_of_another() -> None:
    engine = Engine(START)
    engine.batch(START, [Sample(Series("load", HOSTS[0]), START, 9.0)])
    engine.remove(engine.add(Subscription.parse("load > 5").rule))
    other = engine.add(Subscription.parse("load > 6").rule)
    assert [(fired.rule, fired.firing) for fired in engine.tick(START + 1)] == [(other, True)]


def test_a_rule_finds_its_series_whichever_comes_first() -> None:
    texts = [
        "load{rack='r0'} > 5",
        "load{host='h1', rack='r1'} > 5",
        "load{rack='r0', host!='h0'} > 5",
        "load{site=''} > 5",
    ]
    samples = [Sample(Series("load", host), START, 9.0) for host in HOSTS]
    early, late = Engine(START), Engine(START)
    for text in texts:
        early.add(Subscription.parse(text).rule)
    late.register(*(sample.series for sample in samples))
    for text in texts:
        late.add(Subscription.parse(text).rule)
    wanted = [
        (rule, frozenset(HOSTS[n] for n in which)) for rule, which in enumerate([(0, 2), (1,), (2,), range(4)], 1)
    ]
    early.batch(START, samples)
    late.batch(START, samples)
    assert [(rule, early.firing(rule)) for rule, _ in wanted] == wanted
    assert [(rule, late.firing(rule)) for rule, _ in wanted] == wanted


def test_an_endpoint_without_the_label_has_the_group_of_those_without() -> None:
    engine = Engine(START)
    rule = engine.add(Subscription.parse("load > 4 and mean(load) by (site) > 3").rule)
    engine.batch(START, [Sample(Series("load", HOSTS[0]), START, 9.0)])
    assert engine.firing(rule) == {HOSTS[0]}
