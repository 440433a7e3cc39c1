"""``memory:///name``: both ends in one process, for tests and for parts that may move apart later."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable
from threading import Lock

from mchannel.address import Address
from mchannel.errors import AddressError, ChannelBroken, NotListening
from mchannel.framed import Framed
from mchannel.transport import Options, Peer, Transport

__all__ = ["MEMORY"]

_CAPACITY = 1 << 24
"""Bytes that may be on their way in one direction before a send is put off."""


class _Bell:
    """A port: an eventfd that is rung when something was put in."""

    def __init__(self) -> None:
        self._lock = Lock()  # the other end may ring, from its thread, while this one closes
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.hearers: list[Callable[[], None]] = []

    def fileno(self) -> int:
        return self._fd

    def ring(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    def pump(self) -> None:
        if self._fd < 0:
            return
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return
        for hear in tuple(self.hearers):
            hear()

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


class _Queue:
    """Frames on their way in one direction."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._frames: deque[bytes] = deque()
        self._size = 0

    def __bool__(self) -> bool:
        return bool(self._frames)

    def put(self, frame: bytes) -> bool:
        with self._lock:
            if self._size > _CAPACITY:
                return False
            self._frames.append(frame)
            self._size += len(frame)
            return True

    def get(self) -> bytes | None:
        if not self._frames:
            return None
        with self._lock:
            frame = self._frames.popleft()
            self._size -= len(frame)
            return frame


class _Pipe:
    """One end of a pair of queues."""

    def __init__(self, address: Address, port: _Bell, inbox: _Queue, outbox: _Queue) -> None:
        self.peer = Peer(identity=address.path, address=str(address), uid=os.geteuid(), pid=os.getpid())
        self.port = port
        self.on_news: Callable[[], None] | None = None
        self.other: _Pipe | None = None
        self._inbox = inbox
        self._outbox = outbox
        port.hearers.append(self._hear)

    def send(self, frame: bytes) -> bool:
        other = self.other  # once: the other end may close, in another thread
        if other is None:
            raise ChannelBroken("the other end of the pipe is gone")
        taken = self._outbox.put(frame)
        other.port.ring()
        return taken

    def recv(self) -> bytes | None:
        frame = self._inbox.get()
        if frame is None and self.other is None:
            raise ChannelBroken("the other end of the pipe is gone")
        return frame

    def close(self) -> None:
        other, self.other = self.other, None
        if other is not None:
            other.other = None
            other.port.ring()
        with contextlib.suppress(ValueError):
            self.port.hearers.remove(self._hear)
        if not self.port.hearers:
            self.port.close()  # it was this end's own

    def _hear(self) -> None:
        if self.on_news is not None and (self._inbox or self.other is None):
            self.on_news()


class _Place:
    """Where a name is listened to."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.port = _Bell()
        self.port.hearers.append(self._hear)
        self.on_news: Callable[[], None] | None = None
        self._waiting: deque[_Pipe] = deque()

    def accept(self) -> Transport | None:
        return self._waiting.popleft() if self._waiting else None

    def meet(self, pipe: _Pipe) -> None:
        self._waiting.append(pipe)
        self.port.ring()

    def close(self) -> None:
        if _PLACES.get(self.address.path) is self:
            del _PLACES[self.address.path]
        for pipe in self._waiting:
            pipe.close()
        self._waiting.clear()
        self.port.close()

    def _hear(self) -> None:
        if self.on_news is not None and self._waiting:
            self.on_news()


_PLACES: dict[str, _Place] = {}
"""The names of this process; a name service has to be somewhere that both ends can reach."""


def _connect(address: Address, _: Options) -> Transport:
    address.refuse_options()
    place = _PLACES.get(address.path)
    if place is None:
        raise NotListening(f"nothing listens at {address} in this process; call mchannel.listen first")
    there, back = _Queue(), _Queue()
    near = _Pipe(address, _Bell(), back, there)
    far = _Pipe(address, place.port, there, back)
    near.other, far.other = far, near
    place.meet(far)
    return near


def _listen(address: Address, _: Options) -> _Place:
    address.refuse_options()
    if not address.path:
        raise AddressError(f"{address}: give it a name, for example memory:///web1")
    if address.path in _PLACES:
        raise AddressError(f"{address} is listened to already")
    _PLACES[address.path] = place = _Place(address)
    return place


MEMORY = Framed(_connect, _listen)
