"""What every transport must do, as tests that anybody can run against their own.

::

    class TestMine(Conformance):
        address = "mine:///conformance"


    class TestMineAsync(TestMine):
        asyncio = True

pytest collects the inherited tests, one behaviour each. The same tests drive both faces: with
``asyncio`` set, channels of the asyncio face live in an event loop of their own thread. The
transport must be registered under the entry points ``mchannel.transports``.

A channel does not survive ``fork``: open it in the process that uses it.
"""

# ruff: noqa: D102 - a test's name is its documentation

from __future__ import annotations

import asyncio as aio
import contextlib
import select
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, Self, TypeVar

from mchannel.aio import AsyncChannel, AsyncListener, listen_async, open_async
from mchannel.channel import Channel, Listener, listen
from mchannel.channel import open as open_
from mchannel.codec import Codec, EventCodec, RawCodec
from mchannel.errors import (
    ChannelClosed,
    ChannelError,
    ChannelTimeout,
    CodecError,
    EndOfChannel,
    MChannelError,
    MessageTooBig,
)
from mchannel.event import Event
from mchannel.transport import State, Wishes

__all__ = ["Conformance"]

T = TypeVar("T")
SOON = 10.0
"""Seconds within which anything that must happen does, on the slowest machine."""
SHORT = 0.1
"""Seconds to wait for what must not happen."""


class _Loop:
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


class _Face:
    """An object of the asyncio face that is used like its blocking sibling."""

    def __init__(self, loop: _Loop, inner: AsyncChannel[Any] | AsyncListener[Any]) -> None:
        self._loop = loop
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            result = self._loop.run(found, *arguments, **named)
            inner: Any = result
            return _Face(self._loop, inner) if isinstance(result, AsyncChannel) else inner

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
def _raises(*kinds: type[BaseException]) -> Generator[None]:
    try:
        yield
    except kinds:
        pass
    else:
        raise AssertionError(f"expected {' or '.join(kind.__name__ for kind in kinds)}")


class _Words:
    """A codec of an application's own."""

    def encode(self, message: list[str]) -> bytes:
        return " ".join(message).encode()

    def decode(self, payload: bytes) -> list[str]:
        try:
            return payload.decode().split(" ")
        except UnicodeDecodeError as error:
            raise CodecError(f"not words: {error}") from None


def _numbered(count: int, start: int = 0) -> list[bytes]:
    return [str(number).encode() for number in range(start, start + count)]


def _read_until(channel: Channel[bytes], last: bytes) -> list[bytes]:
    found = [channel.read(timeout=3 * SOON)]
    while found[-1] != last:
        found.append(channel.read(timeout=3 * SOON))
    return found


class Conformance:
    """The tests. Subclass it and name an address; each test gets the address for itself."""

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
        self._loop = _Loop() if self.asyncio else None
        if self._loop is not None:
            self._stack.callback(self._loop.close)

    def teardown_method(self) -> None:
        """Close whatever the test opened."""
        self._stack.close()

    # --- what the tests are written with ----------------------------------------------------

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

        listener: Any = begin(listen) if self._loop is None else _Face(self._loop, self._loop.run(begin, listen_async))
        self._stack.callback(listener.close)
        found: Listener[Any] = listener
        return found

    def open(self, address: object, codec: Codec[Any] | None = None, **wishes: Any) -> Channel[Any]:
        """Open, by the face that is tested."""
        named: Any = {"timeout": SOON, **self.wishes, **wishes}
        if self._loop is None:
            channel: Any = open_(str(address), codec or RawCodec(), **named)
        else:
            channel = _Face(self._loop, self._loop.run(open_async, str(address), codec or RawCodec(), **named))
        return self._keep(channel)

    def pair(
        self, listener: Listener[Any] | None = None, codec: Codec[Any] | None = None, **wishes: Any
    ) -> tuple[Channel[Any], Channel[Any]]:
        """Return an agent and its broker's end."""
        listener = listener or self.listen(codec=codec)
        coming = self.meanwhile(self.open, listener.address, codec, **wishes)
        broker = self._keep(listener.accept(timeout=SOON))
        return coming.result(SOON), broker

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

    def _keep(self, channel: Channel[Any]) -> Channel[Any]:
        def close() -> None:
            with contextlib.suppress(ChannelError):
                channel.close(timeout=0)

        self._stack.callback(close)
        return channel

    # --- messages ---------------------------------------------------------------------------

    def test_messages_arrive_in_order_both_ways(self) -> None:
        agent, broker = self.pair()
        for message in _numbered(50):
            agent.write(message)
            broker.write(message)
        assert [broker.read(timeout=SOON) for _ in range(50)] == _numbered(50)
        assert [agent.read(timeout=SOON) for _ in range(50)] == _numbered(50)

    def test_every_size_up_to_the_largest_arrives_whole(self) -> None:
        agent, broker = self.pair()
        for size in (0, 1, 7, 8, 9, 4096, 16383, 16384, 100_000, 1 << 20):
            message = bytes([size % 251]) * size
            agent.write(message, timeout=SOON)
            assert broker.read(timeout=SOON) == message
            broker.done()

    def test_a_message_that_is_too_big_is_refused_and_the_channel_goes_on(self) -> None:
        agent, broker = self.pair(max_message=1000)
        for end, other in ((agent, broker), (broker, agent)):
            with _raises(MessageTooBig):
                end.write(b"x" * 1001)
            end.write(b"x" * 1000)
            assert other.read(timeout=SOON) == b"x" * 1000

    def test_batches_arrive_in_order(self) -> None:
        agent, broker = self.pair()
        agent.write_many(_numbered(500))
        found: list[bytes] = []
        while len(found) < 500:
            batch = broker.read_many(64, timeout=SOON)
            assert 1 <= len(batch) <= 64
            found += batch
        assert found == _numbered(500)

    def test_numbers_grow_and_nothing_is_marked_without_reason(self) -> None:
        agent, broker = self.pair()
        agent.write_many(_numbered(20))
        found = [broker.receive(timeout=SOON) for _ in range(20)]
        numbers = [message.number for message in found]
        assert numbers == sorted(set(numbers))
        assert not any(message.redelivered for message in found)

    def test_both_ends_know_the_session_by_one_name(self) -> None:
        agent, broker = self.pair()
        assert agent.session == broker.session
        assert len(agent.session) == 16

    def test_the_codec_is_events_raw_bytes_or_ones_own(self) -> None:
        event = Event("sla.epoch", "web1", 0.5, 12.0, {"requests": 3})
        cases: Sequence[tuple[Any, Any]] = ((EventCodec(), event), (RawCodec(), b"\0\xff"), (_Words(), ["a", "b"]))
        for codec, message in cases:
            listener = self.listen(codec=codec)
            agent, broker = self.pair(listener, codec)
            agent.write(message)
            assert broker.read(timeout=SOON) == message
            broker.write(message)
            assert agent.read(timeout=SOON) == message
            broker.done()
            agent.close()
            listener.close()

    def test_what_is_no_message_is_an_error_and_the_channel_goes_on(self) -> None:
        listener = self.listen(codec=EventCodec())
        agent, broker = self.pair(listener, RawCodec())
        with _raises(CodecError):
            broker.write(b"bytes")  # it carries events
        agent.write(b"garbage")
        agent.write(EventCodec().encode(Event("fine")))
        with _raises(CodecError):
            broker.read(timeout=SOON)
        assert broker.read(timeout=SOON) == Event("fine")

    def test_many_agents_share_a_listener_and_are_told_apart(self) -> None:
        listener = self.listen()
        pairs = [self.pair(listener) for _ in range(8)]
        for number, (agent, _) in enumerate(pairs):
            agent.write(str(number).encode())
        for number, (_, broker) in enumerate(pairs):
            assert broker.read(timeout=SOON) == str(number).encode()
            broker.write(b"to " + str(number).encode())
        for number, (agent, _) in enumerate(pairs):
            assert agent.read(timeout=SOON) == b"to " + str(number).encode()
        assert len({broker.session for _, broker in pairs}) == 8

    # --- waiting ----------------------------------------------------------------------------

    def test_a_read_that_times_out_loses_nothing(self) -> None:
        agent, broker = self.pair()
        with _raises(ChannelTimeout):
            broker.read(timeout=SHORT)
        with _raises(ChannelTimeout):
            broker.read(timeout=0)
        agent.write(b"after all")
        assert broker.read(timeout=SOON) == b"after all"

    def test_a_read_waits_for_a_message_that_comes_later(self) -> None:
        agent, broker = self.pair()
        waiting = self.meanwhile(broker.read, timeout=SOON)
        time.sleep(SHORT)
        agent.write(b"at last")
        assert waiting.result(SOON) == b"at last"

    def test_a_full_channel_blocks_until_the_timeout_and_drops_nothing(self) -> None:
        agent, broker = self.pair(window=1 << 16, max_message=1 << 12)
        written = 0
        try:
            while written < 100_000:
                agent.write(str(written).encode().ljust(1000), timeout=SHORT)
                written += 1
        except ChannelTimeout:
            pass
        assert 10 < written < 100_000, "the channel never filled"
        finishing = self.meanwhile(agent.flush, timeout=3 * SOON)
        for number in range(written):
            assert int(broker.read(timeout=SOON)) == number
        broker.done()
        finishing.result(3 * SOON)
        agent.write(b"room again", timeout=SOON)
        assert broker.read(timeout=SOON) == b"room again"

    def test_a_writer_that_waits_for_room_goes_on_when_there_is_some(self) -> None:
        agent, broker = self.pair(window=1 << 16, max_message=1 << 12)
        messages = [message.ljust(1000) for message in _numbered(1000)]
        writing = self.meanwhile(agent.write_many, messages, timeout=3 * SOON)
        assert [broker.read(timeout=SOON) for _ in messages] == messages
        broker.done()
        writing.result(SOON)

    def test_the_descriptor_wakes_select(self) -> None:
        agent, broker = self.pair()
        if self.asyncio:
            return  # the event loop has it already
        with _raises(ChannelTimeout):
            broker.read(timeout=0)
        select.select([broker.fileno()], [], [], SHORT)  # it may wake for nothing at first
        agent.write(b"wake up")
        until = time.monotonic() + SOON
        while time.monotonic() < until:
            assert select.select([broker.fileno()], [], [], SOON)[0], "nothing woke"
            with contextlib.suppress(ChannelTimeout):
                assert broker.read(timeout=0) == b"wake up"
                return
        raise AssertionError("it woke, and there was nothing")

    def test_an_interrupted_read_loses_nothing(self) -> None:
        agent, broker = self.pair()
        if self.asyncio:
            inner: Any = broker

            async def cancelled() -> None:
                reading = aio.create_task(inner._inner.read())  # noqa: SLF001
                await aio.sleep(SHORT)
                reading.cancel()
                with contextlib.suppress(aio.CancelledError):
                    await reading

            inner._loop.run(cancelled)  # noqa: SLF001
        elif threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, SHORT)
            try:
                with contextlib.suppress(KeyboardInterrupt):
                    broker.read(timeout=SOON)
                    raise AssertionError("the read was not interrupted")
            finally:
                signal.signal(signal.SIGALRM, before)
        agent.write_many(_numbered(3))
        assert [broker.read(timeout=SOON) for _ in range(3)] == _numbered(3)

    # --- acknowledgement --------------------------------------------------------------------

    def test_a_message_is_acknowledged_when_its_reader_is_done_and_not_before(self) -> None:
        agent, broker = self.pair()
        agent.write(b"effect first")
        assert broker.read(timeout=SOON) == b"effect first"
        with _raises(ChannelTimeout):
            agent.flush(timeout=2 * SHORT)
        broker.done()
        agent.flush(timeout=SOON)

    def test_a_message_is_acknowledged_when_the_next_is_asked_for(self) -> None:
        agent, broker = self.pair()
        agent.write(b"one")
        assert broker.read(timeout=SOON) == b"one"
        flushing = self.meanwhile(agent.flush, timeout=SOON)
        with _raises(ChannelTimeout):
            broker.read(timeout=5 * SHORT)
        flushing.result(SOON)

    # --- the end ----------------------------------------------------------------------------

    def test_iteration_ends_at_the_peers_close(self) -> None:
        agent, broker = self.pair()
        agent.write_many(_numbered(10))
        closing = self.meanwhile(agent.close, timeout=SOON)
        assert list(broker) == _numbered(10)
        closing.result(SOON)

    def test_all_that_was_written_before_a_close_can_be_read_and_then_it_ends(self) -> None:
        agent, broker = self.pair()
        broker.write_many(_numbered(3))
        closing = self.meanwhile(broker.close, timeout=SOON)
        assert [agent.read(timeout=SOON) for _ in range(3)] == _numbered(3)
        with _raises(EndOfChannel):
            agent.read(timeout=SOON)
        closing.result(SOON)
        with _raises(EndOfChannel):
            agent.write(b"too late")

    def test_a_close_says_when_messages_stay_unacknowledged(self) -> None:
        agent, _ = self.pair()
        agent.write(b"never read")
        with _raises(ChannelTimeout):
            agent.close(timeout=SHORT)
        assert agent.state is State.CLOSED

    def test_a_closed_end_says_so_and_closes_again_in_peace(self) -> None:
        agent, broker = self.pair()
        broker.write(b"left unread")
        agent.close()
        agent.close()
        calls: Sequence[Callable[[], object]] = (
            lambda: agent.read(timeout=0),
            lambda: agent.write(b""),
            lambda: agent.write_many([b""]),
            lambda: agent.read_many(timeout=0),
            agent.suspend,
            agent.resume,
        )
        for call in calls:
            with _raises(ChannelClosed):
                call()
        assert agent.state is State.CLOSED

    def test_an_error_inside_a_with_block_is_not_hidden(self) -> None:
        agent, _ = self.pair()
        with _raises(ZeroDivisionError), agent:
            agent.write(b"never read")
            raise ZeroDivisionError("the application's own")
        assert agent.state is State.CLOSED

    def test_a_with_block_waits_until_all_is_acknowledged_and_closes(self) -> None:
        agent, broker = self.pair()
        reading: Future[list[bytes]] = self.meanwhile(lambda: list(broker))
        with agent as channel:
            channel.write_many(_numbered(3))
        assert agent.state is State.CLOSED
        assert reading.result(SOON) == _numbered(3)

    # --- opening ----------------------------------------------------------------------------

    def test_an_agent_may_come_before_its_broker(self) -> None:
        first = self.listen()
        address = str(first.address)
        first.close()
        coming = self.meanwhile(self.open, address)
        time.sleep(SHORT)
        broker = self._keep(self.listen(address).accept(timeout=SOON))
        coming.result(SOON).write(b"early bird")
        assert broker.read(timeout=SOON) == b"early bird"

    def test_opening_where_nobody_listens_says_so(self) -> None:
        listener = self.listen()
        address = str(listener.address)
        listener.close()
        with _raises(MChannelError):
            self.open(address, timeout=5 * SHORT)

    def test_accepting_times_out_when_nobody_comes(self) -> None:
        listener = self.listen()
        with _raises(ChannelTimeout):
            listener.accept(timeout=SHORT)
        self.pair(listener)

    # --- brokers that come and go -----------------------------------------------------------

    def test_a_successor_at_the_same_address_gets_what_was_not_done_marked(self) -> None:
        listener = self.listen()
        agent, broker = self.pair(listener)
        agent.write_many(_numbered(10))
        assert [broker.read(timeout=SOON) for _ in range(4)] == _numbered(4)  # the last of them is not done
        address = str(listener.address)
        listener.close()
        with _raises(ChannelClosed):
            broker.read(timeout=0)
        flushing = self.meanwhile(agent.flush, timeout=3 * SOON)
        successor = self._keep(self.listen(address).accept(timeout=SOON))
        found = [successor.receive(timeout=SOON)]
        while found[-1].value != b"9":
            found.append(successor.receive(timeout=SOON))
        successor.done()
        flushing.result(SOON)
        first = int(found[0].value)
        assert first <= 3, "a message was lost"
        assert [message.value for message in found] == _numbered(10 - first, first)
        assert all(message.redelivered for message in found if int(message.value) <= 3)

    def test_a_suspended_channel_keeps_what_is_written_and_goes_on(self) -> None:
        agent, broker = self.pair()
        agent.write_many(_numbered(3))
        reading = self.meanwhile(agent.read, timeout=SOON)
        broker.suspend(timeout=SOON)
        assert broker.state is State.SUSPENDED
        broker.write(b"while suspended")
        broker.resume()
        assert [broker.read(timeout=SOON) for _ in range(3)] == _numbered(3)
        with contextlib.suppress(ChannelTimeout):
            broker.read(timeout=SHORT)
        assert reading.result(SOON) == b"while suspended"

    def test_both_ends_know_that_the_broker_suspended_and_resumed(self) -> None:
        agent, broker = self.pair()
        self._suspend_and_resume(broker, agent)

    def test_both_ends_know_that_the_agent_suspended_and_resumed(self) -> None:
        agent, broker = self.pair()
        self._suspend_and_resume(agent, broker)

    def _suspend_and_resume(self, end: Channel[bytes], other: Channel[bytes]) -> None:
        reading = self.meanwhile(other.read, timeout=SOON)
        end.suspend(timeout=SOON)
        assert end.state is State.SUSPENDED
        until = time.monotonic() + SOON
        while other.state is State.OPEN:  # an agent looks for a successor then, and is opening
            assert time.monotonic() < until, "the other end does not know"
            time.sleep(SHORT / 100)
        end.resume()
        end.write(b"go on", timeout=SOON)
        flushing = self.meanwhile(end.flush, timeout=SOON)
        assert reading.result(SOON) == b"go on"
        other.done()
        flushing.result(SOON)
        answering = self.meanwhile(end.read, timeout=SOON)
        other.write(b"and back", timeout=SOON)
        assert answering.result(SOON) == b"and back"
        for each in (end, other):
            with _raises(ChannelTimeout):
                each.read(timeout=SHORT)  # a wire may carry the news beside the messages
        assert (end.state, other.state) == (State.OPEN, State.OPEN)

    def test_a_suspension_ends_by_itself(self) -> None:
        agent, broker = self.pair()
        reading = self.meanwhile(agent.read, timeout=SOON)
        broker.suspend(timeout=2 * SHORT)
        broker.write(b"nobody took over")
        while not reading.done():
            with contextlib.suppress(ChannelTimeout):
                broker.read(timeout=SHORT)
        assert reading.result(SOON) == b"nobody took over"

    def test_a_handoff_to_another_listener_loses_and_repeats_nothing(self) -> None:
        listener = self.listen()
        agent, broker = self.pair(listener)
        agent.write_many(_numbered(10))
        assert [broker.read(timeout=SOON) for _ in range(4)] == _numbered(4)
        reading = self.meanwhile(_read_until, agent, b"last")
        broker.suspend(timeout=SOON)
        broker.write(b"on its way while it moves")
        handoff, address = broker.handoff(), str(listener.address)
        with _raises(ChannelClosed):
            broker.read(timeout=0)
        listener.close()
        next_listener = self.listen(address, adopted=[handoff])
        successor = self._keep(next_listener.accept(timeout=SOON))
        found = [successor.receive(timeout=SOON) for _ in range(6)]
        assert [message.value for message in found] == _numbered(6, 4)
        assert not any(message.redelivered for message in found)
        with _raises(ChannelTimeout):
            successor.read(timeout=SHORT)
        successor.write(b"last")
        assert reading.result(SOON) == [b"on its way while it moves", b"last"]
        agent.write(b"to the successor")
        assert successor.read(timeout=SOON) == b"to the successor"

    def test_a_listener_hands_over_the_channels_of_an_agent_that_is_paused(self) -> None:
        listener = self.listen()
        agent, broker = self.pair(listener)
        agent.write_many(_numbered(10))
        assert [broker.read(timeout=SOON) for _ in range(4)] == _numbered(4)
        broker.write(b"not yet read")
        address = str(listener.address)
        handed = listener.hand_over()
        with _raises(ChannelClosed):
            broker.read(timeout=0)
        next_listener = self.listen(address, adopted=handed)
        reading = self.meanwhile(_read_until, agent, b"last")  # it goes on, and looks for the successor
        successor = self._keep(next_listener.accept(timeout=SOON))
        found = [successor.receive(timeout=SOON) for _ in range(6)]
        assert [message.value for message in found] == _numbered(6, 4)
        assert not any(message.redelivered for message in found)
        successor.write(b"last")
        assert self.attend(successor, reading) == [b"not yet read", b"last"]

    def test_what_an_overtaken_session_replays_says_redelivered(self) -> None:
        listener = self.listen()
        agent, broker = self.pair(listener)
        broker.write(b"kept for the agent")
        address = str(listener.address)
        (overtaken,) = listener.hand_over()
        if len(overtaken) <= 16:
            return  # over shared memory the ring knows who has seen what
        agent.write_many(_numbered(2))
        third = self.listen(address, adopted=[overtaken])
        go_on = threading.Event()

        def flush() -> None:  # all in one thread: a channel is for one
            while not go_on.is_set():
                with contextlib.suppress(ChannelTimeout):
                    agent.flush(timeout=SHORT)
            agent.write(b"new")
            agent.flush(timeout=SOON)

        flushing = self.meanwhile(flush)
        reader = self._keep(third.accept(timeout=SOON))
        assert reader.read(timeout=SOON) == _numbered(1)[0]  # and no more: that would acknowledge it
        third.hand_over()  # and it dies with what it knew
        next_listener = self.listen(address, adopted=[overtaken], overtaken=True)
        successor = self._keep(next_listener.accept(timeout=SOON))
        go_on.set()
        found = [successor.receive(timeout=SOON) for _ in range(3)]
        assert [message.value for message in found] == [*_numbered(2), b"new"]
        assert [message.redelivered for message in found] == [True, True, False]
        self.attend(successor, flushing)

    def test_a_session_is_handed_on_by_a_listener_that_its_agent_never_came_to(self) -> None:
        listener = self.listen()
        agent, broker = self.pair(listener)
        agent.write_many(_numbered(3))
        assert [broker.read(timeout=SOON) for _ in range(2)] == _numbered(2)
        address = str(listener.address)
        before = handed = listener.hand_over()

        def relay(listening: Callable[..., Any], snapshots: Sequence[bytes]) -> Any:  # before a quick agent can come
            made = listening(address, RawCodec(), **self.wishes)
            for each in snapshots:
                made.adopt(each)
            return made.hand_over()

        for _ in range(2):
            before = handed
            handed = relay(listen, before) if self._loop is None else self._loop.run(relay, listen_async, before)
        if not handed:
            return  # over shared memory the agent holds all there is to know
        assert handed == before
        last = self.listen(address, adopted=handed)
        flushing = self.meanwhile(agent.flush, timeout=SOON)
        successor = self._keep(last.accept(timeout=SOON))
        message = successor.receive(timeout=SOON)
        assert (message.value, message.redelivered) == (_numbered(1, 2)[0], False)
        self.attend(successor, flushing)

    def test_only_a_suspended_channel_can_be_handed_over(self) -> None:
        _, broker = self.pair()
        with _raises(ChannelError):
            broker.handoff()

    def test_a_forged_handoff_is_refused(self) -> None:
        listener = self.listen()
        with _raises(ChannelError):
            listener.adopt(b"\x93\x01garbage")

    def test_latest_delivers_the_newest_and_never_an_older_one_after_it(self) -> None:
        agent, broker = self.pair(delivery="latest", window=1 << 16, max_message=1 << 12)
        for message in _numbered(2000):
            agent.write(message.ljust(1000), timeout=0)  # never waits
        flushing = self.meanwhile(agent.flush, timeout=SOON)
        found = [int(broker.read(timeout=SOON))]
        while found[-1] != 1999:
            found.append(int(broker.read(timeout=SOON)))
        broker.done()
        flushing.result(SOON)
        assert found == sorted(set(found))
        assert len(found) < 1000, "history was delivered"
