"""The session: exactly once through reconnections, suspends and handoffs, without any I/O.

Messages are numbered from 1 in each direction, kept until the peer acknowledges them, replayed
after a reconnection and recognised when they come twice. A session belongs to the agent: it says
HELLO and counts the *epoch*, the connections that the session has had; frames of another epoch are
ignored. The broker side answers WELCOME; when it misses something it CALLs for another HELLO.

A message counts as acknowledged when its reader asks for the next one or says :meth:`Session.done`,
not when it arrived: effect first, then mark. With ``delivery="latest"`` a message that a newer one
displaced unread counts as acknowledged too, and a window that is full holds back all but the newest.

Feed :meth:`Session.receive` with frames, take :attr:`Session.outgoing` away, and call
:meth:`Session.tick` when :meth:`Session.deadline` has come. Times are seconds of any monotonic clock.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import NamedTuple, cast

import attrs

from mchannel.errors import (
    AuthenticationError,
    ChannelBroken,
    ChannelClosed,
    EndOfChannel,
    MChannelError,
    MessageTooBig,
    ProtocolError,
)
from mchannel.frame import OVERHEAD, Flag, Frame, Hello, Kind, Terms, Welcome, is_number, reason
from mchannel.packing import Limits, pack, unpack
from mchannel.transport import Delivery, State

__all__ = ["Handoff", "Received", "Role", "Session", "Timing"]

_OVER = (State.ENDED, State.CLOSED)


class Role(Enum):
    """Which side of a session this is."""

    AGENT = "agent"
    """Owns the session: it says HELLO and counts the epochs."""
    BROKER = "broker"


@attrs.frozen
class Timing:
    """When a session acts by itself, in seconds."""

    heartbeat: float = 1.0
    """The agent asks for a sign of life this often; three times without one means lost."""
    retry: float = 0.5
    """Wait for the answer to a handshake before it is tried again."""
    ack_delay: float = 0.02
    """Longest wait for a message that can carry an acknowledgement along."""
    catch_up: float = 0.1
    """Latest only: longest wait of a reader that fell behind for the peer to say what is newest."""
    patience: float | None = None
    """How long a lost peer is waited for; None: for ever."""


class Received(NamedTuple):
    """A message on its way to the reader."""

    number: int
    payload: bytes
    redelivered: bool


@attrs.frozen
class Handoff:
    """The broker side of a suspended session, to be taken up by another broker."""

    session: bytes
    name: str
    epoch: int
    terms: Terms
    received: int
    """Last number that the reader has marked as done."""
    base: int
    """Number of the first message in :attr:`unacknowledged`, or of the next one to be sent."""
    unacknowledged: tuple[bytes, ...]
    unsure: int
    """Messages up to this number may have been seen by a broker that died earlier."""

    def encode(self) -> bytes:
        """Return the handoff as bytes."""
        terms = self.terms.fields()
        numbers = (self.epoch, self.received, self.base, self.unsure)
        return pack((self.session, self.name, terms, numbers, self.unacknowledged))

    @classmethod
    def decode(cls, data: bytes) -> Handoff:
        """Parse *data*; raise :class:`ProtocolError` when it is malformed."""
        try:
            session, name, terms, numbers, kept = unpack(data, Limits(text=255, binary=1 << 30, items=1 << 22))
            epoch, received, base, unsure = _numbers(numbers)
            if not (isinstance(session, bytes) and isinstance(name, str) and len(session) == 16):
                raise ValueError("malformed")
            if not (epoch < 1 << 32 and base > 0):
                raise ValueError("numbers out of range")
            return cls(session, name, epoch, Terms.parse(terms), received, base, _payloads(kept), unsure)
        except ValueError as error:
            raise ProtocolError(f"not a session that was handed over: {error}") from None


def _numbers(value: object) -> tuple[int, ...]:
    items = cast("tuple[object, ...]", value) if isinstance(value, tuple) else ()
    found = tuple(each for each in items if is_number(each))
    if len(found) != len(items):
        raise ValueError("a number was expected")
    return found


def _payloads(value: object) -> tuple[bytes, ...]:
    items = cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,)
    found = tuple(each for each in items if isinstance(each, bytes))
    if len(found) != len(items):
        raise ValueError("messages were expected")
    return found


class Session:
    """One side of a session. Not thread safe; never waits, never reads a clock."""

    def __init__(self, role: Role, session: bytes, terms: Terms, timing: Timing, *, name: str = "") -> None:
        self.role = role
        self.session = session
        self.name = name
        self.terms = terms
        self.timing = timing
        self.state = State.OPENING
        self.epoch = 0
        self.outgoing: deque[bytes] = deque()
        """Frames to be sent, in order; the owner takes them away."""
        self.last: Received | None = None
        """The message that :meth:`next` returned last, until it is marked."""

        self._agreed = False
        self._shaken = False
        """Whether the handshake of this epoch is over; before that only handshakes count."""
        self._failure: MChannelError | None = None
        # writing
        self._unacked: deque[bytes] = deque()
        self._unacked_bytes = 0
        """Bytes in ``_unacked`` as the window counts them: with their headers, so that empty messages count too."""
        self._base = 1
        """Number of the first in ``_unacked``."""
        self._sent = 0
        """Highest number that ever left for the peer."""
        self._held = False
        """Latest only: whether the last of ``_unacked`` has not left yet, so that a newer one may take its place."""
        # reading
        self._inbox: deque[Received] = deque()
        self._inbox_bytes = 0
        self._expected = 1
        self._done = 0
        self._done_bytes = 0
        """Bytes that are marked as done and not yet acknowledged."""
        self._acked = 0
        self._known = role is Role.AGENT
        """False while this side may have joined a session that another broker had before."""
        self._unsure = 0
        """Messages up to this number may have been seen by a predecessor."""
        self._asked = False
        """Latest only: whether the peer was asked for the newest since a message was handed out."""
        # when to act; None: not at all
        self._ack_due: float | None = None
        self._retry_due: float | None = None
        self._ping_due: float | None = None
        self._silent_since: float | None = None
        self._lost_since: float | None = None
        self._suspend_until: float | None = None
        self._newest_until: float | None = None
        """Latest only: how long the peer's word on what is newest is waited for."""

    # --- the application's side -------------------------------------------------------------

    def send(self, payload: bytes) -> bool:
        """Number *payload* and keep it until acknowledged; False when the window is full or terms are not agreed yet.

        Raises MessageTooBig, or what ended the session.
        """
        size = len(payload)
        if size > self.terms.max_message:
            raise MessageTooBig(f"a message of {size} bytes; this channel carries at most {self.terms.max_message}")
        if self.state in _OVER:
            raise self._ended()
        if not self._agreed:
            return False
        size += OVERHEAD
        if self._held:
            self._unacked_bytes -= len(self._unacked.pop()) + OVERHEAD
        elif self.terms.delivery is Delivery.ALL and self._unacked and self._unacked_bytes + size > self.terms.window:
            return False
        self._unacked.append(payload)
        self._unacked_bytes += size
        if self.terms.delivery is Delivery.LATEST:
            self._held = True
            self._let_newest_go()
        elif self._shaken and self.state is not State.SUSPENDED:
            self._data(self._last_number, payload)
        return True

    def next(self) -> Received | None:
        """Mark what was returned before as done and return the next message, or None. Raises what ended the session."""
        if self.last is not None:
            self.done()
        if self._inbox and self._newest_until is None:
            self._asked = False
            self.last = message = self._inbox.popleft()
            size = len(message.payload) + OVERHEAD
            self._inbox_bytes -= size
            self._done_bytes += size
            return message
        if self.state in _OVER:
            raise self._ended()
        return None

    def take(self, limit: int) -> list[Received]:
        """Mark what was returned before as done and return up to *limit* messages; they are marked together."""
        if self.last is not None:
            self.done()
        if not self._inbox and self.state in _OVER:
            raise self._ended()
        if self._newest_until is not None:
            return []
        taken = [self._inbox.popleft() for _ in range(min(limit, len(self._inbox)))]
        if taken:
            self._asked = False
            size = sum([len(message.payload) + OVERHEAD for message in taken])
            self._inbox_bytes -= size
            self._done_bytes += size
            self.last = taken[-1]
        return taken

    def done(self) -> None:
        """Mark the message that was returned last as taken care of; it will be acknowledged."""
        if self.last is not None:
            self._done = max(self._done, self.last.number)
            self.last = None
            if self._done_bytes * 4 > self.terms.window and self._shaken:
                self._ack()

    def acknowledge(self) -> None:
        """Tell the peer now what is marked, instead of within :attr:`Timing.ack_delay`."""
        if self.state not in _OVER and self._shaken and self._done > self._acked:
            self._ack()

    @property
    def failure(self) -> MChannelError | None:
        """What ended the session, when it was not this side's own wish."""
        return self._failure

    @property
    def newest(self) -> int:
        """Highest number that has arrived."""
        return self._expected - 1

    @property
    def flushed(self) -> bool:
        """Whether the peer has acknowledged everything."""
        return not self._unacked

    def hello(self, now: float) -> None:
        """Agent: (re)connect. What was on its way is forgotten here, and replayed after WELCOME."""
        self.epoch += 1
        self.outgoing.clear()
        self._shaken = False
        if self.state is not State.LOST:
            self.state = State.OPENING
        self._suspend_until = self._ping_due = self._silent_since = None
        self._retry_due = now + self.timing.retry
        self._lost_since = self._lost_since or now
        body = Hello(self.session, self.name, self.terms, self._base, self._sent, self._expected - 1)
        self._emit(Kind.HELLO, body=body.encode())

    def call(self, now: float) -> None:
        """Broker: ask the agent to say HELLO again; ends a suspension."""
        self._suspend_until = None
        self._retry_due = now + self.timing.retry
        self._emit(Kind.CALL)

    def suspend(self, now: float, timeout: float) -> None:
        """Quiesce. A broker asks its agent to; an agent just tells. Ends by itself after *timeout* seconds."""
        if self.state in _OVER:
            raise self._ended()
        self.done()
        self._suspend_until = now + timeout
        if self.role is Role.BROKER:
            self._emit(Kind.SUSPEND, number=max(1, int(timeout * 1000)))
        else:
            self._retry_due = None
            self._quiet()

    def resume(self, now: float) -> None:
        """Go on after a suspension. Raises what ended the session."""
        if self.state in _OVER:
            raise self._ended()
        self.hello(now) if self.role is Role.AGENT else self.call(now)

    def handoff(self) -> Handoff:
        """Broker: return what another broker needs to go on; this side is closed by it.

        What was received but not marked is not part of it: the agent replays that to the successor.
        """
        self.done()
        kept = tuple(self._unacked)
        found = Handoff(self.session, self.name, self.epoch, self.terms, self._done, self._base, kept, self._unsure)
        self._let_go()
        return found

    @classmethod
    def take_up(cls, found: Handoff, timing: Timing) -> Session:
        """Broker: go on with a session that another broker handed over."""
        taken = cls(Role.BROKER, found.session, found.terms, timing, name=found.name)
        taken.epoch = found.epoch
        taken.state = State.SUSPENDED
        taken._agreed = taken._known = True
        taken._done = taken._acked = found.received
        taken._expected = found.received + 1
        taken._unsure = found.unsure
        taken._base = found.base
        taken._unacked.extend(found.unacknowledged)
        taken._unacked_bytes = sum(len(payload) + OVERHEAD for payload in found.unacknowledged)
        return taken

    def close(self) -> None:
        """End the session in good order; idempotent. What is not :attr:`flushed` is given up."""
        if self.state not in _OVER:
            self.done()
            self._emit(Kind.BYE, number=self._sent)
        self._let_go()

    def leave(self) -> None:
        """Let go without goodbye: what is done is acknowledged, and the peer looks for a successor; idempotent."""
        self.acknowledge()
        self._let_go()

    def fail(self, error: MChannelError) -> None:
        """End the session for good because of *error*; what was received can still be read."""
        if self.state not in _OVER:
            self.state, self._failure, self._newest_until = State.ENDED, error, None

    # --- time -------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """Return when :meth:`tick` is due, or None."""
        if self._done > self._acked and self._ack_due is None and self._shaken:
            return 0.0  # now: the next tick decides when to acknowledge
        due = self._ping_due
        for other in (
            self._ack_due,
            self._retry_due,
            self._suspend_until,
            self._newest_until,
            self._given_up_at(),
            self._lost_at(),
        ):
            if other is not None and (due is None or other < due):
                due = other
        return due

    def _given_up_at(self) -> float | None:
        patience = self.timing.patience
        return None if self._lost_since is None or patience is None else self._lost_since + patience

    def _lost_at(self) -> float | None:
        if self._silent_since is None or self.role is Role.AGENT or self.state is not State.OPEN:
            return None
        return self._silent_since + 3 * self.timing.heartbeat

    def tick(self, now: float) -> None:
        """Do what is due at *now*. Feed what has arrived to :meth:`receive` first."""
        if self.state in _OVER:
            return
        self._tick_ack(now)
        if self._newest_until is not None and now >= self._newest_until:
            self._newest_until = None
        if self._silent_since is not None and now - self._silent_since >= 3 * self.timing.heartbeat:
            self._lose(now)
        patience = self.timing.patience
        if self._lost_since is not None and patience is not None and now - self._lost_since >= patience:
            self.fail(ChannelBroken(f"the peer has been gone for {patience:g} s"))
            return
        if self._suspend_until is not None and now >= self._suspend_until:
            self._suspend_until = None
            if self.role is Role.AGENT:
                self.hello(now)
            elif self.state is State.SUSPENDED:
                self._lost_since = now  # time for the agent to come back
        if self._retry_due is not None and now >= self._retry_due:
            self.hello(now) if self.role is Role.AGENT else self.call(now)
        if self._ping_due is not None and now >= self._ping_due and self.state is State.OPEN:
            self._ping_due = now + self.timing.heartbeat
            self._silent_since = self._silent_since or now
            self._ack(Flag.PING)

    def _tick_ack(self, now: float) -> None:
        if self._done > self._acked and self._shaken:
            if self._ack_due is None:
                self._ack_due = now + self.timing.ack_delay
            elif now >= self._ack_due:
                self._ack()
        elif self._ack_due is not None and now >= self._ack_due:
            self._ack()

    def _lose(self, now: float) -> None:
        if self.state is State.OPEN:
            self.state = State.LOST
            self._silent_since, self._lost_since = None, now
            if self.role is Role.AGENT:
                self.hello(now)

    # --- the wire's side --------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> None:
        """Take in one frame. One that breaks the rules ends the session, permanently; nothing is raised."""
        if self.state in _OVER:
            return
        try:
            self._receive(Frame.decode(data, self.terms.max_message), now)
        except ProtocolError as error:
            self.fail(error)

    def _receive(self, frame: Frame, now: float) -> None:
        kind = frame.kind
        if kind is Kind.HELLO:
            self._on_hello(frame, now)
        elif kind is Kind.CALL:
            if self.role is Role.AGENT and self._shaken:
                self.hello(now)
        elif frame.epoch != self.epoch:
            pass  # a leftover of an earlier connection
        elif kind is Kind.WELCOME and not self._shaken and self.state is not State.SUSPENDED:
            self._on_welcome(frame, now)
        elif kind is Kind.REFUSE and not self._shaken:
            self.fail(AuthenticationError(f"the broker refused this agent: {reason(frame.body)}"))
        elif self._shaken:
            self._hear(now)
            self._on_ack(frame.ack)
            self._on_traffic(frame, now)

    def _on_traffic(self, frame: Frame, now: float) -> None:
        kind = frame.kind
        if kind is Kind.DATA:
            self._on_data(frame, now)
        elif kind is Kind.ACK:
            self._newest_until = None
            if self._complete(frame.number, now) and frame.flags & Flag.PING:
                self._ack()
        elif kind is Kind.SUSPEND and self.role is Role.AGENT:
            self._retry_due = now + self.timing.retry  # look for the successor
            self._quiet()
        elif kind is Kind.SUSPENDED and self.role is Role.BROKER:
            if self._complete(frame.number, now):
                self.state = State.SUSPENDED
                self._lost_since = None if self._suspend_until is not None else now
        elif kind is Kind.BYE:
            if self._complete(frame.number, now):
                self.fail(EndOfChannel("the peer closed the channel"))
        elif kind is not Kind.WELCOME:
            raise ProtocolError(f"the peer sent {kind.name}, which is not its to send")

    def _hear(self, now: float) -> None:
        self._lost_since = None
        self._silent_since = now if self.role is Role.BROKER else None
        if self.state is State.LOST:
            self.state = State.OPEN

    def _on_hello(self, frame: Frame, now: float) -> None:
        if self.role is not Role.BROKER:
            raise ProtocolError("the broker said HELLO, which is the agent's to say")
        if frame.epoch <= self.epoch:
            return  # said twice, or overtaken by a later connection
        if self.state is State.SUSPENDED and self._suspend_until is not None:
            return  # its successor will answer; or this side, when the time is over
        hello = Hello.decode(frame.body)
        if hello.session != self.session:
            raise ProtocolError("the peer began another session on a connection that has one")
        terms = self.terms.join(hello.terms)
        if self._agreed and terms != self.terms:
            raise ProtocolError("the peer wants other terms than it agreed to; open a new channel for that")
        self.terms, self._agreed = terms, True
        received = self._expected - 1 if self._known else None
        if not self._known:
            self._known = True
            self._unsure = hello.sent
            self._expected, self._done, self._acked = hello.base, hello.base - 1, hello.base - 1
        elif hello.base > self._expected:
            self._expected = hello.base  # another broker took care of what came before
        if hello.received >= self._base + len(self._unacked):
            self._base = hello.received + 1  # another broker used these numbers
        self.epoch = frame.epoch
        self.outgoing.clear()
        welcome = Welcome(self.session, self.terms, received, self._base)
        self._emit(Kind.WELCOME, body=welcome.encode())
        self._open(frame.ack, hello.received, now)

    def _on_welcome(self, frame: Frame, now: float) -> None:
        welcome = Welcome.decode(frame.body)
        if self.role is not Role.AGENT or welcome.session != self.session:
            raise ProtocolError("the peer answered for another session")
        terms = self.terms.join(welcome.terms)
        if terms != welcome.terms or (self._agreed and terms != self.terms):
            raise ProtocolError("the broker changed terms that were agreed")
        self.terms, self._agreed = terms, True
        self._expected = max(self._expected, welcome.base)  # the broker side has nothing older any more
        self._ping_due = now + self.timing.heartbeat
        self._open(frame.ack, self._base - 1 if welcome.received is None else welcome.received, now)

    def _open(self, done: int, received: int, now: float) -> None:
        """Both sides know what the other has: forget what it is done with, replay what it has not received."""
        self._held, self._newest_until = False, None
        self._on_ack(done)
        if received > self._last_number:
            raise ProtocolError("the peer has received what was never sent")
        self.state, self._shaken = State.OPEN, True
        self._retry_due = self._suspend_until = None
        self._hear(now)
        if self.terms.delivery is Delivery.LATEST:
            while len(self._unacked) > 1:
                self._forget_first()
        for number, payload in enumerate(self._unacked, self._base):
            if number > received:
                self._data(number, payload)

    def _on_data(self, frame: Frame, now: float) -> None:
        number, payload = frame.number, frame.body
        if number < self._expected:
            self._ack_due = self._ack_due or now  # it missed that this came before
            return
        if self.terms.delivery is Delivery.ALL and not self._complete(number - 1, now):
            return
        if self.terms.delivery is Delivery.LATEST and self._inbox:
            self._displace(number, now)
        self._inbox_bytes += len(payload) + OVERHEAD
        if self._inbox_bytes > self.terms.window + self.terms.max_message + OVERHEAD:
            raise ProtocolError("the peer sends more than the window that it agreed to")
        self._inbox.append(Received(number, payload, number <= self._unsure))
        self._expected = number + 1

    def _displace(self, number: int, now: float) -> None:
        """*number* is newer than what was not read: that counts as taken care of, so that the peer goes on.

        A reader that falls behind gets nothing before the peer has answered once: by then all that was
        on its way has come, and so has the newest that a full window held back.
        """
        self._inbox.clear()
        self._done_bytes += self._inbox_bytes
        self._inbox_bytes = 0
        self._done = number - 1
        if not self._asked:
            self._asked, self._newest_until = True, now + self.timing.catch_up
            self._ack(Flag.PING)
        elif self._done_bytes * 4 > self.terms.window:
            self._ack()

    def _on_ack(self, number: int) -> None:
        if number >= self._base + len(self._unacked):
            raise ProtocolError("the peer acknowledges what was never sent")
        while self._base <= number:
            self._forget_first()
        self._let_newest_go()

    def _complete(self, number: int, now: float) -> bool:
        """Whether all up to *number* came; if not, something was lost: connect anew and have it replayed."""
        if number < self._expected:
            return True
        if self._retry_due is None:
            self.hello(now) if self.role is Role.AGENT else self.call(now)
        return False

    # --- small parts ------------------------------------------------------------------------

    @property
    def _last_number(self) -> int:
        return self._base + len(self._unacked) - 1

    def _quiet(self) -> None:
        self._emit(Kind.SUSPENDED, number=self._sent)
        self.state = State.SUSPENDED
        self._ping_due = self._silent_since = None

    def _forget_first(self) -> None:
        self._unacked_bytes -= len(self._unacked.popleft()) + OVERHEAD
        self._base += 1

    def _let_newest_go(self) -> None:
        """Latest only: send what was held back, when there is room in the window."""
        room = len(self._unacked) == 1 or self._unacked_bytes <= self.terms.window
        if self._held and room and self._shaken and self.state is not State.SUSPENDED:
            self._held = False
            self._data(self._last_number, self._unacked[-1])

    def _data(self, number: int, payload: bytes) -> None:
        self._sent = max(self._sent, number)
        self._emit(Kind.DATA, number=number, body=payload)

    def _ack(self, flags: int = 0) -> None:
        self._emit(Kind.ACK, number=self._sent, flags=flags)

    def _let_go(self) -> None:
        self.state = State.CLOSED
        self._inbox.clear()  # what was not read is for whoever comes after

    def _emit(self, kind: Kind, *, number: int = 0, flags: int = 0, body: bytes = b"") -> None:
        self._acked, self._done_bytes, self._ack_due = self._done, 0, None
        outgoing = self.outgoing
        if outgoing and outgoing[-1][2] == kind and (kind is not Kind.DATA or self.terms.delivery is Delivery.LATEST):
            # it waits still, and this one says all that it does: a full wire fills no memory
            flags |= outgoing.pop()[3]
        outgoing.append(Frame(kind, self.epoch, number, self._done, flags, body).encode())

    def _ended(self) -> MChannelError:
        if self._failure is not None:
            return type(self._failure)(*self._failure.args)
        return ChannelClosed("this end of the channel was closed; open it anew")
