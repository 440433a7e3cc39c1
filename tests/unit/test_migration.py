"""A planned migration with everything that can go wrong at each of its steps, on hypervisors in memory."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from mbroker.fleet.message import Expected, Message, Whereabouts
from mbroker.fleet.migration import MigrationError, Result
from mbroker.hypervisor import HypervisorError
from mbroker.hypervisor.fake import Fault, Step, Trouble, World
from tests.unit.fleet_world import PACE, Agent, Network, fleet, run

Act = Callable[[World, Network], None]


async def migrated(network: Network, domain: str, to: str = "b", timeout: float = 60.0, *, source: str = "a") -> Result:
    """Move *domain*, and return how that ended."""
    mover = network.brokers[source].mover
    assert mover is not None
    number = await mover.start(domain, to, live=True, timeout=timeout)
    migration = mover.migration(number)
    while migration.result is None:  # noqa: ASYNC110 - it is looked at from outside, as the command does
        await asyncio.sleep(0.05)
    return migration.result


async def settled(
    world: World, network: Network, domain: str, *, lost: bool = False, unseen: tuple[str, str] | None = None
) -> None:
    """Mend everything, let time pass, and see that one host runs the domain and attends to it.

    Nothing is left of it elsewhere. It may be *lost* where a host lost its power. Where the domain may have left one
    host for the other *unseen*, an operator lets it run if it waits there.
    """
    network.cut = False
    network.deaf.clear()
    network.false.clear()
    for broker in network.brokers.values():
        broker.hypervisor.answer()
        broker.hypervisor.revive()
        broker.start()
        broker.network_changed()
    await asyncio.sleep(30)
    if unseen is not None and not world.running(domain):
        source, destination = (world.host(name) for name in unseen)
        assert domain not in source.halves
        arrival = destination.halves[domain].info.arrival
        assert arrival is not None
        destination.let_run(domain, arrival.ticket)
        await asyncio.sleep(30)
    world.check()
    running = {host.uri.removeprefix("fake://") for host in world.running(domain)}
    assert len(running) == 1 or lost
    left = [host.uri for host in world.hosts.values() if domain in host.halves and host.halves[domain].state.active]
    assert len(left) == len(running)
    for name, broker in network.brokers.items():
        assert broker.residents is not None
        if name in running:
            assert domain in broker.residents.attended


async def started(folder: Path, *names: str) -> tuple[World, Network, str]:
    world, network = fleet(folder, *(names or ("a", "b")))
    domain = world.boot(world.host("a"), "web1")
    await asyncio.sleep(1)
    return world, network, domain


async def ended(agent: Agent, network: Network) -> None:
    """Let *agent* say nothing more, and see that nothing was lost, and nothing came twice without saying so."""
    agent.hush()
    for broker in network.brokers.values():
        broker.hush()
    await asyncio.sleep(10)
    seen: set[int] = set()
    for message in network.heard:
        number = int(str(message.value.value))
        assert number not in seen or message.redelivered
        seen.add(number)
    assert agent.said > 40
    assert seen == set(range(agent.said))
    assert len(agent.heard) == len(set(agent.heard))


def exactly_once(agent: Agent, network: Network) -> None:
    """See that both directions lost and repeated nothing."""
    assert [int(str(message.value.value)) for message in network.heard] == list(range(agent.said))
    assert not any(message.redelivered for message in network.heard)
    assert sorted(agent.heard) == [
        (name, number) for name in sorted(network.told) for number in range(network.told[name])
    ]


def test_a_domain_moves_there_and_back_and_its_channels_with_it(tmp_path: Path) -> None:
    async def main() -> None:
        world, network, domain = await started(tmp_path)
        agent = Agent(world, domain)
        talking = asyncio.create_task(agent.run())
        for source, to in ("ab", "ba", "ab"):
            await asyncio.sleep(20 * PACE)
            result = await migrated(network, domain, to, source=source)
            assert (result.moved, result.host, result.reason) == (True, to, "")
            there = network.brokers[to].residents
            assert there is not None
            assert domain in there.attended
        await settled(world, network, domain)
        await ended(agent, network)
        exactly_once(agent, network)
        talking.cancel()

    run(main())


@pytest.mark.parametrize(("to", "says"), [("a", "is on a already"), ("c", "is no host of this fleet; known are b")])
def test_a_migration_to_nowhere_is_refused_in_one_line(tmp_path: Path, to: str, says: str) -> None:
    async def main() -> str:
        _, network, domain = await started(tmp_path)
        try:
            return (await migrated(network, domain, to)).reason
        except MigrationError as error:
            return str(error)

    assert says in run(main())


def test_a_domain_that_is_there_already_is_not_asked_for_its_port(tmp_path: Path) -> None:
    async def main() -> str:
        world, network = fleet(tmp_path, "a", "b")
        domain = world.boot(world.host("a"), "plain", ports=())
        await asyncio.sleep(1)
        return (await migrated(network, domain, "a")).reason

    assert run(main()) == "plain is on a already"


def test_a_domain_is_moved_once_at_a_time(tmp_path: Path) -> None:
    async def main() -> None:
        _, network, domain = await started(tmp_path)
        mover = network.brokers["a"].mover
        assert mover is not None
        await mover.start(domain, "b", live=True, timeout=60)
        with pytest.raises(MigrationError, match="being moved already"):
            await mover.start(domain, "b", live=True, timeout=60)

    run(main())


def test_an_unknown_domain_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        _, network, _ = await started(tmp_path)
        with pytest.raises(HypervisorError, match="nosuch"):
            await migrated(network, "nosuch")

    run(main())


def test_a_destination_whose_broker_is_away_is_not_tried(tmp_path: Path) -> None:
    async def main() -> None:
        world, network, domain = await started(tmp_path)
        network.brokers["b"].kill()
        result = await migrated(network, domain)
        assert (result.moved, result.host, result.step) == (False, "a", "expect")
        assert world.host("b").calls["migrate"] == 0
        await settled(world, network, domain)

    run(main())


# --- what can go wrong, at each step -------------------------------------------------------------


def _kill(name: str) -> Act:
    return lambda _, network: network.brokers[name].kill()


def _cut(_: World, network: Network) -> None:
    network.cut = True
    network.brokers["a"].network_changed()


def _deaf(_: World, network: Network) -> None:
    network.deaf.add("b")


def _false(_: World, network: Network) -> None:
    def lie(message: Message) -> Message:
        match message:
            case _ if type(message).__name__ == "Expect":
                return Expected(willing=True)
            case _:
                return Whereabouts("bbbbbbbb-0000-4000-8000-000000000009", here=True, running=True, attended=True)

    network.false["b"] = lie


def _hang(name: str) -> Act:
    return lambda world, _: world.host(name).hang()


def _restart_libvirt(name: str) -> Act:
    def act(world: World, _: Network) -> None:
        world.host(name).disconnect()
        asyncio.get_running_loop().call_later(2.0, world.host(name).reconnect)

    return act


ACTS: dict[str, Act] = {
    "nothing": lambda _, __: None,
    "kill the source's broker": _kill("a"),
    "kill the destination's broker": _kill("b"),
    "cut the network between brokers": _cut,
    "the destination's broker hangs": _deaf,
    "the destination's broker answers wrongly": _false,
    "the source's hypervisor hangs": _hang("a"),
    "the destination's hypervisor hangs": _hang("b"),
    "the source's hypervisor restarts": _restart_libvirt("a"),
    "the destination's hypervisor restarts": _restart_libvirt("b"),
}
TROUBLES = [None, *itertools.product(Step, Trouble)]


@attrs.frozen
class Case:
    act: str
    at: Step
    trouble: tuple[Step, Trouble] | None


async def _played(folder: Path, case: Case) -> None:
    world, network, domain = await started(folder, "a", "b", "c")
    agent = Agent(world, domain)
    talking = asyncio.create_task(agent.run())
    await asyncio.sleep(4 * PACE)
    acted = False

    async def at_step(step: Step, _: str) -> None:
        nonlocal acted
        if step is case.at and not acted:
            acted = True
            ACTS[case.act](world, network)
        await asyncio.sleep(0.01)

    world.at_step = at_step
    if case.trouble is not None:
        world.plan(Fault(*case.trouble))
    mover = network.brokers["a"].mover
    assert mover is not None
    number = await mover.start(domain, "b", live=True, timeout=20)
    migration = mover.migration(number)
    for _ in range(4000):
        if migration.result is not None or not network.brokers["a"].up:
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError(f"{case}: it never ended")
    if migration.result is not None and (host := migration.result.host) is not None:
        assert migration.result.moved == (host == "b"), case
        alive = [each.uri.removeprefix("fake://") for each in world.running(domain)]
        assert alive in ([host], []), (case, migration.result)
    killed = case.trouble is not None and case.trouble[1] in {Trouble.KILL_SOURCE, Trouble.KILL_DESTINATION}
    unseen = ("a", "b") if case.act == "kill the source's broker" and case.at is Step.ADMIT else None
    await settled(world, network, domain, lost=killed, unseen=unseen)
    if world.running(domain):
        await ended(agent, network)
        if case.act == "nothing" and not killed:
            exactly_once(agent, network)
    talking.cancel()


def _no_sync(_: int) -> None:
    """Do nothing: a thousand of them say nothing about migrations."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("act", ACTS)
def test_whatever_goes_wrong_a_domain_never_runs_twice_and_is_attended_where_it_runs(
    tmp_path: Path, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", _no_sync)
    cases = [Case(act, at, trouble) for at, trouble in itertools.product(Step, TROUBLES)]
    every = 1 if os.environ.get("MCHANNEL_VERIFY") else 4
    for number, case in enumerate(cases[len(act) % every :: every]):
        folder = tmp_path / str(number)
        folder.mkdir()
        run(_played(folder, case))
