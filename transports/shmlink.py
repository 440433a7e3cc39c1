"""Both ends of a link over shared memory: a ring, and a line beside it. The gate is in ``shm``."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

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
from mchannel.transport import Delivery, Options, Peer, State
from mchannel.transports import local
from mchannel.transports.line import Line, close_all
from mchannel.transports.ring import Region, RingEnd, Side

__all__ = ["OVER", "AgentLink", "BrokerLink", "size_limit"]

_BURST = 64
"""Frames taken in at once."""
_SLICE = 0.05
"""Seconds between two looks at the line while asleep on the ring."""
_RETRY = 0.05
"""Seconds between two looks for a successor of the broker."""
OVER = (State.ENDED, State.CLOSED)


class ShmLink(ABC):
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
        self._line: Line | None = None
        self._latest = False
        self._held: bytes | None = None
        self._settled = True
        """Whether all was acknowledged when the ring was let go."""
        self._lost_since: float | None = None
        self._suspend_until: float | None = None

    # --- messages ---------------------------------------------------------------------------

    def send(self, payload: bytes) -> bool:
        """Take one message; False when the ring is full."""
        if self._end is None or self.state in OVER:
            raise self._ended()
        if self._end.write(payload):
            self._held = None
            return True
        if self._latest:
            self._held = payload
        return self._latest

    def send_many(self, payloads: Sequence[bytes]) -> int:
        """Take as many messages as there is room for; return how many."""
        if self._end is None or self.state in OVER:
            raise self._ended()
        if self._latest and payloads:
            self.send(payloads[-1])
            return len(payloads)
        return self._end.write_many(payloads)

    def recv(self) -> bytes | None:
        """Acknowledge the previous message and return the next, or None."""
        if self._end is None:
            raise self._ended()
        payload = self._end.read_newest() if self._latest else self._end.read()
        if payload is None and self.state in OVER:
            raise self._ended()
        return payload

    def recv_many(self, limit: int) -> list[bytes]:
        """Acknowledge the messages before and return up to *limit*."""
        if self._latest:
            return [] if (payload := self.recv()) is None else [payload]
        if self._end is None:
            raise self._ended()
        payloads = self._end.read_many(limit)
        if not payloads and self.state in OVER:
            raise self._ended()
        return payloads

    def done(self) -> None:
        """Acknowledge the message returned last."""
        if self._end is not None:
            self._end.done()

    @property
    def stamps(self) -> Sequence[tuple[int, bool]]:
        """Index after each message of the last :meth:`recv_many`, and whether a predecessor may have seen it."""
        if self._end is None:
            return ()
        return [(index, place < self._end.redelivered) for place, index in enumerate(self._end.ends)]

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
        return self._settled if end is None else self._held is None and end.acknowledged >= end.written

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
        elif self.state not in OVER and sleep(slice_):
            return
        self.tick(time.monotonic())

    def arm_readable(self) -> bool:
        """Ask the peer to ring the socket when there is a message; True when there may be one already."""
        return self._end is not None and self._ask(self._end.arm_readable)

    def arm_writable(self) -> bool:
        """Ask the peer to ring the socket when it makes room; True when there may be more already."""
        return self._end is not None and self._ask(self._end.arm_writable)

    def _ask(self, arm: Callable[[], bool]) -> bool:
        self.line.ask()
        return arm()

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
        if self._listen() and self.on_news is not None:
            self.on_news()  # a bell that is silenced here wakes nobody else
        if self._held is not None and self._end is not None and self.state not in OVER:
            self.send(self._held)
        patience = self._options.patience
        if self._lost_since is not None and patience is not None and now - self._lost_since > patience:
            self.fail(ChannelBroken(f"the peer has been gone for {patience:g} s"))
        if self._suspend_until is not None and now >= self._suspend_until:
            self.resume()

    # --- the socket -------------------------------------------------------------------------

    def use(self, line: Line) -> None:
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
            self._settled = False
        self.terms, self.epoch = terms, epoch
        self._latest = terms.delivery is Delivery.LATEST
        self.state = State.OPEN
        self._lost_since = self._suspend_until = None

    def fail(self, error: MChannelError) -> None:
        """End the link; what is in the ring can still be read."""
        if self.state not in OVER:
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
        if self.state not in OVER:
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
    def line(self) -> Line:
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

    def _listen(self) -> bool:
        """Take in what came over the socket; tell whether anything did."""
        line = self._line
        if line is None or self.state in (State.LOST, *OVER):
            return False
        line.heard = False
        try:
            for _ in range(_BURST):
                if (packet := line.frame()) is None:
                    break
                frame, descriptors = packet
                try:
                    if frame.epoch == self.epoch:
                        self.handle(frame, descriptors)
                finally:
                    close_all(descriptors)
        except ChannelBroken:
            self.lose()
            return True
        except (ProtocolError, AuthenticationError) as error:
            self.fail(error)
        return line.heard

    # --- beginning and ending ---------------------------------------------------------------

    @abstractmethod
    def suspend(self, timeout: float) -> None:
        """Start to quiesce."""

    def snapshot(self) -> bytes:
        """Return what another broker needs to adopt the link."""
        raise ChannelError("only the broker side of a suspended channel can be handed over; call suspend() first")

    def resume(self) -> None:
        """Take up a suspended link again."""
        if self.state in OVER:
            raise self._ended()
        self._suspend_until = None
        if self.state is State.SUSPENDED:
            self.state = State.OPEN

    def close(self) -> None:
        """Say goodbye and let go."""
        if self.state not in OVER:
            self.done()
            self.tell(Kind.BYE)
        self.leave()
        self.port.close()

    def leave(self) -> None:
        """Let go without goodbye; what was handed out and not marked is not acknowledged.

        The port stays until :meth:`close`: an event loop may be waiting at it.
        """
        self.state = State.CLOSED
        self._lost_since = self._suspend_until = None
        with contextlib.suppress(ProtocolError):  # a ring that the peer broke is let go all the same
            self._settled = self.flushed
        self.port.use(None)
        if self._end is not None:
            self._end.close()
            self._end = None
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None  # with the last reference the mapping goes
        if self.on_news is not None:
            self.on_news()  # whoever waits for a message or for room waits in vain

    def _ended(self) -> MChannelError:
        if self.failure is not None:
            return type(self.failure)(*self.failure.args)
        return ChannelClosed("this end of the channel was closed; open it anew")


class AgentLink(ShmLink):
    """The agent's end: it owns the memory, and looks for the broker's successor."""

    def __init__(self, address: Address, options: Options) -> None:
        self._path = local.socket_path(address)
        line = self._connect()
        memory = Region.create(ring_size(options), pool_size(options))
        super().__init__(Peer(address.path, str(address)), options, uuid.uuid4().bytes, memory)
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

    def resume(self) -> None:
        """Go on, and tell the broker."""
        if self.state is State.SUSPENDED:
            self.tell(Kind.CALL)
        super().resume()

    def _on_welcome(self, welcome: Welcome, descriptors: list[int]) -> None:
        terms = self.terms.confirm(welcome.terms, agreed=self._agreed)
        if descriptors and not self._agreed:  # what a predecessor of this agent left
            self.memory.close()
            self._memory = Region.attach(descriptors[0], size_limit(self._options))
            self.session = welcome.session
        elif welcome.session != self.session:
            raise ProtocolError("the broker answered for another session")
        self._agreed = True  # a successor of the broker is asked for the same
        self.begin(Side.A, terms, self.epoch)

    def _hello(self, line: Line) -> None:
        self.use(line)
        self.state = State.OPENING
        self.epoch = (self.epoch + 1) & 0xFFFFFFFF
        name = self._options.name.encode()[:255].decode("utf-8", "ignore")
        hello = Hello(self.session, name, self.terms, 1, 0, 0)
        self.line.send(Frame(Kind.HELLO, self.epoch, body=hello.encode()), [self.memory.fd])

    def _connect(self) -> Line:
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
        return Line(wire)


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
        elif frame.kind is Kind.CALL:
            super().resume()  # the agent goes on already
        else:
            super().handle(frame, descriptors)

    def suspend(self, timeout: float) -> None:
        """Ask the agent to be quiet."""
        self.done()
        self.tell(Kind.SUSPEND, max(1, int(timeout * 1000)))
        self._suspend_until = time.monotonic() + timeout

    def resume(self) -> None:
        """Tell the agent to go on, or not to obey any more if it has not agreed yet."""
        if self.state is State.SUSPENDED or self._suspend_until is not None:
            self.tell(Kind.CALL)
        super().resume()

    def snapshot(self) -> bytes:
        """Return the name of the session: all else is in the ring, which the agent holds."""
        if self.state is not State.SUSPENDED:
            return super().snapshot()
        return self.hand_over()

    def hand_over(self) -> bytes:
        """Let go for another broker, and return the name of the session."""
        self.done()
        self.moved = True
        self.leave()
        return self.session


def ring_size(options: Options) -> int:
    """Return how many bytes of short messages may wait: a small part of the window, so that it stays in caches."""
    part = max(14, (options.window // 16).bit_length() - 1)
    return 1 << max(12, min(part, options.window.bit_length() - 1))


def pool_size(options: Options) -> int:
    """Return how many bytes of the pool hold a window of messages, and the longest of them twice."""
    return 1 << max(12, (max(options.window, 2 * options.max_message) - 1).bit_length())


def size_limit(options: Options) -> int:
    """Return how large a region may be that an agent brings."""
    return 4 * pool_size(options) + (1 << 22)
