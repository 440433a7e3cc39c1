"""What the tests of a transport are written with: ends by either face, threads, and what closes them."""

# ruff: noqa: D102 - the asyncio face has the docstrings of the face

from __future__ import annotations

import asyncio as aio
import contextlib
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, Self, TypeVar

from mchannel.aio import AsyncChannel, AsyncListener, listen_async, open_async
from mchannel.channel import Channel, Listener, listen
from mchannel.channel import open as open_
from mchannel.codec import Codec, RawCodec
from mchannel.errors import (
    ChannelError,
    ChannelTimeout,
    CodecError,
)
from mchannel.transport import Wishes

__all__ = ["SHORT", "SOON", "Bench", "Words", "numbered", "raises", "read_until"]

T = TypeVar("T")
SOON = 10.0
"""Seconds within which anything that must happen does, on the slowest machine."""
SHORT = 0.1
"""Seconds to wait for what must not happen."""


class Loop:
    """An event loop in a thread: calls asyncio from code that waits."""

    def __init__(self) -> None:
        self._loop = aio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        async def call() -> Any:
            result = function(*arguments, **named)
            return await result if aio.iscoroutine(result) else result

        return aio.run_coroutine_threadsafe(call(), self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Face:
    """An object of the asyncio face that is used like its blocking sibling."""

    def __init__(self, loop: Loop, inner: AsyncChannel[Any] | AsyncListener[Any]) -> None:
        self._loop = loop
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            result = self._loop.run(found, *arguments, **named)
            inner: Any = result
            return Face(self._loop, inner) if isinstance(result, AsyncChannel) else inner

        return call

    def __enter__(self) -> Self:
        self._loop.run(self._inner.__aenter__)
        return self

    def __exit__(self, *error: object) -> None:
        inner: Any = self._inner
        self._loop.run(inner.__aexit__, *error)

    def __iter__(self) -> Iterator[Any]:
        inner: Any = self._inner

        async def collect() -> list[Any]:
            return [each async for each in inner]

        yield from self._loop.run(collect)


@contextlib.contextmanager
def raises(*kinds: type[BaseException]) -> Generator[None]:
    """Demand that the block raises one of *kinds*."""
    try:
        yield
    except kinds:
        pass
    else:
        raise AssertionError(f"expected {' or '.join(kind.__name__ for kind in kinds)}")


class Words:
    """A codec of an application's own."""

    def encode(self, message: list[str]) -> bytes:
        return " ".join(message).encode()

    def decode(self, payload: bytes) -> list[str]:
        try:
            return payload.decode().split(" ")
        except UnicodeDecodeError as error:
            raise CodecError(f"not words: {error}") from None


def numbered(count: int, start: int = 0) -> list[bytes]:
    """Return *count* messages that say their number."""
    return [str(number).encode() for number in range(start, start + count)]


def read_until(channel: Channel[bytes], last: bytes) -> list[bytes]:
    """Return what is read up to and with *last*."""
    found = [channel.read(timeout=3 * SOON)]
    while found[-1] != last:
        found.append(channel.read(timeout=3 * SOON))
    return found


class Bench:
    """What the tests are written with; each test gets the address for itself."""

    address: ClassVar[str]
    """Where to listen. A transport that chooses a port itself says so by ``Listener.address``."""
    wishes: ClassVar[Wishes] = {}
    """Options that both ends need, for example keys."""
    asyncio: ClassVar[bool] = False
    """Whether the asyncio face is tested."""

    def setup_method(self) -> None:
        """Begin a test."""
        self._stack = contextlib.ExitStack()
        self._threads = self._stack.enter_context(ThreadPoolExecutor(8))
        self._loop = Loop() if self.asyncio else None
        if self._loop is not None:
            self._stack.callback(self._loop.close)

    def teardown_method(self) -> None:
        """Close whatever the test opened."""
        self._stack.close()

    def listen(
        self,
        address: str | None = None,
        codec: Codec[Any] | None = None,
        adopted: Sequence[bytes] = (),
        *,
        overtaken: bool = False,
        **wishes: Any,
    ) -> Listener[Any]:
        """Listen, by the face that is tested, to the channels in *adopted* too."""
        named: Any = {**self.wishes, **wishes}

        def begin(listening: Callable[..., Any]) -> Any:  # in one turn of the loop: some agents are quick
            made = listening(address or self.address, codec or RawCodec(), **named)
            for each in adopted:
                made.adopt(each, overtaken=overtaken)
            return made

        listener: Any = begin(listen) if self._loop is None else Face(self._loop, self._loop.run(begin, listen_async))
        self._stack.callback(listener.close)
        found: Listener[Any] = listener
        return found

    def open(self, address: object, codec: Codec[Any] | None = None, **wishes: Any) -> Channel[Any]:
        """Open, by the face that is tested."""
        named: Any = {"timeout": SOON, **self.wishes, **wishes}
        if self._loop is None:
            channel: Any = open_(str(address), codec or RawCodec(), **named)
        else:
            channel = Face(self._loop, self._loop.run(open_async, str(address), codec or RawCodec(), **named))
        return self.keep(channel)

    def pair(
        self, listener: Listener[Any] | None = None, codec: Codec[Any] | None = None, **wishes: Any
    ) -> tuple[Channel[Any], Channel[Any]]:
        """Return an agent and its broker's end."""
        listener = listener or self.listen(codec=codec)
        coming = self.meanwhile(self.open, listener.address, codec, **wishes)
        broker = self.keep(listener.accept(timeout=SOON))
        while not coming.done():  # an agent that was not answered in time asks again
            with contextlib.suppress(ChannelTimeout):
                broker.read(timeout=SHORT / 10)
        return coming.result(), broker

    def meanwhile(self, function: Callable[..., T], *arguments: Any, **named: Any) -> Future[T]:
        """Call *function* in another thread: a blocking channel moves only while one of its methods runs."""
        return self._threads.submit(function, *arguments, **named)

    def attend(self, channel: Channel[Any], task: Future[T]) -> T:
        """Keep *channel* moving until *task* is done, and return what that returns."""
        channel.done()
        while not task.done():
            with contextlib.suppress(ChannelTimeout):
                channel.read(timeout=SHORT)
        return task.result()

    def keep(self, channel: Channel[Any]) -> Channel[Any]:
        def close() -> None:
            with contextlib.suppress(ChannelError):
                channel.close(timeout=0)

        self._stack.callback(close)
        return channel
