"""``shm:///name``: a ring in memory that both ends share, and a socket beside it.

The agent makes the memory (a sealed memfd) and passes it to the broker over a UNIX socket, so it
outlives a broker that dies: the successor gets the same memory and reads on. The ring's own indices
are the numbers and the acknowledgements; nothing is added to a message. The socket carries the
handshake, the bell of an end that sleeps in a select loop, suspensions and the goodbye, and its end
tells that the peer is gone.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
import uuid
from collections.abc import Callable, Sequence

import attrs

from mchannel.address import Address
from mchannel.errors import (
    AddressError,
    AuthenticationError,
    ChannelBroken,
    ChannelClosed,
    ChannelError,
    EndOfChannel,
    MChannelError,
    NotListening,
    ProtocolError,
)
from mchannel.frame import Frame, Hello, Kind, Terms, Welcome, reason
from mchannel.port import StandingPort
from mchannel.transport import Delivery, Gate, Link, Options, Peer, Port, State
from mchannel.transports import local
from mchannel.transports.ring import Region, RingEnd, Side

__all__ = ["SHM"]

_BELL = 8
"""Bytes of the packet that is only a bell; every frame is longer."""
_PACKET = 4096
_BURST = 64
_SLICE = 0.05
"""Seconds between two looks at the socket while asleep on the ring."""
_RETRY = 0.05
"""Seconds between two looks for a successor of the broker."""
_HANDSHAKE = 5.0
"""Seconds that a peer has to say HELLO."""
_MAX_STRANGERS = 64
_MAX_LINKS = 4096
_OVER = (State.ENDED, State.CLOSED)


class _Line:
    """The socket beside a ring: packets with descriptors, neither waiting nor trusting."""

    def __init__(self, wire: socket.socket) -> None:
        wire.setblocking(False)
        self._wire = wire
        self.hear: Callable[[], None] = lambda: None

    def fileno(self) -> int:
        return self._wire.fileno()

    def pump(self) -> None:
        self.hear()

    def replace(self, other: _Line) -> None:
        """Become *other*, under the descriptor that the ring rings."""
        os.dup2(other.fileno(), self.fileno(), inheritable=False)
        other.close()

    def send(self, frame: Frame, descriptors: Sequence[int] = ()) -> bool:
        """Send *frame*; False when the peer is gone or does not read."""
        try:
            socket.send_fds(self._wire, [frame.encode()], descriptors, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def recv(self) -> tuple[bytes, list[int]] | None:
        """Return the next packet and its descriptors, or None; raise ChannelBroken when the peer is gone."""
        try:
            flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            data, descriptors, found, _ = socket.recv_fds(self._wire, _PACKET, 1, flags)
        except BlockingIOError:
            return None
        except OSError as error:
            raise ChannelBroken(f"the peer is gone: {error.strerror}") from None
        if not data:
            _close_all(descriptors)
            raise ChannelBroken("the peer is gone")
        if found & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            _close_all(descriptors)
            raise ProtocolError("the peer sent a packet that is too long or has too many descriptors")
        return data, descriptors

    def frame(self) -> tuple[Frame, list[int]] | None:
        """Return the next frame; None when there is none, or when only bells rang (bounded work)."""
        for _ in range(_BURST):
            if (packet := self.recv()) is None:
                return None
            data, descriptors = packet
            if len(data) != _BELL:
                try:
                    return Frame.decode(data, _PACKET), descriptors
                except ProtocolError:
                    _close_all(descriptors)
                    raise
            _close_all(descriptors)
        return None

    def credentials(self) -> tuple[int, int]:
        """Return process id and user id of the peer, as the kernel knows them."""
        pid, uid, _ = struct.unpack("3i", self._wire.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid, uid

    def close(self) -> None:
        self._wire.close()


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class ShmLink:
    """One end of a ring, and the socket beside it."""

    def __init__(self, peer: Peer, options: Options, session: bytes, memory: Region) -> None:
        self.peer = peer
        self.port = StandingPort()
        self.state = State.OPENING
        self.session = session
        self.on_news: Callable[[], None] | None = None
        self.failure: MChannelError | None = None
        self.terms = Terms(options.max_message, options.window, options.delivery)
        self.epoch = 0
        """Which connection this is; the agent counts them."""
        self._options = options
        self._memory: Region | None = memory
        self._end: RingEnd | None = None
        self._line: _Line | None = None
        self._latest = False
        self._held: bytes | None = None
        self._lost_since: float | None = None
        self._suspend_until: float | None = None

    # --- messages ---------------------------------------------------------------------------

    def send(self, payload: bytes) -> bool:
        """Take one message; False when the ring is full."""
        if self._end is None or self.state in _OVER:
            raise self._ended()
        if self._end.write(payload):
            self._held = None
            return True
        if self._latest:
            self._held = payload
        return self._latest

    def send_many(self, payloads: Sequence[bytes]) -> int:
        """Take as many messages as there is room for; return how many."""
        if self._end is None or self.state in _OVER:
            raise self._ended()
        if self._latest and payloads:
            self.send(payloads[-1])
            return len(payloads)
        return self._end.write_many(payloads)

    def recv(self) -> bytes | None:
        """Acknowledge the previous message and return the next, or None."""
        if self._end is None:
            raise self._ended()
        payload = self._end.read()
        if payload is None and self.state in _OVER:
            raise self._ended()
        if self._latest and payload is not None:
            while (newer := self._end.read()) is not None:
                payload = newer
        return payload

    def recv_many(self, limit: int) -> list[bytes]:
        """Acknowledge the messages before and return up to *limit*."""
        if self._latest:
            return [] if (payload := self.recv()) is None else [payload]
        if self._end is None:
            raise self._ended()
        payloads = self._end.read_many(limit)
        if not payloads and self.state in _OVER:
            raise self._ended()
        return payloads

    def done(self) -> None:
        """Acknowledge the message returned last."""
        if self._end is not None:
            self._end.done()

    @property
    def number(self) -> int:
        """Index in the ring after the message that was returned last."""
        return self._end.received if self._end is not None else 0

    @property
    def redelivered(self) -> bool:
        """Whether a predecessor may have seen it."""
        return self._end is not None and self._end.redelivered > 0

    @property
    def flushed(self) -> bool:
        """Whether the peer has acknowledged everything that was sent."""
        end = self._end
        return end is None or (self._held is None and end.acknowledged >= end.written)

    # --- waiting ----------------------------------------------------------------------------

    def wait_readable(self, timeout: float | None) -> None:
        """Spin, then sleep on the ring; look at the socket now and then."""
        self._rest(timeout, None if self._end is None else self._end.wait_readable)

    def wait_writable(self, timeout: float | None) -> None:
        """Spin, then sleep on the ring; look at the socket now and then."""
        self._rest(timeout, None if self._end is None else self._end.wait_writable)

    def _rest(self, timeout: float | None, sleep: Callable[[float], bool] | None) -> None:
        slice_ = _SLICE if timeout is None else min(timeout, _SLICE)
        if sleep is None:
            poll = select.poll()
            poll.register(self.port, select.POLLIN)
            poll.poll(slice_ * 1000 + 0.5)
        elif self.state not in _OVER:
            sleep(slice_)
        self.tick(time.monotonic())

    def arm(self) -> None:
        """Ask the peer to ring the socket."""
        if self._end is not None:
            self._end.arm_readable()
            self._end.arm_writable()

    def deadline(self) -> float | None:
        """Return when :meth:`tick` is due next."""
        due: list[float] = []
        if self._held is not None:
            due.append(time.monotonic() + 0.005)
        if self._lost_since is not None and self._options.patience is not None:
            due.append(self._lost_since + self._options.patience)
        if self._suspend_until is not None:
            due.append(self._suspend_until)
        return min(due, default=None)

    def tick(self, now: float) -> None:
        """Do what is due at *now*."""
        self._listen()
        if self._held is not None and self._end is not None and self.state not in _OVER:
            self.send(self._held)
        patience = self._options.patience
        if self._lost_since is not None and patience is not None and now - self._lost_since > patience:
            self.fail(ChannelBroken(f"the peer has been gone for {patience:g} s"))
        if self._suspend_until is not None and now >= self._suspend_until:
            self.resume()

    # --- the socket -------------------------------------------------------------------------

    def use(self, line: _Line) -> None:
        """Talk over *line* from now on."""
        if self._line is None:
            self._line = line
            line.hear = self._news
        else:
            self.port.use(None)
            self._line.replace(line)
        self.port.use(self._line)

    def begin(self, side: Side, terms: Terms, epoch: int) -> None:
        """Join the ring under *terms*, or go on in it after a reconnection."""
        if self._end is None:
            bell = self.line.fileno()
            limit, attend = terms.max_message, self._attend
            self._end = RingEnd(self.memory, side, bell=bell, peer_bell=bell, limit=limit, attention=attend)
        self.terms, self.epoch = terms, epoch
        self._latest = terms.delivery is Delivery.LATEST
        self.state = State.OPEN
        self._lost_since = self._suspend_until = None

    def fail(self, error: MChannelError) -> None:
        """End the link; what is in the ring can still be read."""
        if self.state not in _OVER:
            self.state, self.failure = State.ENDED, error
            self._lost_since = self._suspend_until = None
            self.port.use(None)

    def handle(self, frame: Frame, descriptors: list[int]) -> None:
        """Take in one frame; the descriptors are the caller's to close."""
        if frame.kind is Kind.BYE:
            self.fail(EndOfChannel("the peer closed the channel"))
        else:
            raise ProtocolError(f"the peer sent {frame.kind.name}, which is not its to send")

    def lose(self) -> None:
        """The peer is gone; wait for its successor."""
        if self.state not in _OVER:
            self.state = State.LOST
            self._lost_since = self._lost_since or time.monotonic()
            self.port.use(None)

    def tell(self, kind: Kind, number: int = 0) -> None:
        """Send one frame without a body."""
        self.line.send(Frame(kind, self.epoch, number))

    @property
    def memory(self) -> Region:
        """The memory; raises ChannelClosed when it was let go."""
        if self._memory is None:
            raise self._ended()
        return self._memory

    @property
    def line(self) -> _Line:
        """The socket; raises ChannelClosed when there is none."""
        if self._line is None:
            raise self._ended()
        return self._line

    def _attend(self) -> None:
        self.tick(time.monotonic())

    def _news(self) -> None:
        self._listen()
        if self.on_news is not None:
            self.on_news()

    def _listen(self) -> None:
        if self._line is None or self.state in (State.LOST, *_OVER):
            return
        try:
            for _ in range(_BURST):
                if (packet := self._line.frame()) is None:
                    return
                frame, descriptors = packet
                try:
                    if frame.epoch == self.epoch:
                        self.handle(frame, descriptors)
                finally:
                    _close_all(descriptors)
        except ChannelBroken:
            self.lose()
        except (ProtocolError, AuthenticationError) as error:
            self.fail(error)

    # --- beginning and ending ---------------------------------------------------------------

    def suspend(self, timeout: float) -> None:
        """Start to quiesce."""
        raise NotImplementedError

    def snapshot(self) -> bytes:
        """Return what another broker needs to adopt the link."""
        raise ChannelError("only the broker side of a suspended channel can be handed over; call suspend() first")

    def resume(self) -> None:
        """Take up a suspended link again."""
        self._suspend_until = None
        if self.state is State.SUSPENDED:
            self.state = State.OPEN

    def close(self) -> None:
        """Say goodbye and let go."""
        if self.state not in _OVER:
            self.done()
            self.tell(Kind.BYE)
        self.leave()

    def leave(self) -> None:
        """Let go without goodbye; what was handed out and not marked is not acknowledged."""
        self.state = State.CLOSED
        self.port.close()
        if self._end is not None:
            self._end.close()
            self._end = None
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None  # with the last reference the mapping goes

    def _ended(self) -> MChannelError:
        if self.failure is not None:
            return type(self.failure)(*self.failure.args)
        return ChannelClosed("this end of the channel was closed; open it anew")


class AgentLink(ShmLink):
    """The agent's end: it owns the memory, and looks for the broker's successor."""

    def __init__(self, address: Address, options: Options) -> None:
        self._path = local.socket_path(address)
        line = self._connect()
        memory = Region.create(pool=_pool(options))
        super().__init__(Peer(address.path, str(address)), options, uuid.uuid4().bytes, memory)
        self._wanted = self.terms
        self._agreed = False
        self._knocked = time.monotonic()
        self._hello(line)

    def tick(self, now: float) -> None:
        """Look for a successor of a broker that is gone."""
        super().tick(now)
        if self.state is State.LOST and now - self._knocked >= _RETRY:
            self._knocked = now
            with contextlib.suppress(AddressError):
                self._hello(self._connect())

    def deadline(self) -> float | None:
        """Return when to look again for a successor."""
        due = super().deadline()
        if self.state is State.LOST:
            return min(due or float("inf"), self._knocked + _RETRY)
        return due

    def handle(self, frame: Frame, descriptors: list[int]) -> None:
        """Take in one frame of the broker."""
        if frame.kind is Kind.WELCOME and self.state is State.OPENING:
            self._on_welcome(Welcome.decode(frame.body), descriptors)
        elif frame.kind is Kind.REFUSE and self.state is State.OPENING:
            raise AuthenticationError(f"the broker refused this agent: {reason(frame.body)}")
        elif frame.kind is Kind.SUSPEND:
            self.suspend(frame.number / 1000)
        elif frame.kind is Kind.CALL:
            self.resume()
        else:
            super().handle(frame, descriptors)

    def suspend(self, timeout: float) -> None:
        """Be quiet. What is written meanwhile waits in the ring, which moves along."""
        self.done()
        self.tell(Kind.SUSPENDED)
        self.state = State.SUSPENDED
        self._suspend_until = time.monotonic() + timeout

    def _on_welcome(self, welcome: Welcome, descriptors: list[int]) -> None:
        terms = self._wanted.join(welcome.terms)
        if terms != welcome.terms or (self._agreed and terms != self.terms):
            raise ProtocolError("the broker changed terms that were agreed")
        if descriptors and not self._agreed:  # what a predecessor of this agent left
            self.memory.close()
            self._memory = Region.attach(descriptors[0], _limit(self._options))
            self.session = welcome.session
        elif welcome.session != self.session:
            raise ProtocolError("the broker answered for another session")
        self._agreed = True
        self.begin(Side.A, terms, self.epoch)

    def _hello(self, line: _Line) -> None:
        self.use(line)
        self.state = State.OPENING
        self.epoch = (self.epoch + 1) & 0xFFFFFFFF
        name = self._options.name.encode()[:255].decode("utf-8", "ignore")
        hello = Hello(self.session, name, self._wanted, 1, 0, 0)
        self.line.send(Frame(Kind.HELLO, self.epoch, body=hello.encode()), [self.memory.fd])

    def _connect(self) -> _Line:
        wire = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        wire.setblocking(False)
        try:
            wire.connect(os.fspath(self._path))
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            wire.close()
            raise NotListening(f"nothing listens at {self._path}; start a broker there") from None
        except OSError as error:
            wire.close()
            raise AddressError(f"cannot reach {self._path}: {error.strerror}") from None
        return _Line(wire)


class BrokerLink(ShmLink):
    """The broker's end: it maps memory that a stranger made, after checking it."""

    def __init__(self, peer: Peer, options: Options, session: bytes, memory: Region) -> None:
        super().__init__(peer, options, session, memory)
        self.moved = False
        """Whether another broker took over."""

    def handle(self, frame: Frame, descriptors: list[int]) -> None:
        """Take in one frame of the agent."""
        if frame.kind is Kind.SUSPENDED and self.state in (State.OPEN, State.SUSPENDED):
            self.state = State.SUSPENDED
        else:
            super().handle(frame, descriptors)

    def suspend(self, timeout: float) -> None:
        """Ask the agent to be quiet."""
        self.done()
        self.tell(Kind.SUSPEND, max(1, int(timeout * 1000)))
        self._suspend_until = time.monotonic() + timeout

    def resume(self) -> None:
        """Tell the agent to go on."""
        if self.state is State.SUSPENDED:
            self.tell(Kind.CALL)
        super().resume()

    def snapshot(self) -> bytes:
        """Return the name of the session: all else is in the ring, which the agent holds."""
        if self.state is not State.SUSPENDED:
            return super().snapshot()
        self.done()
        self.moved = True
        self.leave()
        return self.session


@attrs.define(eq=False)
class _Stranger:
    """A connection on which nobody has said HELLO."""

    line: _Line
    until: float


class ShmGate:
    """Accepts agents, and brings those that come back to the links that they had."""

    def __init__(self, address: Address, options: Options) -> None:
        self.address = address
        self.on_news: Callable[[], None] | None = None
        self._options = options
        self._path = local.socket_path(address)
        self._door = local.listen(self._path, socket.SOCK_SEQPACKET)
        self._door.setblocking(False)
        self._inode = self._path.stat().st_ino
        self._epoll = select.epoll()
        self._epoll.register(self._door, select.EPOLLIN)
        self._strangers: list[_Stranger] = []
        self._links: dict[tuple[int, bytes], BrokerLink] = {}
        self._ready: list[BrokerLink] = []

    @property
    def port(self) -> Port:
        """The gate itself: it wakes at the door, and when a stranger speaks."""
        return self

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._epoll.fileno()

    def pump(self) -> None:
        """Let in who knocks, and hear the strangers."""
        for _ in range(_BURST):
            try:
                wire, _ = self._door.accept()
            except OSError:
                break
            line = _Line(wire)
            self._epoll.register(line, select.EPOLLIN)
            self._strangers.append(_Stranger(line, time.monotonic() + _HANDSHAKE))
        if self._strangers:
            self.tick(time.monotonic())
        if self._ready and self.on_news is not None:
            self.on_news()

    def accept(self) -> Link | None:
        """Return the link to an agent that was not there before, or None."""
        return self._ready.pop(0) if self._ready else None

    def adopt(self, snapshot: bytes) -> None:
        """Check the name of the session; its agent brings the ring, which knows everything else."""
        if len(snapshot) != len(uuid.UUID(int=0).bytes):
            raise ProtocolError("not a channel over shared memory that was handed over")

    def deadline(self) -> float | None:
        """Return when the patience with a stranger ends."""
        return min((stranger.until for stranger in self._strangers), default=None)

    def tick(self, now: float) -> None:
        """Hear the strangers; show out those who say nothing."""
        surplus = len(self._strangers) - _MAX_STRANGERS
        for place, stranger in enumerate(list(self._strangers)):
            if now > stranger.until or place < surplus or self._greet(stranger.line):
                self._strangers.remove(stranger)

    def close(self) -> None:
        """Stop listening. Agents are not told goodbye: they look for a successor."""
        self._epoll.close()
        self._door.close()
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        for stranger in self._strangers:
            stranger.line.close()
        for link in self._links.values():
            link.leave()
        self._strangers.clear()
        self._links.clear()

    def _greet(self, line: _Line) -> bool:
        """Hear one stranger; True when it is none any more."""
        try:
            if (packet := line.frame()) is None:
                return False
        except (ChannelBroken, ProtocolError):
            self._show_out(line)
            return True
        frame, descriptors = packet
        self._epoll.unregister(line)
        try:
            self._admit(line, frame, descriptors)
        except (MChannelError, OSError) as error:
            line.send(Frame(Kind.REFUSE, frame.epoch, body=str(error).encode()[:512]))
            line.close()
        finally:
            _close_all(descriptors)
        return True

    def _show_out(self, line: _Line) -> None:
        self._epoll.unregister(line)
        line.close()

    def _admit(self, line: _Line, frame: Frame, descriptors: list[int]) -> None:
        if frame.kind is not Kind.HELLO or not descriptors:
            raise ProtocolError("say HELLO first, and bring the memory")
        hello = Hello.decode(frame.body)
        pid, uid = line.credentials()
        peer = Peer(self.address.path, str(self.address), uid, pid, hello.name)
        link = self._links.get((uid, hello.session))
        if link is not None and isinstance(link.failure, ChannelBroken):
            link = None  # it was given up, but here it is
        if link is not None and link.moved:
            line.close()  # the successor will answer
            return
        if link is None and (heir := self._heir(peer)) is not None:
            self._welcome(heir, line, frame, hello, [heir.memory.fd])
        elif link is None:
            link = BrokerLink(peer, self._options, hello.session, Region.attach(descriptors[0], _limit(self._options)))
            self._welcome(link, line, frame, hello, [])
            self._keep((uid, hello.session), link)
        elif link.state in _OVER:
            raise ProtocolError("this channel is over; open a new one")
        elif not os.path.samestat(os.fstat(link.memory.fd), os.fstat(descriptors[0])) or frame.epoch <= link.epoch:
            raise ProtocolError("the session is another agent's")
        else:
            self._welcome(link, line, frame, hello, [])

    def _welcome(self, link: BrokerLink, line: _Line, frame: Frame, hello: Hello, descriptors: list[int]) -> None:
        terms = link.terms.join(hello.terms)
        if link.epoch and terms != link.terms:
            raise ProtocolError("this agent wants other terms than it agreed to; open a new channel for that")
        link.use(line)
        link.begin(Side.B, terms, frame.epoch)
        line_ = link.line
        line_.send(Frame(Kind.WELCOME, frame.epoch, body=Welcome(link.session, terms, None, 1).encode()), descriptors)
        if link.on_news is not None:
            link.on_news()

    def _heir(self, peer: Peer) -> BrokerLink | None:
        """Return the link of a predecessor of the same name and user that died."""
        for (uid, _), link in self._links.items():
            if peer.name and uid == peer.uid and link.peer.name == peer.name:
                link.tick(time.monotonic())
                if link.state is State.LOST:
                    return link
        return None

    def _keep(self, key: tuple[int, bytes], link: BrokerLink) -> None:
        if len(self._links) >= _MAX_LINKS:
            self._links = {key: link for key, link in self._links.items() if link.state not in _OVER}
        self._links[key] = link
        self._ready.append(link)


def _pool(options: Options) -> int:
    """Return how many bytes of the pool hold a window of messages, and the longest of them twice."""
    return 1 << max(12, (max(options.window, 2 * options.max_message) - 1).bit_length())


def _limit(options: Options) -> int:
    """Return how large a region may be that an agent brings."""
    return 4 * _pool(options) + (1 << 22)


class _Shm:
    """The scheme ``shm``."""

    def dial(self, address: Address, options: Options) -> Link:
        """Start to connect to *address*."""
        return AgentLink(address, options)

    def bind(self, address: Address, options: Options) -> Gate:
        """Listen at *address*."""
        return ShmGate(address, options)


SHM = _Shm()
