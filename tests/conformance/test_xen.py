"""``xen://`` over a hypervisor in this process; the real one is met in tests/system."""

from __future__ import annotations

import contextlib
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest

from mchannel.address import Address
from mchannel.conformance import SOON, Conformance
from mchannel.errors import ChannelTimeout
from mchannel.transport import Acceptor, Options, Transport
from mchannel.transports import xen
from mchannel.transports.xenguest import GuestWire
from mchannel.transports.xenhost import HostDoor
from mchannel.transports.xenlib import Machine
from tests.unit.xen_world import Guest, World


@pytest.fixture(autouse=True)
def hypervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each agent live in a domain of its own, and brokers in domain 0."""
    world = World()
    numbers = itertools.count(1)

    def connect(address: Address, options: Options, _: Machine) -> Transport:
        number = next(numbers)
        guest = world.boot(number, f"6f1c2d3e-0000-4000-8000-{number:012}")
        return GuestWire(address, options, guest.machine)

    host = Guest(world, 0).machine

    def listen(address: Address, options: Options, _: Machine) -> Acceptor:
        return HostDoor(address, options, host)

    monkeypatch.setattr(xen, "GuestWire", connect)
    monkeypatch.setattr(xen, "HostDoor", listen)


class TestXen(Conformance):
    address = "xen:///conformance"

    def test_every_size_up_to_the_largest_arrives_whole(self) -> None:
        """No ring holds the largest message whole: its writer has to go on while it is read."""
        agent, broker = self.pair()
        with ThreadPoolExecutor(1) as threads:
            for size in (0, 1, 7, 8, 9, 4096, 16383, 16384, 100_000, 1 << 20):
                message = bytes([size % 251]) * size
                read = threads.submit(broker.read, timeout=SOON)
                agent.write(message, timeout=SOON)
                while not read.done():
                    with contextlib.suppress(ChannelTimeout):
                        agent.flush(timeout=0.01)
                assert read.result() == message
                broker.done()


class TestXenAsync(TestXen):
    asyncio = True
