"""``ivshmem:///org.mchannel.0``: a ring in shared memory that is plugged into the domain, beside its virtio port.

The channel begins as ``virtio://`` does, and works without any memory. When the MVM has plugged some into the domain
(a PCI device of QEMU's kind ``ivshmem-plain``) it says so over the port; the guest maps it, and the session's frames go
through a ring there, with words over the port as its bell. Before the memory is unplugged, as it must be for a
migration, the guest is asked to unmap it and says that it did, and the frames go by the port again. At each change of
the way the session begins a new epoch and replays, so nothing is lost and nothing is repeated; a guest that does not
answer, or writes into what it should have unmapped, changes nothing about that.

The MVM's listener has a gate that can do more, see :class:`LaneGate`::

    listener = mchannel.listen("ivshmem:///run/web1.sock?domain=UUID")
    listener.gate.plug("/dev/shm/web1")
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import attrs

from mchannel.address import Address
from mchannel.framed import Framed, FramedGate
from mchannel.transport import Link, Options
from mchannel.transports.laneguest import DEVICES, dial
from mchannel.transports.lanehost import LaneDoor

__all__ = ["IVSHMEM", "Ivshmem", "LaneGate"]


class LaneGate(FramedGate):
    """The channels of one domain, and the memory that they share with it."""

    def __init__(self, door: LaneDoor, options: Options) -> None:
        super().__init__(door, options)
        self._door = door

    def plug(self, memory: str | os.PathLike[str]) -> None:
        """Use the file *memory*, of which the domain has a device; channels that can go on through it.

        The file is new and nobody else's: mode 0600, its pages allocated, and never shrunk while it is used. Only its
        owner needs its name. Raise AddressError for one that cannot be used; takes the place of another memory.
        """
        self._door.plug(Path(memory))

    def when_wanted(self, on_wanted: Callable[[], None]) -> None:
        """Call *on_wanted* once, perhaps at once, when a channel of the guest can use memory."""
        self._door.when_wanted(on_wanted)

    def quiesce(self, on_vacant: Callable[[], None] | None = None) -> None:
        """Ask the guest to go on without it; *on_vacant* is called once, perhaps at once, when all of it did.

        Until then the memory must stay plugged in. The guest is a stranger: wait for it with a timeout.
        """
        self._door.quiesce(on_vacant)

    def unplug(self) -> None:
        """Let go of the memory, whatever the guest does, so that its device can be detached; idempotent."""
        self._door.unplug()

    @property
    def plugged(self) -> bool:
        """Whether there is memory."""
        return self._door.plugged

    @property
    def sharing(self) -> int:
        """How many channels go through the memory."""
        return self._door.sharing


@attrs.define
class Ivshmem:
    """The scheme ``ivshmem``."""

    devices: Path = DEVICES
    """Where a guest's PCI devices are listed."""

    def dial(self, address: Address, options: Options) -> Link:
        """Start to connect through the guest's port that *address* names."""
        framed = Framed(lambda address, options: dial(address, options, self.devices), LaneDoor)
        return framed.dial(address, options)

    def bind(self, address: Address, options: Options) -> LaneGate:
        """Listen at the domain's socket that *address* names."""
        return LaneGate(LaneDoor(address, options), options)


IVSHMEM = Ivshmem()
"""``ivshmem:///PORT[?stream=LABEL]`` in a guest, ``ivshmem:///SOCKET?domain=UUID`` in its MVM."""
