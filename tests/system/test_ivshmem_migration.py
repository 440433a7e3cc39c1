"""An agent's messages go through memory that is plugged into its guest, and around it while the guest moves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import attrs
import pytest

from mbroker.fleet.lanes import ALIAS, Lanes
from mbroker.hypervisor import Hypervisor, HypervisorError, connect
from mchannel import Event
from mchannel.aio import AsyncChannel, AsyncListener, listen_async
from mchannel.codec import Codec, EventCodec, RawCodec
from mchannel.errors import ChannelTimeout, EndOfChannel
from mchannel.transports.ivshmem import LaneGate
from tests.system.libvirt_guest import PORT, Guest
from tests.system.libvirt_hosts import Host

Hosts = tuple[Host, Host]
pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(300)]

NUMBERS = Path(__file__).with_name("guest_numbers.py").read_text()
ECHO = """
import sys, mchannel
from mchannel.codec import RawCodec
with mchannel.open(sys.argv[1], RawCodec(), timeout=60) as channel:
    for message in channel:
        channel.write(message)
"""
SIZE = 1 << 20


@attrs.define(eq=False)
class Side:
    """A broker's listener on one host, and what plugs memory in there."""

    listener: AsyncListener[Any]
    lanes: Lanes
    gate: LaneGate

    async def share(self, domain: str) -> None:
        """Plug memory in, and wait until the agent's channel goes through it."""
        await self.lanes.turn_on(domain, SIZE)
        async with asyncio.timeout(60):
            while self.gate.sharing != 1:  # noqa: ASYNC110 - a fact, not an event
                await asyncio.sleep(0.01)


def shm(host: Host) -> Path:
    """Return where a host's shared memory has its names."""
    return host.path("/dev/shm")


async def listen(guest: Guest, lanes: Lanes, hypervisor: Hypervisor, codec: Codec[Any] | None = None) -> Side:
    socket = guest.host.path(guest.listens())
    listener: AsyncListener[Any] = listen_async(f"ivshmem://{socket}?domain={guest.uuid}", codec or EventCodec())
    gate = listener.gate
    assert isinstance(gate, LaneGate)
    lanes.attend(await hypervisor.info(guest.uuid), gate, socket)
    return Side(listener, lanes, gate)


@attrs.define(eq=False)
class Exchange:
    """Numbers to and from the agent, over all hosts."""

    sent: int = 0
    heard: list[int] = attrs.field(factory=list[int])
    end: Event | None = None

    async def talk(self, channel: AsyncChannel[Event]) -> None:
        """Tell numbers and hear some, until cancelled."""
        while True:
            await self.tell(channel)
            await self.hear(channel, 0.02)

    async def tell(self, channel: AsyncChannel[Event]) -> None:
        number, self.sent = self.sent, self.sent + 1
        await asyncio.shield(channel.write(Event("number", value=number)))

    async def hear(self, channel: AsyncChannel[Event], timeout: float) -> None:
        with suppress(ChannelTimeout):
            message = await channel.receive(timeout)
            assert not message.redelivered
            if message.value.topic == "end":
                self.end = message.value
            else:
                self.heard.append(int(str(message.value.value)))

    async def stop(self, channel: AsyncChannel[Event]) -> None:
        await channel.write(Event("stop", value=self.sent))
        with suppress(EndOfChannel):
            while True:
                await self.hear(channel, 30)
        await channel.close()

    @property
    def exact(self) -> bool:
        assert self.end is not None
        said = int(str(self.end.value))
        return self.heard == list(range(said)) and dict(self.end.detail) == {"lost": 0, "repeated": 0}


@pytest.fixture
def agent(guest: Guest, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A guest whose agent looks for its broker."""
    guest.put("/tmp/agent.py", request.param)
    pid = guest.start("python3", "/tmp/agent.py", f"ivshmem:///{PORT}")
    yield guest
    print(guest.run("sh", "-c", 'cat /tmp/log; kill "$0" 2>/dev/null || true', pid))


@pytest.mark.parametrize("agent", [NUMBERS], indirect=True)
async def test_memory_is_left_before_a_migration_and_entered_after_it_without_a_message_lost_or_repeated(
    agent: Guest, hosts: Hosts
) -> None:
    boot, exchange = agent.boot_id(), Exchange()
    async with await connect(hosts[0].uri) as first, await connect(hosts[1].uri) as second:
        lanes = [Lanes(first, folder=shm(hosts[0])), Lanes(second, folder=shm(hosts[1]))]
        side = await listen(agent, lanes[0], first)
        channel = await side.listener.accept(timeout=60)
        for source, target, there in ((first, second, 1), (second, first, 0)):
            async with asyncio.TaskGroup() as tasks:
                talk = tasks.create_task(exchange.talk(channel))
                await side.share(agent.uuid)
                await asyncio.sleep(1)
                with pytest.raises(HypervisorError):
                    await source.migrate(agent.uuid, target.uri)  # a peer does not travel
                assert side.gate.sharing == 1
                await side.lanes.unplug(agent.uuid)
                assert side.gate.sharing == 0
                assert ALIAS not in (await source.info(agent.uuid)).devices
                assert not list(shm(hosts[1 - there]).glob("mchannel-lane-*"))
                await asyncio.sleep(0.3)
                talk.cancel()
            await channel.suspend(timeout=10)
            handoff = channel.handoff()
            side.lanes.part(agent.uuid)
            side.listener.close()
            await source.migrate(agent.uuid, target.uri)
            agent.host = hosts[there]
            side = await listen(agent, lanes[there], target)
            side.listener.adopt(handoff)
            channel = await side.listener.accept(timeout=30)
        await exchange.stop(channel)
        side.listener.close()
    assert exchange.exact
    assert len(exchange.heard) > 50
    assert agent.boot_id() == boot


@pytest.mark.parametrize("agent", [ECHO], indirect=True)
async def test_an_echo_comes_back_by_either_way(agent: Guest, hosts: Hosts) -> None:
    async with await connect(hosts[0].uri) as hypervisor:
        side = await listen(agent, Lanes(hypervisor, folder=shm(hosts[0])), hypervisor, RawCodec())
        channel = await side.listener.accept(timeout=60)
        for way in ("port", "memory"):
            if way == "memory":
                await side.share(agent.uuid)
            for size in (16, 60_000):
                taken: list[float] = []
                for number in range(50):
                    message = number.to_bytes(4) * (size // 4)
                    began = perf_counter()
                    await channel.write(message)
                    assert await channel.read(timeout=10) == message
                    taken.append(perf_counter() - began)
                print(f"{way} {size} bytes: median {median(taken) * 1e3:.2f} ms, best {min(taken) * 1e3:.2f} ms")
        await side.lanes.turn_off(agent.uuid)
        assert side.gate.sharing == 0
        await channel.close()
        side.listener.close()
