"""``virtio:///org.mchannel.0``: channels over a virtio port, which leads to whichever host runs the domain.

The guest's descriptor stays valid while the domain moves. As long as no host is attached, a read
gives ``b""`` at once, a write EAGAIN, and poll says HUP all the time: then the descriptor is looked
at only when something about it has changed (edge-triggered), or a select loop would spin. What is
sent meanwhile is lost, as on a cable that is not plugged in; the session on top replays it.

The kernel lets one process open a port, once. So all channels of a process share the descriptor as
streams of their own. The MVM's end is in :mod:`mchannel.transports.domain`.
"""

from __future__ import annotations

import errno
import math
import os
import re
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import attrs

from mchannel.address import Address
from mchannel.errors import AddressError, ChannelBroken
from mchannel.frame import Frame, Kind
from mchannel.framed import Framed
from mchannel.transport import Options, Peer, Transport
from mchannel.transports import domain
from mchannel.transports.stream import BEGIN, EVERYBODY, READY, Demultiplexer, Key, Multiplexer

__all__ = ["VIRTIO"]

_PORTS = Path("/dev/virtio-ports")
_CLASS = Path("/sys/class/virtio-ports")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_CHUNK = 1 << 13
"""Bytes written at once. The kernel queues 128 writes: what is written cannot be overtaken any more."""
_READS = 16
"""Reads in one pump; each gives a page at most. What is left wakes us again."""
_PAGE = 1 << 12
_STREAMS = 64
"""Frames of how many streams may be under way from the host at once."""
_LINGER = 1.0
_TURN, _PAUSE = 0.2, 0.001
_PATIENCE = 0.4
"""Seconds until a host that did not answer is asked again; a session tries again after half a second."""
_SLACK = 4096
_CALL = Frame(Kind.CALL, 0).encode()


class _Device(Protocol):
    """The character device, as far as it is used."""

    def fileno(self) -> int: ...

    def read(self, size: int) -> bytes | None:
        """Return what has come; None: nothing; empty: no host is attached."""
        ...

    def write(self, data: bytes) -> int:
        """Return how many bytes were taken."""
        ...

    def close(self) -> None: ...


@attrs.frozen
class _Port:
    """A virtio port of this guest."""

    fd: int

    def fileno(self) -> int:
        return self.fd

    def read(self, size: int) -> bytes | None:
        try:
            return os.read(self.fd, size)
        except BlockingIOError:
            return None

    def write(self, data: bytes) -> int:
        try:
            return os.write(self.fd, data)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        os.close(self.fd)


def _open(path: Path) -> _Device:
    port = _Port(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY))
    if not stat.S_ISCHR(os.fstat(port.fd).st_mode):
        port.close()
        raise OSError(errno.ENOTTY, "it is no character device")
    return port


_lock = threading.RLock()
"""Held while a wire is touched: its streams may belong to channels in different threads."""
_wires: dict[Path, _Wire] = {}
"""The ports that this process has open; the kernel would not open them twice."""


class _Wire:
    """A port, and the streams of this process that share it. Called with the lock held."""

    def __init__(self, path: Path, device: _Device) -> None:
        self.device = device
        self.pid = os.getpid()
        self._path = path
        self.broken = False
        self.attached = False
        """Whether a host is there. It wakes whoever waits for as long as there is something to read."""
        self._heard = False
        self._asked = 0.0
        self._late = math.inf
        """When what still waits is given up, after the last stream was closed."""
        self._drains = False
        """Whether a thread waits until the port takes more."""
        self._rest = b""
        self._sender = Multiplexer()
        self._receiver = Demultiplexer(0, _STREAMS)
        self._streams: dict[Key, _Stream] = {}

    @classmethod
    def at(cls, path: Path) -> _Wire:
        """Return the wire of this process over the port at *path*; raises OSError."""
        wire = _wires.get(path)
        if wire is None or wire.pid != os.getpid():
            wire = _wires[path] = cls(path, _open(path))
        return wire

    def join(self, stream: _Stream, options: Options) -> None:
        self._late = math.inf
        self._streams[stream.key] = stream
        self._receiver.limit = max(self._receiver.limit, options.max_message + _SLACK)
        self._sender.capacity = max(self._sender.capacity, _limit(options))  # the session's window bounds it

    def send(self, key: Key, frame: bytes) -> bool:
        if not self._heard:
            self._ask()
            return True  # as on a cable that is not plugged in
        taken = self._sender.put(key, frame)
        self._write()
        return taken

    def has_room(self, key: Key) -> bool:
        return self._sender.has_room(key)

    def pump(self, stream: _Stream | None) -> None:
        """Read for all streams, on behalf of *stream*, and write. What is left to read wakes them again."""
        if self.broken:
            return
        try:
            for _ in range(_READS):
                data = self.device.read(_CHUNK)
                if data == b"":
                    self._detach()
                    return
                if not self.attached:
                    self._attach()
                if data is None:
                    break
                for key, frame in self._receiver.feed(data):
                    self._deliver(key, frame, stream)
                if stream is not None and len(data) < _PAGE and not stream.has_more():
                    break  # mostly that was all, and this look is cheaper than an exception
        except OSError as error:
            self._break(f"{self._path}: {error.strerror}")
            return
        self._write()

    def leave(self, stream: _Stream) -> None:
        if self._streams.pop(stream.key, None) is None or self.broken:
            return
        if self._heard:
            self._sender.end(stream.key)
            self._write()
        if not self._streams:
            self._late = time.monotonic() + _LINGER
            if not self._drains:
                self._close()

    def _attach(self) -> None:
        self.attached = True
        for stream in self._streams.values():
            stream.watch(self.device)
        self._receiver.begin()
        self._ask()

    def _detach(self) -> None:
        if self.attached:
            self.attached = False
            for stream in self._streams.values():
                stream.watch(self.device)
        self._heard = False
        self._rest = b""
        self._asked = 0.0
        self._sender.clear()

    def _ask(self) -> None:
        """Begin anew, unless a host was asked a short while ago and may be about to answer."""
        now = time.monotonic()
        if self.attached and now - self._asked > _PATIENCE:
            self._asked = now
            self._sender.say(BEGIN)
            self._write()

    def _deliver(self, key: Key, frame: bytes, reader: _Stream | None) -> None:
        if key == EVERYBODY:
            if frame == BEGIN or (frame == READY and not self._heard):
                self._introduce(reader)
        elif (found := self._streams.get(key)) is not None:
            found.put(frame, reader)

    def _introduce(self, reader: _Stream | None) -> None:
        """Let every channel say HELLO to a host that does not know it; what was meant for another is given up."""
        self._heard = True
        self._sender.clear()
        for stream in self._streams.values():
            stream.put(_CALL, reader)

    def _write(self) -> None:
        try:
            while rest := self._rest or self._sender.take(_CHUNK):
                taken = self.device.write(rest)
                self._rest = rest[taken:]
                if not taken:
                    break
            else:
                return
        except OSError as error:
            self._break(f"{self._path}: {error.strerror}")
            return
        if not self._drains:
            self._drains = True
            threading.Thread(target=self._drain, name="mchannel-drain", daemon=True).start()

    def _drain(self) -> None:
        """Write what waits as the port takes it: whoever wrote a long message may not call us again for long."""
        poll = select.poll()
        poll.register(self.device, select.POLLOUT)
        while True:
            ready = poll.poll(_TURN * 1000)
            with _lock:
                if any(event & select.POLLHUP for _, event in ready):
                    self._detach()
                if time.monotonic() > self._late:
                    self._sender.clear()
                    self._rest = b""
                if not self.broken:
                    self._write()
                for stream in self._streams.values():
                    stream.look()
                if not self._rest and not self._sender:
                    self._drains = False
                    if not self._streams and not self.broken:
                        self._close()
                    return
            time.sleep(_PAUSE)

    def _break(self, why: str) -> None:
        self.broken = True
        for stream in self._streams.values():
            stream.fail(why)
        self._close()

    def _close(self) -> None:
        self.broken = True
        self._rest = b""
        self._sender.clear()
        if _wires.get(self._path) is self:
            del _wires[self._path]
        self.device.close()


class _Stream:
    """One channel's share of the wire, and a port of its own to wait on: channels may be in different threads."""

    def __init__(self, wire: _Wire, key: Key, peer: Peer, options: Options) -> None:
        self.key = key
        self.peer = peer
        self.port = self
        self.on_news: Callable[[], None] | None = None
        self._wire = wire
        self._limit = _limit(options)
        self._inbox: deque[bytes] = deque()
        self._size = 0
        self._failure: ChannelBroken | None = None
        self._closed = self._stalled = self._rung = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._bell, select.EPOLLIN)
        self._epoll.register(wire.device, self._interest)
        wire.join(self, options)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def watch(self, device: _Device) -> None:
        """Wait on *device* as it is to be now that a host has come or gone."""
        self._epoll.modify(device, self._interest)

    def send(self, frame: bytes) -> bool:
        with _lock:
            self._raise()
            taken = self._wire.send(self.key, frame)
            self._stalled = self._stalled or not taken
            return taken

    def recv(self) -> bytes | None:
        if not self._inbox and self._failure is None:  # asked for more often than there is anything
            return None
        with _lock:
            if self._inbox:
                frame = self._inbox.popleft()
                self._size -= len(frame)
                return frame
            self._raise()
            return None

    def has_more(self) -> bool:
        """Whether there is something to be read still."""
        return bool(self._epoll.poll(0))

    def wait(self, timeout: float | None) -> bool:
        """Sleep until something arrives, at most *timeout* seconds, and take it in."""
        if not self._epoll.poll(timeout):
            return False
        self.pump()
        return True

    def pump(self) -> None:
        with _lock:
            if self._closed:
                return
            if not self._wire.attached:
                self._epoll.poll(0)  # takes the edge away, before what it tells about is read
            if self._rung:
                self._rung = False
                os.eventfd_read(self._bell)
            self._wire.pump(self)
            news = bool(self._inbox) or self._failure is not None
            if self._stalled and self._wire.has_room(self.key):
                self._stalled, news = False, True
        if news and self.on_news is not None:
            self.on_news()
            with _lock:
                if self._inbox:
                    self._ring()

    def put(self, frame: bytes, reader: _Stream | None) -> None:
        """Take in a frame that *reader*, perhaps in another thread, has read from the wire."""
        self._inbox.append(frame)
        self._size += len(frame)
        if self._size > self._limit:
            self._inbox.clear()
            self._size = 0
            self.fail(f"{self.peer.address} sends more than was agreed")
        if reader is not self:
            self._ring()

    def look(self) -> None:
        """Tell the channel that there is room, if it waits for that."""
        if self._stalled and self._wire.has_room(self.key):
            self._ring()

    def fail(self, why: str) -> None:
        """Tell the channel that it must look for another transport."""
        self._failure = self._failure or ChannelBroken(why)
        self._ring()

    def close(self) -> None:
        with _lock:
            if self._closed:
                return
            self._closed = True
            self._failure = ChannelBroken(f"{self.peer.address}: this end was closed")
            self._epoll.close()
            os.close(self._bell)
            self._wire.leave(self)

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)

    def _ring(self) -> None:
        if not self._closed and not self._rung:
            self._rung = True
            os.eventfd_write(self._bell, 1)

    @property
    def _interest(self) -> int:
        return select.EPOLLIN if self._wire.attached else select.EPOLLIN | select.EPOLLET


def _limit(options: Options) -> int:
    """Bytes that may wait in one direction: a full window, its replay, and their headers."""
    return 2 * (options.window + options.max_message)


def _device(address: Address) -> Path:
    """Return the device of the port that *address* names."""
    if address.host or address.port is not None:
        raise AddressError(f"{address}: a virtio port has three slashes, for example virtio:///org.mchannel.0")
    if "/" in address.path:
        return Path("/" + address.path)
    if not _NAME.match(address.path):
        raise AddressError(f"{address}: that is no name of a virtio port; write, for example, virtio:///org.mchannel.0")
    path = _PORTS / address.path
    if not path.exists():  # without udev there are no names in /dev
        for found in _CLASS.glob("*/name"):
            if found.read_text().strip() == address.path:
                return Path("/dev") / found.parent.name
    return path


def _why(address: Address, path: Path, error: OSError) -> str:
    """Return why the port cannot be opened, and what to do."""
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        name = path.name if "/" in address.path else address.path
        return (
            f"this guest has no virtio port {name}; add to the domain's devices:"
            f" <channel type='unix'><target type='virtio' name='{name}'/></channel>"
        )
    if error.errno == errno.EBUSY:
        return f"another process has {path} open; stop it, as one process can use a virtio port"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{path} is not open to this user; run as root, or let a udev rule give it to the agent's group"
    return f"cannot open {path}: {error.strerror}"


def _dial(address: Address, options: Options) -> Transport:
    address.refuse_options("stream")
    key = Key(os.urandom(4), address.option("stream") or "")
    try:
        key.encode()
    except ValueError as error:
        raise AddressError(f"{address}: {error}") from None
    path = _device(address)
    with _lock:
        try:
            wire = _Wire.at(path)
            wire.pump(None)  # first: what a host said to everybody before is not for this channel
            if wire.broken:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            return _Stream(wire, key, Peer(address.path, str(address)), options)
        except OSError as error:
            raise AddressError(f"{address}: {_why(address, path, error)}") from None


VIRTIO = Framed(_dial, domain.listen)
"""``virtio:///PORT[?stream=LABEL]`` in a guest, ``virtio:///SOCKET?domain=UUID`` in its MVM."""
