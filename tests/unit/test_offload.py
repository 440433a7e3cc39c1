"""Rules that are matched at the source: what is told of them is what is told of all others."""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Iterator
from typing import cast

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbroker.alerts.engine import Engine
from mbroker.alerts.language import Subscription
from mbroker.alerts.offloading import cuts
from mbroker.alerts.reference import Reference
from mbroker.alerts.sample import Sample
from mbroker.alerts.selector import Endpoint, Series
from mbroker.alerts.tree import Rule, leaves
from mchannel.agents.offload import Sieve
from mchannel.agents.publisher import Publisher, Reading
from mchannel.errors import CodecError
from mchannel.event import Event
from mchannel.samples import (
    MOST_CUTS,
    OFFLOADED,
    SERIES,
    Declared,
    Named,
    Offload,
    Offloaded,
    Samples,
)
from tests.crash.points import WHOLE

LOAD = Named("load")


def rule(text: str) -> Rule:
    return Subscription.parse(text).rule


def offer(*pairs: tuple[int, float], run: int = 0, since: int = -1, refresh: int = 10**9) -> Offload:
    return Offload(run, since, refresh, array("I", [n for n, _ in pairs]), array("d", [cut for _, cut in pairs]))


# -- what travels


def test_only_a_sample_on_another_side_of_a_threshold_is_sent() -> None:
    sieve = Sieve(offer((0, 50.0), (0, 75.0)), newest=-1)
    sent = [at for at, value in enumerate([10, 20, 60, 70, 80, 90, 10, 20]) if sieve.sift(0, value, at)]
    assert sent == [0, 2, 4, 6]


def test_a_series_without_thresholds_is_not_held_back() -> None:
    assert 1 not in Sieve(offer((0, 50.0)), newest=-1)


def test_a_value_at_the_threshold_is_not_above_it() -> None:
    sieve = Sieve(offer((0, 50.0)), newest=-1)
    assert [bool(sieve.sift(0, value, at)) for at, value in enumerate([50.0, 49.0, 50.1])] == [True, False, True]


def test_a_series_in_which_nothing_changes_is_told_now_and_then() -> None:
    sieve = Sieve(offer((0, 50.0), refresh=3), newest=-1)
    assert [at for at in range(10) if sieve.sift(0, 1.0, at)] == [0, 3, 6, 9]


def test_what_is_late_is_left_to_the_broker_who_is_told_first_what_was_held_back() -> None:
    sieve = Sieve(offer((0, 50.0)), newest=-1)
    assert sieve.sift(0, 1.0, 10) == ((1.0, 10),)
    assert sieve.sift(0, 2.0, 20) == ()
    assert sieve.sift(0, 99.0, 15) == ((2.0, 20), (99.0, 15))
    assert sieve.sift(0, 1.0, 30) == ((1.0, 30),)


@pytest.mark.parametrize(("since", "newest"), [(100, 5), (5, 100)])
def test_nothing_is_held_back_up_to_what_the_broker_may_have_heard(since: int, newest: int) -> None:
    sieve = Sieve(offer((0, 50.0), since=since), newest)
    assert [at for at in (90, 100, 101, 102) if sieve.sift(0, 1.0, at)] == [90, 100, 101]


def test_what_is_no_number_is_not_sent() -> None:
    assert Sieve(offer((0, 50.0)), newest=-1).sift(0, math.nan, 1) == ()


# -- what both sides say


def publishing(**settings: int) -> Publisher:
    publisher = Publisher(**settings)
    publisher.take([Reading(LOAD, 1.0)], 1)
    while publisher.first():
        publisher.pop()
    return publisher


def answered(publisher: Publisher) -> int | None:
    event = publisher.first()
    if event is None or event.topic != OFFLOADED:
        return None
    publisher.pop()
    return Offloaded.from_event(event).cuts


def test_an_offer_is_taken_and_answered() -> None:
    publisher = publishing()
    publisher.heard(offer((0, 5.0), run=publisher.run).to_event())
    assert answered(publisher) == 1
    for at in range(2, 5):
        publisher.take([Reading(LOAD, 1.0)], at)
    assert (len(publisher), publisher.withheld) == (1, 2)


def test_an_offer_for_a_run_that_is_over_changes_nothing() -> None:
    publisher = publishing()
    publisher.heard(offer((0, 5.0), run=publisher.run + 1).to_event())
    assert publisher.first() is None


def test_an_offer_that_is_too_much_is_refused() -> None:
    publisher = publishing(most_cuts=1)
    publisher.heard(offer((0, 5.0), (0, 6.0), run=publisher.run).to_event())
    assert answered(publisher) == 0


def test_a_publisher_that_is_strained_gives_back_what_it_took_and_takes_nothing() -> None:
    publisher = publishing()
    publisher.heard(offer((0, 5.0), run=publisher.run).to_event())
    publisher.take([Reading(LOAD, 1.0)], 2)
    publisher.take([Reading(LOAD, 2.0)], 3)
    publisher.strain(is_strained=True)
    assert answered(publisher) == 0
    event = publisher.first()
    assert event is not None
    assert list(Samples.from_event(event).values) == [1.0, 2.0]  # the one held back, too
    publisher.heard(offer((0, 5.0), run=publisher.run).to_event())
    publisher.strain(is_strained=False)
    publisher.pop()
    assert answered(publisher) == 0


def test_a_broker_that_forgot_the_series_has_forgotten_the_offer() -> None:
    publisher = publishing()
    publisher.heard(offer((0, 5.0), run=publisher.run).to_event())
    publisher.again()
    for at in range(2, 5):
        publisher.take([Reading(LOAD, 1.0)], at)
    assert len(publisher) == 3


def test_a_sample_that_is_dropped_is_made_up_for_by_later_ones() -> None:
    publisher = publishing(most=2)
    publisher.heard(offer((0, 5.0), run=publisher.run).to_event())
    for at, value in enumerate([1.0, 9.0, 1.0, 1.0, 1.0], 2):
        publisher.take([Reading(LOAD, value)], at)
    assert (publisher.dropped, len(publisher), publisher.withheld) == (1, 2, 2)


def test_when_the_last_sample_that_was_sent_is_dropped_the_next_one_is_sent() -> None:
    publisher = publishing(most=1)
    publisher.take([Reading(Named("other"), 1.0)], 1)
    publisher.heard(offer((0, 5.0), run=publisher.run).to_event())
    for at in range(2, 5):
        publisher.take([Reading(LOAD, 9.0), Reading(Named("other"), 1.0)], at)
    assert (publisher.dropped, publisher.withheld) == (6, 0)


@pytest.mark.parametrize(
    "detail",
    [
        {},
        {"numbers": b"\0" * 8},
        {"cuts": b"\0" * 7},
        {"cuts": array("d", [math.nan]).tobytes()},
        {"refresh": 0.5},
        {"since": None},
        {"numbers": bytes(4 * MOST_CUTS + 4), "cuts": bytes(8 * MOST_CUTS + 8)},
    ],
)
def test_an_offer_that_makes_no_sense_changes_nothing(detail: dict[str, object]) -> None:
    publisher = publishing()
    good = {"run": publisher.run, "since": 0, "refresh": 0, "numbers": b"\0" * 4, "cuts": b"\0" * 8}
    event = Event("metrics.offload", detail={**good, **detail} if detail else {})  # type: ignore[dict-item]
    with pytest.raises(CodecError):
        publisher.heard(event)
    assert publisher.first() is None


# -- the same edges

RULES = [
    "load > 5",
    "load >= 5 clear < 3",
    "load < 3",
    "load <= 3 clear >= 4",
    "load == 5",
    "load != 4",
    "load{core='1'} > 3 clear <= 3",
    "temp > 4 clear < 4",
]
NAMES = [Named("load", (("core", "0"),)), Named("load", (("core", "1"),)), Named("temp")]
Told = list[tuple[int, Endpoint, bool, int]]


def series_of(named: Named) -> Series:
    return Series(named.metric, Endpoint((*named.labels, ("host", "h"))))


@attrs.define
class Broker:
    """Matches whatever arrives."""

    rules: list[Rule]
    engine: Engine = attrs.field(factory=lambda: Engine(0))
    names: dict[int, Named] = attrs.field(factory=dict[int, Named])
    run: int = -1
    newest: int = -1
    offered: int = 0
    edges: Told = attrs.field(factory=list[tuple[int, Endpoint, bool, int]])
    values: list[float] = attrs.field(factory=list[float])

    def __attrs_post_init__(self) -> None:
        for one in self.rules:
            self.engine.add(one)

    def hear(self, publisher: Publisher, now: int) -> None:
        while event := publisher.first():
            publisher.pop()
            if event.topic == SERIES:
                declared = Declared.from_event(event)
                self.run = declared.run
                self.names.update(enumerate(declared.series, declared.first))
            elif event.topic == OFFLOADED:
                self.offered = Offloaded.from_event(event).cuts
            else:
                got = Samples.from_event(event)
                self.match(
                    now, [(self.names[n], v, t) for n, v, t in zip(got.numbers, got.values, got.times, strict=True)]
                )

    def match(self, now: int, rows: list[tuple[Named, float, int]]) -> None:
        for fired in self.engine.batch(now, [Sample(series_of(named), at, value) for named, value, at in rows]):
            self.edges.append((fired.rule, fired.key, fired.firing, fired.at))
            self.values.append(fired.value)
        self.newest = max([self.newest, *(at for _, _, at in rows)])

    def offer(self, chosen: set[int], refresh: int) -> Event:
        """Return an offer of all thresholds of the series of *chosen* names."""
        wanted = sorted(
            (number, cut)
            for number, named in self.names.items()
            if NAMES.index(named) in chosen
            for one in self.rules
            if all(leaf.selector.accepts(series_of(named)) for leaf in leaves(one.condition))
            for cut in cuts(one) or ()
        )
        return offer(*wanted, run=self.run, since=self.newest, refresh=refresh).to_event()

    def restart(self) -> None:
        self.engine = Engine.load(self.engine.save())


VALUES = (1.0, 3.0, 4.0, 5.0, 6.0, math.nan)  # below, at, between and above the thresholds
reading = st.tuples(
    st.sampled_from([0, 0, 0, 0, 1, 2]),
    st.sampled_from(VALUES) | st.sampled_from([math.nextafter(5, 0), math.nextafter(5, 6), math.inf, -math.inf]),
    st.sampled_from([0, 0, 0, 0, -1, -2, -5, 2]),  # how early or late
    st.sampled_from([0, 1, 1, 1, 1, 1, 2, 40_000]),  # time that passes before; none: they come together
)
take = st.tuples(st.just("take"), st.lists(reading, min_size=5, max_size=12), st.none())
step = (
    take
    | take
    | st.tuples(st.just("offer"), st.sampled_from([{0, 1, 2}, {0}, {1, 2}, set[int]()]), st.sampled_from([4, 1000]))
    | st.tuples(
        st.sampled_from(["strain", "relax", "agent restarts", "broker restarts", "again"]), st.none(), st.none()
    )
)


def batches(
    readings: list[tuple[int, float, int, int]], now: int
) -> Iterator[tuple[int, list[tuple[Named, float, int]]]]:
    """Yield when each batch comes, and what is in it."""
    rows: list[tuple[Named, float, int]] = []
    for n, value, late, passes in readings:
        if passes and rows:
            yield now, rows
            rows = []
        now += passes
        rows.append((NAMES[n], value, now + late))
    yield now, rows


def told_sorted(edges: Told) -> dict[tuple[int, Endpoint], list[tuple[bool, int]]]:
    """Return the edges of each alert, in their order."""
    found: dict[tuple[int, Endpoint], list[tuple[bool, int]]] = defaultdict(list)
    for number, key, firing, at in edges:
        found[number, key].append((firing, at))
    return found


@settings(max_examples=3_000 if WHOLE else 200)
@given(st.lists(st.sampled_from(RULES), min_size=1, max_size=3, unique=True), st.lists(step, min_size=3, max_size=12))
def test_offloaded_or_not_the_edges_are_the_same(texts: list[str], steps: list[tuple[str, object, object]]) -> None:
    rules = [rule(text) for text in texts]
    near, far = Broker(rules), Broker(rules)  # near: everything travels
    references = [Reference(one) for one in rules]
    expected: Told = []
    publisher, now = Publisher(), 1_000
    begin = ("take", [(n, 1.0, 0, 1) for n in range(3)], None), ("offer", {0, 1, 2}, 1000)
    for what, first, second in (*begin, *steps):
        if what == "take":
            for now, rows in batches(cast("list[tuple[int, float, int, int]]", first), now):  # noqa: B020
                publisher.take([Reading(*row) for row in rows], now)
                far.hear(publisher, now)
                near.match(now, rows)
                batch = [Sample(series_of(named), at, value) for named, value, at in rows]
                for number, reference in enumerate(references, 1):
                    expected += [(number, e.key, e.firing, e.at) for e in reference.batch(now, batch)]
        elif what == "offer":
            if far.run == publisher.run:
                publisher.heard(far.offer(cast("set[int]", first), cast("int", second)))
        elif what == "agent restarts":
            publisher, now = Publisher(), now + 10  # longer than samples are late: nobody knows what it held back
            far.names.clear()
        elif what == "broker restarts":
            far.restart()
            publisher.again()
        elif what == "again":
            publisher.again()
        else:
            publisher.strain(is_strained=what == "strain")
        far.hear(publisher, now)
    assert told_sorted(far.edges) == told_sorted(near.edges) == told_sorted(expected)
    assert sorted(map(repr, far.values)) == sorted(map(repr, near.values))


def test_offloading_saves_what_it_is_for() -> None:
    broker, publisher = Broker([rule("load > 5")]), Publisher()
    for at in range(1000):
        publisher.take([Reading(NAMES[0], 9.0 if at % 100 == 99 else 1.0)], at)
        broker.hear(publisher, at)
        if at == 10:
            publisher.heard(broker.offer({0}, 10**6))
    assert broker.offered == 1
    assert publisher.withheld > 900
    assert [(firing, at) for _, _, firing, at in broker.edges][:4] == [
        (True, 99),
        (False, 100),
        (True, 199),
        (False, 200),
    ]
