"""The asyncio face: the same channel, for code that awaits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Generic, Self, TypeVar, Unpack, overload

from mchannel.address import Address
from mchannel.batch import Batch
from mchannel.channel import Message
from mchannel.codec import Codec, EventCodec
from mchannel.errors import ChannelBroken, ChannelClosed, ChannelTimeout, EndOfChannel
from mchannel.event import Event
from mchannel.patience import FLUSH_INTERVAL, KNOCK_INTERVAL, Opening, bind, left, until
from mchannel.transport import Gate, Link, Peer, Port, State, Wishes

__all__ = ["AsyncChannel", "AsyncListener", "listen_async", "open_async"]

T = TypeVar("T")


class _Waker:
    """Wakes tasks when a port has news, and does what is due by the clock. One for each link or gate."""

    def __init__(self, source: Link | Gate, port: Port | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._news = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._fd: int | None = None
        source.on_news = self._news.set
        if port is not None:
            self._fd = port.fileno()
            self._loop.add_reader(self._fd, port.pump)

    def expect(self) -> None:
        """Forget earlier news; the caller looks once more before it waits."""
        self._news.clear()

    async def wait(self, until: float | None, why: str) -> None:
        """Wait for news, or until it is time to do something; raise ChannelTimeout(*why*) at *until*."""
        self.schedule()
        try:
            async with asyncio.timeout(None if until is None else max(until - time.monotonic(), 0)):
                await self._news.wait()
        except TimeoutError:
            raise ChannelTimeout(why) from None

    def schedule(self) -> None:
        """See to it that the source is ticked when it wants to be."""
        now = time.monotonic()
        self._source.tick(now)
        due = self._source.deadline()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if due is None else self._loop.call_later(max(due - now, 0.0005), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.schedule()
        self._news.set()

    def close(self) -> None:
        """Wake everybody for the last time, and let go."""
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            self._fd = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._source.on_news = None
        self._news.set()


class AsyncChannel(Generic[T]):
    """A two-way channel to one peer, for tasks of one event loop. One task may read while another writes.

    Its promises are those of :class:`~mchannel.channel.Channel`. When a method is cancelled nothing
    is lost: a read did not take a message, a write was not taken.
    """

    def __init__(self, link: Link, codec: Codec[T], port: Port | None) -> None:
        self._link = link
        self._encode = codec.encode
        self._decode = codec.decode
        self._batch = Batch(codec.decode)
        self._waker = _Waker(link, port)
        self._waker.schedule()

    @property
    def peer(self) -> Peer:
        """Who is at the other end."""
        return self._link.peer

    @property
    def state(self) -> State:
        """Where the channel stands."""
        return self._link.state

    @property
    def session(self) -> bytes:
        """Sixteen bytes that name the exchange through all reconnections."""
        return self._link.session

    async def write(self, message: T, timeout: float | None = None) -> None:
        """Send *message*; wait while the channel is full, at most *timeout* seconds.

        Raises ChannelTimeout (the message was not taken), CodecError, MessageTooBig, or what ended the channel.
        """
        payload = self._encode(message)
        if not self._link.send(payload):
            late = until(timeout)
            while not self._ready_to(payload):
                await self._waker.wait(late, "the channel stayed full; is the peer reading?")

    async def write_many(self, messages: Sequence[T], timeout: float | None = None) -> None:
        """Send *messages* in order. On ChannelTimeout or cancellation some may have been taken."""
        payloads = [self._encode(message) for message in messages]
        late = until(timeout)
        while payloads := payloads[self._link.send_many(payloads) :]:
            self._waker.expect()
            self._link.arm()
            if self._link.send_many(payloads[:1]):
                payloads = payloads[1:]
                continue
            await self._waker.wait(late, "the channel stayed full; is the peer reading?")

    async def read(self, timeout: float | None = None) -> T:
        """Acknowledge the previous message and return the next; wait at most *timeout* seconds.

        Raises ChannelTimeout, CodecError, EndOfChannel, or what else ended the channel.
        """
        if self._batch:
            return self._batch.next()
        payload = self._link.recv()
        if payload is None:
            late = until(timeout)
            while (payload := self._look()) is None:
                await self._waker.wait(late, "no message came")
        return self._decode(payload)

    async def receive(self, timeout: float | None = None) -> Message[T]:
        """Do as :meth:`read`, and tell the message's number and whether it is redelivered."""
        value = await self.read(timeout)
        return Message(value, self._link.number - len(self._batch), self._link.redelivered)

    async def read_many(self, limit: int = 1024, timeout: float | None = None) -> list[T]:
        """Return between 1 and *limit* messages, as :meth:`mchannel.channel.Channel.read_many`."""
        if not self._batch:
            self._batch.fill(self._link.recv_many(limit))
        late = until(timeout)
        while not self._batch:
            self._waker.expect()
            self._link.arm()
            self._batch.fill(self._link.recv_many(limit))
            if not self._batch:
                await self._waker.wait(late, "no message came")
        return self._batch.take(limit)

    def done(self) -> None:
        """Acknowledge the message that was read last, without asking for another."""
        if not self._batch:
            self._link.done()
            self._waker.schedule()

    async def __aiter__(self) -> AsyncIterator[T]:
        """Yield messages until the peer closes the channel."""
        try:
            while True:
                yield await self.read()
        except EndOfChannel:
            return

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until the peer has acknowledged everything that was written; raises ChannelBroken when it never will."""
        late = until(timeout)
        while not self._link.flushed:
            if self._link.state in (State.ENDED, State.CLOSED):
                raise ChannelBroken("the channel ended before the peer had acknowledged every message")
            left(late, "the peer has not acknowledged every message")
            self._waker.schedule()
            await asyncio.sleep(FLUSH_INTERVAL)

    async def suspend(self, timeout: float = 5.0) -> None:
        """Quiesce, as :meth:`mchannel.channel.Channel.suspend`."""
        late = until(timeout)
        self._waker.expect()
        self._link.suspend(timeout)
        while (state := self._link.state) is not State.SUSPENDED:
            if state in (State.ENDED, State.CLOSED):
                raise ChannelBroken("the channel ended before its peer agreed to a suspension; read what is left")
            self._link.arm()
            await self._waker.wait(late, "the peer did not agree to a suspension")
            self._waker.expect()

    def handoff(self) -> bytes:
        """Return the suspended broker side for another broker's listener to adopt, and close this one."""
        self._batch.refuse_handoff()
        snapshot = self._link.snapshot()
        self._waker.close()
        return snapshot

    def resume(self) -> None:
        """Go on after :meth:`suspend`."""
        self._link.resume()
        self._waker.schedule()

    async def close(self, timeout: float | None = 5.0) -> None:
        """Wait until everything written is acknowledged, say goodbye, and let go; idempotent.

        Raises ChannelTimeout when messages stay unacknowledged. After that, and after a
        cancellation, the channel is closed all the same.
        """
        try:
            if self._link.state in (State.OPEN, State.LOST):
                self.done()
                await self.flush(timeout)
        except ChannelTimeout:
            raise ChannelTimeout(f"closed, but {self.peer.address} has not acknowledged every message") from None
        finally:
            self.abort()

    def abort(self) -> None:
        """Say goodbye and let go, without waiting for acknowledgements."""
        self._waker.close()
        self._link.close()

    async def __aenter__(self) -> Self:
        """Return the channel."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the channel; after an error without waiting."""
        if kind is None:
            await self.close()
        else:
            self.abort()

    def __repr__(self) -> str:
        """Return a short description."""
        return f"<AsyncChannel to {self.peer.address}, {self.state.value}>"

    def _look(self) -> bytes | None:
        self._waker.expect()
        self._link.arm()
        return self._link.recv()

    def _ready_to(self, payload: bytes) -> bool:
        self._waker.expect()
        self._link.arm()
        return self._link.send(payload)

    async def opened(self, opening: Opening) -> None:
        """Wait until the peer has answered. Raises what open_async does."""
        while not opening.is_answered(self._link):
            self._waker.expect()
            self._link.arm()
            if not opening.is_answered(self._link):
                await self._waker.wait(opening.late, opening.unanswered)
        self._batch.fill(opening.answer(self._link))


class AsyncListener(Generic[T]):
    """Accepts channels from many agents at one address, in one event loop."""

    def __init__(self, gate: Gate, codec: Codec[T]) -> None:
        self._gate = gate
        self._codec = codec
        self._waker = _Waker(gate, gate.port)
        self._closed = False

    @property
    def address(self) -> Address:
        """Where it really listens."""
        return self._gate.address

    async def accept(self, timeout: float | None = None) -> AsyncChannel[T]:
        """Return a channel to the next new agent, as :meth:`mchannel.channel.Listener.accept`."""
        late = until(timeout)
        while (link := self._look()) is None:
            await self._waker.wait(late, f"no agent came to {self._gate.address}")
        return AsyncChannel(link, self._codec, None if link.port is self._gate.port else link.port)

    async def __aiter__(self) -> AsyncIterator[AsyncChannel[T]]:
        """Yield channels for ever."""
        while True:
            yield await self.accept()

    def adopt(self, handoff: bytes) -> None:
        """Expect the agent of a channel that another broker handed over; accept() returns it when it comes."""
        self._open_gate.adopt(handoff)

    def close(self) -> None:
        """Stop listening. Agents are not told goodbye: they look for a successor."""
        self._closed = True
        self._waker.close()
        self._gate.close()

    async def __aenter__(self) -> Self:
        """Return the listener."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening."""
        self.close()

    def _look(self) -> Link | None:
        self._waker.expect()
        return self._open_gate.accept()

    @property
    def _open_gate(self) -> Gate:
        if self._closed:
            raise ChannelClosed(f"this listener at {self._gate.address} was closed; call listen_async again")
        return self._gate


@overload
async def open_async(
    address: str, *, timeout: float | None = 10.0, **wishes: Unpack[Wishes]
) -> AsyncChannel[Event]: ...
@overload
async def open_async(
    address: str, codec: Codec[T], *, timeout: float | None = 10.0, **wishes: Unpack[Wishes]
) -> AsyncChannel[T]: ...
async def open_async(
    address: str,
    codec: Codec[Any] | None = None,
    *,
    timeout: float | None = 10.0,
    **wishes: Unpack[Wishes],
) -> AsyncChannel[Any]:
    """Open the channel at *address*, as :func:`mchannel.open`; cancelled, it leaves nothing open."""
    opening = Opening.of(address, wishes, timeout)
    while (link := opening.knock()) is None:  # noqa: ASYNC110 - nothing tells when somebody begins to listen
        await asyncio.sleep(KNOCK_INTERVAL)
    channel = AsyncChannel(link, codec, link.port) if codec is not None else AsyncChannel(link, EventCodec(), link.port)
    try:
        await channel.opened(opening)
    except BaseException:
        channel.abort()
        raise
    return channel


@overload
def listen_async(address: str, **wishes: Unpack[Wishes]) -> AsyncListener[Event]: ...
@overload
def listen_async(address: str, codec: Codec[T], **wishes: Unpack[Wishes]) -> AsyncListener[T]: ...
def listen_async(address: str, codec: Codec[Any] | None = None, **wishes: Unpack[Wishes]) -> AsyncListener[Any]:
    """Listen at *address* in the running event loop, as :func:`mchannel.listen`."""
    gate = bind(address, wishes)
    return AsyncListener(gate, codec or EventCodec())
