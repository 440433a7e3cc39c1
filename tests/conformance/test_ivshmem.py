"""Shared memory beside a virtio port, with stand-ins for the hypervisor, the guest's kernel and its PCI device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mchannel.channel import Channel, Listener
from mchannel.codec import Codec
from mchannel.conformance import SOON, Conformance
from mchannel.transports import virtio
from mchannel.transports.ivshmem import IVSHMEM, LaneGate
from tests.conformance.rings import InParts
from tests.unit.lane_world import Device
from tests.unit.virtio_world import Hypervisor

UUID = "aaaaaaaa-0000-4000-8000-000000000001"


class TestIvshmem(InParts):
    """The MVM has plugged memory in before the guest opens its port."""

    address = ""
    port: str

    @pytest.fixture(autouse=True)
    def world(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        self.device = Device(tmp_path, slots=24)
        with Hypervisor(tmp_path / "socket") as hypervisor:
            monkeypatch.setattr(virtio, "_open", hypervisor.open)
            monkeypatch.setattr(IVSHMEM, "devices", self.device.devices)
            monkeypatch.setattr(type(self), "address", f"ivshmem://{hypervisor.path}?domain={UUID}")
            monkeypatch.setattr(type(self), "port", f"ivshmem://{tmp_path}/port", raising=False)
            yield
            self._stack.close()  # channels before the port that carries them

    def listen(self, *arguments: Any, **wishes: Any) -> Listener[Any]:
        """Listen, with memory plugged in."""
        listener = super().listen(*arguments, **wishes)
        gate: Any = listener.gate
        while not isinstance(gate, LaneGate):
            gate = gate._gate  # that of a durable listener is around it
        gate.plug(self.device.memory)
        return listener

    def open(self, address: object, codec: Codec[Any] | None = None, **wishes: Any) -> Channel[Any]:
        """Open the port, wherever the MVM listens."""
        return super().open(self.port, codec, **wishes)

    def pair(self, *arguments: Any, **wishes: Any) -> tuple[Channel[Any], Channel[Any]]:
        """Return both ends once they have gone over to the memory: a blocking end goes over only while it is used."""
        ends: tuple[Any, Any] = super().pair(*arguments, **wishes)
        agent, broker = ends
        late = time.monotonic() + SOON
        while not self.gone_over(agent) and time.monotonic() < late:
            for end in (agent, broker):
                if self.asyncio:
                    time.sleep(0.005)
                else:
                    end._link.wait_readable(0.005)
        assert self.gone_over(agent)
        return agent, broker

    def gone_over(self, agent: Any) -> bool:
        """Whether an agent's session has begun anew in memory."""
        link = agent._link
        return bool(link._transport.sharing and link._session._shaken)


class TestIvshmemAsync(TestIvshmem):
    asyncio = True


class TestWithoutMemory(TestIvshmem):
    """Nothing is ever plugged in: the port carries it all."""

    def listen(self, *arguments: Any, **wishes: Any) -> Listener[Any]:
        """Listen without memory."""
        return Conformance.listen(self, *arguments, **wishes)

    def pair(self, *arguments: Any, **wishes: Any) -> tuple[Channel[Any], Channel[Any]]:
        """Return both ends at once."""
        return Conformance.pair(self, *arguments, **wishes)
