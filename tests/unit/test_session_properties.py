"""Whatever the network does: exactly once with a handoff, at least once and marked without."""

from __future__ import annotations

import inspect
import sys
import types
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

import mchannel.session
from mchannel.reader import Reader
from mchannel.session import Session
from mchannel.transport import Delivery
from mchannel.writer import Writer
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

    @rule(agent=ends, sizes=st.lists(st.sampled_from([0, 1, 40, 120, MAX_MESSAGE]), max_size=6))
    def write_many(self, agent: bool, sizes: list[int]) -> None:
        self.world.write_many(agent=agent, sizes=sizes)

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
        Reader,
        "self.acked, self.done_size = self.done, 0",
        "self.done = self.expected - 1; self.acked, self.done_size = self.done, 0",
    ),
    "forgets what was received": (
        Session,
        "self._open(frame.ack, hello.received, now)",
        "self._open(hello.received, hello.received, now)",
    ),
    "hears every epoch": (Session, "if self._shaken and frame.epoch == self.epoch", "if self._shaken"),
    "hears messages of every epoch": (Session, "if epoch != self.epoch or not self._shaken:", "if not self._shaken:"),
    "overlooks what a message acknowledges": (Session, "if ack >= self.writer.base:", "if ack > self.writer.base:"),
    "overlooks a gap before one message": (
        Session,
        "if number == reader.expected and not flags",
        "if number >= reader.expected and not flags",
    ),
    "takes several for one": (Session, "if number == reader.expected and not flags", "if number == reader.expected"),
    "takes a message twice": (
        Session,
        "if number + len(payloads) <= reader.expected:",
        "if number + len(payloads) < reader.expected:",
    ),
    "takes again what comes with something new": (
        Reader,
        "payloads = payloads[self.expected - number :]",
        "pass",
    ),
    "replays nothing": (Session, "self._data_of_many(*writer.after(max(received, self._ahead)))", "pass"),
    "thinks that more went with HELLO than did": (
        Session,
        "self._ahead = first + len(batch) - 1",
        "self._ahead = first + len(batch)",
    ),
    "replays one less": (Writer, "skip = max(0, number - self.base + 1)", "skip = max(0, number - self.base + 2)"),
    "marks nothing": (Session, "self.reader.begin(hello.base, hello.sent)", "self.reader.begin(hello.base, 0)"),
    "marks what is held only": (
        Session,
        "self.reader.begin(hello.base, hello.sent)",
        "self.reader.begin(hello.base, hello.base)",
    ),
    "marks all but the last": (Reader, "number <= self.unsure", "number < self.unsure"),
    "counts on from the wrong number": (Writer, "self.base = received + 1", "self.base = received"),
    "does not count on": (
        Session,
        "self.writer.count_on(hello.received, dict(hello.authors).get(self.author))",
        "pass",
    ),
    "waits for what another broker took care of": (Session, "self.reader.skip_to(hello.base)", "pass"),
    "hands over what was received as done": (
        Session,
        "(reader.done, base, kept",
        "(reader.expected - 1, base, kept",
    ),
    "hands over nothing unacknowledged": (
        Session,
        "kept, reader = tuple(self.writer.unacked), self.reader",
        "kept, reader = (), self.reader",
    ),
    "forgets the doubts at a handoff": (Session, "Reader(found.received, found.unsure)", "Reader(found.received)"),
    "overlooks a gap": (
        Session,
        "elif number > reader.expected and not self._complete(number - 1, now):",
        "elif False:",
    ),
    "overlooks that the last was lost": (
        Session,
        "        if number < self.reader.expected:\n            return True",
        "        if True:\n            return True",
    ),
    "ignores the window": (Writer, "if size > window and self.unacked:", "if False:"),
    "counts empty messages as nothing": (
        Writer,
        "size = self.size + len(payload) + OVERHEAD",
        "size = self.size + len(payload)",
    ),
    "counts a batch by its first": (
        Session,
        "max(self.writer.sent, first + len(batch) - 1)",
        "max(self.writer.sent, first)",
    ),
    "tries a handshake once": (Session, "if self._retry_due is not None and now >= self._retry_due:", "if False:"),
    "never acknowledges by the clock": (Session, "elif now >= self._ack_due:", "elif False:"),
    "stays suspended for ever": (
        Session,
        "self._suspend_until = now + timeout",
        "self._suspend_until = None",
    ),
}


def _mutant(part: type, old: str, new: str) -> types.ModuleType:
    """Return the session's module with *new* instead of *old* in the file that defines *part*."""
    path = Path(inspect.getfile(part))
    source = path.read_text(encoding="utf-8")
    assert source.count(old) >= 1, f"{path.name} has no {old!r} any more; plant this bug anew"
    module = _module(path, source.replace(old, new))
    if part is Session:
        return module
    session = Path(inspect.getfile(Session))
    whole = _module(session, session.read_text(encoding="utf-8"))
    setattr(whole, part.__name__, getattr(module, part.__name__))
    return whole


def _module(path: Path, source: str) -> types.ModuleType:
    module = types.ModuleType(f"{path.stem}_mutant")
    sys.modules[module.__name__] = module
    exec(compile(source, module.__name__, "exec"), module.__dict__)
    return module


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", MUTANTS)
def test_a_planted_bug_is_found(bug: str) -> None:
    machine = type("Mutated", (Anything,), {"module": _mutant(*MUTANTS[bug])})
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever breaks first
        _run(machine, 10_000, Phase.generate)  # it stops at the first example that fails
