"""Where a broker listens to a domain when it missed what the hypervisor told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import attrs

from mbroker.hypervisor.fake import FakeHypervisor
from tests.unit.fleet_world import Agent, fleet, run


def move_socket(host: FakeHypervisor, domain: str) -> None:
    """Give the port of *domain* another socket, as a stop and a start do."""
    half = host.halves[domain]
    half.info = attrs.evolve(
        half.info, ports=tuple(attrs.evolve(port, path=f"{port.path}.2") for port in half.info.ports)
    )


def test_a_domain_that_was_restarted_while_nobody_looked_is_heard_at_its_new_socket(tmp_path: Path) -> None:
    async def main() -> tuple[list[object], int]:
        world, network = fleet(tmp_path, "a")
        host = world.host("a")
        domain = world.boot(host, "web1")
        await asyncio.sleep(1)
        host.disconnect()
        move_socket(host, domain)
        host.reconnect()
        await asyncio.sleep(1)
        agent = Agent(world, domain)
        talking = asyncio.create_task(agent.run())
        await asyncio.sleep(10)
        talking.cancel()
        return [message.value.value for message in network.heard], len(agent.heard)

    said, heard = run(main())
    assert said[:3] == [0, 1, 2]
    assert heard > 0


def test_a_domain_whose_socket_is_the_same_keeps_its_channels_when_events_were_missed(tmp_path: Path) -> None:
    async def main() -> tuple[list[object], set[bool], int, int]:
        world, network = fleet(tmp_path, "a")
        host = world.host("a")
        domain = world.boot(host, "web1")
        agent = Agent(world, domain)
        talking = asyncio.create_task(agent.run())
        await asyncio.sleep(5)
        asked = host.calls["info"]
        host.disconnect()
        host.reconnect()
        await asyncio.sleep(5)
        talking.cancel()
        heard = network.heard
        return (
            [message.value.value for message in heard],
            {message.redelivered for message in heard},
            host.calls["info"] - asked,
            agent.said,
        )

    said, redelivered, asked, wanted = run(main())
    assert said == list(range(wanted))
    assert redelivered == {False}
    assert asked == 1
