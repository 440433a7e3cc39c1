"""Slots: pieces of memory that a guest and its MVM share, each a ring for one channel behind a page that guards it.

The guard names the piece: a mark, and a *nonce* that the MVM made for this channel and also said over the virtio
port. So a guest never takes memory that is another's or an earlier one's, and notices when what it has mapped became
something else: memory that was unplugged reads as ones, and what is plugged in next may lie at the same place.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import attrs

from mchannel._ring import ffi
from mchannel.errors import ChannelBroken, ProtocolError
from mchannel.transport import Peer
from mchannel.transports.region import Lanes, lanes_size
from mchannel.transports.ring import Side
from mchannel.transports.ringwire import RingPort, RingWire

__all__ = ["NONCE", "SIZE", "Place", "Slot", "SlotWire", "find"]

NONCE: Final = 16
_CAPACITY: Final = 1 << 16
_POOL: Final = 1 << 14  # bounds a record too, though none lies in it
_GUARD: Final = mmap.PAGESIZE
SIZE: Final = _GUARD + lanes_size(_CAPACITY, _POOL)
"""Bytes of a slot as this version makes it."""
_LARGEST: Final = 1 << 26
_HEADER: Final = struct.Struct(f"<8sI{NONCE}s")
_MARK: Final = b"mChSlot\n"
_VERSION: Final = 1
_IVSHMEM: Final = ("0x1af4", "0x1110")


@attrs.frozen
class Place:
    """Where a slot lies, and by what it is known."""

    nonce: bytes
    offset: int
    size: int = SIZE

    def __attrs_post_init__(self) -> None:
        """Raise ProtocolError for what cannot be."""
        whole = not self.offset % mmap.PAGESIZE and not self.size % mmap.PAGESIZE
        if len(self.nonce) != NONCE or not whole or self.offset < 0 or not _GUARD < self.size <= _LARGEST:
            raise ProtocolError("the slot that was named lies nowhere")

    @property
    def header(self) -> bytes:
        """What its guard says."""
        return _HEADER.pack(_MARK, _VERSION, self.nonce)


class Slot:
    """A slot that is mapped; by :meth:`make` or :func:`find`."""

    def __init__(self, place: Place, guard: mmap.mmap, ring: mmap.mmap) -> None:
        """Own both mappings from now on. Raise ProtocolError when there is no ring in *ring*."""
        self.place = place
        self._guard = guard
        self._ring = ring
        try:
            self.lanes = Lanes(ring)
        except ProtocolError:
            guard.close()
            ring.close()
            raise

    @classmethod
    def make(cls, fd: int, place: Place) -> Self:
        """Make a slot in the memory behind *fd*, whatever was there before. Raise OSError."""
        guard, ring = _map(fd, place)
        guard[:] = bytes(_GUARD)
        ring[:] = bytes(len(ring))
        ffi.release(Lanes.lay_out(ring, _CAPACITY, _POOL).base)
        guard[: _HEADER.size] = place.header
        return cls(place, guard, ring)

    @property
    def current(self) -> bool:
        """Whether it is mapped, and the memory still is what it was."""
        return not self._guard.closed and self._guard[: _HEADER.size] == self.place.header

    def close(self) -> None:
        """Unmap it; idempotent. Every end of the ring must be closed."""
        ffi.release(self.lanes.base)
        self._guard.close()
        self._ring.close()


class SlotWire(RingWire):
    """A ring's end that is not the channel's last resort: when it fails in any way, the slot is given up for good.

    So also a peer that breaks the rules ends with ChannelBroken, and the channel goes on over the virtio port. A guest
    gains nothing by that which it could not do there. *release* is called when this end has unmapped the slot.
    """

    def __init__(
        self,
        slot: Slot,
        side: Side,
        ring: Callable[[], None],
        port: RingPort,
        peer: Peer,
        *,
        longest: int,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        def unmap() -> None:
            slot.close()
            release()

        self._slot = slot
        self.spoilt = ""
        """Why it is of no use any more, when that is the peer's doing, or somebody's who writes into its memory."""
        anew = side is Side.A
        super().__init__(slot.lanes, side, ring, port, peer, longest=longest, release=unmap, anew=anew)

    def send(self, frame: bytes) -> bool:
        """Put *frame* into the ring; raise ChannelBroken when it is of no use any more."""
        self._check()
        try:
            return super().send(frame)
        except ProtocolError as error:
            raise self._spoil(str(error)) from None

    def recv(self) -> bytes | None:
        """Return the next frame, or None; raise ChannelBroken when the ring is of no use any more."""
        self._check()
        try:
            return super().recv()
        except ProtocolError as error:
            raise self._spoil(str(error)) from None

    def hear(self) -> None:
        """Look into the ring, unless it is one no more: then whoever reads is to find out."""
        if self._slot.current:
            super().hear()
        elif self.on_news is not None:
            self.on_news()

    def _check(self) -> None:
        if not self._slot.current:
            raise self._spoil("what was shared memory became something else")

    def _spoil(self, why: str) -> ChannelBroken:
        self.spoilt = self.spoilt or why
        return ChannelBroken(f"{self.peer.address}: {why}")


def find(devices: Path, place: Place) -> Slot | None:
    """Return the slot at *place* of one of this guest's PCI *devices* of QEMU's kind ivshmem, or None.

    A device that nobody enabled is enabled.
    """
    for device in sorted(devices.glob("*")):
        if (_word(device / "vendor"), _word(device / "device")) == _IVSHMEM:
            with suppress(OSError, ValueError, ProtocolError):  # it has just come, or goes
                if (slot := _look(device, place)) is not None:
                    return slot
    return None


def _look(device: Path, place: Place) -> Slot | None:
    if _word(device / "enable") == "0":
        (device / "enable").write_text("1")
    fd = os.open(device / "resource2", os.O_RDWR | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        guard, ring = _map(fd, place)
    finally:
        os.close(fd)
    if guard[: _HEADER.size] == place.header:
        return Slot(place, guard, ring)
    guard.close()
    ring.close()
    return None


def _map(fd: int, place: Place) -> tuple[mmap.mmap, mmap.mmap]:
    """Return the guard and the ring of a slot; raise OSError or ValueError where there is no such memory."""
    guard = mmap.mmap(fd, _GUARD, offset=place.offset)
    try:
        return guard, mmap.mmap(fd, place.size - _GUARD, offset=place.offset + _GUARD)
    except BaseException:
        guard.close()
        raise


def _word(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace").strip()
    except OSError:
        return ""
