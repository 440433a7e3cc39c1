"""A guest with a channel to its MVM, and a PCI device of shared memory as the guest's kernel shows it, over a file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest

import mchannel
from mchannel.channel import Channel, Listener
from mchannel.codec import RawCodec
from mchannel.errors import ChannelError, ChannelTimeout
from mchannel.transport import State
from mchannel.transports import virtio
from mchannel.transports.ivshmem import IVSHMEM, LaneGate
from mchannel.transports.laneguest import GuestLane
from mchannel.transports.slot import SIZE
from tests.unit.virtio_world import Hypervisor

UUID = "aaaaaaaa-0000-4000-8000-000000000001"
SOON = 10.0
SLOW = 60.0
"""A heartbeat so slow that nothing in these tests can be due to it."""


class Device:
    """A device that comes and goes; what a process has mapped of it stays mapped."""

    def __init__(self, folder: Path, *, slots: int = 6) -> None:
        self.devices = folder / "devices"
        self.devices.mkdir()
        bridge = self.devices / "0000:00:00.0"
        bridge.mkdir()
        (bridge / "vendor").write_text("0x8086\n")
        (bridge / "device").write_text("0x29c0\n")
        self._folder = folder
        self._slots = slots
        self._number = 0
        self.memory = self.plug()

    @property
    def path(self) -> Path:
        """The device's folder."""
        return self.devices / "0000:06:00.0"

    def plug(self) -> Path:
        """Plug in new memory, at the same place, and return the MVM's file of it."""
        self.unplug()
        self._number += 1
        self.memory = self._folder / f"memory{self._number}"
        self.memory.write_bytes(bytes(SIZE * self._slots))
        self.path.mkdir()
        (self.path / "vendor").write_text("0x1af4\n")
        (self.path / "device").write_text("0x1110\n")
        (self.path / "enable").write_text("0\n")
        (self.path / "resource2").symlink_to(self.memory)
        return self.memory

    def unplug(self) -> None:
        """Take it out."""
        if self.path.exists():
            for file in self.path.iterdir():
                file.unlink()
            self.path.rmdir()


@attrs.define(eq=False)
class World:
    """A guest with one channel, its MVM, and the device between them; both ends are kept moving by a thread."""

    device: Device
    hypervisor: Hypervisor
    listener: Listener[bytes]
    agent: Channel[bytes]
    broker: Channel[bytes]
    at_agent: list[int] = attrs.field(factory=list[int])
    at_broker: list[int] = attrs.field(factory=list[int])
    told: int = 0

    @property
    def gate(self) -> LaneGate:
        """The MVM's gate, when it is one that can share memory."""
        gate = self.listener.gate
        assert isinstance(gate, LaneGate)
        return gate

    def turn(self) -> None:
        """Let both ends tell a number, and take in what has come."""
        number = str(self.told).encode()
        self.agent.write(number, timeout=SOON)
        self.broker.write(number, timeout=SOON)
        self.told += 1
        self.listen()

    def listen(self) -> None:
        for end, heard in ((self.agent, self.at_agent), (self.broker, self.at_broker)):
            try:
                while True:
                    message = end.receive(timeout=0.001)
                    assert not message.redelivered
                    heard.append(int(message.value))
            except ChannelTimeout:
                pass

    def until(self, fact: Callable[[], bool]) -> None:
        """Go on talking until something is so."""
        late = time.monotonic() + SOON
        while not fact():
            assert time.monotonic() < late, "it never came to be so"
            self.turn()

    def sharing(self) -> bool:
        """Whether messages go through memory at present."""
        return self.gate.sharing == 1 and guest_end(self.agent).sharing and self.broker.state is State.OPEN

    def exact(self) -> bool:
        """Whether each number arrived once and in order at either end."""
        late = time.monotonic() + SOON
        while time.monotonic() < late and min(len(self.at_agent), len(self.at_broker)) < self.told:
            self.listen()
        return self.at_agent == self.at_broker == list(range(self.told))

    def plug(self) -> None:
        """Plug new memory in, at the place of what was there before."""
        self.gate.plug(self.device.plug())

    def unplug(self) -> None:
        """Take the memory out, in the order that a migration needs."""
        vacant = threading.Event()
        self.gate.quiesce(vacant.set)
        self.until(vacant.is_set)
        self.gate.unplug()
        self.device.unplug()


def guest_end(agent: Any) -> GuestLane:
    """Return the transport below the agent's channel."""
    found = agent._link._transport
    assert isinstance(found, GuestLane)
    return found


def make(folder: Path, *, guest: str = "ivshmem", host: str = "ivshmem") -> Iterator[World]:
    """Make a world in *folder*, whose ends use these schemes; its device is taken out."""
    device = Device(folder)
    device.unplug()
    with (
        pytest.MonkeyPatch.context() as patch,
        Hypervisor(folder / "socket") as hypervisor,
        ThreadPoolExecutor(1) as pool,
    ):
        patch.setattr(virtio, "_open", hypervisor.open)
        patch.setattr(IVSHMEM, "devices", device.devices)
        listener = mchannel.listen(f"{host}://{hypervisor.path}?domain={UUID}", RawCodec(), heartbeat=SLOW)
        opening = pool.submit(mchannel.open, f"{guest}://{folder}/port?stream=sla", RawCodec(), heartbeat=SLOW)
        broker = listener.accept(timeout=SOON)
        agent = opening.result(SOON)
        yield World(device, hypervisor, listener, agent, broker)
        for end in (agent, broker):
            with suppress(ChannelError):
                end.close(timeout=0)
        listener.close()
        late = time.monotonic() + SOON
        while hypervisor.is_open and time.monotonic() < late:
            time.sleep(0.005)
