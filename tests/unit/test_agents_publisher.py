"""A publisher beside a broker that comes, goes and forgets."""

from __future__ import annotations

import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mchannel.agents.publisher import Publisher, Reading
from mchannel.errors import CodecError
from mchannel.event import Event
from mchannel.samples import AGAIN, OFFLOADED, SERIES, Again, Declared, Named, Offload, Samples

LOAD, CPU = Named("load"), Named("cpu", (("core", "0"),))


class Broker:
    """Believes what is declared, and keeps what it can name."""

    def __init__(self) -> None:
        self.run = -1
        self.names: dict[int, Named] = {}
        self.intervals: dict[Named, int | None] = {}
        self.declared: list[int] = []
        """How many series each declaration had."""
        self.heard: list[tuple[Named, float, int]] = []
        self.dropped = 0

    def hear(self, event: Event) -> Event | None:
        if event.topic == SERIES:
            declared = Declared.from_event(event)
            if declared.run != self.run:
                self.run, self.names = declared.run, {}
            self.names.update(enumerate(declared.series, declared.first))
            self.intervals.update(dict.fromkeys(declared.series, declared.interval))
            self.declared.append(len(declared.series))
            return None
        if event.topic == OFFLOADED:
            return None
        samples = Samples.from_event(event)
        if samples.run != self.run or any(number not in self.names for number in samples.numbers):
            return Again(samples.run).to_event()
        self.dropped = samples.dropped
        rows = zip(samples.numbers, samples.values, samples.times, strict=True)
        self.heard += [(self.names[number], value, at) for number, value, at in rows]
        return None


def sent(publisher: Publisher, broker: Broker) -> Broker:
    while event := publisher.first():
        publisher.pop()
        if answer := broker.hear(event):
            publisher.heard(answer)
    return broker


def test_a_series_is_declared_once_and_then_told_by_number() -> None:
    publisher, broker = Publisher(), Broker()
    publisher.take([Reading(LOAD, 1.0), Reading(CPU, 0.5)], 1000)
    sent(publisher, broker)
    publisher.take([Reading(CPU, 0.75)], 2000)
    event = publisher.first()
    assert event is not None
    assert event.topic == "metrics.samples"
    assert sent(publisher, broker).heard == [(LOAD, 1.0, 1000), (CPU, 0.5, 1000), (CPU, 0.75, 2000)]


def test_each_series_is_declared_with_the_interval_of_what_reads_it() -> None:
    publisher, names = Publisher(), [Named(f"m{n}") for n in range(5)]
    for series, interval in zip(names, (10, 10, 60, None, 10), strict=True):
        publisher.take([Reading(series, 1.0)], 1, interval)
    broker = sent(publisher, Broker())
    assert broker.intervals == dict(zip(names, (10, 10, 60, None, 10), strict=True))
    assert broker.declared == [2, 1, 1, 1]


def test_only_series_whose_interval_changes_are_declared_anew() -> None:
    publisher, names = Publisher(), [Named(f"m{n}") for n in range(6)]
    publisher.take([Reading(series, 1.0) for series in names], 1, 10)
    broker = sent(publisher, Broker())
    publisher.take([Reading(names[n], 2.0) for n in (0, 2, 3)], 2, 60)
    publisher.take([Reading(names[1], 2.0)], 2)
    publisher.take([Reading(Named("new"), 2.0)], 2, 60)
    sent(publisher, broker)
    assert [broker.intervals[series] for series in (*names, Named("new"))] == [60, 10, 60, 60, 10, 10, 60]
    assert broker.declared == [6, 1, 2, 1]
    publisher.take([Reading(names[0], 3.0)], 3, 60)
    assert sent(publisher, broker).declared == [6, 1, 2, 1]


@pytest.mark.parametrize("is_told", [False, True])
def test_an_interval_that_changes_while_it_is_being_told_is_told_again(is_told: bool) -> None:
    publisher, broker = Publisher(), Broker()
    publisher.take([Reading(LOAD, 1.0), Reading(CPU, 1.0)], 1, 10)
    if is_told:
        sent(publisher, broker)
        publisher.take([Reading(LOAD, 1.0), Reading(CPU, 1.0)], 2, 20)
    leaving = publisher.first()
    assert leaving is not None
    publisher.take([Reading(CPU, 2.0)], 3, 60)
    broker.hear(leaving)
    publisher.pop()
    assert sent(publisher, broker).intervals == {LOAD: 20 if is_told else 10, CPU: 60}


def test_an_interval_that_changes_while_samples_are_sent_sends_them_once() -> None:
    publisher, broker = Publisher(), Broker()
    publisher.take([Reading(LOAD, 1.0)], 1, 10)
    while (leaving := publisher.first()) is not None and leaving.topic == SERIES:
        publisher.pop()
        broker.hear(leaving)
    assert leaving is not None
    publisher.take([Reading(LOAD, 2.0)], 2, 60)
    broker.hear(leaving)
    publisher.pop()
    assert sent(publisher, broker).heard == [(LOAD, 1.0, 1), (LOAD, 2.0, 2)]
    assert broker.intervals == {LOAD: 60}


def test_who_asks_again_is_told_all_intervals() -> None:
    publisher = Publisher()
    publisher.take([Reading(LOAD, 1.0)], 1, 10)
    publisher.take([Reading(CPU, 1.0)], 1, 60)
    sent(publisher, Broker())
    publisher.take([Reading(LOAD, 1.0)], 2, 30)
    publisher.again()
    assert sent(publisher, Broker()).intervals == {LOAD: 30, CPU: 60}


def test_a_reading_keeps_the_time_that_it_says_itself() -> None:
    publisher = Publisher()
    publisher.take([Reading(LOAD, 1.0, 77)], 1000)
    assert sent(publisher, Broker()).heard == [(LOAD, 1.0, 77)]


def test_an_event_is_the_same_until_it_was_taken() -> None:
    publisher = Publisher()
    publisher.take([Reading(LOAD, 1.0)], 1000)
    event = publisher.first()
    publisher.take([Reading(CPU, 1.0)], 1000)
    assert publisher.first() is event


def test_what_waits_is_bounded_the_oldest_give_way_and_the_broker_is_told() -> None:
    publisher = Publisher(most=3)
    for at in range(5):
        publisher.take([Reading(LOAD, float(at))], at)
    broker = sent(publisher, Broker())
    assert ([at for _, _, at in broker.heard], broker.dropped) == ([2, 3, 4], 2)


def test_what_is_being_sent_does_not_give_way() -> None:
    publisher, broker = Publisher(room=1, most=3), Broker()  # one sample an event
    publisher.take([Reading(LOAD, 0.0)], 0)
    declaration = publisher.first()
    assert declaration is not None
    broker.hear(declaration)
    publisher.pop()
    event = publisher.first()
    assert event is not None
    for at in range(1, 5):
        publisher.take([Reading(LOAD, 0.0)], at)
    broker.hear(event)
    publisher.pop()
    assert [at for _, _, at in sent(publisher, broker).heard] == [0, 3, 4]
    assert publisher.dropped == 2


def test_a_broker_that_forgot_asks_and_is_told_again() -> None:
    publisher = Publisher()
    publisher.take([Reading(LOAD, 1.0)], 1)
    sent(publisher, Broker())
    successor = Broker()
    publisher.take([Reading(LOAD, 2.0)], 2)
    sent(publisher, successor)
    publisher.take([Reading(LOAD, 3.0)], 3)
    assert sent(publisher, successor).heard == [(LOAD, 3.0, 3)]


def test_nothing_is_declared_again_for_a_run_that_is_over() -> None:
    publisher = Publisher()
    publisher.take([Reading(LOAD, 1.0)], 1)
    sent(publisher, Broker())
    publisher.heard(Again(publisher.run + 1).to_event())
    assert publisher.first() is None


@pytest.mark.parametrize("event", [Event(AGAIN), Event(AGAIN, value="x"), Event("metrics.other", value=1)])
def test_a_broker_that_asks_nonsense_changes_nothing(event: Event) -> None:
    publisher = Publisher()
    with pytest.raises(CodecError):
        publisher.heard(event)


def test_a_series_without_a_valid_name_is_left_out_and_counted() -> None:
    publisher = Publisher()
    publisher.take([Reading(Named("not a name"), 1.0), Reading(Named("m", (("a", "\x1b"),)), 1.0)], 1)
    assert (publisher.refused, publisher.series, publisher.first()) == (2, 0, None)


def metrics(*numbers: int) -> list[Reading]:
    return [Reading(Named(f"m{n}"), 1.0) for n in numbers]


def test_too_many_series_are_left_out_and_those_that_are_known_go_on() -> None:
    publisher, broker = Publisher(most_series=2), Broker()
    run = publisher.run
    for now in range(0, 3_600_000, 60_000):
        publisher.take(metrics(0, 1, 2), now)
        if now % 180_000 == 0:
            sent(publisher, broker)
    assert (publisher.run, publisher.series, publisher.refused, publisher.dropped) == (run, 2, 60, 0)
    assert len(broker.heard) + len(publisher) == 120


def test_series_that_are_gone_make_room_in_a_new_run_for_others() -> None:
    publisher, broker = Publisher(most_series=2), Broker()
    publisher.take(metrics(0, 1, 2), 0)
    sent(publisher, broker)
    run = publisher.run
    publisher.take(metrics(1, 2), 599_999)
    sent(publisher, broker)
    assert publisher.run == run
    publisher.take(metrics(1, 2), 600_000)
    assert publisher.run != run
    assert [named.metric for named, _, _ in sent(publisher, broker).heard] == ["m0", "m1", "m1", "m1", "m2"]


def test_a_run_ends_when_most_of_its_many_series_are_gone() -> None:
    publisher, broker = Publisher(), Broker()
    runs, most = set[int](), 0
    for hour in range(20):
        for minute in range(0, 60, 10):
            names = range(hour * 100, hour * 100 + 100)
            publisher.take(metrics(*names), hour * 3_600_000 + minute * 60_000)
            sent(publisher, broker)
            runs.add(publisher.run)
            most = max(most, publisher.series)
    assert (len(runs), most) == (2, 1100)
    assert len(broker.heard) == 20 * 6 * 100


def test_series_that_are_read_seldom_are_not_gone() -> None:
    publisher, names = Publisher(), range(1500)
    run = publisher.run
    for minute in range(0, 600, 10):
        if minute % 60 == 0:
            publisher.take(metrics(*names), minute * 60_000, 3_600_000)
        publisher.take(metrics(2000), minute * 60_000, 600_000)
        sent(publisher, Broker())
    assert publisher.run == run


def test_a_new_run_waits_until_all_of_the_one_before_is_sent() -> None:
    publisher, broker = Publisher(most_series=2), Broker()
    publisher.take(metrics(0, 1, 2), 0)
    run = publisher.run
    publisher.take(metrics(2), 600_000)
    assert (publisher.run, len(publisher)) == (run, 2)
    sent(publisher, broker)
    publisher.take(metrics(2), 600_001)
    assert [named.metric for named, _, _ in sent(publisher, broker).heard] == ["m0", "m1", "m2"]


def test_what_was_held_back_is_sent_before_a_new_run() -> None:
    publisher, broker = Publisher(most_series=1), Broker()
    publisher.take(metrics(0), 0)
    sent(publisher, broker)
    publisher.heard(Offload(publisher.run, 0, 1 << 40, array("I", [0]), array("d", [5.0])).to_event())
    for at in (1, 2):
        publisher.take(metrics(0, 1), at)
    for at in (700_000, 700_001):
        sent(publisher, broker)
        publisher.take(metrics(1), at)
    heard = [(named.metric, at) for named, _, at in sent(publisher, broker).heard]
    assert heard == [("m0", 0), ("m0", 1), ("m0", 2), ("m1", 700_001)]


def test_what_was_dropped_is_counted_for_good_and_the_broker_is_told_of_its_run() -> None:
    publisher, broker = Publisher(most=2, most_series=1), Broker()
    for at in range(5):
        publisher.take(metrics(0, 1), at)
    assert sent(publisher, broker).dropped == 3
    publisher.take(metrics(1), 700_000)
    assert (sent(publisher, broker).dropped, publisher.dropped) == (0, 3)


def test_samples_being_sent_stay_when_the_oldest_give_way_as_the_channel_may_break() -> None:
    publisher = Publisher(room=1, most=3)  # one sample an event
    publisher.take(metrics(0), 0)
    publisher.first()
    publisher.pop()
    publisher.first()
    for at in range(1, 5):
        publisher.take(metrics(0), at)
    publisher.again()
    assert [at for _, _, at in sent(publisher, Broker()).heard] == [0, 3, 4]


def test_an_answer_to_a_broker_that_is_gone_is_not_sent_to_the_next() -> None:
    publisher = Publisher()
    publisher.heard(Offload(publisher.run, 0, 1000, array("I", [0]), array("d", [5.0])).to_event())
    publisher.again()
    assert publisher.first() is None


def test_a_channel_that_takes_no_long_events_gets_short_ones() -> None:
    publisher = Publisher(room=60_000)
    publisher.take([Reading(Named(f"m{n}"), 1.0) for n in range(3000)], 1)
    while publisher.narrow():
        pass
    assert publisher.room == 1024
    assert len(sent(publisher, Broker()).heard) == 3000


steps = st.lists(
    st.tuples(st.just("take"), st.integers(0, 5))
    | st.tuples(st.just("send"), st.integers(0, 3))
    | st.tuples(st.sampled_from(["again", "narrow", "forget"]), st.just(0)),
    max_size=60,
)


@given(steps)
def test_whatever_happens_what_arrives_is_what_was_read_and_no_more_than_the_bound_waits(
    steps: list[tuple[str, int]],
) -> None:
    publisher, broker = Publisher(room=1100, most=40), Broker()
    taken: list[tuple[Named, float, int]] = []
    for now, (what, count) in enumerate(steps):
        if what == "take":
            readings = [Reading(Named(f"m{n}"), float(now), now) for n in range(count * 4)]
            taken += [(series, value, now) for series, value, _ in readings]
            publisher.take(readings, now)
            assert len(publisher) <= 40
        elif what == "send":
            for _ in range(count):
                if event := publisher.first():
                    answer = broker.hear(event)
                    publisher.pop()
                    if answer:
                        publisher.heard(answer)
        elif what == "forget":
            broker.names = {}
        else:
            getattr(publisher, what)()
    arrived = iter(taken)
    assert all(row in arrived for row in broker.heard if not math.isnan(row[1]))  # in order, and none twice
