from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from mbroker.action import Action, Notify, SetFrequency, SetPState
from mbroker.actuator import Outcome
from mbroker.broker import Broker
from mbroker.control import Absent
from mbroker.host import Domain, Host
from mbroker.registry import AgentState, Registry
from mbroker.serve import Node, serve
from mbroker.usage import UsageMeter
from mchannel import EndOfChannel, Event, Peer, RawCodec, listen_async, open_async
from mchannel.transport import State


@attrs.define
class Slower:
    """Asks for one step down at every event, and remembers what it saw."""

    topics: tuple[str, ...] = ()
    seen: list[Event] = attrs.field(factory=list[Event])
    watch: Callable[[], object] = list[object]

    def decide(self, event: Event, host: Host) -> Iterable[Action]:
        self.seen.append(event)
        self.watch()
        if event.topic == "sla.epoch":
            yield SetFrequency(event.source, step=-1)
            yield Notify(event.source, "slower")


@attrs.define
class Recorder:
    """Applies nothing; refuses when told to."""

    refuse: bool = False
    watch: Callable[[], object] = list[object]
    handles: tuple[type[Action], ...] = (SetFrequency, SetPState)
    applied: list[Action] = attrs.field(factory=list[Action])

    def apply(self, action: Action) -> Outcome:
        if self.refuse and isinstance(action, SetPState):
            raise OSError("the machine says no")
        self.applied.append(action)
        self.watch()
        return Outcome(action, done=True)

    def restore(self) -> list[Outcome]:
        return []

    def close(self) -> None:
        pass


@attrs.define
class Rig:
    node: Node
    policy: Slower
    actuator: Recorder
    address: str


def make_node(policy: Slower, actuator: Recorder) -> Node:
    host = Host("h", domains={"web1": Domain("web1", 4)})
    return Node(Broker(host, [policy]), Registry("h"), [actuator])


@asynccontextmanager
async def serving(domain: str | None = "web1") -> AsyncGenerator[Rig]:
    address = f"memory:///{uuid.uuid4()}"
    policy, actuator = Slower(), Recorder()
    node = make_node(policy, actuator)
    async with listen_async(address) as listener:
        task = asyncio.create_task(serve(node, [(listener, domain)]))
        yield Rig(node, policy, actuator, address)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


async def test_an_event_becomes_an_action_that_is_applied() -> None:
    async with serving() as rig, await open_async(rig.address) as agent:
        await agent.write(Event("sla.epoch", value=0.3))
        await until(lambda: len(rig.actuator.applied) == 2)
        assert rig.actuator.applied == [SetFrequency("web1", level=3), SetPState((0,), 3)]


async def test_the_next_message_is_read_only_after_the_effect_of_the_last() -> None:
    story: list[str] = []

    class Channel:
        """Three events, and then the end. To read is to acknowledge the one before."""

        peer = Peer("web1", "memory:///web1")
        session = b"s" * 16

        async def read(self) -> Event:
            story.append("read")
            if story.count("read") > 3:
                raise EndOfChannel
            return Event("sla.epoch")

        def abort(self) -> None:
            pass

    policy = Slower(watch=lambda: story.append("decide"))
    channel: Any = Channel()
    await make_node(policy, Recorder(watch=lambda: story.append("apply"))).attend(channel, "web1")
    assert "".join(word[0] for word in story) == "rdaardaardaar"


async def test_an_agent_whose_samples_cannot_be_measured_now_hears_so_in_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def away(_: Event) -> None:
        raise Absent("the alerts are being started again")

    async with serving() as rig, await open_async(rig.address) as agent:
        rig.node.measured = away
        await agent.write(Event("metrics.samples"))
        await until(lambda: caplog.records)
    (record,) = caplog.records
    assert record.exc_info is None
    assert "the alerts are being started again; its channel was closed, and may come back" in record.getMessage()


async def test_the_domain_is_that_of_the_channel() -> None:
    async with serving() as rig, await open_async(rig.address) as agent:
        await agent.write(Event("sla.epoch", source="victim"))
        await agent.flush(timeout=10)
        assert rig.policy.seen[0].source == "web1"


async def test_a_guest_that_speaks_for_the_host_is_refused_and_goes_on() -> None:
    async with serving() as rig, await open_async(rig.address) as agent:
        await agent.write(Event("cpu.usage", value=0.0))
        await agent.write(Event("sla.epoch"))
        await agent.flush(timeout=10)
        assert [event.topic for event in rig.policy.seen if event.source == "web1"][:1] == ["sla.epoch"]
        assert rig.node.traffic.refused == 1


async def test_a_message_that_is_no_event_is_counted_and_the_channel_goes_on() -> None:
    async with serving() as rig, await open_async(rig.address, RawCodec()) as agent:
        await agent.write(b"\xff nonsense")
        await agent.flush(timeout=10)
        await until(lambda: rig.node.traffic.malformed == 1)
        assert rig.node.registry.agents()[0].state in {AgentState.CONNECTING, AgentState.LIVE}


async def test_an_agent_is_registered_live_and_gone() -> None:
    async with serving() as rig:
        async with await open_async(rig.address, name="sla") as agent:
            await agent.write(Event("sla.epoch"))
            await agent.flush(timeout=10)
            (known,) = rig.node.registry.agents()
            assert (known.identity, known.state) == ("h/web1/sla", AgentState.LIVE)
        await until(lambda: rig.node.registry.agents()[0].state is AgentState.GONE)


async def test_an_agent_that_has_nothing_to_say_is_live_as_long_as_its_channel_is() -> None:
    async with serving() as rig, await open_async(rig.address, name="commands"):
        await until(rig.node.registry.agents)
        rig.node.tick(end_of_epoch=False)
        (known,) = rig.node.registry.agents()
        assert (known.state, known.established, known.last_heard) == (AgentState.LIVE, 1, 0.0)


async def test_without_a_fixed_domain_the_peers_identity_is_the_domain() -> None:
    async with serving(None) as rig, await open_async(rig.address) as agent:
        await agent.write(Event("sla.epoch", source="web1"))
        await agent.flush(timeout=10)
        assert rig.policy.seen[0].source == rig.address.rpartition("/")[2]


async def test_a_domain_that_is_not_configured_holds_up_no_physical_cpu() -> None:
    async with serving("stranger") as rig, await open_async(rig.address) as agent:
        rig.node.broker.observe(rig.node.broker.host.with_level("web1", 1))
        await agent.write(Event("sla.epoch"))
        await agent.flush(timeout=10)
        assert rig.actuator.applied == [SetFrequency("stranger", level=3)]
        assert rig.node.broker.host.cpu_levels() == {0: 1}


async def test_too_many_agents_of_a_domain_are_turned_away() -> None:
    async with serving() as rig:
        rig.node.registry = Registry("h", limit_per_domain=1)
        async with await open_async(rig.address, name="a") as first:
            await first.write(Event("sla.epoch"))
            await first.flush(timeout=10)
            second = await open_async(rig.address, name="b")
            await until(lambda: second.state.value in {"ended", "lost", "closed"})
            second.abort()
            await first.write(Event("sla.epoch"))
            await first.flush(timeout=10)


async def test_one_that_floods_does_not_starve_the_others() -> None:
    async with serving() as rig, await open_async(rig.address) as flooder, await open_async(rig.address) as other:

        async def flood() -> None:
            while True:
                await flooder.write_many([Event("noise")] * 500)

        task = asyncio.create_task(flood())
        for _ in range(5):
            await other.write(Event("sla.epoch"))
            await other.flush(timeout=10)
        task.cancel()
        assert sum(event.topic == "sla.epoch" for event in rig.policy.seen) == 5
        flooder.abort()


async def test_one_whose_messages_never_end_gives_the_others_their_turn() -> None:
    class Flooder:
        """Always has the next message at hand, so that reading never waits."""

        peer = Peer("web1", "memory:///web1")
        session = b"s" * 16
        taken = 0

        async def read(self) -> Event:
            self.taken += 1
            if self.taken > 1000:
                raise EndOfChannel
            return Event("noise")

        def abort(self) -> None:
            pass

    turns: list[int] = []
    flooder: Any = Flooder()

    async def other() -> None:
        turns.append(flooder.taken)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(make_node(Slower(), Recorder()).attend(flooder, "web1"))
        tasks.create_task(other())
    assert turns[0] <= 32


def test_what_an_actuator_refuses_is_counted_and_taken_out_of_the_picture() -> None:
    policy, actuator = Slower(), Recorder(refuse=True)
    node = make_node(policy, actuator)
    outcomes = node.take(Event("sla.epoch", "web1"))
    assert [outcome.done for outcome in outcomes] == [True, False]
    assert "says no" in outcomes[1].error
    assert (node.traffic.failed, node.broker.host.level("web1")) == (1, 4)


def test_what_another_actuator_carried_out_is_put_back_with_the_picture() -> None:
    quota, clock = Recorder(handles=(SetFrequency,)), Recorder(refuse=True, handles=(SetPState,))
    node = make_node(Slower(), quota)
    node.actuators = (quota, clock)
    node.take(Event("sla.epoch", "web1"))
    assert quota.applied == [SetFrequency("web1", level=3), SetFrequency("web1", level=4)]
    assert node.broker.host.level("web1") == 4


async def test_an_agent_that_came_back_stays_live_when_what_read_its_old_channel_ends() -> None:
    class Channel:
        """Ends when it is told to."""

        peer = Peer("web1", "memory:///web1", name="sla")
        session = b"s" * 16
        state = State.OPEN

        def __init__(self) -> None:
            self.ended = asyncio.Event()

        async def read(self) -> Event:
            await self.ended.wait()
            raise EndOfChannel

        def abort(self) -> None:
            pass

    node = make_node(Slower(), Recorder())
    old, new = Channel(), Channel()
    channels: list[Any] = [old, new]
    async with asyncio.TaskGroup() as tasks:
        attended = [tasks.create_task(node.attend(channel, "web1")) for channel in channels]
        await asyncio.sleep(0)  # both have begun
        node.tick(end_of_epoch=False)
        old.ended.set()
        await attended[0]
        assert [agent.state for agent in node.registry.agents()] == [AgentState.LIVE]
        new.ended.set()
    assert [agent.state for agent in node.registry.agents()] == [AgentState.GONE]


def test_silence_is_told_to_the_policies_in_the_middle_of_an_epoch() -> None:
    policy = Slower()
    node = make_node(policy, Recorder())
    node.registry.connect("web1", "sla", b"s" * 16, 0.0)
    node.tick(end_of_epoch=True)
    node.tick(end_of_epoch=False)
    assert [(event.topic, event.value) for event in policy.seen] == [("agent.silent", 1)]


async def test_one_bad_sample_is_logged_and_the_next_are_taken(caplog: pytest.LogCaptureFixture) -> None:
    readings: Iterator[float | str] = iter([0.0, "broken", 1.0, 1.1])

    def read() -> float:
        value = next(readings, 1.2)
        if isinstance(value, str):
            raise ValueError(value)
        return value

    policy = Slower()
    node = make_node(policy, Recorder())
    node.usage = UsageMeter({"web1": read})
    beating = asyncio.create_task(node.beat())
    try:
        await until(lambda: beating.done() or any(event.topic == "cpu.usage" for event in policy.seen))
        assert not beating.done()
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
    assert "ValueError('broken')" in caplog.text


def meter(seconds: Iterable[float], *, quota: bool = False) -> UsageMeter:
    readings = iter(seconds)
    return UsageMeter({"web1": lambda: next(readings)}, quota=quota)


HOST = Host("h", domains={"web1": Domain("web1", 4, (0, 1))})


def test_usage_is_relative_to_the_cpus_of_the_domain() -> None:
    usage = meter([1.0, 1.5])
    assert usage.sample(HOST, 10.0, 100.0) == []
    (event,) = usage.sample(HOST, 10.5, 100.5)
    assert (event.topic, event.source, event.value) == ("cpu.usage", "web1", 0.5)
    assert (event.at, event.detail) == (100.5, {"epoch": 200})


def test_where_a_quota_stands_for_the_clock_usage_is_relative_to_the_quota() -> None:
    usage = meter([1.0, 1.25], quota=True)
    usage.sample(HOST, 10.0, 100.0)
    (event,) = usage.sample(HOST.with_level("web1", 0), 10.5, 100.5)
    assert event.value == pytest.approx(0.25 / (0.5 * 2 * 1000 / 2400))


def test_usage_is_relative_to_the_cpus_that_the_quota_gives_at_top_speed() -> None:
    readings = iter([0.0, 0.25])
    usage = UsageMeter({"web1": lambda: next(readings)}, quota=True, cpus={"web1": 0.5})
    usage.sample(HOST, 10.0, 100.0)
    assert usage.sample(HOST, 10.5, 100.5)[0].value == 1.0


def test_usage_is_never_above_one() -> None:
    usage = meter([0.0, 99.0])
    usage.sample(HOST, 10.0, 100.0)
    assert usage.sample(HOST, 10.5, 100.5)[0].value == 1.0


def test_a_counter_that_starts_anew_gives_no_usage() -> None:
    usage = meter([5.0, 0.1, 0.35])
    usage.sample(HOST, 10.0, 100.0)
    assert usage.sample(HOST, 10.5, 100.5) == []
    assert usage.sample(HOST, 11.0, 101.0)[0].value == pytest.approx(0.25)


def test_a_domain_that_does_not_run_gives_no_usage(tmp_path: Path) -> None:
    def read() -> float:
        return float((tmp_path / "none").read_text())

    assert UsageMeter({"web1": read}).sample(HOST, 1.0, 1.0) == []
