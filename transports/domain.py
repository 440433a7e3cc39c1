"""The MVM's end of a domain's virtio port: a UNIX socket, at which the hypervisor listens.

It is there while the domain runs on this host, takes one client at a time, and tells its end when
the domain leaves: everything read until then is delivered, and the socket is tried again. The first
thing said on a new connection is that this end begins anew, so that the guest introduces itself
without waiting for a sign of life. Who the guest is says the address, and never the guest.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import attrs

from mchannel.address import Address
from mchannel.bucket import TokenBucket
from mchannel.errors import AddressError, ChannelBroken
from mchannel.frame import Kind, encode
from mchannel.transport import Options, Peer, Transport
from mchannel.transports.complaints import Complaints
from mchannel.transports.stream import BEGIN, EVERYBODY, READY, Demultiplexer, Key, Multiplexer
from mchannel.transports.timer import Timer

__all__ = ["DomainSocket", "listen"]

_CHUNK = 1 << 12
_READS = 16
_BATCH = 128
"""Frames after which a pump stops to read: with what one more read gives, no more than a link takes in at once."""
_WRITE = 1 << 16
_STREAMS = 64
"""Streams that a guest may have; one more takes the place of the one that was quiet longest."""
_GARBAGE = 1 << 16
"""Bytes of garbage after which a guest is not heard for a while; a tear makes some thousand at most."""
_CONTROLS, _CONTROLS_AT_ONCE = 200.0, 1024
"""Frames that are no messages of a stream, a second and at once: most cost an answer, a stream or a session."""
_PENALTY = 1.0
_PATIENCE = 0.5
"""Seconds that a guest which runs again has to hear BEGIN: what it goes on with until then is for the host before."""
_GOES_ON = tuple(encode(kind, 0, 0, 0, 0, b"")[:3] for kind in (Kind.DATA, Kind.ACK))
"""How frames begin that a session sends in the middle of an epoch."""
_SHORTEST, _LONGEST = 0.02, 1.0
"""Seconds between two attempts to connect: the first, and the last after doubling."""
_SILENCE, _LONGEST_SILENCE = 3.0, 60.0
"""Seconds of silence after which a new connection is made again: the first time, and the last after doubling.

Longer than a domain pauses as a rule when it moves: a connection that waits for it is not to be changed as it wakes.

QEMU 7.2 takes nothing from a guest that was writing when its last client died, until the next one leaves.
"""
_LINGER = 1.0
_SLACK = 4096
_ABSENT = (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN)
_PATH_LIMIT = 107


class _Accepted:
    """The MVM's end of one stream of the guest."""

    def __init__(self, owner: DomainSocket, key: Key, peer: Peer) -> None:
        self.key = key
        self.peer = peer
        self.port = owner
        self.on_news: Callable[[], None] | None = None
        self.inbox: deque[bytes] = deque()
        self.failure: ChannelBroken | None = None

    def send(self, frame: bytes) -> bool:
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        return self.port.send(self, frame)

    def recv(self) -> bytes | None:
        if self.inbox:
            frame = self.inbox.popleft()
            self.port.waiting -= len(frame)
            return frame
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        return None

    def close(self) -> None:
        self.port.forget(self, "this end was closed")
        self.drop()

    def drop(self) -> None:
        """Give up what was not read."""
        self.port.waiting -= sum(map(len, self.inbox))
        self.inbox.clear()


class DomainSocket:
    """Accepts the streams of one domain; the port of them all."""

    def __init__(self, address: Address, path: Path, domain: str, options: Options) -> None:
        self.address = address
        self.port = self
        self.on_news: Callable[[], None] | None = None
        self.waiting = 0
        """Bytes of frames that were received and not read."""
        self._path = os.fspath(path)
        self._domain = domain
        self._limit = 2 * (options.window + options.max_message)
        self._receiver = Demultiplexer(options.max_message + _SLACK, _STREAMS)
        self._sender = Multiplexer()
        self._rest = b""
        self._streams: OrderedDict[Key, _Accepted] = OrderedDict()
        self._backlog: deque[_Accepted] = deque()
        self._heard: dict[_Accepted, None] = {}
        """Those who have news, until they were told."""
        self._stalled: set[_Accepted] = set()
        self._complaints = Complaints()
        self._controls = TokenBucket(_CONTROLS, _CONTROLS_AT_ONCE)
        self._forgiven = 0
        """Bytes of garbage that were punished already."""
        self._leftovers_until: float | None = None
        """When the guest ought to have heard BEGIN; None while nothing was heard of it."""
        self._asked = False
        """Whether the guest waits for READY; once a pump, so that it cannot fill our memory with answers."""
        self._again = _SHORTEST
        self._silence = _SILENCE
        self._silent = True
        """Whether nothing was heard since the connection was made."""
        self._mask = 0
        self._listens = True
        """False while the guest is not heard, because it misbehaved."""
        self._socket: socket.socket | None = None
        self._closed = False
        self._timer = Timer()
        self._epoll = select.epoll()
        self._epoll.register(self._timer, select.EPOLLIN)
        self._connect()

    def fileno(self) -> int:
        """Return the descriptor to wait on; it wakes for the socket and for the clock."""
        return self._epoll.fileno()

    def accept(self) -> Transport | None:
        """Return a stream that was not there before, or None."""
        return self._backlog.popleft() if self._backlog else None

    def send(self, to: _Accepted, frame: bytes) -> bool:
        """Send one frame on a stream; False when too much waits in it."""
        taken = self._sender.put(to.key, frame)
        if not taken:
            self._stalled.add(to)
        self._write()
        return taken

    def pump(self) -> None:
        """Connect if it is time to, read and write a bounded portion, and tell whom it concerns."""
        if self._closed:
            return
        is_time = self._timer.expired()
        self._listens |= is_time
        if self._socket is not None and self._listens:
            self._read(self._socket)  # first: what waits to be read is no silence
        if is_time:
            if self._socket is not None and self._silent:
                self._socket.close()
                self._socket = None
                self._silence = min(2 * self._silence, _LONGEST_SILENCE)
            if self._socket is None:
                self._connect()
        if self._socket is not None:
            if self._asked:
                self._asked = False
                self._sender.say(READY)
            self._write()
        if self._backlog and self.on_news is not None:
            self.on_news()
        heard, self._heard = self._heard, {}
        ready = {each for each in self._stalled if self._sender.has_room(each.key)}
        self._stalled -= ready
        for transport in heard | dict.fromkeys(ready):
            if transport.on_news is not None:
                transport.on_news()

    def forget(self, transport: _Accepted, why: str) -> None:
        """Let go of one stream. If it speaks again, it is accepted as a new one."""
        if transport.failure is None:
            transport.failure = ChannelBroken(f"{transport.peer.address}: {why}")
            self._heard[transport] = None
            self._streams.pop(transport.key, None)
            self._stalled.discard(transport)
            self._sender.forget(transport.key)

    def close(self) -> None:
        """Let go of the domain; idempotent. What was taken is still sent, within a second."""
        if self._closed:
            return
        self._closed = True
        for transport in tuple(self._streams.values()):
            self.forget(transport, "this broker stopped listening")
        self._backlog.clear()
        if self._socket is not None:
            self._write()
            if self._rest:
                rest = self._rest + self._sender.take(1 << 62)
                threading.Thread(target=_finish, args=(self._socket, rest), name="mchannel-linger", daemon=True).start()
            else:
                self._socket.close()
            self._socket = None
        self._epoll.close()
        self._timer.close()

    def _connect(self) -> None:
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            found.connect(self._path)
        except OSError as error:
            found.close()
            if error.errno not in _ABSENT:
                self._complain(f"cannot connect to the domain's socket: {error.strerror}; may this user open it?")
            self._retry()
            return
        self._socket, self._mask, self._listens, self._silent = found, 0, True, True
        self._timer.set(self._silence)
        self._receiver.begin()
        self._rest = b""
        self._sender = Multiplexer()
        self._sender.say(BEGIN)
        self._leftovers_until = None
        self._write()

    def _retry(self) -> None:
        self._timer.set(self._again)
        self._again = min(2 * self._again, _LONGEST)

    def _lose(self, connection: socket.socket) -> None:
        """Let go of a domain that left, or was stopped."""
        connection.close()  # which takes it out of the epoll set as well
        self._socket = None
        for transport in tuple(self._streams.values()):
            self.forget(transport, "the domain is not here any more")
        self._retry()

    def _read(self, connection: socket.socket) -> None:
        frames = 0
        for _ in range(_READS):
            try:
                data = connection.recv(_CHUNK)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self._lose(connection)
                return
            self._again, self._silence, self._silent = _SHORTEST, _SILENCE, False
            for key, frame in self._receiver.feed(data):
                frames += 1
                self._deliver(key, frame)
            if frames >= _BATCH or not self._listens:
                break
        if self._receiver.garbage - self._forgiven > _GARBAGE:
            self._forgiven = self._receiver.garbage
            self._punish("sends what are no frames")

    def _deliver(self, key: Key, frame: bytes) -> None:
        message = key != EVERYBODY and frame.startswith(_GOES_ON)
        if not message and not self._controls.take(time.monotonic()) and self._listens:
            self._punish("begins, calls and ends more often than any agent")
        if key == EVERYBODY:
            if frame == BEGIN:
                for transport in tuple(self._streams.values()):
                    self.forget(transport, "the guest's agent began anew")
                self._asked = True
            return
        found = self._streams.get(key)
        if not frame:
            if found is not None:
                self.forget(found, "the guest's agent let go of it")
            return
        if found is None:
            if self._is_leftover(frame):
                return
            found = self._meet(key)
        self._streams.move_to_end(key)
        self._heard[found] = None
        found.inbox.append(frame)
        self.waiting += len(frame)
        if self.waiting > self._limit:
            self.forget(found, "it sends more than was agreed")
            found.drop()
            self._punish("floods this broker")

    def _is_leftover(self, frame: bytes) -> bool:
        """Whether *frame* belongs to an epoch that ends as soon as the guest hears BEGIN: a CALL would detain it."""
        now = time.monotonic()
        if self._leftovers_until is None:
            self._leftovers_until = now + _PATIENCE
        return now < self._leftovers_until and frame.startswith(_GOES_ON)

    def _meet(self, key: Key) -> _Accepted:
        label = (("stream", key.label),) if key.label else ()
        address = attrs.evolve(self.address, options=self.address.options + label)
        found = self._streams[key] = _Accepted(self, key, Peer(self._domain, str(address)))
        self._backlog.append(found)
        if len(self._streams) > _STREAMS:
            oldest = next(iter(self._streams.values()))
            self.forget(oldest, f"the guest has more than {_STREAMS} streams")
            oldest.drop()
            if oldest in self._backlog:
                self._backlog.remove(oldest)
            self._punish(f"opens more than {_STREAMS} streams")
        return found

    def _punish(self, why: str) -> None:
        """Do not hear the guest for a while: the hypervisor holds it back then."""
        self._complain(f"the guest {why}")
        self._listens = False
        self._timer.set(_PENALTY)

    def _complain(self, why: str) -> None:
        self._complaints.make(f"{self.address}: {why}")

    def _write(self) -> None:
        if self._socket is None:
            return
        try:
            while self._rest or self._sender:
                self._rest = self._rest or self._sender.take(_WRITE)
                self._rest = self._rest[self._socket.send(self._rest, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            pass
        except OSError:  # it is gone; what it said last is still to be read
            self._rest = b""
            self._sender.clear()
        if not self._closed:
            self._watch(self._socket)

    def _watch(self, connection: socket.socket) -> None:
        mask = (select.EPOLLIN if self._listens else 0) | (select.EPOLLOUT if self._rest else 0)
        if mask == self._mask:
            return
        if not mask:  # or its end, which cannot be masked, would wake us all the time
            self._epoll.unregister(connection)
        elif not self._mask:
            self._epoll.register(connection, mask)
        else:
            self._epoll.modify(connection, mask)
        self._mask = mask


def _finish(connection: socket.socket, rest: bytes) -> None:
    """Send what was taken before the end, within a second."""
    with suppress(OSError), connection:
        connection.settimeout(_LINGER)
        connection.sendall(rest)


def listen(address: Address, options: Options) -> DomainSocket:
    """Listen to the domain whose port's socket *address* names, now or when it starts."""
    address.refuse_options("domain")
    if address.host or address.port is not None or "/" not in address.path:
        raise AddressError(
            f"{address}: name the whole path of the socket of the domain's port,"
            " as in virtio:///run/web1.sock?domain=UUID; virsh dumpxml shows it"
        )
    try:
        domain = str(uuid.UUID(address.option("domain") or ""))
    except ValueError:
        raise AddressError(f"{address}: say by ?domain=UUID whose socket that is; virsh domuuid shows it") from None
    path = Path("/" + address.path)
    if len(os.fsencode(path)) > _PATH_LIMIT:
        raise AddressError(f"{address}: the path of a socket has at most {_PATH_LIMIT} bytes")
    return DomainSocket(address, path, domain, options)
