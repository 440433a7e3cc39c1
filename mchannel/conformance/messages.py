"""Messages: their order, sizes and numbers, who waits for them, and when they are done."""

# ruff: noqa: D102 - a test's name is its documentation

from __future__ import annotations

import asyncio as aio
import contextlib
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mchannel.channel import Channel
from mchannel.codec import EventCodec, RawCodec
from mchannel.errors import (
    ChannelTimeout,
    CodecError,
    EndOfChannel,
    MessageTooBig,
)
from mchannel.event import Event

from .bench import SHORT, SOON, Bench, Words, numbered, raises

__all__ = ["Messages"]


class Messages(Bench):
    """Two ends that stay."""

    # --- messages ---------------------------------------------------------------------------

    def test_messages_arrive_in_order_both_ways(self) -> None:
        agent, broker = self.pair()
        for message in numbered(50):
            agent.write(message)
            broker.write(message)
        assert [broker.read(timeout=SOON) for _ in range(50)] == numbered(50)
        assert [agent.read(timeout=SOON) for _ in range(50)] == numbered(50)

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
            with raises(MessageTooBig):
                end.write(b"x" * 1001)
            end.write(b"x" * 1000)
            assert other.read(timeout=SOON) == b"x" * 1000

    def test_batches_arrive_in_order(self) -> None:
        agent, broker = self.pair()
        agent.write_many(numbered(500))
        found: list[bytes] = []
        while len(found) < 500:
            batch = broker.read_many(64, timeout=SOON)
            assert 1 <= len(batch) <= 64
            found += batch
        assert found == numbered(500)

    def test_numbers_grow_and_nothing_is_marked_without_reason(self) -> None:
        agent, broker = self.pair()
        agent.write_many(numbered(20))
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
        cases: Sequence[tuple[Any, Any]] = ((EventCodec(), event), (RawCodec(), b"\0\xff"), (Words(), ["a", "b"]))
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
        with raises(CodecError):
            broker.write(b"bytes")  # it carries events
        agent.write(b"garbage")
        agent.write(EventCodec().encode(Event("fine")))
        with raises(CodecError):
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
        with raises(ChannelTimeout):
            broker.read(timeout=SHORT)
        with raises(ChannelTimeout):
            broker.read(timeout=0)
        agent.write(b"after all")
        assert broker.read(timeout=SOON) == b"after all"

    def test_a_read_waits_for_a_message_that_comes_later(self) -> None:
        agent, broker = self.pair()
        waiting = self.meanwhile(broker.read, timeout=SOON)
        time.sleep(SHORT)
        agent.write(b"at last")
        assert waiting.result(SOON) == b"at last"

    def test_a_timeout_that_is_over_already_is_no_wait(self) -> None:
        agent, broker = self.pair(window=1 << 16, max_message=1 << 12)
        for late in (-1.0, -1e-9, 0.0, -float("inf")):
            calls: list[Callable[[], object]] = [
                partial(broker.read, timeout=late),
                partial(broker.receive, timeout=late),
                partial(broker.read_many, timeout=late),
            ]
            for call in calls:
                with raises(ChannelTimeout):
                    self.meanwhile(call).result(SOON)
        with raises(ChannelTimeout):
            while True:
                self.meanwhile(agent.write, b"x" * 4096, timeout=-1).result(SOON)
        broker.read(timeout=SOON)
        until = time.monotonic() + SOON
        while True:  # the next has arrived by then, or will soon
            with contextlib.suppress(ChannelTimeout):
                assert self.meanwhile(broker.read, timeout=-1).result(SOON) == b"x" * 4096
                return
            assert time.monotonic() < until, "what is there was not read"

    def test_a_timeout_that_is_no_number_is_refused(self) -> None:
        _, broker = self.pair()
        with raises(ValueError):
            self.meanwhile(broker.read, timeout=float("nan")).result(SOON)

    def test_a_timeout_of_any_length_can_be_waited_for(self) -> None:
        agent, broker = self.pair()
        for long in (1e300, float("inf")):
            waiting = self.meanwhile(broker.read, timeout=long)
            time.sleep(SHORT)
            agent.write(b"at last")
            assert waiting.result(SOON) == b"at last"

    def test_a_batch_of_no_messages_cannot_be_asked_for(self) -> None:
        agent, broker = self.pair()
        agent.write(b"there")
        for limit in (0, -1):
            with raises(ValueError):
                self.meanwhile(broker.read_many, limit, timeout=SHORT).result(SOON)
        assert broker.read_many(1, timeout=SOON) == [b"there"]

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
        self.attend(broker, finishing)
        agent.write(b"room again", timeout=SOON)
        assert broker.read(timeout=SOON) == b"room again"

    def test_a_writer_that_waits_for_room_goes_on_when_there_is_some(self) -> None:
        agent, broker = self.pair(window=1 << 16, max_message=1 << 12)
        messages = [message.ljust(1000) for message in numbered(1000)]
        writing = self.meanwhile(agent.write_many, messages, timeout=3 * SOON)
        assert [broker.read(timeout=SOON) for _ in messages] == messages
        self.attend(broker, writing)

    def test_a_writer_of_messages_of_any_length_goes_on_when_there_is_room(self) -> None:
        agent, broker = self.pair(window=1 << 16, max_message=1 << 12)
        messages = [bytes(number * 997 % 4096) for number in range(1000)]

        def write() -> None:
            for message in messages:
                agent.write(message, timeout=2 * SOON)

        writing = self.meanwhile(write)
        for number, message in enumerate(messages):
            if number % 50 == 0:
                time.sleep(0.005)  # so that the channel is full, and has room for some and not for others
            assert broker.read(timeout=SOON) == message
        writing.result(SOON)

    def test_the_descriptor_wakes_select(self) -> None:
        agent, broker = self.pair()
        if self.asyncio:
            return  # the event loop has it already
        with raises(ChannelTimeout):
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

    def test_the_descriptor_is_readable_while_something_can_be_read(self) -> None:
        if self.asyncio:
            return
        agent, broker = self.pair()
        agent.write(b"before anybody asked")
        with select.epoll() as waiting:
            waiting.register(broker.fileno(), select.EPOLLIN)  # once and for all
            assert self._woken(waiting, broker) == [b"before anybody asked"]
            for message in numbered(3):
                agent.write(message)
                assert self._woken(waiting, broker) == [message]
            agent.write_many(numbered(3))
            for message in numbered(3):
                assert waiting.poll(SOON), "what is left woke nobody"
                assert broker.read(timeout=SOON) == message
            agent.write(b"after a wait")
            assert broker.read(timeout=SOON) == b"after a wait"
            agent.write_many(numbered(4))
            assert waiting.poll(SOON)
            found = broker.read_many(2, timeout=SOON)
            while found[-1] != b"3":
                found += self._woken(waiting, broker)
            assert found == numbered(4)
            with contextlib.suppress(ChannelTimeout):
                agent.close(timeout=0)
            with raises(EndOfChannel):
                self._woken(waiting, broker)
            assert waiting.poll(SHORT), "the end can be read again"

    def test_the_descriptor_tells_what_came_while_this_end_did_something_else(self) -> None:
        if self.asyncio:
            return
        agent, broker = self.pair()
        with select.epoll() as waiting:
            waiting.register(broker.fileno(), select.EPOLLIN)
            for message in numbered(5):
                with raises(ChannelTimeout):
                    broker.read(timeout=0)
                agent.write(message)
                time.sleep(SHORT)  # it has arrived, and whoever looks around takes it in
                broker.write(b"meanwhile")
                with contextlib.suppress(ChannelTimeout):
                    broker.flush(timeout=SHORT)
                assert self._woken(waiting, broker) == [message]

    def test_the_descriptors_of_channels_that_share_a_listener_tell_of_their_own(self) -> None:
        if self.asyncio:
            return
        listener = self.listen()
        (one, there), (two, here) = self.pair(listener), self.pair(listener)
        with select.epoll() as waiting:
            waiting.register(here.fileno(), select.EPOLLIN)
            with raises(ChannelTimeout):
                here.read(timeout=0)
            two.write(b"for another")
            one.write(b"for this one")
            assert there.read(timeout=SOON) == b"for this one"
            with contextlib.suppress(ChannelTimeout):
                there.read(timeout=SHORT)  # all that has come is taken in
            assert self._woken(waiting, here) == [b"for another"]

    def test_the_descriptor_rests_when_there_is_nothing(self) -> None:
        if self.asyncio:
            return
        _, broker = self.pair(heartbeat=SOON)
        wakes = 0
        with select.epoll() as waiting:
            waiting.register(broker.fileno(), select.EPOLLIN)
            until = time.monotonic() + 3 * SHORT
            while time.monotonic() < until:
                wakes += bool(waiting.poll(SHORT))
                with contextlib.suppress(ChannelTimeout):
                    broker.read(timeout=0)
        assert wakes < 50, "it woke again and again"

    def _woken(self, waiting: select.epoll, channel: Channel[bytes]) -> list[bytes]:
        """Return what is read until there is no more, once the descriptor is readable."""
        found: list[bytes] = []
        until = time.monotonic() + SOON
        while not found and time.monotonic() < until:
            assert waiting.poll(SOON), "nothing woke"
            with contextlib.suppress(ChannelTimeout):
                while True:
                    found.append(channel.read(timeout=0))
        return found

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

            def interrupt(*_: object) -> None:
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise KeyboardInterrupt

            before = signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, SHORT, SHORT)  # again and again: the first may come before the wait
            try:
                with contextlib.suppress(KeyboardInterrupt):
                    broker.read(timeout=SOON)
                    raise AssertionError("the read was not interrupted")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
        agent.write_many(numbered(3))
        assert [broker.read(timeout=SOON) for _ in range(3)] == numbered(3)

    # --- acknowledgement --------------------------------------------------------------------

    def test_a_message_is_acknowledged_when_its_reader_is_done_and_not_before(self) -> None:
        agent, broker = self.pair()
        agent.write(b"effect first")
        assert broker.read(timeout=SOON) == b"effect first"
        with raises(ChannelTimeout):
            agent.flush(timeout=2 * SHORT)
        broker.done()
        agent.flush(timeout=SOON)

    def test_a_message_is_acknowledged_when_the_next_is_asked_for(self) -> None:
        agent, broker = self.pair()
        agent.write(b"one")
        assert broker.read(timeout=SOON) == b"one"
        flushing = self.meanwhile(agent.flush, timeout=SOON)
        with raises(ChannelTimeout):
            broker.read(timeout=5 * SHORT)
        flushing.result(SOON)
