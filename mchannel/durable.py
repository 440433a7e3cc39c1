"""Durable channels: received messages on disk before they are acknowledged, whatever dies.

With ``durable=PATH`` each message is journalled and fsynced before its sender hears that it was
taken care of, and before the application sees it. What the application had not finished when its
process died comes first when it starts again, marked as redelivered; what the peer replays then and
is in the journal already is recognised by its session and number. Each message costs one fsync.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from mchannel.address import Address
from mchannel.errors import EndOfChannel, MChannelError
from mchannel.face import OverLink
from mchannel.inbox import MAX_PAYLOAD, Inbox, Recorded
from mchannel.transport import Gate, Link, Options, Peer, Port, State

__all__ = ["DurableGate", "DurableLink", "bind", "dial"]


class _Through(OverLink):
    """The part of a link that is the one's below."""

    @property
    def port(self) -> Port:
        """What wakes when there is news."""
        return self._link.port

    @property
    def flushed(self) -> bool:
        """Whether the peer has acknowledged everything that was sent."""
        return self._link.flushed

    @property
    def on_news(self) -> Callable[[], None] | None:
        """What is called when there is news."""
        return self._link.on_news

    @on_news.setter
    def on_news(self, hear: Callable[[], None] | None) -> None:
        self._link.on_news = hear

    def send(self, payload: bytes) -> bool:
        """Take one message; False when the window is full."""
        return self._link.send(payload)

    def send_many(self, payloads: Sequence[bytes]) -> int:
        """Take as many messages as there is room for; return how many."""
        return self._link.send_many(payloads)

    def wait_readable(self, timeout: float | None) -> None:
        """Sleep until there may be news."""
        self._link.wait_readable(timeout)

    def wait_writable(self, timeout: float | None) -> None:
        """Sleep until there may be room."""
        self._link.wait_writable(timeout)

    def arm_readable(self) -> bool:
        """Ask for news when a message comes."""
        return self._link.arm_readable()

    def arm_writable(self) -> bool:
        """Ask for news when there is room."""
        return self._link.arm_writable()

    def deadline(self) -> float | None:
        """Return when :meth:`tick` is due next."""
        return self._link.deadline()

    def tick(self, now: float) -> None:
        """Do what is due at *now*."""
        self._link.tick(now)

    def resume(self) -> None:
        """Take up a suspended link again."""
        self._link.resume()

    def leave(self) -> None:
        """Let go without goodbye."""
        self._link.leave()


class DurableLink(_Through):
    """A link whose messages are on disk before they are acknowledged; *backlog* comes before what arrives."""

    def __init__(self, link: Link, inbox: Inbox, backlog: Sequence[Recorded] = (), *, owns: bool = False) -> None:
        self.number = 0
        self.redelivered = False
        super().__init__(link)
        self._inbox = inbox
        self._owns = owns
        self._backlog = deque(backlog)
        self._current: tuple[bytes, int] | None = None
        self._refused: Recorded | None = None
        """What the disk refused: until it is recorded, nothing more is asked for, which would acknowledge it."""

    def recv(self) -> bytes | None:
        """Mark the previous message as finished, and return the next once it is on disk, or None."""
        self.done()
        self._secure()
        if self._backlog:
            unfinished = self._backlog.popleft()
            self._hand_out(unfinished, redelivered=True)
            return unfinished.payload
        try:
            while (message := self._arrived()) is not None:
                self._refused = message
                fresh = self._inbox.record(message)
                self._refused = None
                if fresh:
                    self._link.done()
                    self._hand_out(message, redelivered=self._link.redelivered)
                    return message.payload
        except EndOfChannel:
            self._inbox.forget(self.session)
            raise
        return None

    def _secure(self) -> None:
        if self._refused is not None:
            if self._inbox.record(self._refused):
                self._backlog.append(self._refused)
            self._refused = None
            self._link.done()

    def _arrived(self) -> Recorded | None:
        payload = self._link.recv()
        return None if payload is None else Recorded(self.session, self._link.number, self.peer, payload)

    def _hand_out(self, message: Recorded, *, redelivered: bool) -> None:
        self._current = (message.session, message.number)
        self.number, self.redelivered = message.number, redelivered

    def recv_many(self, limit: int) -> list[bytes]:
        """Return one message, or none: each is finished for itself."""
        return [] if (payload := self.recv()) is None else [payload]

    @property
    def stamps(self) -> Sequence[tuple[int, bool]]:
        """Number of that message, and whether it is redelivered."""
        return [(self.number, self.redelivered)]

    def done(self) -> None:
        """Mark the message returned last as finished; it was acknowledged when it was on disk."""
        current, self._current = self._current, None
        if current is not None:
            self._inbox.done(*current)

    def snapshot(self) -> bytes:
        """Return the suspended link for another process to adopt; what is recorded here stays this journal's."""
        self.done()
        return self._link.snapshot()

    def suspend(self, timeout: float) -> None:
        """Start to quiesce; raises JournalError while there is a message that the disk refuses."""
        self.done()
        self._secure()
        self._link.suspend(timeout)

    def close(self) -> None:
        """Say goodbye and let go. A message that was returned and not marked comes again at the next start.

        While there is one that the disk refused, there is no goodbye: its sender keeps it.
        """
        if self._refused is not None:
            self._link.leave()
        self._link.close()
        if self._owns:
            self._inbox.close()


class _Past:
    """The link of a session of which only the journal is left, or whose agent comes back as another link."""

    number = 0
    redelivered = False
    stamps: Sequence[tuple[int, bool]] = ()
    flushed = True

    def __init__(self, gate: Gate, peer: Peer, session: bytes) -> None:
        self.peer = peer
        self.port = gate.port
        self.session = session
        self.state = State.ENDED
        self.on_news: Callable[[], None] | None = None

    def _over(self) -> MChannelError:
        return EndOfChannel("this was all that an earlier process left unfinished of this channel")

    def send(self, payload: bytes) -> bool:
        raise self._over()

    def recv(self) -> bytes | None:
        raise self._over()

    def send_many(self, payloads: Sequence[bytes]) -> int:
        raise self._over()

    def recv_many(self, limit: int) -> list[bytes]:
        raise self._over()

    def done(self) -> None: ...

    def wait_readable(self, timeout: float | None) -> None: ...

    def wait_writable(self, timeout: float | None) -> None: ...

    def arm_readable(self) -> bool:
        return False

    def arm_writable(self) -> bool:
        return False

    def deadline(self) -> float | None:
        return None

    def tick(self, now: float) -> None: ...

    def suspend(self, timeout: float) -> None:
        raise self._over()

    def snapshot(self) -> bytes:
        raise self._over()

    def resume(self) -> None:
        raise self._over()

    def leave(self) -> None:
        self.state = State.CLOSED

    def close(self) -> None:
        self.state = State.CLOSED


class DurableGate:
    """A gate whose links are durable. What a predecessor left unfinished comes first, as channels that end."""

    def __init__(self, gate: Gate, inbox: Inbox) -> None:
        self._gate = gate
        self._inbox = inbox
        left: dict[bytes, list[Recorded]] = {}
        for message in inbox.backlog:
            left.setdefault(message.session, []).append(message)
        self._left = deque(left.values())

    @property
    def address(self) -> Address:
        """Where it really listens."""
        return self._gate.address

    @property
    def port(self) -> Port:
        """What wakes when an agent comes."""
        return self._gate.port

    @property
    def on_news(self) -> Callable[[], None] | None:
        """What is called when an agent comes."""
        return self._gate.on_news

    @on_news.setter
    def on_news(self, hear: Callable[[], None] | None) -> None:
        self._gate.on_news = hear

    def accept(self) -> Link | None:
        """Return what is left of an earlier session, then links to agents that were not there before, or None."""
        if self._left:
            messages = self._left.popleft()
            past = _Past(self._gate, messages[0].peer, messages[0].session)
            return DurableLink(past, self._inbox, messages)  # pyright: ignore[reportReturnType]  # on_news is a property
        link = self._gate.accept()
        return None if link is None else DurableLink(link, self._inbox)  # pyright: ignore[reportReturnType]  # on_news is a property

    def adopt(self, snapshot: bytes, *, overtaken: bool = False) -> None:
        """Expect the agent of a link that another broker handed over."""
        self._gate.adopt(snapshot, overtaken=overtaken)

    def hand_over(self) -> tuple[bytes, ...]:
        """Close, and return every session; what was read and not marked stays in the journal of this one."""
        found = self._gate.hand_over()
        self._inbox.close()
        return found

    def deadline(self) -> float | None:
        """Return when :meth:`tick` is due next."""
        return self._gate.deadline()

    def tick(self, now: float) -> None:
        """Do what is due at *now*."""
        self._gate.tick(now)

    def close(self) -> None:
        """Stop listening, and let go of the journal."""
        self._gate.close()
        self._inbox.close()


def _open_inbox(options: Options) -> Inbox | None:
    """Return the inbox that *options* want, if any; raises JournalError, and ValueError for messages too long."""
    if options.durable is None:
        return None
    if options.max_message > MAX_PAYLOAD:
        raise ValueError(f"a durable channel carries at most {MAX_PAYLOAD} bytes in one message; set max_message so")
    return Inbox(options.durable)


def dial(connect: Callable[[], Link], options: Options) -> Link:
    """Return the link that *connect* dials, durable when *options* say so."""
    link = connect()
    try:
        inbox = _open_inbox(options)
    except BaseException:
        link.close()
        raise
    return link if inbox is None else DurableLink(link, inbox, inbox.backlog, owns=True)  # pyright: ignore[reportReturnType]  # on_news is a property


def bind(listen: Callable[[], Gate], options: Options) -> Gate:
    """Return the gate that *listen* makes, durable when *options* say so."""
    inbox = _open_inbox(options)
    try:
        gate = listen()
    except BaseException:
        if inbox is not None:
            inbox.close()
        raise
    return gate if inbox is None else DurableGate(gate, inbox)  # pyright: ignore[reportReturnType]  # on_news is a property
