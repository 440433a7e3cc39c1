"""``xen://`` over a hypervisor in this process; the real one is met in tests/system."""

from __future__ import annotations

import itertools

import pytest

from mchannel.address import Address
from mchannel.transport import Acceptor, Options, Transport
from mchannel.transports import xen
from mchannel.transports.xenguest import GuestWire
from mchannel.transports.xenhost import HostDoor
from mchannel.transports.xenlib import Machine
from tests.conformance.rings import InParts
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


class TestXen(InParts):
    address = "xen:///conformance"


class TestXenAsync(TestXen):
    asyncio = True
