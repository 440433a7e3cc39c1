"""The blocking face: a channel, and a listener that accepts many."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Self, TypeVar, Unpack, overload

from mchannel.codec import Codec, EventCodec
from mchannel.errors import ChannelTimeout, EndOfChannel
from mchannel.event import Event
from mchannel.face import FULL, SILENT, UNAGREED, UNFLUSHED, ChannelFace, ListenerFace, Message, opened
from mchannel.patience import FLUSH_INTERVAL, KNOCK_INTERVAL, Opening, bind, left, until, wait_of
from mchannel.port import StandingPort, waiter
from mchannel.transport import Gate, Link, Wishes
from mchannel.watch import Watch

__all__ = ["Channel", "Listener", "Message", "listen", "open"]

T = TypeVar("T")
R = TypeVar("R")


class Channel(ChannelFace[T]):
    """A two-way channel to one peer, for code that waits.

    Messages arrive once and in order, through reconnections and handoffs. A message counts as
    acknowledged when the next one is asked for, or at :meth:`done`. A channel belongs to one thread
    at a time, has no thread of its own, and makes progress while one of its methods runs. It belongs to
    the process that opened it: a process that is forked off has a copy, which it must not use, and whose
    :meth:`close` does nothing.
    """

    def __init__(self, link: Link, codec: Codec[T], received: Sequence[bytes] = ()) -> None:
        super().__init__(link, codec, received)
        self._wait = link.wait_readable
        self._watch: Watch | None = None

    def fileno(self) -> int:
        """Return a descriptor for select and poll, readable while a read would not have to wait.

        It may wake without a message, and rests after a read with ``timeout=0`` that finds none. Raises
        ChannelClosed when this end was closed.
        """
        link = opened(self._link)
        if self._watch is None:
            self._watch = watch = Watch(link)
            self._recv, self._batch.recv_many, self._wait = watch.recv, watch.recv_many, watch.wait_readable
        return self._watch.fileno()

    def write(self, message: T, timeout: float | None = None) -> None:
        """Send *message*; wait while the channel is full, at most *timeout* seconds.

        Raises ChannelTimeout (the message was not taken), CodecError, MessageTooBig, or what ended the channel.
        """
        encode, send = self._encode, self._send
        payload = encode(message)
        if not send(payload):
            self._until(partial(self._sent, payload), self._link.wait_writable, timeout, FULL)

    def write_many(self, messages: Sequence[T], timeout: float | None = None) -> None:
        """Send *messages* in order; cheaper than one by one. On ChannelTimeout some may have been taken."""
        payloads = [self._encode(message) for message in messages]
        late = until(timeout)
        while payloads := payloads[self._link.send_many(payloads) :]:
            self._link.wait_writable(left(late, FULL))

    def read(self, timeout: float | None = None) -> T:
        """Acknowledge the previous message and return the next; wait at most *timeout* seconds.

        Raises ChannelTimeout, CodecError (the message is no message of this codec; the next read goes
        on), EndOfChannel, or what else ended the channel. An interrupted read loses nothing.
        """
        if self._batch.left:
            return self._batch.next()
        recv, decode = self._recv, self._decode
        payload = recv()
        if payload is None:
            payload = self._until(recv, self._wait, timeout, SILENT)
        return decode(payload)

    def receive(self, timeout: float | None = None) -> Message[T]:
        """Do as :meth:`read`, and tell the message's number and whether it is redelivered."""
        return self._batched() if self._batch.left else self._message(self.read(timeout))

    def read_many(self, limit: int = 1024, timeout: float | None = None) -> list[T]:
        """Return between 1 and *limit* messages, which are acknowledged together by the next read.

        When one of them is no message of this codec, those before it are returned, the next read
        raises CodecError, and the one after that goes on. Nothing of what came together is
        acknowledged before all of it was handed out, except by :meth:`suspend` and :meth:`close`. Raises
        ValueError for a *limit* below 1, and what :meth:`read` raises.
        """
        if not self._batch.gather(limit):
            self._until(partial(self._batch.gather, limit), self._wait, timeout, SILENT)
        return self._batch.take(limit)

    def __iter__(self) -> Iterator[T]:
        """Yield messages until the peer closes the channel."""
        try:
            while True:
                yield self.read()
        except EndOfChannel:
            return

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the peer has acknowledged everything that was written.

        Raises ChannelTimeout, ChannelClosed when this end was closed meanwhile, and ChannelBroken when it never will.
        """
        late = until(timeout)
        while not self._flushed():
            self._nap(late, UNFLUSHED)

    def suspend(self, timeout: float = 5.0) -> None:
        """Quiesce: flush what is on its way and be quiet, for a migration or a handoff.

        Acknowledges the message that was read last. Writes queue up from here on. Raises
        ChannelTimeout when the peer does not agree in time, and ValueError for a *timeout* below 0 or
        above a day. After that, and after an interruption, the channel goes on as before.
        """
        self._check_quiet(timeout)
        late = until(timeout)
        try:
            self._link.suspend(timeout)
            while not self._suspended():
                self._nap(late, UNAGREED)
        except BaseException:
            self._withdraw()
            raise

    def handoff(self) -> bytes:
        """Return the suspended broker side for another broker's listener to adopt, and close this one.

        Raises ChannelError when it is not suspended, or :meth:`read_many` has messages left to hand out.
        """
        snapshot = super().handoff()
        self._unwatch()
        return snapshot

    def close(self, timeout: float | None = 5.0) -> None:
        """Wait until everything written is acknowledged, say goodbye, and let go; idempotent.

        Raises ChannelTimeout when messages stay unacknowledged; the channel is closed all the same.
        """
        try:
            if self._may_flush:
                self.done()
                self.flush(timeout)
        except ChannelTimeout:
            raise self._unflushed from None
        finally:
            self._let_go()

    def __enter__(self) -> Self:
        """Return the channel."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the channel; after an error without waiting."""
        if kind is None:
            self.close()
        else:
            self._let_go()

    def _let_go(self) -> None:
        if not self._is_copy:
            self._link.close()
            self._unwatch()

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.close()

    def _until(
        self, step: Callable[[], R | None], wait: Callable[[float | None], None], timeout: float | None, why: str
    ) -> R:
        """Wait and try *step*, until it returns something; raise ChannelTimeout(*why*) after *timeout* seconds."""
        late, remaining = until(timeout), wait_of(timeout)
        while True:
            wait(remaining)
            if (found := step()) is not None:
                return found
            remaining = left(late, why)

    def _nap(self, late: float | None, why: str) -> None:
        """Wait a moment for what rings no bell; raise ChannelTimeout(*why*) after *late*."""
        left(late, why)
        self._link.tick(time.monotonic())
        time.sleep(FLUSH_INTERVAL)
        self._link.port.pump()


class Listener(ListenerFace[T]):
    """Accepts channels from many agents at one address. Belongs, with its channels, to one thread at a time."""

    def __init__(self, gate: Gate, codec: Codec[T]) -> None:
        super().__init__(gate, codec)
        self._port: StandingPort | None = None

    def fileno(self) -> int:
        """Return a descriptor that is readable when an agent may have come, until :meth:`accept` finds none.

        Raises ChannelClosed after :meth:`close`.
        """
        gate = self._open_gate
        if self._port is None:
            self._port = StandingPort()
            self._port.use(gate.port)
            self._port.nudge()
            gate.on_news = self._port.nudge
        return self._port.fileno()

    def accept(self, timeout: float | None = None) -> Channel[T]:
        """Return a channel to the next new agent.

        Raises ChannelTimeout after *timeout* seconds, and ChannelClosed after :meth:`close`.
        """
        late = until(timeout)
        while True:
            gate = self._open_gate
            gate.port.pump()
            gate.tick(time.monotonic())
            if (link := gate.accept()) is not None:
                return Channel(link, self._codec)
            if self._port is not None:
                self._port.settle()
            _sleep(gate, left(late, f"no agent came to {gate.address}"))

    def __iter__(self) -> Iterator[Channel[T]]:
        """Yield channels for ever."""
        while True:
            yield self.accept()

    def hand_over(self) -> tuple[bytes, ...]:
        """Stop listening and return every channel for another listener to adopt, without a word to the agents.

        For a domain that is paused, as at the end of its migration: an agent that can speak meanwhile is to be
        suspended first, and its channel handed over by :meth:`Channel.handoff`. Readers of these channels see
        ChannelClosed; a message that was read counts as done.
        """
        self._let_go()
        return super().hand_over()

    def close(self) -> None:
        """Stop listening. Agents are not told goodbye: they look for a successor."""
        self._let_go()
        super().close()

    def _let_go(self) -> None:
        if self._port is not None and not self._is_copy:
            self._gate.on_news = None
            self._port.close()

    def __enter__(self) -> Self:
        """Return the listener."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self.close()


def _sleep(gate: Gate, timeout: float | None) -> None:
    """Sleep until *gate* may have news or something to do, at most *timeout* seconds."""
    due = gate.deadline()
    if due is not None:
        left = max(due - time.monotonic(), 0)
        timeout = left if timeout is None else min(left, timeout)
    waiter(gate.port)(timeout)


@overload
def open(address: str, *, timeout: float | None = 10.0, **wishes: Unpack[Wishes]) -> Channel[Event]: ...
@overload
def open(address: str, codec: Codec[T], *, timeout: float | None = 10.0, **wishes: Unpack[Wishes]) -> Channel[T]: ...
def open(
    address: str,
    codec: Codec[Any] | None = None,
    *,
    timeout: float | None = 10.0,
    **wishes: Unpack[Wishes],
) -> Channel[Any]:
    """Open the channel at *address* and return it once the peer has answered.

    *timeout* is in seconds; None waits for ever. *wishes* are the fields of
    :class:`~mchannel.transport.Options`.

    Raises AddressError (NotListening when nobody came to listen in time), ChannelTimeout when
    somebody listens and does not answer, AuthenticationError when this end is refused, ChannelBroken
    when the broker closes the channel before it was of use.
    """
    opening = Opening.of(address, wishes, timeout)
    while (link := opening.knock()) is None:
        time.sleep(KNOCK_INTERVAL)
    try:
        while not opening.is_answered(link):
            link.wait_readable(left(opening.late, opening.unanswered))
        return Channel(link, codec or EventCodec(), opening.answer(link))
    except BaseException:
        link.close()
        raise


@overload
def listen(address: str, **wishes: Unpack[Wishes]) -> Listener[Event]: ...
@overload
def listen(address: str, codec: Codec[T], **wishes: Unpack[Wishes]) -> Listener[T]: ...
def listen(address: str, codec: Codec[Any] | None = None, **wishes: Unpack[Wishes]) -> Listener[Any]:
    """Listen at *address* for agents; *wishes* are the fields of :class:`~mchannel.transport.Options`.

    An agent that goes silent is waited for a minute, unless ``patience`` says otherwise. Raises
    AddressError when the address cannot be listened at.
    """
    return Listener(bind(address, wishes), codec or EventCodec())
