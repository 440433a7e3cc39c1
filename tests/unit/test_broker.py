from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import pytest

from mbroker.action import Action, Notify, SetFrequency, SetPState
from mbroker.broker import Broker, Budget, Hosted, attributed
from mbroker.host import Domain, Host
from mchannel.errors import AuthenticationError
from mchannel.event import Event

Decide = Callable[[Event, Host], Iterable[Action]]


@attrs.define
class Scripted:
    """Decides by a function."""

    script: Decide
    topics: tuple[str, ...] = ()
    seen: list[Event] = attrs.field(factory=list[Event])

    def decide(self, event: Event, host: Host) -> Iterable[Action]:
        self.seen.append(event)
        return self.script(event, host)


def step(by: int) -> Scripted:
    return Scripted(lambda event, _: [SetFrequency(event.source, step=by)])


def answering(answer: Any) -> Scripted:
    """Decide the same whatever happens."""

    def script(_: Event, __: Host) -> Iterable[Action]:
        return answer  # type: ignore[no-any-return]

    return Scripted(script)


def nothing(_: Event, __: Host) -> Iterable[Action]:
    return ()


def raising(_: Event, __: Host) -> Iterable[Action]:
    raise KeyError("no such strike")


def event(at: float = 0.0, source: str = "web1", topic: str = "sla.epoch") -> Event:
    return Event(topic, source, 0.2, at)


def host(**levels: int) -> Host:
    return Host("h1", domains={name: Domain(name, level) for name, level in levels.items()})


def frequencies(actions: Iterable[Action]) -> list[tuple[str, int | None]]:
    return [(action.domain, action.level) for action in actions if isinstance(action, SetFrequency)]


def test_a_policy_sees_only_topics_with_its_prefixes() -> None:
    sla, everything = Scripted(nothing, ("sla.", "cpu.")), Scripted(nothing)
    broker = Broker(Host("h"), [Hosted(sla, "sla"), Hosted(everything, "all")])
    for topic in ("sla.epoch", "cpu.usage", "slax", "power.reading"):
        broker.handle(event(topic=topic))
    assert [seen.topic for seen in sla.seen] == ["sla.epoch", "cpu.usage"]
    assert len(everything.seen) == 4


def test_a_step_is_resolved_against_the_present_level_and_remembered() -> None:
    broker = Broker(host(web1=4), [step(-1)])
    levels = [frequencies(broker.handle(event(at))) for at in (0, 1)]
    assert levels == [[("web1", 3)], [("web1", 2)]]
    assert broker.host.level("web1") == 2


@pytest.mark.parametrize(("by", "level"), [(-9, 0), (9, 4)])
def test_a_step_is_clamped_to_the_p_states(by: int, level: int) -> None:
    assert frequencies(Broker(host(web1=2), [step(by)]).handle(event())) == [("web1", level)]


def test_an_absolute_level_wins_over_a_step() -> None:
    policy = Scripted(lambda event, _: [SetFrequency(event.source, step=1, level=0)])
    assert frequencies(Broker(host(web1=2), [policy]).handle(event())) == [("web1", 0)]


def test_what_changes_nothing_is_dropped_and_costs_no_budget() -> None:
    broker = Broker(host(web1=4), [step(+1)], budget=Budget(rate=1, burst=1))
    assert all(broker.handle(event(0)) == [] for _ in range(10))
    assert broker.stats.over_budget == 0


def test_a_physical_cpu_takes_the_maximum_over_its_virtual_cpus() -> None:
    shared = {"a": Domain("a", 4, (0, 1)), "b": Domain("b", 4, (1, 2))}
    broker = Broker(Host("h", domains=shared), [step(-1)])
    first = broker.handle(event(0, "a"))
    second = broker.handle(event(1, "b"))
    assert [a for a in first if isinstance(a, SetPState)] == [SetPState((0,), 3)]
    assert [a for a in second if isinstance(a, SetPState)] == [SetPState((1, 2), 3)]


def test_a_domain_over_its_budget_is_dropped_and_the_operator_told_once() -> None:
    flip = Scripted(lambda event, host: [SetFrequency(event.source, step=-1 if host.level(event.source) else 4)])
    broker = Broker(host(web1=4, db=4), [flip], budget=Budget(rate=1, burst=3))
    actions = [action for _ in range(10) for action in broker.handle(event(5.0))]
    assert len(frequencies(actions)) == 3
    assert [a.domain for a in actions if isinstance(a, Notify)] == ["web1"]
    assert broker.stats.over_budget == 7
    assert frequencies(broker.handle(event(5.0, "db"))), "another domain has its own budget"
    assert frequencies(broker.handle(event(6.1))), "tokens come back with time"


def test_an_action_over_budget_leaves_the_picture_of_the_host_alone() -> None:
    broker = Broker(host(web1=4), [step(-1)], budget=Budget(rate=1, burst=1))
    broker.handle(event(0))
    broker.handle(event(0))
    assert broker.host.level("web1") == 3


def test_a_clock_that_goes_back_refills_no_budget() -> None:
    broker = Broker(host(web1=4), [step(-1)], budget=Budget(rate=1, burst=1))
    assert frequencies(broker.handle(event(), now=100.0))
    assert not frequencies(broker.handle(event(), now=50.0))
    assert not frequencies(broker.handle(event(), now=100.5))


def test_budgets_follow_the_callers_clock_and_not_the_guests_claim() -> None:
    broker = Broker(host(web1=4), [step(-1)], budget=Budget(rate=1, burst=1))
    moved = [frequencies(broker.handle(event(at=1000.0 * n), now=1.0)) for n in range(3)]
    assert [len(actions) for actions in moved] == [1, 0, 0]


NONSENSE: Any = "4"


class Trap(int):
    """A number as long as nobody reckons with it."""

    def __add__(self, _: int) -> int:
        raise RuntimeError("caught")

    __radd__ = __lt__ = __gt__ = __eq__ = __add__  # type: ignore[assignment]
    __hash__ = int.__hash__


@pytest.mark.parametrize(
    "bad",
    [
        Scripted(raising),
        answering(None),
        answering(["faster!"]),
        answering([SetFrequency("web1", step=True)]),
        answering([SetFrequency("web1", step=NONSENSE)]),
        answering([SetFrequency("web1", level=NONSENSE)]),
        answering([SetFrequency("web1", step=Trap(1))]),
        answering([SetFrequency("web1", level=Trap(1))]),
        answering([Notify("web1", "x" * 10_000)]),
        answering([Notify("web1", "hello")] * 65),
        answering([SetFrequency("db", step=1)]),
        answering([SetPState((0,), 4)]),
        answering([SetFrequency("web1", step=1), SetFrequency("db", step=1)]),
    ],
)
def test_a_policy_that_fails_is_isolated_counted_and_reported(bad: Scripted) -> None:
    broker = Broker(host(web1=1, db=1), [Hosted(bad, "bad"), Hosted(step(1), "good")])
    actions = broker.handle(event())
    assert frequencies(actions) == [("web1", 2)], "only what the good one asked for"
    (told,) = [action for action in actions if isinstance(action, Notify)]
    assert told.domain == "h1"
    assert "policy bad failed at sla.epoch" in told.text
    failing, good = broker.reports(now=0.0)
    assert (failing.failures, failing.actions, failing.benched_for) == (1, 0, 1.0)
    assert failing.error
    assert (good.failures, good.actions) == (0, 1)


def test_a_generator_that_never_ends_is_cut_off() -> None:
    def endless(event: Event, _: Host) -> Iterable[Action]:
        while True:
            yield Notify(event.source, "again")

    broker = Broker(Host("h"), [Scripted(endless)])
    assert len(broker.handle(event())) == 1
    assert "more than 64 actions" in broker.reports()[0].error


def test_a_slow_decision_is_discarded_and_benches_its_policy() -> None:
    ticks = iter([0.0, 0.3, 1.0, 1.1])
    slow = Hosted(step(-1), "slow", deadline=0.2)
    broker = Broker(host(web1=4), [slow], stopwatch=lambda: next(ticks))
    assert not frequencies(broker.handle(event(0)))
    assert "took 0.300 s" in broker.reports()[0].error
    assert not frequencies(broker.handle(event(0.5))), "benched"
    assert frequencies(broker.handle(event(1.5))) == [("web1", 3)]


def test_a_decision_that_failed_counts_for_the_slowest_too() -> None:
    ticks = iter([0.0, 0.7])
    broker = Broker(host(web1=4), [Scripted(raising)], stopwatch=lambda: next(ticks))
    broker.handle(event())
    assert broker.reports()[0].slowest == 0.7


def test_a_failing_policy_is_benched_twice_as_long_each_time() -> None:
    bad = Scripted(raising)
    broker = Broker(Host("h"), [bad])
    for tick in range(40):
        broker.handle(event(tick * 0.5))
    assert [seen.at for seen in bad.seen] == [0.0, 1.0, 3.0, 7.0, 15.0]
    assert broker.reports()[0].skipped == 35


def test_a_policy_that_behaved_for_long_starts_with_a_short_bench_again() -> None:
    failing = {0.0, 1.0, 3.0, 100.0}
    policy = Scripted(lambda event, host: raising(event, host) if event.at in failing else [])
    broker = Broker(Host("h"), [policy])
    for at in (0.0, 1.0, 3.0, 7.0, 50.0, 100.0):
        broker.handle(event(at))
    assert broker.reports(now=100.0)[0].benched_for == 1.0


@pytest.mark.parametrize(("again", "bench"), [(2.9, 2.0), (3.1, 1.0)])
def test_a_policy_behaved_for_long_after_twice_the_time_that_it_was_out(again: float, bench: float) -> None:
    broker = Broker(Host("h"), [Scripted(raising)])
    broker.handle(event(0.0))
    broker.handle(event(again))
    assert broker.reports(now=again)[0].benched_for == pytest.approx(bench)


def test_a_host_wide_policy_may_act_on_other_domains_and_on_physical_cpus() -> None:
    asked: list[Action] = [SetFrequency("db", step=-1), SetPState((7,), 99)]
    broker = Broker(host(web1=4, db=4), [Hosted(answering(asked), host_wide=True)])
    actions = broker.handle(event())
    assert ("db", 3) in frequencies(actions)
    assert SetPState((7,), 4) in actions


@pytest.mark.parametrize("cpus", [(), (-1,), (0, -1), (Trap(0),), (True,), [0]])
def test_physical_cpus_that_cannot_be_are_refused(cpus: Any) -> None:
    broker = Broker(host(web1=4), [Hosted(answering([SetPState(cpus, 0)]), host_wide=True)])
    assert not [action for action in broker.handle(event()) if isinstance(action, SetPState)]
    assert broker.reports()[0].failures == 1


def test_a_domain_that_is_not_known_moves_no_physical_cpu() -> None:
    broker = Broker(host(web2=1), [Hosted(answering([SetFrequency("web2 ", level=3)]), host_wide=True)])
    assert broker.handle(event()) == [SetFrequency("web2 ", level=3)]
    assert broker.host.cpu_levels() == {0: 1}


def test_an_action_that_failed_is_taken_out_of_the_picture() -> None:
    broker = Broker(host(web1=4), [step(-1)])
    (action, pstate) = broker.handle(event(0))
    broker.failed(action)
    assert broker.host.level("web1") == 4
    assert broker.handle(event(1)) == [action, pstate], "and is asked for again"


def test_all_that_failed_at_an_event_is_taken_out_of_the_picture() -> None:
    broker = Broker(host(web1=4), [Hosted(step(-1), "a"), Hosted(step(-1), "b")])
    for action in reversed(broker.handle(event(0))):
        broker.failed(action)
    assert broker.host.level("web1") == 4


def test_what_failed_leaves_the_level_that_earlier_events_brought() -> None:
    broker = Broker(host(web1=4), [step(-1)])
    broker.handle(event(0))
    (action, _) = broker.handle(event(1))
    broker.failed(action)
    assert broker.host.level("web1") == 3


def test_an_event_belongs_to_the_domain_of_its_channel() -> None:
    assert attributed(event(source="victim"), "web1").source == "web1"


@pytest.mark.parametrize("topic", ["cpu.usage", "agent.silent", "control.status", "broker.x"])
def test_a_guest_may_not_speak_for_the_host(topic: str) -> None:
    with pytest.raises(AuthenticationError, match="only the host itself"):
        attributed(event(topic=topic), "web1")


def test_two_policies_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="Scripted"):
        Broker(Host("h"), [step(1), step(2)])


def test_topics_that_are_no_tuple_are_refused() -> None:
    prefixes: Any = "sla."
    with pytest.raises(TypeError, match="tuple of topic prefixes"):
        Broker(Host("h"), [Scripted(nothing, prefixes)])


def test_a_new_picture_of_the_host_is_taken_over() -> None:
    broker = Broker(host(web1=4), [step(-1)])
    broker.observe(host(web1=2))
    assert frequencies(broker.handle(event())) == [("web1", 1)]


def test_a_replay_may_host_without_a_deadline() -> None:
    ticks = iter([0.0, 1e9])
    broker = Broker(host(web1=4), [Hosted(step(-1), deadline=math.inf)], stopwatch=lambda: next(ticks))
    assert frequencies(broker.handle(event())) == [("web1", 3)]


class Mute(Exception):
    """Does not say what it is about."""

    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize("error", [Mute(), asyncio.CancelledError(), SystemExit(3), GeneratorExit()])
def test_whatever_a_policy_raises_is_its_own_failure(error: BaseException) -> None:
    def script(_: Event, __: Host) -> Iterable[Action]:
        raise error

    broker = Broker(host(web1=4), [Hosted(Scripted(script), "bad"), Hosted(step(-1), "good")])
    actions = broker.handle(event())
    assert frequencies(actions) == [("web1", 3)]
    bad = broker.reports(0.0)[0]
    assert (bad.failures, bad.benched_for, bad.error.split(":")[0]) == (1, 1.0, type(error).__name__)
    assert [action.text.split(" failed")[0] for action in actions if isinstance(action, Notify)] == ["policy bad"]


def test_an_operator_who_interrupts_is_obeyed() -> None:
    def script(_: Event, __: Host) -> Iterable[Action]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Broker(host(), [Scripted(script)]).handle(event())


def test_the_operator_is_told_again_when_a_domain_behaved_in_between() -> None:
    broker = Broker(host(), [Scripted(lambda event, _: [Notify(event.source, "hello")])], budget=Budget(1.0, 2))

    def warnings(at: float) -> int:
        return sum(
            "what exceeds is dropped" in action.text
            for action in broker.handle(event(at))
            if isinstance(action, Notify)
        )

    assert [warnings(at) for at in (0, 0, 0, 0)] == [0, 0, 1, 0]
    assert [warnings(at) for at in (100, 100, 100, 100)] == [0, 0, 1, 0]
