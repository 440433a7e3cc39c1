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

import os
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from enum import Enum

from mchannel.errors import (
    AuthenticationError,
    ChannelBroken,
    ChannelClosed,
    EndOfChannel,
    MChannelError,
    MessageTooBig,
    ProtocolError,
)
from mchannel.frame import (
    MAX_AUTHORS,
    MOST_TOGETHER,
    Flag,
    Frame,
    Hello,
    Kind,
    Terms,
    Welcome,
    encode,
    glance,
    messages,
    reason,
)
from mchannel.handoff import Handoff
from mchannel.packing import pack
from mchannel.reader import Reader, Received
from mchannel.timing import Timing
from mchannel.transport import Delivery, State
from mchannel.writer import Writer, batches

__all__ = ["Role", "Session", "Timing"]

_OVER = (State.ENDED, State.CLOSED)


class Role(Enum):
    """Which side of a session this is."""

    AGENT = "agent"
    """Owns the session: it says HELLO and counts the epochs."""
    BROKER = "broker"


# An enum is slow to find its members, and these are looked at for each message.
_AGENT, _LATEST, _OPEN, _SUSPENDED = Role.AGENT, Delivery.LATEST, State.OPEN, State.SUSPENDED
_DATA = Kind.DATA.value
_KNOCKS = (Kind.HELLO, Kind.CALL)
"""What begins a new epoch."""


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
        self.writer = Writer()
        self.reader = Reader()
        self.author = b"" if role is Role.AGENT else os.urandom(8)
        """Whose numbers the broker side's are. Brokers that know nothing of each other use the same numbers."""
        self._authors: OrderedDict[bytes, int] = OrderedDict()
        """Agent: earlier authors, and the last number that was received of each."""

        self._agreed = False
        self._shaken = False
        """Whether the handshake of this epoch is over; before that only handshakes count."""
        self._ahead = 0
        """Agent: last number that left with this epoch's HELLO, or right behind it."""
        self._called = False
        """Agent: whether a broker asked for this epoch's HELLO, and so is there to hear what follows it."""
        self._failure: MChannelError | None = None
        self._known = role is Role.AGENT
        """False while this side may have joined a session that another broker had before."""
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
        terms, state = self.terms, self.state
        if len(payload) > terms.max_message:
            raise self._too_big(len(payload))
        if state is not _OPEN:
            if state in _OVER:
                raise self._ended()
            if not self._agreed:
                return False
        if terms.delivery is _LATEST:
            self.writer.put_newest(payload)
            self._let_newest_go()
            return True
        number = self.writer.put(payload, terms.window)
        if number and state is not _SUSPENDED and (self._shaken or self._follows(number)):
            self._data(number, payload)
        return number > 0

    def send_many(self, payloads: Sequence[bytes]) -> int:
        """Do as :meth:`send` with as many of *payloads* as there is room for; return how many.

        They share frames. MessageTooBig is raised before any is taken.
        """
        longest = max(map(len, payloads), default=0)
        if longest > self.terms.max_message:
            raise self._too_big(longest)
        if not self._agreed or self.state in _OVER or self.terms.delivery is Delivery.LATEST:
            return sum(self.send(payload) for payload in payloads)
        first = self.writer.last + 1
        taken = self.writer.put_many(payloads, self.terms.window)
        if self.state is not State.SUSPENDED and (self._shaken or self._follows(first, taken)):
            self._data_of_many(first, payloads[:taken])
        return taken

    def next(self) -> Received | None:
        """Mark what was returned before as done and return the next message, or None. Raises what ended the session."""
        reader = self.reader
        if reader.last > reader.done:
            self.done()
        message = reader.next() if self._newest_until is None else None
        if message is not None:
            self._asked = False
        elif self.state in _OVER:
            raise self._ended()
        return message

    def take(self, limit: int) -> list[Received]:
        """Mark what was returned before as done and return up to *limit* messages; they are marked together."""
        self.done()
        if not self.reader.inbox and self.state in _OVER:
            raise self._ended()
        if self._newest_until is not None or not self.reader.inbox:
            return []
        self._asked = False
        return self.reader.take(limit)

    def done(self) -> None:
        """Mark what was returned last as taken care of; it will be acknowledged."""
        reader = self.reader
        if reader.last > reader.done:
            reader.done = reader.last
            if (reader.taken - reader.told) * 4 > self.terms.window and self._shaken:
                self._ack()

    def acknowledge(self) -> None:
        """Tell the peer now what is marked, instead of within :attr:`Timing.ack_delay`."""
        if self.state not in _OVER and self._shaken and self.reader.owes:
            self._ack()

    @property
    def failure(self) -> MChannelError | None:
        """What ended the session, when it was not this side's own wish."""
        return self._failure

    @property
    def newest(self) -> int:
        """Highest number that has arrived."""
        return self.reader.expected - 1

    @property
    def flushed(self) -> bool:
        """Whether the peer has acknowledged everything."""
        return not self.writer.unacked

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
        authors = (*self._authors.items(), (self.author, self.newest)) if self.author else ()
        body = Hello(self.session, self.name, self.terms, self.writer.base, self.writer.sent, self.newest, authors)
        self._emit(Kind.HELLO, body=body.encode())
        self._ahead, self._called = 0, False
        if self._agreed and self.terms.delivery is Delivery.ALL:
            self._send_ahead()

    def _send_ahead(self) -> None:
        """Replay with HELLO what fits into one short frame: a broker that knows the session need not ask for it.

        What it has seen it knows by the numbers. HELLO is said again and again, so the rest waits for WELCOME.
        """
        writer = self.writer
        nothing: tuple[int, list[bytes]] = writer.base, []
        first, batch = next(batches(writer.base, writer.unacked, self.terms.max_message), nothing)
        if sum(map(len, batch)) <= MOST_TOGETHER:
            self._ahead = first + len(batch) - 1
            self._data_of_many(first, batch)

    def _follows(self, number: int, count: int = 1) -> bool:
        """Agent: whether *count* messages from *number* on may leave before WELCOME, right behind what went ahead.

        Only when a broker called: what nobody hears would be marked as ``redelivered`` when it is heard.
        """
        follows = self._called and number == self._ahead + 1
        if follows:
            self._ahead += count
        return follows

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
            self._emit(Kind.SUSPEND, max(1, int(timeout * 1000)))
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
        kept, reader = tuple(self.writer.unacked), self.reader
        terms, base = self.terms, self.writer.base
        numbers = (reader.done, base, kept, reader.unsure)
        found = Handoff(self.session, self.name, self.epoch, terms, *numbers, self.author, self.writer.foreign)
        self._let_go()
        return found

    @classmethod
    def take_up(cls, found: Handoff, timing: Timing, *, overtaken: bool = False) -> Session:
        """Broker: go on with a session that another broker handed over.

        When it was *overtaken*, a third may have read on since: what the agent replays says ``redelivered``.
        """
        taken = cls(Role.BROKER, found.session, found.terms, timing, name=found.name)
        taken.epoch = found.epoch
        taken.state = State.SUSPENDED
        taken._agreed, taken._known = True, not overtaken
        taken.reader = Reader(found.received, found.unsure)
        taken.writer, taken.author = Writer(found.base, found.unacknowledged, found.foreign), found.author
        if found.terms.delivery is Delivery.LATEST:
            taken.writer.keep_newest()
        return taken

    def close(self) -> None:
        """End the session in good order; idempotent. What is not :attr:`flushed` is given up."""
        if self.state not in _OVER:
            self.done()
            self._emit(Kind.BYE, self.writer.sent)
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
        if self._ack_due is None and self._shaken and self.reader.owes:
            return 0.0  # now: the next tick decides when to acknowledge
        dues = (self._ping_due, self._ack_due, self._retry_due, self._suspend_until, self._newest_until)
        return min([due for due in (*dues, self._given_up_at(), self._lost_at()) if due is not None], default=None)

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
        if self._shaken and self.reader.owes:
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
        if self.state is not _OPEN and self.state in _OVER:
            return
        try:
            reader, terms = self.reader, self.terms
            found = glance(data, terms.max_message, self.epoch, reader.expected)
            if found is None or not self._shaken:
                self._receive(Frame.decode(data, terms.max_message), now)
                return
            ack, payload = found
            self._hear(now)
            if ack >= self.writer.base or self.writer.foreign:
                self._on_ack(ack)
            if reader.inbox and terms.delivery is _LATEST:
                self._displace(reader.expected, now)
            reader.put(payload, terms.most_waiting)
        except ProtocolError as error:
            self.fail(error)

    def _receive(self, frame: Frame, now: float) -> None:
        kind = frame.kind
        if self._shaken and frame.epoch == self.epoch and kind not in _KNOCKS:
            self._hear(now)
            self._on_ack(frame.ack)
            self._on_word(frame, now)
        elif kind is Kind.HELLO:
            self._on_hello(frame, now)
        elif kind is Kind.CALL:
            if self.role is Role.AGENT and (self._shaken or not frame.epoch):  # 0: it answers nobody, it has just come
                self.hello(now)
                self._called = True
        elif self._shaken or frame.epoch != self.epoch:
            pass  # a leftover of an earlier connection
        elif kind is Kind.WELCOME and self.state is not State.SUSPENDED:
            self._on_welcome(frame, now)
        elif kind is Kind.REFUSE:
            self.fail(AuthenticationError(f"the broker refused this agent: {reason(frame.body)}"))

    def _on_word(self, frame: Frame, now: float) -> None:
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
        self._silent_since = None if self.role is _AGENT else now
        if self._lost_since is not None:
            self._lost_since = None
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
        terms = self.terms.grant(hello.terms, agreed=self._agreed)
        self.terms, self._agreed = terms, True
        received = self.newest if self._known else None
        if not self._known:
            self._known = True
            self.reader.begin(hello.base, hello.sent)
        else:
            self.reader.skip_to(hello.base)  # another broker took care of what came before
        self.writer.count_on(hello.received, dict(hello.authors).get(self.author))
        if terms.delivery is Delivery.ALL:
            self.writer.share(frame.ack, terms)
        self.epoch = frame.epoch
        self.outgoing.clear()
        welcome = Welcome(self.session, self.terms, received, self.writer.base, self.author)
        self._emit(Kind.WELCOME, body=welcome.encode())
        self._open(frame.ack, hello.received, now)

    def _on_welcome(self, frame: Frame, now: float) -> None:
        welcome = Welcome.decode(frame.body)
        if self.role is not Role.AGENT or welcome.session != self.session:
            raise ProtocolError("the peer answered for another session")
        self.terms, self._agreed = self.terms.confirm(welcome.terms, agreed=self._agreed), True
        self._heed(welcome.author)
        self.reader.skip_to(welcome.base)  # the broker side has nothing older any more
        self._ping_due = now + self.timing.heartbeat
        self._open(frame.ack, self.writer.base - 1 if welcome.received is None else welcome.received, now)

    def _heed(self, author: bytes) -> None:
        """Note what was received of the author before, when another one writes now."""
        if author != self.author:
            if self.author:
                self._authors[self.author] = self.newest
            self._authors.pop(author, None)
            self.author = author
            while len(self._authors) >= MAX_AUTHORS:
                self._authors.popitem(last=False)

    def _open(self, done: int, received: int, now: float) -> None:
        """Both sides know what the other has: forget what it is done with, replay what it has not received."""
        writer = self.writer
        writer.held, self._newest_until = False, None
        self._on_ack(done)
        if received > writer.last:
            raise ProtocolError("the peer has received what was never sent")
        self.state, self._shaken = State.OPEN, True
        self._retry_due = self._suspend_until = None
        self._hear(now)
        if self.terms.delivery is Delivery.LATEST:
            writer.keep_newest()
        self._data_of_many(*writer.after(max(received, self._ahead)))

    def _on_data(self, frame: Frame, now: float) -> None:
        reader, number = self.reader, frame.number
        payloads = messages(frame.flags, frame.body)
        if number + len(payloads) <= reader.expected:
            self._ack_due = self._ack_due or now  # it missed that this came before
            return
        if self.terms.delivery is _LATEST:
            if reader.inbox:
                self._displace(number, now)
        elif number > reader.expected and not self._complete(number - 1, now):
            return
        reader.put_many(number, payloads, self.terms.most_waiting)

    def _displace(self, number: int, now: float) -> None:
        """*number* is newer than what was not read: that counts as taken care of, so that the peer goes on.

        A reader that falls behind gets nothing before the peer has answered once: by then all that was
        on its way has come, and so has the newest that a full window held back.
        """
        self.reader.displace(number)
        if not self._asked:
            self._asked, self._newest_until = True, now + self.timing.catch_up
            self._ack(Flag.PING)
        elif (self.reader.taken - self.reader.told) * 4 > self.terms.window:
            self._ack()

    def _on_ack(self, number: int) -> None:
        self.writer.acknowledge(number)
        if self.writer.held:
            self._let_newest_go()

    def _complete(self, number: int, now: float) -> bool:
        """Whether all up to *number* came; if not, something was lost: connect anew and have it replayed."""
        if number < self.reader.expected:
            return True
        if self._retry_due is None:
            self.hello(now) if self.role is Role.AGENT else self.call(now)
        return False

    # --- small parts ------------------------------------------------------------------------

    def _quiet(self) -> None:
        self._emit(Kind.SUSPENDED, self.writer.sent)
        self.state = State.SUSPENDED
        self._ping_due = self._silent_since = None

    def _let_newest_go(self) -> None:
        """Latest only: send what was held back, when there is room in the window."""
        writer = self.writer
        if writer.held and self._shaken and self.state is not State.SUSPENDED and writer.may_let_go(self.terms.window):
            writer.held = False
            if self.outgoing and self.outgoing[-1][2] == _DATA:
                self.outgoing.pop()  # it waits still, and this one is newer
            self._data(writer.last, writer.unacked[-1])

    def _data(self, number: int, payload: bytes) -> None:
        writer = self.writer
        if number > writer.sent:  # noqa: PLR1730 - max() costs more than all else here
            writer.sent = number
        self._ack_due = None
        self.outgoing.append(encode(_DATA, self.epoch, number, self.reader.acknowledged(), 0, payload))

    def _data_of_many(self, number: int, payloads: Iterable[bytes]) -> None:
        for first, batch in batches(number, payloads, self.terms.max_message):
            if len(batch) == 1:
                self._data(first, batch[0])
            else:
                self.writer.sent = max(self.writer.sent, first + len(batch) - 1)
                self._emit(_DATA, first, Flag.MANY, pack(batch))

    def _ack(self, flags: int = 0) -> None:
        self._emit(Kind.ACK, self.writer.sent, flags)

    def _let_go(self) -> None:
        self.state = State.CLOSED
        self.reader.inbox.clear()  # what was not read is for whoever comes after

    def _emit(self, kind: int, number: int = 0, flags: int = 0, body: bytes = b"") -> None:
        self._ack_due = None
        outgoing = self.outgoing
        if outgoing and outgoing[-1][2] == kind != _DATA:
            # it waits still, and this one says all that it does: a full wire fills no memory
            flags |= outgoing.pop()[3]
        outgoing.append(encode(kind, self.epoch, number, self.reader.acknowledged(), flags, body))

    def _too_big(self, size: int) -> MessageTooBig:
        return MessageTooBig(f"a message of {size} bytes; this channel carries at most {self.terms.max_message}")

    def _ended(self) -> MChannelError:
        if self._failure is not None:
            return type(self._failure)(*self._failure.args)
        return ChannelClosed("this end of the channel was closed; open it anew")
