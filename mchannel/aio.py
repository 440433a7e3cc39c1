"""The asyncio face: the same channel, for code that awaits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, Self, TypeVar, Unpack, overload

from mchannel.codec import Codec, EventCodec
from mchannel.errors import ChannelTimeout, EndOfChannel
from mchannel.event import Event
from mchannel.face import FULL, SILENT, UNAGREED, UNFLUSHED, ChannelFace, ListenerFace, Message
from mchannel.patience import FLUSH_INTERVAL, KNOCK_INTERVAL, Opening, bind, left, until
from mchannel.transport import Gate, Link, Port, Wishes

__all__ = ["AsyncChannel", "AsyncListener", "listen_async", "open_async"]

T = TypeVar("T")
R = TypeVar("R")


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

    async def until(
        self, step: Callable[[], R | None], late: float | None, why: str, arm: Callable[[], bool] = lambda: False
    ) -> R:
        """Try *step*, now and at news, until it returns something; raise ChannelTimeout(*why*) at *late*.

        After a step in vain *arm* asks for news of what it lacks; when there is some already it returns True instead.
        """
        while True:
            self._news.clear()
            if (found := step()) is not None:
                return found
            if arm():
                continue
            self.schedule()
            try:
                async with asyncio.timeout(None if late is None else max(late - time.monotonic(), 0)):
                    if self._news.is_set():
                        await asyncio.sleep(0)  # also when there is news without end, the others have their turn
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


class AsyncChannel(ChannelFace[T]):
    """A two-way channel to one peer, for tasks of one event loop. One task may read while another writes.

    Its promises are those of :class:`~mchannel.channel.Channel`. When a method is cancelled nothing
    is lost: a read did not take a message, a write was not taken.
    """

    def __init__(self, link: Link, codec: Codec[T], waker: _Waker, received: Sequence[bytes] = ()) -> None:
        super().__init__(link, codec, received)
        self._waker = waker
        self._waker.schedule()

    async def write(self, message: T, timeout: float | None = None) -> None:
        """Send *message*; wait while the channel is full, at most *timeout* seconds.

        Raises ChannelTimeout (the message was not taken), CodecError, MessageTooBig, or what ended the channel.
        """
        payload = self._encode(message)
        if not self._send(payload):
            await self._waker.until(partial(self._sent, payload), until(timeout), FULL, self._link.arm_writable)

    async def write_many(self, messages: Sequence[T], timeout: float | None = None) -> None:
        """Send *messages* in order. On ChannelTimeout or cancellation some may have been taken."""
        payloads = [self._encode(message) for message in messages]
        late = until(timeout)
        while payloads := payloads[self._link.send_many(payloads) :]:
            await self._waker.until(partial(self._sent, payloads.pop(0)), late, FULL, self._link.arm_writable)

    async def read(self, timeout: float | None = None) -> T:
        """Acknowledge the previous message and return the next; wait at most *timeout* seconds.

        Raises ChannelTimeout, CodecError, EndOfChannel, or what else ended the channel.
        """
        if self._batch.left:
            return self._batch.next()
        payload = self._recv()
        if payload is None:
            payload = await self._waker.until(self._recv, until(timeout), SILENT, self._link.arm_readable)
        return self._decode(payload)

    async def receive(self, timeout: float | None = None) -> Message[T]:
        """Do as :meth:`read`, and tell the message's number and whether it is redelivered."""
        return self._batched() if self._batch.left else self._message(await self.read(timeout))

    async def read_many(self, limit: int = 1024, timeout: float | None = None) -> list[T]:
        """Return between 1 and *limit* messages, as :meth:`mchannel.channel.Channel.read_many`."""
        if not self._batch.gather(limit):
            gather = partial(self._batch.gather, limit)
            await self._waker.until(gather, until(timeout), SILENT, self._link.arm_readable)
        return self._batch.take(limit)

    def done(self) -> None:
        """Acknowledge the message that was read last, without asking for another."""
        super().done()
        self._waker.schedule()

    async def __aiter__(self) -> AsyncIterator[T]:
        """Yield messages until the peer closes the channel."""
        try:
            while True:
                yield await self.read()
        except EndOfChannel:
            return

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until the peer has acknowledged everything that was written.

        Raises ChannelTimeout, ChannelClosed when this end was closed meanwhile, and ChannelBroken when it never will.
        """
        late = until(timeout)
        while not self._flushed():
            left(late, UNFLUSHED)
            self._waker.schedule()
            await asyncio.sleep(FLUSH_INTERVAL)

    async def suspend(self, timeout: float = 5.0) -> None:
        """Quiesce, as :meth:`mchannel.channel.Channel.suspend`."""
        self._check_quiet(timeout)
        try:
            self._link.suspend(timeout)
            await self._waker.until(self._suspended, until(timeout), UNAGREED)
        except BaseException:
            self._withdraw()
            raise

    def handoff(self) -> bytes:
        """Return the suspended broker side, as :meth:`mchannel.channel.Channel.handoff`, and close this one."""
        snapshot = super().handoff()
        self._waker.close()
        return snapshot

    def resume(self) -> None:
        """Go on after :meth:`suspend`."""
        super().resume()
        self._waker.schedule()

    async def close(self, timeout: float | None = 5.0) -> None:
        """Wait until everything written is acknowledged, say goodbye, and let go; idempotent.

        Raises ChannelTimeout when messages stay unacknowledged. After that, and after a
        cancellation, the channel is closed all the same.
        """
        try:
            if self._may_flush:
                self.done()
                await self.flush(timeout)
        except ChannelTimeout:
            raise self._unflushed from None
        finally:
            self.abort()

    def abort(self) -> None:
        """Say goodbye and let go, without waiting for acknowledgements."""
        if not self._is_copy:
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


class AsyncListener(ListenerFace[T]):
    """Accepts channels from many agents at one address, in one event loop."""

    def __init__(self, gate: Gate, codec: Codec[T]) -> None:
        super().__init__(gate, codec)
        self._waker = _Waker(gate, gate.port)

    async def accept(self, timeout: float | None = None) -> AsyncChannel[T]:
        """Return a channel to the next new agent, as :meth:`mchannel.channel.Listener.accept`."""
        why = f"no agent came to {self._gate.address}"
        link = await self._waker.until(self._accepted, until(timeout), why)
        port = None if link.port is self._gate.port else link.port
        return AsyncChannel(link, self._codec, _Waker(link, port))

    async def __aiter__(self) -> AsyncIterator[AsyncChannel[T]]:
        """Yield channels for ever."""
        while True:
            yield await self.accept()

    def hand_over(self) -> tuple[bytes, ...]:
        """Stop listening and return every channel, as :meth:`mchannel.channel.Listener.hand_over`."""
        self._waker.close()
        return super().hand_over()

    def close(self) -> None:
        """Stop listening. Agents are not told goodbye: they look for a successor."""
        if not self._is_copy:
            self._waker.close()
        super().close()

    async def __aenter__(self) -> Self:
        """Return the listener."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening."""
        self.close()

    def _accepted(self) -> Link | None:
        return self._open_gate.accept()


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
    waker = _Waker(link, link.port)
    try:
        await waker.until(lambda: opening.is_answered(link) or None, opening.late, opening.unanswered)
        return AsyncChannel(link, codec or EventCodec(), waker, opening.answer(link))
    except BaseException:
        waker.close()
        link.close()
        raise


@overload
def listen_async(address: str, **wishes: Unpack[Wishes]) -> AsyncListener[Event]: ...
@overload
def listen_async(address: str, codec: Codec[T], **wishes: Unpack[Wishes]) -> AsyncListener[T]: ...
def listen_async(address: str, codec: Codec[Any] | None = None, **wishes: Unpack[Wishes]) -> AsyncListener[Any]:
    """Listen at *address* in the running event loop, as :func:`mchannel.listen`."""
    gate = bind(address, wishes)
    return AsyncListener(gate, codec or EventCodec())
