"""Whatever the network does: exactly once with a handoff, at least once and marked without."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

import mchannel.session
from mchannel.transport import Delivery
from tests.crash.points import WHOLE
from tests.unit.session_world import MAX_MESSAGE, World

ends = st.booleans()


class Anything(RuleBasedStateMachine):
    """Any interleaving of what applications, networks and brokers can do."""

    module: types.ModuleType = mchannel.session
    delivery = Delivery.ALL

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.module, self.delivery)

    @rule(agent=ends, size=st.sampled_from([0, 1, 40, 120, MAX_MESSAGE]), count=st.integers(1, 4))
    def write(self, agent: bool, size: int, count: int) -> None:
        for _ in range(count):
            self.world.write(agent=agent, size=size)

    @rule(agent=ends, limit=st.integers(1, 3))
    def read(self, agent: bool, limit: int) -> None:
        self.world.read(agent=agent, limit=limit)

    @rule(agent=ends)
    def done(self, agent: bool) -> None:
        self.world.done(agent=agent)

    @rule(to_broker=ends, count=st.integers(1, 8))
    def deliver(self, to_broker: bool, count: int) -> None:
        for _ in range(count):
            self.world.deliver(to_broker=to_broker)

    @rule(count=st.integers(1, 6))
    def exchange(self, count: int) -> None:
        for _ in range(count):
            self.world.deliver(to_broker=True)
            self.world.deliver(to_broker=False)

    @rule(to_broker=ends)
    def duplicate(self, to_broker: bool) -> None:
        self.world.deliver(to_broker=to_broker, again=True)

    @rule(to_broker=ends, which=st.integers(0, 3), count=st.integers(1, 4))
    def turn_up_late(self, to_broker: bool, which: int, count: int) -> None:
        for _ in range(count):
            self.world.deliver(to_broker=to_broker, stale=which)

    @rule(to_broker=ends)
    def lose(self, to_broker: bool) -> None:
        self.world.lose(to_broker=to_broker)

    @rule()
    def disconnect(self) -> None:
        self.world.disconnect()

    @rule()
    def reconnect(self) -> None:
        self.world.reconnect()

    @rule(seconds=st.sampled_from([0.01, 0.03, 0.5, 1.1, 3.5]))
    def wait(self, seconds: float) -> None:
        self.world.tick(seconds)

    @rule(agent=ends)
    def suspend(self, agent: bool) -> None:
        self.world.suspend(agent=agent)

    @rule(agent=ends)
    def resume(self, agent: bool) -> None:
        self.world.resume(agent=agent)

    @rule()
    def hand_over(self) -> None:
        self.world.hand_over()

    @rule(count=st.integers(1, 4))
    def migrate(self, count: int) -> None:
        self.world.suspend(agent=False)
        self.exchange(count)
        self.world.hand_over()
        self.world.tick(0.5)  # the agent looks for the successor
        self.exchange(count)
        self.world.read(agent=False, limit=1)

    @rule()
    def crash_broker(self) -> None:
        self.world.crash_broker()

    @rule(limit=st.integers(0, 3))
    def restart_broker(self, limit: int) -> None:
        self.world.settle()
        self.world.read(agent=False, limit=limit)
        self.world.crash_broker()
        self.world.tick(3.5)  # the agent notices
        self.world.settle()
        self.world.read(agent=False, limit=1)

    @precondition(lambda self: len(self.world.from_agent.payloads) > 3)
    @rule()
    def crash_agent(self) -> None:
        self.world.new_agent()

    @rule()
    def heal(self) -> None:
        self.world.heal()

    def teardown(self) -> None:
        self.world.heal()


class Latest(Anything):
    delivery = Delivery.LATEST


def _run(machine: type[Anything], examples: int, *phases: Phase) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=60,
            deadline=None,
            phases=phases or (Phase.generate, Phase.shrink),
            derandomize=not WHOLE,
            database=None,
            report_multiple_bugs=False,
            print_blob=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        ),
    )


@pytest.mark.timeout(3600 if WHOLE else 120)
@pytest.mark.parametrize("machine", [Anything, Latest])
def test_nothing_is_lost_invented_reordered_or_repeated_without_a_mark(machine: type[Anything]) -> None:
    _run(machine, 20_000 if WHOLE else 150)


MUTANTS = {
    "acknowledges what was received": (
        "self._acked, self._done_bytes, self._ack_due = self._done,",
        "self._done = self._expected - 1; self._acked, self._done_bytes, self._ack_due = self._done,",
    ),
    "forgets what was received": (
        "self._open(frame.ack, hello.received, now)",
        "self._open(hello.received, hello.received, now)",
    ),
    "hears every epoch": ("elif frame.epoch != self.epoch:", "elif False:"),
    "takes a message twice": (
        "if number < self._expected:\n            self._ack_due",
        "if number < self._expected - 1:\n            self._ack_due",
    ),
    "replays nothing": ("if number > received:", "if False:"),
    "replays one less": ("if number > received:", "if number > received + 1:"),
    "marks nothing": ("self._unsure = hello.sent", "self._unsure = 0"),
    "marks what is held only": ("self._unsure = hello.sent", "self._unsure = hello.base"),
    "counts on from the wrong number": ("self._base = hello.received + 1", "self._base = hello.received"),
    "does not count on": ("if hello.received >= self._base + len(self._unacked):", "if False:"),
    "hands over what was received as done": (
        "self.terms, self._done, self._base, kept",
        "self.terms, self._expected - 1, self._base, kept",
    ),
    "hands over nothing unacknowledged": ("kept = tuple(self._unacked)", "kept = ()"),
    "forgets the doubts at a handoff": ("taken._unsure = found.unsure", "pass"),
    "overlooks a gap": ("if self.terms.delivery is Delivery.ALL and not self._complete(number - 1, now):", "if False:"),
    "overlooks that the last was lost": (
        "        if number < self._expected:\n            return True",
        "        if True:\n            return True",
    ),
    "ignores the window": (
        "elif self.terms.delivery is Delivery.ALL and self._unacked and",
        "elif False and",
    ),
    "counts empty messages as nothing": ("        size += OVERHEAD\n", "        size += 0\n"),
    "tries a handshake once": ("if self._retry_due is not None and now >= self._retry_due:", "if False:"),
    "never acknowledges by the clock": ("elif now >= self._ack_due:", "elif False:"),
    "stays suspended for ever": ("self._suspend_until = now + timeout", "self._suspend_until = None"),
}


def _mutant(old: str, new: str) -> types.ModuleType:
    source = Path(mchannel.session.__file__).read_text(encoding="utf-8")
    assert source.count(old) >= 1, f"the session has no {old!r} any more; plant this bug anew"
    module = types.ModuleType("session_mutant")
    sys.modules[module.__name__] = module
    exec(compile(source.replace(old, new), module.__name__, "exec"), module.__dict__)
    return module


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", MUTANTS)
def test_a_planted_bug_is_found(bug: str) -> None:
    machine = type("Mutated", (Anything,), {"module": _mutant(*MUTANTS[bug])})
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever breaks first
        _run(machine, 10_000, Phase.generate)  # it stops at the first example that fails
