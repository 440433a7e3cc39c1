"""From samples to what the book says, through restarts."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbroker.alerts import Subscription
from mbroker.alerts.alert import Alert, State
from mbroker.alerts.book import Book, BookError, Edge, NotThere
from mbroker.alerts.catalogue import NoSuchGroup, TooBroad
from mbroker.alerts.engine_host import InProcess
from mbroker.alerts.growth import Growth
from mbroker.alerts.intake import Bounds
from mbroker.alerts.sample import Sample
from mbroker.alerts.selector import Series
from mbroker.alerts.watch import HEARTBEAT, Settings, Watch
from mbroker.alerts.workers import InBroker, Matching, Workers
from mchannel.samples import Declared, Named, Samples

NOW = 1_700_000_000_000
SETTINGS = Settings("node1", interval=1000, broadest=3, longest=4096)
NAMES = ("load", "cpu.busy", "memory.used", "disk.full")
SETTLED = 3_001


@attrs.define
class Stored:
    """A history in memory."""

    names: dict[int, Series] = attrs.field(factory=dict[int, Series])
    intervals: dict[Series, int] = attrs.field(factory=dict[Series, int])
    samples: list[Sample] = attrs.field(factory=list[Sample])

    def name(self, number: int, series: Series) -> None:
        self.names[number] = series

    def pace(self, number: int, interval: int | None) -> None:
        if interval:
            self.intervals[self.names[number]] = interval

    def append(self, numbers: array[int], values: array[float], times: array[int]) -> None:
        self.samples += [Sample(self.names[n], at, v) for n, v, at in zip(numbers, values, times, strict=True)]

    def since(self, begin: int) -> list[Sample]:
        return sorted((each for each in self.samples if each.at >= begin), key=lambda each: each.at)


@attrs.define
class World:
    """A watch that can be killed, with what lives on."""

    book: Book
    history: Stored = attrs.field(factory=Stored)
    now: int = NOW
    image: bytes = b""
    lives: int = 0
    reach: int | None = None
    """Milliseconds before the snapshot that the history has; None for all that is asked for."""
    make: Callable[[], Matching] = InBroker
    matching: Matching = attrs.field(factory=InBroker)
    watch: Watch = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.start()

    def start(self, changed: Settings = SETTINGS) -> None:
        self.lives += 1
        self.matching.close()
        self.matching = self.make()
        self.watch = Watch(changed, self.book, self.history, self.now, self.image, self.matching)
        reach = max(10_000, *self.watch.spans.values(), 0) if self.reach is None else self.reach
        self.watch.replay(self.history.since(self.watch.since - reach), self.now, self.history.intervals)

    def subscribe(self, text: str) -> int:
        return self.watch.enrol("ann", Subscription.parse(text), ["oncall"], self.now)[0].number

    def say(self, metric: str, value: float, source: str = "web1", after: int = 1000) -> list[Alert]:
        """Let *source* publish one sample, *after* milliseconds."""
        self.now += after
        self.watch.declare(source, Declared(self.lives, 0, tuple(map(Named, NAMES))), self.now)
        return self.watch.samples(source, sample(self.lives, NAMES.index(metric), value, self.now), self.now)

    def wait(self, milliseconds: int) -> list[Alert]:
        self.now += milliseconds
        return self.watch.tick(self.now)

    @property
    def told(self) -> list[tuple[int, dict[str, str], int, int | None]]:
        """What the book says happened: subscription, labels, begin and end, in seconds from the start."""
        alerts = sorted(self.book.alerts(), key=lambda each: (each.since, each.enrolment, sorted(each.key)))
        return [(a.enrolment, dict(a.key), seconds(a.since), a.until and seconds(a.until)) for a in alerts]


def sample(run: int, number: int, value: float, at: int) -> Samples:
    return Samples(run, array("I", [number]), array("d", [value]), array("q", [at]))


def seconds(at: int) -> int:
    return (at - NOW) // 1000


WEB1, WEB2 = {"domain": "web1"}, {"domain": "web2"}


def shards(hosts: int) -> Callable[[], Matching]:
    return lambda: Workers(InProcess, Growth(least=hosts))


@pytest.fixture(params=[InBroker, shards(2)], ids=["engine", "shards"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    with Book(tmp_path / "book.db") as book:
        yield World(book, make=request.param)


# -- series that are gone


@pytest.fixture(params=[InBroker, shards(2)], ids=["engine", "shards"])
def churning(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """A watch that has a bound of four series for each source, and forgets them after an hour."""
    with Book(tmp_path / "book.db") as book:
        world = World(book, make=request.param)
        world.start(attrs.evolve(SETTINGS, forget=3_600_000, bounds=Bounds(series=4)))
        yield world


def test_series_that_were_not_heard_for_long_make_room_for_others(churning: World) -> None:
    number = churning.subscribe("sum(load) by (domain) > 1")
    for name in ("web1", "web2"):
        churning.say("load", 2, name)
    churning.say("load", 0, "web1")
    before = churning.watch.counts.series
    for _ in range(62):
        churning.wait(60_000)
        churning.say("load", 2, "web2")
    assert churning.watch.counts.series == before - len(NAMES)
    assert churning.told == [(number, WEB1, 1, 3), (number, WEB2, 2, None)]
    new = tuple(Named("load", (("disk", str(n)),)) for n in range(4))
    churning.watch.declare("web1", Declared(99, 0, new), churning.now)
    assert (churning.watch.counts.series, churning.watch.counts.refused) == (before, 0)


def test_a_series_that_was_forgotten_is_asked_for_when_it_comes_back(churning: World) -> None:
    number = churning.subscribe("load > 1")
    churning.say("load", 0)
    for _ in range(62):
        churning.wait(60_000)
    late = sample(churning.lives, 0, 2.0, churning.now)
    assert churning.watch.samples("web1", late, churning.now) == []
    assert churning.watch.asks_again("web1", churning.now)
    (begun,) = churning.say("load", 2)
    assert (begun.enrolment, begun.state) == (number, State.FIRING)


def test_a_series_stays_that_fires_or_of_which_a_sample_waits(churning: World) -> None:
    churning.start(attrs.evolve(churning.watch.settings, late=30_000))
    churning.subscribe("load > 1")
    for name in ("load", "cpu.busy", "disk.full"):
        churning.say(name, 2)
    churning.wait(30_000)
    churning.wait(3_590_000)
    churning.wait(35_000)
    churning.watch.samples("web1", sample(churning.lives, 1, 1.0, churning.now), churning.now)  # of cpu.busy
    churning.wait(25_000)
    assert churning.watch.places.metrics == {HEARTBEAT, "load", "cpu.busy"}
    ((_, _, _, ended),) = churning.told
    assert ended is None


# -- what is told


def test_an_alert_begins_and_ends_once(world: World) -> None:
    number = world.subscribe("load > 1")
    states = [[alert.state for alert in world.say("load", value)] for value in (0, 2, 3, 2, 0.5, 0)]
    assert states == [[], [State.FIRING], [], [], [State.RESOLVED], []]
    assert world.told == [(number, WEB1, 2, 5)]


def test_each_source_has_alerts_of_its_own(world: World) -> None:
    number = world.subscribe("load > 1")
    world.say("load", 2, "web1")
    world.say("load", 2, "web2")
    assert world.told == [(number, WEB1, 1, None), (number, WEB2, 2, None)]


def test_equal_subscriptions_are_matched_once_and_told_each(world: World) -> None:
    numbers = [world.subscribe("load > 1"), world.subscribe("load > 1.0 severity critical")]
    world.say("load", 2)
    assert world.told == [(number, WEB1, 1, None) for number in numbers]
    assert (world.watch.counts.subscriptions, world.watch.counts.rules) == (2, 1)


def test_who_subscribes_to_what_fires_already_is_told_at_once(world: World) -> None:
    world.subscribe("load > 1")
    world.say("load", 2)
    late = world.subscribe("load > 1")
    world.wait(1000)
    assert world.told == [(1, WEB1, 1, None), (late, WEB1, 1, None)]


def test_a_withdrawn_subscription_ends_its_alerts_and_no_other(world: World) -> None:
    one, other = world.subscribe("load > 1"), world.subscribe("load > 1")
    world.say("load", 2)
    world.watch.withdraw(one, "ann", world.now)
    assert world.told == [(one, WEB1, 1, 1), (other, WEB1, 1, None)]
    world.watch.withdraw(other, "ann", world.now)
    assert (world.watch.counts.rules, [each for each, _ in world.watch.enrolments()]) == (0, [])
    assert world.say("load", 0) == []


def test_no_edge_is_made_for_who_withdrew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = world.subscribe("load > 1"), world.subscribe("load > 1")
    world.watch.withdraw(one, "ann", world.now)
    noted, record = list[int](), world.book.record

    def noting(edges: Iterable[Edge], now: int) -> list[Alert]:
        edges = list(edges)
        noted.extend(edge.enrolment for edge in edges)
        return record(edges, now)

    monkeypatch.setattr(world.book, "record", noting)
    world.say("load", 2)
    assert noted == [other]


def test_a_subscription_that_is_not_there_cannot_be_withdrawn(world: World) -> None:
    with pytest.raises(NotThere, match="no subscription 7"):
        world.watch.withdraw(7, "ann", world.now)


def test_subscriptions_say_how_many_of_their_alerts_fire(world: World) -> None:
    world.subscribe("load > 1")
    world.subscribe("cpu.busy > 1")
    world.say("load", 2, "web1")
    world.say("load", 2, "web2")
    assert [(each.number, firing) for each, firing in world.watch.enrolments()] == [(1, 2), (2, 0)]


def test_the_heartbeat_of_the_broker_can_be_subscribed_to(world: World) -> None:
    number = world.subscribe(f"{HEARTBEAT} > 0")
    world.wait(1000)
    assert world.told == [(number, {"host": "node1"}, 1, None)]


def test_everything_is_stored(world: World) -> None:
    world.say("load", 2)
    assert [(each.series.metric, each.value) for each in world.history.samples] == [("load", 2.0)]


# -- what is refused


def test_a_metric_that_nobody_publishes_is_a_warning_that_names_the_nearest(world: World) -> None:
    world.say("load", 1)
    assert world.watch.review(Subscription.parse("laod > 1 keep nothing")) == (
        "no metric is called nothing yet",
        "no metric is called laod yet; did you mean load?",
    )
    assert world.watch.review(Subscription.parse('load{domain="web9"} > 1')) == (
        "no series of load has these labels yet",
    )
    assert world.watch.review(Subscription.parse("load > 1 keep memory.used")) == ()


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("load > 1", TooBroad, "load with these labels is 4 series, and one comparison may follow 3"),
        ('load{group="db"} > 1', NoSuchGroup, "there is no group db; name its members in"),
        ("max(mean(absent_yet[5000])) > 1", TooBroad, "a window of absent_yet has 5000 samples, and a window may have"),
    ],
)
def test_what_asks_too_much_changes_nothing(world: World, text: str, error: type[Exception], says: str) -> None:
    for n in range(4):
        world.say("load", 2, f"web{n}")
    before = world.watch.counts
    with pytest.raises(error, match=says):
        world.subscribe(text)
    assert (world.watch.counts, world.book.enrolments(), world.told) == (before, [], [])


def test_a_comparison_may_find_as_many_series_as_the_limit_says(world: World) -> None:
    for n in range(3):
        world.say("load", 2, f"web{n}")
    world.subscribe("load > 1")
    world.wait(1000)
    assert len(world.told) == 3


def test_a_group_that_the_operator_made_is_there_before_its_members(world: World) -> None:
    world.start(attrs.evolve(SETTINGS, groups={"db": ("web1",), "www": ("web2",)}))
    world.subscribe('load{group="db"} > 1')
    with pytest.raises(NoSuchGroup, match="there is no group dbs; there is db"):
        world.subscribe('load{group="dbs"} > 1')
    world.say("load", 2, "web1")
    world.say("load", 2, "web2")
    assert [key for _, key, *_ in world.told] == [{"domain": "web1", "group": "db"}]


# -- a book that cannot be written


class Failing:
    """A book whose disk is full for a while."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.full = False

    def record(self, edges: list[Edge], now: int) -> list[Alert]:
        if self.full:
            raise BookError("the disk is full; make room")
        return self.book.record(edges, now)

    def __getattr__(self, name: str) -> object:
        return getattr(self.book, name)


def test_what_cannot_be_written_is_written_later_and_no_snapshot_forgets_it(world: World) -> None:
    failing = Failing(world.book)
    world.book = failing  # type: ignore[assignment]
    world.start()
    world.subscribe("load > 1")
    failing.full = True
    assert world.say("load", 2) == []
    assert world.watch.problem == "1 begins and ends of alerts are not stored yet: the disk is full; make room"
    assert world.watch.snapshot(world.now) == b""
    failing.full = False
    assert [alert.state for alert in world.wait(1000)] == [State.FIRING]
    assert (world.watch.problem, bool(world.watch.snapshot(world.now))) == ("", True)
    assert world.told == [(1, WEB1, 1, None)]


def test_edges_above_the_limit_are_counted_and_made_up_for_once_the_book_can_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(world.book)
    world.book = failing  # type: ignore[assignment]
    world.start()
    world.subscribe("load > 1")
    world.wait(SETTLED)
    world.say("load", 2, "web1")
    monkeypatch.setattr("mbroker.alerts.watch._MOST_WAITING", 1)
    failing.full = True
    for source, value in (("web2", 2.0), ("web3", 2.0), ("web1", 0.0)):
        world.say("load", value, source)
    assert world.watch.problem == (
        "1 begins and ends of alerts are not stored yet, 2 more were dropped: the disk is full; make room"
    )
    assert world.watch.is_behind
    failing.full = False
    world.wait(5000)
    assert not world.watch.is_behind
    world.wait(1000)
    lost = "2 begins and ends of alerts were dropped while the book could not be written"
    assert world.watch.problem.startswith(lost)
    assert [line.startswith(lost) for line in world.watch.complaints(world.now)] == [True]
    assert list(world.watch.complaints(world.now)) == []
    assert [(key["domain"], end is None) for _, key, _, end in world.told] == [
        ("web1", False),
        ("web2", True),
        ("web3", True),
    ]


# -- restarts


@pytest.mark.parametrize("kept", [True, False], ids=["with snapshot", "without snapshot"])
def test_an_alert_that_fires_through_a_restart_is_told_once(world: World, kept: bool) -> None:
    number = world.subscribe("mean(load[3]) > 1")
    for value in (2, 2, 2):
        world.say("load", value)
    world.image = world.watch.snapshot(world.now) if kept else b""
    world.say("load", 2)
    world.start()
    world.say("load", 2)
    world.wait(SETTLED)
    for value in (0, 0, 0):
        world.say("load", value)
    ((_, _, begin, end),) = world.told
    assert (number, begin, end) == (1, 3, 10)


def test_an_alert_whose_end_was_missed_ends_when_series_had_time_to_speak(world: World) -> None:
    world.subscribe("load > 1")
    world.say("load", 2)
    world.history.samples.clear()
    world.start()
    world.say("load", 0)
    assert world.told == [(1, WEB1, 1, None)]
    world.wait(SETTLED)
    assert world.told == [(1, WEB1, 1, 5)]


@pytest.mark.parametrize("reach", [None, 600_000, 0], ids=["all", "ten minutes", "nothing"])
def test_what_fires_goes_on_after_a_refused_snapshot_until_it_is_found_false(world: World, reach: int | None) -> None:
    world.start(attrs.evolve(SETTINGS, interval=60_000))
    number = world.subscribe("load > 8 for 15m")
    for _ in range(20):
        world.say("load", 9, after=60_000)
    world.image = world.watch.snapshot(world.now)
    world.reach = reach
    world.start(attrs.evolve(SETTINGS, interval=61_000))
    for _ in range(10):
        world.say("load", 9, after=60_000)
        world.wait(1000)
    assert world.told == [(number, WEB1, 960, None)]
    world.say("load", 7, after=60_000)
    world.wait(60_000)
    world.wait(60_000)
    ((_, _, _, end),) = world.told
    assert end


def test_windows_that_begin_anew_ask_for_as_much_of_the_past_as_they_hold_and_others_for_none(world: World) -> None:
    world.subscribe("load > 8 for 15m")
    world.subscribe("mean(load[1h]) > 1")
    world.subscribe("cpu.busy > 1")
    world.image = world.watch.snapshot(world.now)
    world.start()
    assert world.watch.spans == {}
    world.image = b""
    world.start()
    assert world.watch.spans == {"load": 3_603_000, "cpu.busy": 3_000, HEARTBEAT: 3_603_000}


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("load > 1 clear < 0.5", False),
        ("load > 1 clear < 0.95", True),
        ("all(load) > 1 clear < 0.95", True),
        ("max(mean(load[8])) > 1", False),
        ("load > 1 or cpu.busy > 1", False),
    ],
)
def test_only_what_is_found_false_ends_after_a_restart(world: World, text: str, ends: bool) -> None:
    world.subscribe(text)
    for _ in range(8):
        world.say("load", 2)
    world.history.samples.clear()
    world.start()
    world.say("load", 0.9)
    world.wait(SETTLED)
    ((*_, end),) = world.told
    assert (end is not None) is ends
    for _ in range(8):
        world.say("load", 0)
        world.say("cpu.busy", 0, after=1)
    world.wait(1000)
    ((*_, end),) = world.told
    assert end is not None


@pytest.mark.parametrize(("nodata", "ends"), [("clear", True), ("keep", False)])
def test_what_does_not_speak_after_a_restart_ends_if_silence_clears(world: World, nodata: str, ends: bool) -> None:
    world.subscribe(f"load > 1 nodata {nodata}")
    world.say("load", 2)
    world.history.samples.clear()
    world.start()
    world.wait(SETTLED)
    ((*_, end),) = world.told
    assert (end is not None) is ends


def test_what_began_before_a_kill_and_is_in_no_book_is_told_when_it_began(world: World) -> None:
    world.subscribe("load > 1")
    world.say("load", 0)
    series = next(each for each in world.history.names.values() if each.metric == "load")
    world.history.samples.append(Sample(series, NOW + 2000, 2.0))
    world.now += 5000
    world.start()
    world.wait(SETTLED)
    assert world.told == [(1, WEB1, 2, None)]


def test_time_without_a_broker_is_nobodys_silence(world: World) -> None:
    world.subscribe("absent(load[2s])")
    world.subscribe("load > 1 nodata fire")
    world.say("load", 0)
    world.image = world.watch.snapshot(world.now)
    world.now += 3_600_000
    world.start()
    world.wait(100)
    for _ in range(5):
        world.say("load", 0, after=900)
    world.wait(SETTLED)
    assert [each for each in world.told if each[2] < 3_604_000 // 1000] == []


def test_silence_that_goes_on_after_a_restart_is_told(world: World) -> None:
    world.subscribe("absent(load[2s])")
    world.say("load", 0)
    world.image = world.watch.snapshot(world.now)
    world.start()
    world.wait(SETTLED)
    assert len(world.told) == 1


def test_samples_that_are_sent_again_change_nothing(world: World) -> None:
    world.subscribe("load > 1")
    world.image = world.watch.snapshot(world.now)
    said = sample(world.lives, 0, 2.0, NOW + 1000)
    world.say("load", 2)
    world.say("load", 0)
    world.start()
    world.watch.declare("web1", Declared(1, 0, (Named("load"),)), world.now)
    assert world.watch.samples("web1", said, world.now) == []
    world.wait(SETTLED)
    assert world.told == [(1, WEB1, 1, 2)]


@pytest.mark.parametrize(
    ("image", "changed"),
    [(b"garbage", SETTINGS), (b"", attrs.evolve(SETTINGS, interval=2000))],
    ids=["damaged", "of other settings"],
)
def test_a_snapshot_that_cannot_be_used_is_said_so(world: World, image: bytes, changed: Settings) -> None:
    world.image = image or world.watch.snapshot(world.now)
    world.start(changed)
    assert "snapshot cannot be used, so that windows begin anew" in world.watch.problem


def test_subscriptions_that_came_and_went_after_the_snapshot_are_followed_or_not(world: World) -> None:
    gone = world.subscribe("load > 1")
    world.image = world.watch.snapshot(world.now)
    world.watch.withdraw(gone, "ann", world.now)
    fresh = world.subscribe("cpu.busy > 1")
    world.start()
    assert world.watch.counts.rules == 1
    world.say("load", 2)
    world.say("cpu.busy", 2)
    assert world.told == [(fresh, WEB1, 2, None)]


def test_a_subscription_that_asks_more_than_is_allowed_by_now_is_said_so_and_can_be_withdrawn(world: World) -> None:
    big = world.subscribe("mean(load[4000]) > 1")
    small = world.subscribe("load > 1")
    world.say("load", 2)
    world.start(attrs.evolve(SETTINGS, longest=64))
    for source in ("web1", "web2"):
        world.say("load", 2, source)
    assert world.watch.problem == (
        "a rule does not follow all series of load: its window is longer than the engine keeps samples"
    )
    assert [(number, key) for number, key, *_ in world.told] == [(small, WEB1), (small, WEB2)]
    world.watch.withdraw(big, "ann", world.now)
    assert [each.number for each in world.book.enrolments()] == [small]


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.one_of(st.sampled_from([0.0, 2.0, 1.5, 0.9]), st.sampled_from(["kill", "snapshot"])), min_size=1, max_size=40
    ),
    text=st.sampled_from(["load > 1", "mean(load[3]) > 1", "load > 1 clear < 0.95", "load > 1 for 2s"]),
)
def test_whoever_is_told_knows_nothing_of_restarts(
    tmp_path_factory: pytest.TempPathFactory, steps: list[float | str], text: str
) -> None:
    told = list[object]()
    for restarts in (True, False):
        with Book(tmp_path_factory.mktemp("book") / "book.db") as book:
            world = World(book)
            world.subscribe(text)
            for step in steps:
                if isinstance(step, float):
                    world.say("load", step)
                elif restarts and step == "kill":
                    world.start()
                elif restarts:
                    world.image = world.watch.snapshot(world.now)
            world.say("load", 0.0, after=500)
            world.wait(SETTLED)
            told.append(world.told)
    assert told[0] == told[1]


def test_a_series_that_is_read_seldom_is_not_silent_after_a_restart_without_a_snapshot(world: World) -> None:
    world.subscribe("load > 8 nodata clear")
    world.watch.declare("web1", Declared(1, 0, (Named("load"),), interval=60_000), world.now)
    world.watch.samples("web1", sample(1, 0, 9.0, world.now), world.now)
    world.now += 10_000
    world.start()
    for _ in range(60):
        world.wait(1000)
    assert world.told == [(1, WEB1, 0, None)]
    for _ in range(200):
        world.wait(1000)
    assert world.told == [(1, WEB1, 0, 10 + 180)]
