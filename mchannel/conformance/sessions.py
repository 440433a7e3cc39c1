"""What a session lives through: a successor, a suspension, a handoff."""

# ruff: noqa: D102 - a test's name is its documentation

from __future__ import annotations

import asyncio as aio
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from mchannel.aio import listen_async
from mchannel.channel import Channel, listen
from mchannel.codec import RawCodec
from mchannel.errors import (
    ChannelClosed,
    ChannelError,
    ChannelTimeout,
)
from mchannel.transport import State

from .bench import SHORT, SOON, Bench, numbered, raises, read_until

__all__ = ["Sessions"]


class Sessions(Bench):
    """Brokers that come and go."""

    def test_a_successor_at_the_same_address_gets_what_was_not_done_marked(self) -> None:
        listener = self.listen()
        agent, broker = self.pair(listener)
        agent.write_many(numbered(10))
        assert [broker.read(timeout=SOON) for _ in range(4)] == numbered(4)  # the last of them is not done
        address = str(listener.address)
        listener.close()
        with raises(ChannelClosed):
            broker.read(timeout=0)
        flushing = self.meanwhile(agent.flush, timeout=3 * SOON)
        successor = self.keep(self.listen(address).accept(timeout=SOON))
        found = [successor.receive(timeout=SOON)]
        while found[-1].value != b"9":
            found.append(successor.receive(timeout=SOON))
        self.attend(successor, flushing)
        first = int(found[0].value)
        assert first <= 3, "a message was lost"
        assert [message.value for message in found] == numbered(10 - first, first)
        assert all(message.redelivered for message in found if int(message.value) <= 3)

    def test_a_suspended_channel_keeps_what_is_written_and_goes_on(self) -> None:
        agent, broker = self.pair()
        agent.write_many(numbered(3))
        reading = self.meanwhile(agent.read, timeout=SOON)
        broker.suspend(timeout=SOON)
        assert broker.state is State.SUSPENDED
        broker.write(b"while suspended")
        broker.resume()
        assert [broker.read(timeout=SOON) for _ in range(3)] == numbered(3)
        assert self.attend(broker, reading) == b"while suspended"

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
        self.attend(other, flushing)
        answering = self.meanwhile(end.read, timeout=SOON)
        other.write(b"and back", timeout=SOON)
        assert answering.result(SOON) == b"and back"
        for each in (end, other):
            with raises(ChannelTimeout):
                each.read(timeout=SHORT)  # a wire may carry the news beside the messages
        assert (end.state, other.state) == (State.OPEN, State.OPEN)

    def test_a_suspension_ends_by_itself(self) -> None:
        agent, broker = self.pair()
        reading = self.meanwhile(agent.read, timeout=SOON)
        with contextlib.suppress(ChannelTimeout):  # an agent that is slow may not have agreed by then
            broker.suspend(timeout=2 * SHORT)
        broker.write(b"nobody took over")
        while not reading.done():
            with contextlib.suppress(ChannelTimeout):
                broker.read(timeout=SHORT)
        assert reading.result(SOON) == b"nobody took over"

    def test_a_suspension_that_cannot_be_is_refused_and_changes_nothing(self) -> None:
        agent, broker = self.pair()
        for end, other in ((agent, broker), (broker, agent)):
            for timeout in (-1.0, float("nan"), float("inf"), 1e300):
                with raises(ValueError):
                    end.suspend(timeout=timeout)
            assert end.state is State.OPEN
            other.write(b"goes on")
            assert end.read(timeout=SOON) == b"goes on"
            end.done()

    def test_a_suspension_that_was_interrupted_is_taken_back(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        agent, broker = self.pair()
        self._suspend_and_interrupt(broker, 60 * SOON)
        broker.write(b"goes on")
        reading = self.meanwhile(agent.read, timeout=SOON)  # it hears of the suspension only now
        assert self.attend(broker, reading) == b"goes on"
        flushing = self.meanwhile(agent.write, b"and back", timeout=SOON)
        assert broker.read(timeout=SOON) == b"and back"
        flushing.result(SOON)
        assert (agent.state, broker.state) == (State.OPEN, State.OPEN)

    def _suspend_and_interrupt(self, end: Any, timeout: float) -> None:
        """Begin a suspension, and interrupt whoever waits for the peer to agree."""
        if self._loop is not None:

            async def cancelled() -> None:
                suspending = aio.create_task(end._inner.suspend(timeout))  # noqa: SLF001
                await aio.sleep(0)
                suspending.cancel()
                with contextlib.suppress(aio.CancelledError):
                    await suspending

            self._loop.run(cancelled)
            return

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, SHORT)
        try:
            with raises(KeyboardInterrupt):
                end.suspend(timeout)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def test_a_handoff_to_another_listener_loses_and_repeats_nothing(self) -> None:
        listener = self.listen()
        agent, broker = self.pair(listener)
        agent.write_many(numbered(10))
        assert [broker.read(timeout=SOON) for _ in range(4)] == numbered(4)
        reading = self.meanwhile(read_until, agent, b"last")
        broker.suspend(timeout=SOON)
        broker.write(b"on its way while it moves")
        handoff, address = broker.handoff(), str(listener.address)
        with raises(ChannelClosed):
            broker.read(timeout=0)
        listener.close()
        next_listener = self.listen(address, adopted=[handoff])
        successor = self.keep(next_listener.accept(timeout=SOON))
        found = [successor.receive(timeout=SOON) for _ in range(6)]
        assert [message.value for message in found] == numbered(6, 4)
        assert not any(message.redelivered for message in found)
        with raises(ChannelTimeout):
            successor.read(timeout=SHORT)
        successor.write(b"last")
        assert self.attend(successor, reading) == [b"on its way while it moves", b"last"]
        agent.write(b"to the successor")
        flushing = self.meanwhile(agent.flush, timeout=SOON)
        assert successor.read(timeout=SOON) == b"to the successor"
        self.attend(successor, flushing)

    def test_a_listener_hands_over_the_channels_of_an_agent_that_is_paused(self) -> None:
        listener = self.listen()
        agent, broker = self.pair(listener)
        agent.write_many(numbered(10))
        assert [broker.read(timeout=SOON) for _ in range(4)] == numbered(4)
        broker.write(b"not yet read")
        address = str(listener.address)
        handed = listener.hand_over()
        with raises(ChannelClosed):
            broker.read(timeout=0)
        next_listener = self.listen(address, adopted=handed)
        reading = self.meanwhile(read_until, agent, b"last")  # it goes on, and looks for the successor
        successor = self.keep(next_listener.accept(timeout=SOON))
        found = [successor.receive(timeout=SOON) for _ in range(6)]
        assert [message.value for message in found] == numbered(6, 4)
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
        agent.write_many(numbered(2))
        third = self.listen(address, adopted=[overtaken])
        go_on = threading.Event()

        def flush() -> None:  # all in one thread: a channel is for one
            while not go_on.is_set():
                with contextlib.suppress(ChannelTimeout):
                    agent.flush(timeout=SHORT)
            agent.write(b"new")
            agent.flush(timeout=SOON)

        flushing = self.meanwhile(flush)
        reader = self.keep(third.accept(timeout=SOON))
        assert reader.read(timeout=SOON) == numbered(1)[0]  # and no more: that would acknowledge it
        third.hand_over()  # and it dies with what it knew
        next_listener = self.listen(address, adopted=[overtaken], overtaken=True)
        successor = self.keep(next_listener.accept(timeout=SOON))
        go_on.set()
        found = [successor.receive(timeout=SOON) for _ in range(3)]
        assert [message.value for message in found] == [*numbered(2), b"new"]
        assert [message.redelivered for message in found] == [True, True, False]
        self.attend(successor, flushing)

    def test_a_session_is_handed_on_by_a_listener_that_its_agent_never_came_to(self) -> None:
        listener = self.listen()
        agent, broker = self.pair(listener)
        agent.write_many(numbered(3))
        assert [broker.read(timeout=SOON) for _ in range(2)] == numbered(2)
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
        successor = self.keep(last.accept(timeout=SOON))
        message = successor.receive(timeout=SOON)
        assert (message.value, message.redelivered) == (numbered(1, 2)[0], False)
        self.attend(successor, flushing)

    def test_only_a_suspended_channel_can_be_handed_over(self) -> None:
        _, broker = self.pair()
        with raises(ChannelError):
            broker.handoff()

    def test_a_forged_handoff_is_refused(self) -> None:
        listener = self.listen()
        with raises(ChannelError):
            listener.adopt(b"\x93\x01garbage")

    def test_latest_delivers_the_newest_and_never_an_older_one_after_it(self) -> None:
        agent, broker = self.pair(delivery="latest", window=1 << 16, max_message=1 << 12)
        for message in numbered(2000):
            agent.write(message.ljust(1000), timeout=0)  # never waits
        flushing = self.meanwhile(agent.flush, timeout=SOON)
        found = [int(broker.read(timeout=SOON))]
        while found[-1] != 1999:
            found.append(int(broker.read(timeout=SOON)))
        self.attend(broker, flushing)
        assert found == sorted(set(found))
        assert len(found) < 1000, "history was delivered"
