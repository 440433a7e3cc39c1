"""A publisher and a broker that offloads: what subscribers hear is what they hear of a broker that does not."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from mbroker.action import Severity
from mbroker.alerts import Subscription
from mbroker.alerts.alert import Alert, Enrolment, State
from mbroker.alerts.edges import Edge
from mbroker.alerts.selector import Series
from mbroker.alerts.watch import Settings, Watch
from mchannel.agents.publisher import Publisher, Reading
from mchannel.samples import OFFLOADED, SERIES, Again, Declared, Named, Offloaded, Samples
from tests.crash.points import WHOLE

NOW = 1_700_000_000_000
SETTINGS = Settings("node1", hosts=frozenset(["mvm"]), interval=10_000)
LOAD, TEMP, OTHER = Named("load"), Named("temp"), Named("other")


class Forgetful:
    """A history that keeps nothing."""

    def name(self, number: int, series: Series) -> None: ...

    def pace(self, number: int, interval: int | None) -> None: ...

    def append(self, numbers: array[int], values: array[float], times: array[int]) -> None: ...


@attrs.define
class Notes:
    """A book in memory: who subscribed, and every edge."""

    enrolled: dict[int, Enrolment] = attrs.field(factory=dict[int, Enrolment])
    made: int = 0
    edges: list[Edge] = attrs.field(factory=list[Edge])

    def enrol(self, owner: str, subscription: Subscription, receivers: Sequence[str], now: int) -> Enrolment:
        self.made += 1
        return self.enrolled.setdefault(self.made, Enrolment(self.made, owner, subscription, tuple(receivers), now))

    def withdraw(self, number: int, by: str, now: int) -> None:
        del self.enrolled[number]

    def enrolments(self) -> list[Enrolment]:
        return list(self.enrolled.values())

    def resume(self, since: int) -> None: ...

    def record(self, edges: Iterable[Edge], now: int) -> list[Alert]:
        self.edges += edges
        return []

    def alerts(
        self, state: State | None = None, enrolment: int | None = None, since: int | None = None, limit: int = 1000
    ) -> list[Alert]:
        last = {(edge.enrolment, edge.key): edge for edge in self.edges if edge.enrolment in self.enrolled}
        return [Alert("", edge.enrolment, edge.key, Severity.WARNING, edge.at) for edge in last.values() if edge.firing]


@attrs.define
class Side:
    """A watch, its book, and a publisher that it hears and answers."""

    offload: bool
    now: int = NOW
    book: Notes = attrs.field(factory=Notes)
    publisher: Publisher = attrs.field(factory=Publisher)
    image: bytes = b""
    numbers: dict[str, int] = attrs.field(factory=dict[str, int])
    heard: int = 0
    watch: Watch = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.watch = Watch(attrs.evolve(SETTINGS, offload=self.offload), self.book, Forgetful(), self.now, self.image)
        self.now += 40_000
        self.watch.tick(self.now)

    def restart(self) -> None:
        self.image = self.watch.snapshot(self.now)
        self.start()

    def tell(self, *readings: Reading) -> None:
        self.now += 1000
        self.publisher.take(readings, self.now)
        while event := self.publisher.first():
            self.publisher.pop()
            if event.topic == SERIES:
                self.watch.declare("mvm", Declared.from_event(event), self.now)
            elif event.topic == OFFLOADED:
                self.watch.offloaded("mvm", Offloaded.from_event(event))
            else:
                samples = Samples.from_event(event)
                self.heard += len(samples)
                self.watch.samples("mvm", samples, self.now)
                if self.watch.asks_again("mvm", self.now):
                    self.publisher.heard(Again(samples.run).to_event())
                elif offer := self.watch.offers("mvm", samples, self.now):
                    self.publisher.heard(offer.to_event())

    def subscribe(self, text: str) -> None:
        self.numbers[text] = self.watch.enrol("ann", Subscription.parse(text), [], self.now)[0].number

    def withdraw(self, text: str) -> None:
        self.watch.withdraw(self.numbers.pop(text), "ann", self.now)

    def told(self) -> dict[int, list[tuple[bool, int, float]]]:
        """Return what was told of each subscription, in its order."""
        found: dict[int, list[tuple[bool, int, float]]] = defaultdict(list)
        for edge in self.book.edges:
            found[edge.enrolment].append((edge.firing, edge.at, edge.value))
        return found


def test_after_a_minute_of_calm_hardly_anything_travels_and_alerts_are_the_same() -> None:
    sides = Side(offload=True), Side(offload=False)
    for side in sides:
        side.subscribe("load > 5")
        for second in range(600):
            side.tell(Reading(LOAD, 9.0 if second % 200 == 150 else 1.0), Reading(TEMP, 1.0))
    near, far = sides
    assert near.told() == far.told()
    assert len(near.told()[1]) == 6
    assert far.heard == 1200
    assert near.heard < 600 + 60 + 60  # all of what is not subscribed to, the first minute, and now and then one


def test_a_subscription_that_needs_every_sample_has_them_from_the_next_on() -> None:
    side = Side(offload=True)
    side.subscribe("load > 5")
    for _ in range(70):
        side.tell(Reading(LOAD, 1.0), Reading(TEMP, 1.0))
    side.subscribe("count(load[30s]) >= 29")
    for _ in range(31):
        side.tell(Reading(LOAD, 1.0), Reading(TEMP, 1.0))
    assert [firing for firing, *_ in side.told()[2]] == [True]


def test_a_broker_that_forgot_what_it_asked_for_hears_everything_again() -> None:
    side = Side(offload=True)
    side.subscribe("load > 5")
    for _ in range(70):
        side.tell(Reading(LOAD, 1.0), Reading(OTHER, 1.0))
    assert side.publisher.withheld
    side.restart()
    side.tell(Reading(LOAD, 1.0), Reading(OTHER, 1.0))
    before = side.heard
    side.tell(Reading(LOAD, 1.0), Reading(OTHER, 1.0))
    assert side.heard == before + 2


TEXTS = ("load > 5", "load >= 5 clear < 3", "temp < 3", "load != 1 severity critical")
steps = st.lists(
    st.tuples(st.just("tell"), st.lists(st.sampled_from([1.0, 3.0, 4.0, 5.0, 6.0]), min_size=5, max_size=30))
    | st.tuples(st.just("calm"), st.sampled_from([[1.0] * 62, [6.0] * 62]))
    | st.tuples(st.sampled_from(["subscribe", "withdraw"]), st.sampled_from(TEXTS))
    | st.tuples(st.sampled_from(["broker restarts", "agent restarts", "strain", "relax"]), st.just("")),
    max_size=8,
)


def done(side: Side, what: str, how: str | list[float]) -> None:
    match what, how:
        case _, list():
            for value in how:
                side.tell(Reading(LOAD, value), Reading(TEMP, 6.0 - value), Reading(OTHER, 1.0))
        case "subscribe", str() if how not in side.numbers:
            side.publisher.strain(is_strained=True)  # so that the broker has the newest samples
            side.tell(Reading(LOAD, 4.0), Reading(TEMP, 2.0), Reading(OTHER, 1.0))
            side.subscribe(how)
        case "withdraw", str() if how in side.numbers:
            side.withdraw(how)
        case "broker restarts", _:
            side.restart()
        case "agent restarts", _:
            side.publisher = Publisher()
        case "strain" | "relax", _:
            side.publisher.strain(is_strained=what == "strain")
        case _:
            pass


@settings(max_examples=2_000 if WHOLE else 30)
@given(steps)
def test_whatever_happens_subscribers_are_told_the_same(steps: list[tuple[str, str | list[float]]]) -> None:
    near, far = Side(offload=True), Side(offload=False)
    for side in (near, far):
        done(side, "subscribe", TEXTS[0])
        done(side, "relax", "")
        done(side, "calm", [1.0] * 62)
        for what, how in steps:
            done(side, what, how)
    assert near.told() == far.told()
