"""The MVM's end of ``ivshmem://``: the domain's virtio port, and slots of a memory that was plugged into the domain."""

from __future__ import annotations

import mmap
import os
import secrets
import stat
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import attrs

from mchannel.address import Address
from mchannel.errors import AddressError, ChannelBroken, ProtocolError
from mchannel.transport import Options, Peer, Transport
from mchannel.transports import domain
from mchannel.transports.complaints import Complaints
from mchannel.transports.lanewords import LABEL, RING, Go, Leave, Left, Offer, Take, Want, decode
from mchannel.transports.ring import Side
from mchannel.transports.ringwire import RingPort
from mchannel.transports.slot import NONCE, SIZE, Place, Slot, SlotWire
from mchannel.transports.stream import Key

__all__ = ["LaneDoor", "Plugged"]

_SLACK: Final = 1 << 16  # bytes of a frame beyond its longest message


@attrs.define(eq=False)
class Plugged:
    """Memory that is plugged into the domain, cut into slots."""

    fd: int
    free: deque[int]
    """Offsets of slots that nobody has; the one that was given back last comes last."""

    @classmethod
    def at(cls, path: Path) -> Plugged:
        """Open the memory at *path*; raise AddressError."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise AddressError(f"{path}: the memory to plug in cannot be opened: {error.strerror}") from None
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size < SIZE or found.st_size % mmap.PAGESIZE:
            os.close(fd)
            raise AddressError(f"{path}: the memory to plug in is a file of whole pages, at least {SIZE} bytes")
        return cls(fd, deque(range(0, found.st_size - SIZE + 1, SIZE)))


@attrs.define(eq=False)
class _Berth:
    """A channel of the guest that can use a slot."""

    words: Transport
    label: str = ""
    wants: bool = False
    slot: Slot | None = None
    """What it was offered and did not say that it left."""
    memory: Plugged | None = None
    """What the slot is a piece of."""
    wire: SlotWire | None = None


class LaneDoor:
    """Accepts the streams of one domain, and the slots that they go on in."""

    def __init__(self, address: Address, options: Options) -> None:
        """Listen at the domain's socket; raises AddressError."""
        self.on_news: Callable[[], None] | None = None
        self.port = RingPort()
        self._socket = domain.listen(address, options)
        self.address = self._socket.address
        self._longest = options.max_message + _SLACK
        self._backlog: deque[Transport] = deque()
        self._berths: dict[_Berth, None] = {}
        self._memory: Plugged | None = None
        self._quiet = False
        """Whether slots are offered no more."""
        self._on_vacant: Callable[[], None] | None = None
        self._on_wanted: Callable[[], None] | None = None
        self._closed = False
        self._complaints = Complaints()
        self._socket.on_news = self._look
        self.port.watch(self._socket.fileno(), self._socket.pump)

    def accept(self) -> Transport | None:
        """Return a way to a channel of the guest that was not there before, or None."""
        self._gather()
        return self._backlog.popleft() if self._backlog else None

    def close(self) -> None:
        """Let go of the domain and of the memory; idempotent."""
        if self._closed:
            return
        self.unplug()
        for berth in tuple(self._berths):
            berth.words.on_news = None
        self._berths.clear()
        self._backlog.clear()
        self.port.unwatch(self._socket.fileno())
        self._socket.close()
        self.port.close()
        self._closed = True

    def plug(self, path: Path) -> None:
        """Offer slots in the memory at *path*, which the domain has as well; raises AddressError."""
        memory = Plugged.at(path)
        self.unplug()
        self._memory, self._quiet, self._on_vacant = memory, False, None
        for berth in tuple(self._berths):
            self._offer(berth)

    def quiesce(self, on_vacant: Callable[[], None] | None = None) -> None:
        """Ask the channels of the guest to leave the memory; *on_vacant* is called once when they have."""
        self._quiet, self._on_vacant = True, on_vacant
        for berth in tuple(self._berths):
            if berth.slot is not None:
                self._say(berth, Leave(berth.slot.place.nonce).encode())
        self._look_vacant()

    def when_wanted(self, on_wanted: Callable[[], None]) -> None:
        """Call *on_wanted* once when a channel of the guest can use memory, perhaps at once."""
        self._on_wanted = on_wanted
        self._look_wanted()

    @property
    def plugged(self) -> bool:
        """Whether there is memory."""
        return self._memory is not None

    @property
    def sharing(self) -> int:
        """How many channels go through the memory."""
        return sum(berth.wire is not None for berth in self._berths)

    def unplug(self) -> None:
        """Give the memory up, whoever uses it still; idempotent."""
        memory, self._memory = self._memory, None
        self._on_vacant = None
        if memory is None:
            return
        for berth in tuple(self._berths):
            if berth.slot is not None:
                if not self._quiet:
                    self._say(berth, Leave(berth.slot.place.nonce).encode())
                self._take_back(berth, "the memory is unplugged")
                if berth.wire is not None:
                    berth.wire.close()
        os.close(memory.fd)

    def _look(self) -> None:
        self._gather()
        if self._backlog and self.on_news is not None:
            self.on_news()

    def _gather(self) -> None:
        while (stream := self._socket.accept()) is not None:
            if Address.parse(stream.peer.address).option("stream") == LABEL:
                berth = _Berth(stream)
                self._berths[berth] = None
                stream.on_news = partial(self._hear, berth)
                self._hear(berth)
            else:
                self._backlog.append(stream)

    def _hear(self, berth: _Berth) -> None:
        rung = False
        try:
            while (data := berth.words.recv()) is not None:
                if data == RING:
                    rung = True
                else:
                    self._on_word(berth, data)
        except (ChannelBroken, ProtocolError, OSError) as error:
            if not isinstance(error, ChannelBroken):
                self._complaints.make(f"{self.address}: the guest gets no shared memory: {error}")
            self._dismiss(berth, str(error))
        if rung and berth.wire is not None:
            berth.wire.hear()

    def _on_word(self, berth: _Berth, data: bytes) -> None:
        match decode(data):
            case Want(label) if not berth.wants:
                try:
                    Key(bytes(4), label).encode()
                except ValueError as error:
                    raise ProtocolError(str(error)) from None
                berth.label, berth.wants = label, True
                self._offer(berth)
                self._look_wanted()
            case Take(nonce) if berth.wire is None and _has(berth, nonce) and not self._quiet:
                self._use(berth)
            case Left(nonce) if _has(berth, nonce):
                self._take_back(berth, "the guest left the shared memory")
            case Want() | Take() | Left():
                pass  # said too late
            case _:
                raise ProtocolError("it said what is the host's to say")

    def _offer(self, berth: _Berth) -> None:
        memory = self._memory
        if memory is None or self._quiet or not berth.wants or berth.slot is not None or not memory.free:
            return
        place = Place(secrets.token_bytes(NONCE), memory.free.popleft())
        berth.slot, berth.memory = Slot.make(memory.fd, place), memory
        self._say(berth, Offer(place).encode())

    def _use(self, berth: _Berth) -> None:
        slot = berth.slot
        if slot is None:
            return
        stream = (("stream", berth.label),) if berth.label else ()
        address = attrs.evolve(self.address, options=self.address.options + stream)
        berth.wire = wire = SlotWire(
            slot,
            Side.B,
            lambda: self._say(berth, RING),
            self.port,
            Peer(berth.words.peer.identity, str(address)),
            longest=self._longest,
            release=lambda: self._released(berth, wire),
        )
        self._backlog.append(wire)
        self._say(berth, Go(slot.place.nonce).encode())
        if self.on_news is not None:
            self.on_news()

    def _released(self, berth: _Berth, wire: SlotWire) -> None:
        if berth.wire is wire:
            berth.wire = None
        if wire.spoilt and berth.slot is not None:
            self._complaints.make(f"{wire.peer.address}: {wire.spoilt}; it goes through the virtio port")
            self._say(berth, Leave(berth.slot.place.nonce).encode())

    def _take_back(self, berth: _Berth, why: str) -> None:
        """Have back the slot of a channel that left it, or must be taken to have left."""
        slot, berth.slot = berth.slot, None
        memory, berth.memory = berth.memory, None
        if slot is None or memory is None:
            return
        memory.free.append(slot.place.offset)
        if berth.wire is None:
            slot.close()
        else:
            berth.wire.fail(ChannelBroken(f"{berth.wire.peer.address}: {why}"))
        self._look_vacant()

    def _look_vacant(self) -> None:
        """Tell whoever waits for it that no channel has, or was offered, a slot."""
        tell = self._on_vacant
        if tell is not None and all(each.slot is None for each in self._berths):
            self._on_vacant = None
            tell()

    def _look_wanted(self) -> None:
        tell = self._on_wanted
        if tell is not None and any(each.wants for each in self._berths):
            self._on_wanted = None
            tell()

    def _dismiss(self, berth: _Berth, why: str) -> None:
        self._berths.pop(berth, None)
        self._take_back(berth, why)
        berth.words.on_news = None
        berth.words.close()

    def _say(self, berth: _Berth, word: bytes) -> None:
        with suppress(ChannelBroken):  # which is about to be heard of
            berth.words.send(word)


def _has(berth: _Berth, nonce: bytes) -> bool:
    return berth.slot is not None and berth.slot.place.nonce == nonce
