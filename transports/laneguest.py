"""The guest's end of ``ivshmem://``: a stream of the virtio port, or shared memory while there is some."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

from mchannel.address import Address
from mchannel.errors import AddressError, ChannelBroken, ProtocolError
from mchannel.frame import Frame, Kind
from mchannel.transport import Options, Peer, Transport
from mchannel.transports.lanewords import LABEL, RING, Go, Leave, Left, Offer, Ring, Take, Want, decode
from mchannel.transports.ring import Side
from mchannel.transports.ringwire import RingPort
from mchannel.transports.slot import Place, Slot, SlotWire, find
from mchannel.transports.timer import Timer
from mchannel.transports.virtio import VIRTIO

__all__ = ["DEVICES", "GuestLane", "dial"]

_log = logging.getLogger("mchannel.transports.ivshmem")

DEVICES: Final = Path("/sys/bus/pci/devices")
_SEARCH: Final = 10.0
"""Seconds that a device has to appear after the MVM said that it is plugged in."""
_INTERVAL: Final = 0.02
_UNHEARD: Final = 3
"""How often a session says HELLO through memory, half a second apart, before the memory is given up."""
_SLACK: Final = 1 << 16
_CALL: Final = Frame(Kind.CALL, 0).encode()


@attrs.define(eq=False)
class _Search:
    """A slot that was offered, and until when its device is looked for."""

    place: Place
    late: float


class GuestLane:
    """The guest's end. The session's frames go through the port, and through a slot while there is one.

    At each change of the way it CALLs its own session, which then begins a new epoch and replays.
    """

    def __init__(self, address: Address, main: Transport, words: Transport, devices: Path, options: Options) -> None:
        self.peer = Peer(main.peer.identity, str(address))
        self.port = RingPort()
        self.on_news: Callable[[], None] | None = None
        self._main = main
        self._words = words
        self._devices = devices
        self._label = address.option("stream") or ""
        self._longest = options.max_message + _SLACK
        self._search: _Search | None = None
        self._slot: Slot | None = None
        self._wire: SlotWire | None = None
        self._unheard = 0
        self._wanted = False
        """Whether this host was asked for memory. It is once it has answered the session over the port."""
        self._called = False
        self._failure: ChannelBroken | None = None
        self._closed = False
        self._timer = Timer()
        main.on_news = self._on_main
        words.on_news = self._on_words
        self.port.watch(main.port.fileno(), main.port.pump)
        self.port.watch(words.port.fileno(), words.port.pump)
        self.port.watch(self._timer.fileno(), self._on_timer)

    def send(self, frame: bytes) -> bool:
        """Send one frame, whichever way there is; False when it cannot be taken now."""
        self._raise()
        if self._wire is None:
            return self._main.send(frame)
        if frame[2] == Kind.HELLO:
            self._unheard += 1
        try:
            if self._unheard <= _UNHEARD:
                return self._wire.send(frame)
            self._leave("nobody answers there")
        except ChannelBroken as error:
            self._leave(str(error))
        return True  # as on a cable that was pulled out: the session replays

    def recv(self) -> bytes | None:
        """Return the next frame, or None."""
        if self._wire is not None:
            try:
                if (frame := self._wire.recv()) is not None and frame != _CALL:
                    self._unheard = 0
                return frame
            except ChannelBroken as error:
                self._leave(str(error))
        if self._called:
            self._called = False
            return _CALL
        self._raise()
        frame = self._main.recv()
        if frame is not None and frame != _CALL and not self._wanted:
            self._wanted = True
            self._say(Want(self._label).encode())
        return frame

    def close(self) -> None:
        """Let go of everything; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._failure = self._failure or ChannelBroken(f"{self.peer.address}: this end was closed")
        self._unmap()
        for each in (self._main, self._words):
            each.on_news = None
            self.port.unwatch(each.port.fileno())
            each.close()
        self.port.unwatch(self._timer.fileno())
        self._timer.close()
        self.port.close()

    @property
    def sharing(self) -> bool:
        """Whether shared memory is in use at present."""
        return self._wire is not None

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)

    def _on_main(self) -> None:
        if self._wire is None:
            self._news()
            return
        try:
            while self._main.recv() is not None:
                pass  # of an earlier connection: this one goes through memory
        except ChannelBroken as error:
            self._fail(error)

    def _on_words(self) -> None:
        rung = False
        try:
            while (data := self._words.recv()) is not None:
                if data == RING:
                    rung = True
                elif data == _CALL:
                    self._begin()
                else:
                    self._on_word(data)
        except (ChannelBroken, ProtocolError) as error:
            self._fail(ChannelBroken(str(error)))
        if rung and self._wire is not None:
            self._wire.hear()

    def _on_word(self, data: bytes) -> None:
        match decode(data):
            case Offer(place):
                self._leave("another was offered")
                self._search = _Search(place, time.monotonic() + _SEARCH)
                self._try(self._search)
            case Go(nonce) if self._slot is not None and self._slot.place.nonce == nonce and self._wire is None:
                self._use(self._slot)
            case Leave(nonce):
                if self._slot is not None and self._slot.place.nonce == nonce:
                    self._leave("it is about to be unplugged")
                else:
                    self._search = None
                    self._say(Left(nonce).encode())
            case Want() | Take() | Left():
                raise ProtocolError("the host said what is the guest's to say")
            case Go() | Ring():
                pass

    def _begin(self) -> None:
        """Begin anew: this host knows nothing of what was agreed before."""
        self._leave("the host began anew")
        self._wanted = False

    def _try(self, search: _Search) -> None:
        if (slot := find(self._devices, search.place)) is not None:
            self._search, self._slot = None, slot
            self._say(Take(slot.place.nonce).encode())
        elif time.monotonic() < search.late:
            self._timer.set(_INTERVAL)
        else:
            self._search = None
            _log.warning("%s: the host plugged in shared memory, and no device has it", self.peer.address)
            self._say(Left(search.place.nonce).encode())

    def _use(self, slot: Slot) -> None:
        self._unheard = 0
        self._wire = wire = SlotWire(
            slot,
            Side.A,
            lambda: self._say(RING),
            self.port,
            self.peer,
            longest=self._longest,
        )
        wire.on_news = self._news
        _log.info("%s: goes through shared memory", self.peer.address)

    def _leave(self, why: str) -> None:
        """Go on over the port; what was under way is replayed."""
        place = self._slot.place if self._slot is not None else None
        used = self._wire is not None
        self._unmap()
        if place is not None:
            self._say(Left(place.nonce).encode())
        if used:
            _log.info("%s: goes through the virtio port again: %s", self.peer.address, why)
            self._called = True
            self._timer.set(0)

    def _unmap(self) -> None:
        self._search = None
        wire, self._wire = self._wire, None
        slot, self._slot = self._slot, None
        if wire is not None:
            wire.on_news = None
            wire.close()
        if slot is not None:
            slot.close()

    def _on_timer(self) -> None:
        if not self._timer.expired():
            return
        if self._search is not None:
            self._try(self._search)
        if self._called or self._failure is not None:
            self._news()

    def _say(self, word: bytes) -> None:
        if self._failure is not None:
            return
        try:
            if self._words.send(word):
                return
            why = f"{self.peer.address}: the host does not listen"
        except ChannelBroken as error:
            why = str(error)
        self._failure = ChannelBroken(why)
        self._timer.set(0)

    def _fail(self, error: ChannelBroken) -> None:
        self._failure = self._failure or error
        self._unmap()
        self._news()

    def _news(self) -> None:
        if self.on_news is not None:
            self.on_news()


def dial(address: Address, options: Options, devices: Path = DEVICES) -> GuestLane:
    """Reach for the MVM through the port that *address* names; raises AddressError."""
    address.refuse_options("stream")
    if (address.option("stream") or "").startswith("."):
        raise AddressError(f"{address}: the name of a stream does not begin with a dot")
    port = attrs.evolve(address, scheme="virtio")
    words = VIRTIO.connect(attrs.evolve(port, options=(("stream", LABEL),)), options)
    try:
        main = VIRTIO.connect(port, options)  # last: what the host said until now is not for this channel
    except BaseException:
        words.close()
        raise
    return GuestLane(address, main, words, devices, options)
