"""Session frames through a ring in memory that both ends map: pages that a guest grants, a PCI BAR.

The ring orders and bounds, a *bell* wakes, and the session above makes it lossless: when the memory goes away, the
session says HELLO over whatever comes next and replays. A frame may be longer than a record of the ring can be, so it
travels in parts, each behind one byte that says whether it is the first, the last, or both.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from mchannel.errors import ChannelBroken, MChannelError, ProtocolError
from mchannel.frame import Frame, Kind
from mchannel.transport import Peer
from mchannel.transports.region import Lanes
from mchannel.transports.ring import RingEnd, Side

__all__ = ["Bell", "RingPort", "RingWire"]

_FIRST: Final = 1
_LAST: Final = 2
_WHOLE: Final = _FIRST | _LAST
_LONGEST: Final = 16383  # bytes of a record; longer ones would go to the ring's pool
_BURST: Final = 256  # records taken in for one wake-up
_CALL: Final = Frame(Kind.CALL, 0).encode()


class Bell(Protocol):
    """How one end of a ring wakes the other one, and is woken. Never waits, and never fails because of the peer."""

    def ring(self) -> None:
        """Wake the peer."""
        ...

    def silence(self) -> None:
        """Take the rings back after ``fileno`` woke this end."""
        ...

    def fileno(self) -> int:
        """Return the descriptor that is readable when the peer rang."""
        ...


class RingPort:
    """One descriptor for many: whatever is watched, and wires that have more than one look may take in."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._again = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._again, select.EPOLLIN)
        self._watched: dict[int, Callable[[], None]] = {}
        self._unheard: dict[RingWire, None] = {}

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._epoll.fileno()

    def watch(self, fd: int, heed: Callable[[], None]) -> None:
        """Call *heed* in :meth:`pump` when *fd* is readable."""
        self._epoll.register(fd, select.EPOLLIN)
        self._watched[fd] = heed

    def unwatch(self, fd: int) -> None:
        """Watch *fd* no more; call it before the descriptor is closed."""
        if self._watched.pop(fd, None) is not None and not self._epoll.closed:
            self._epoll.unregister(fd)

    def hear_later(self, wire: RingWire) -> None:
        """Make sure that a :meth:`pump` follows, and that it hears *wire*."""
        if not self._epoll.closed:
            self._unheard[wire] = None
            os.eventfd_write(self._again, 1)

    def pump(self) -> None:
        """Heed what woke, and hear the wires that asked for it; each of them once."""
        if self._epoll.closed:
            return
        for fd, _ in self._epoll.poll(0, 64):
            if self._epoll.closed:  # by one that was heeded
                return
            if fd == self._again:
                os.eventfd_read(fd)
            elif (heed := self._watched.get(fd)) is not None:  # one that was heeded may have let go of another
                heed()
        unheard, self._unheard = self._unheard, {}
        for wire in unheard:
            wire.hear()

    def close(self) -> None:
        """Let go; idempotent. What is watched stays open."""
        if not self._epoll.closed:
            self._epoll.close()
            os.close(self._again)
            self._watched.clear()
            self._unheard.clear()


class RingWire:
    """One end of a ring as a :class:`~mchannel.transport.Transport`.

    *ring* wakes the peer and *port* is what the peer's bell wakes; whoever owns the bell calls :meth:`hear` then.
    *longest* bounds a frame in bytes. *release* is called once, when this end touches the memory no more. An agent's
    wire (*side* A) that is not its first begins by saying CALL to its own session, since what went over the last one
    may be lost: ``anew`` says so.

    A peer that breaks the ring's rules ends the wire with ProtocolError, raised by :meth:`send` and :meth:`recv`.
    """

    def __init__(
        self,
        lanes: Lanes,
        side: Side,
        ring: Callable[[], None],
        port: RingPort,
        peer: Peer,
        *,
        longest: int,
        release: Callable[[], None] = lambda: None,
        anew: bool = False,
    ) -> None:
        self.peer = peer
        self.port = port
        self.on_news: Callable[[], None] | None = None
        self._ring = ring
        self._longest = longest
        self._release = release
        self._failure: MChannelError | None = None
        self._part = min(lanes.capacity // 4 - 8, lanes.pool, _LONGEST)
        self._mute = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)  # the ring counts, and this end rings
        try:
            end = RingEnd(lanes, side, futex=False, peer_bell=self._mute, spin=0, limit=self._part)
        except BaseException:
            os.close(self._mute)
            raise
        self._end: RingEnd | None = end
        self._rung = 0
        self._credit = _BURST
        self._outbox: deque[bytes] = deque()
        self._records: deque[bytes] = deque()
        self._parts: bytearray | None = None
        self._inbox: deque[bytes] = deque([_CALL] if anew else ())
        port.hear_later(self)

    def send(self, frame: bytes) -> bool:
        """Take one frame, whole, and put into the ring what there is room for; False while the one before waits."""
        if self._failure is not None or self._end is None:
            raise self._gone()
        try:
            if not self._push(self._end):
                return False
            step = self._part - 1
            for start in range(0, max(len(frame), 1), step):
                flags = (_FIRST if start == 0 else 0) | (_LAST if start + step >= len(frame) else 0)
                self._outbox.append(bytes((flags,)) + frame[start : start + step])
            self._push(self._end)
        except ProtocolError as error:
            self.fail(error)
            raise
        return True

    def recv(self) -> bytes | None:
        """Return the next frame, or None; a bounded number of records is taken in until :meth:`hear` is called."""
        if self._inbox:
            return self._inbox.popleft()
        try:
            while (record := self._next()) is not None:
                if (frame := self._join(record)) is not None:
                    return frame
        except ProtocolError as error:
            self.fail(error)
        if self._end is None or (self._failure is not None and (self._credit > 0 or self._broken)):
            raise self._gone()
        return None

    def hear(self) -> None:
        """Look after the peer rang: call ``on_news`` and ask for the bell again."""
        if (end := self._end) is None:
            return
        self._credit = _BURST
        try:
            self._push(end)
        except ProtocolError as error:
            self.fail(error)
        if self.on_news is None:
            return
        self.on_news()
        if self._end is end and not self._broken and (self._records or end.arm_readable()):
            self.port.hear_later(self)

    def fail(self, error: MChannelError) -> None:
        """The peer is gone, or must be: what it has sent can still be read, then *error* is raised."""
        if self._failure is None or (isinstance(error, ProtocolError) and not self._broken):
            self._failure = error
            self.port.hear_later(self)

    def close(self) -> None:
        """Let go of the memory; idempotent. What waits outside of the ring is lost, and the session replays it."""
        end, self._end = self._end, None
        if end is not None:
            end.close()
            os.close(self._mute)
            self._records.clear()
            self._release()

    @property
    def _broken(self) -> bool:
        """Whether the peer broke the rules: then not even what it sent before is looked at."""
        return isinstance(self._failure, ProtocolError)

    def _gone(self) -> MChannelError:
        if self._failure is not None:
            return self._failure.with_traceback(None)
        return ChannelBroken(f"{self.peer.address}: this end was closed")

    def _push(self, end: RingEnd) -> bool:
        """Put into the ring what waits; False when something is left: then the peer will ring when there is room."""
        outbox = self._outbox
        try:
            while outbox:
                if end.write(outbox[0]):
                    outbox.popleft()
                elif not end.arm_writable():
                    return False
            return True
        finally:
            self._wake()

    def _next(self) -> bytes | None:
        end = self._end
        if end is None or self._broken:
            return None
        if self._records:
            return self._records.popleft()
        if self._credit <= 0:
            return None
        self._records.extend(end.read_many(min(64, self._credit)))
        self._credit -= len(self._records)
        self._wake()  # it may wait for the room
        return self._records.popleft() if self._records else None

    def _wake(self) -> None:
        """Ring the peer if the ring found it asleep."""
        if self._end is not None and (rung := self._end.rung) != self._rung:
            self._rung = rung
            self._ring()

    def _join(self, record: bytes) -> bytes | None:
        """Return the frame that *record* completes, or None."""
        flags = record[0] if record else 0
        if flags == _WHOLE:
            self._parts = None
            return record[1:]
        if flags & ~_WHOLE or not record:
            raise ProtocolError("the peer sent a part of a frame that is marked in no known way")
        if flags & _FIRST:
            self._parts = bytearray()
        if self._parts is None:
            return None  # a predecessor of this end read where the frame begins
        self._parts += memoryview(record)[1:]
        if len(self._parts) > self._longest:
            raise ProtocolError(f"the peer sent a frame of more than {self._longest} bytes")
        if not flags & _LAST:
            return None
        frame, self._parts = bytes(self._parts), None
        return frame
