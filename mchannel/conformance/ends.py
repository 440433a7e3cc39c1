"""How channels begin and end."""

# ruff: noqa: D102 - a test's name is its documentation

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from mchannel.channel import Channel
from mchannel.errors import (
    ChannelClosed,
    ChannelTimeout,
    EndOfChannel,
    MChannelError,
)
from mchannel.transport import State

from .bench import SHORT, SOON, Bench, numbered, raises

__all__ = ["Ends"]


class Ends(Bench):
    """Ends that open and close."""

    # --- the end ----------------------------------------------------------------------------

    def test_iteration_ends_at_the_peers_close(self) -> None:
        agent, broker = self.pair()
        agent.write_many(numbered(10))
        closing = self.meanwhile(agent.close, timeout=SOON)
        assert list(broker) == numbered(10)
        closing.result(SOON)

    def test_all_that_was_written_before_a_close_can_be_read_and_then_it_ends(self) -> None:
        agent, broker = self.pair()
        broker.write_many(numbered(3))
        closing = self.meanwhile(broker.close, timeout=SOON)
        assert [agent.read(timeout=SOON) for _ in range(3)] == numbered(3)
        with raises(EndOfChannel):
            agent.read(timeout=SOON)
        closing.result(SOON)
        with raises(EndOfChannel):
            agent.write(b"too late")

    def test_a_close_says_when_messages_stay_unacknowledged(self) -> None:
        agent, _ = self.pair()
        agent.write(b"never read")
        with raises(ChannelTimeout):
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
            with raises(ChannelClosed):
                call()
        assert agent.state is State.CLOSED

    def test_a_listener_that_closes_wakes_whoever_waits(self) -> None:
        self._wake("close")

    def test_a_listener_that_hands_over_wakes_whoever_waits(self) -> None:
        self._wake("hand_over")

    def _wake(self, let_go: str) -> None:
        if self._loop is None:
            return  # a blocking listener belongs to the thread of its channels
        listener = self.listen()
        _, broker = self.pair(listener, window=1 << 14, max_message=1 << 12)
        reading = self.meanwhile(broker.read, timeout=2 * SOON)
        writing = self.meanwhile(self._fill, broker)
        with raises(TimeoutError):
            writing.result(SHORT)  # it waits for room
        flushing = self.meanwhile(broker.flush, timeout=2 * SOON)
        getattr(listener, let_go)()
        for waiting in (reading, writing, flushing):
            with raises(ChannelClosed):
                waiting.result(SOON)

    def _fill(self, channel: Channel[bytes]) -> None:
        while True:
            channel.write(bytes(1 << 12), timeout=2 * SOON)

    def test_what_was_not_acknowledged_when_a_listener_closed_is_never_called_flushed(self) -> None:
        listener = self.listen()
        _, broker = self.pair(listener)
        broker.write(b"never read")
        listener.close()
        with raises(ChannelClosed):
            broker.flush(timeout=SOON)

    def test_an_error_inside_a_with_block_is_not_hidden(self) -> None:
        agent, _ = self.pair()
        with raises(ZeroDivisionError), agent:
            agent.write(b"never read")
            raise ZeroDivisionError("the application's own")
        assert agent.state is State.CLOSED

    def test_a_with_block_waits_until_all_is_acknowledged_and_closes(self) -> None:
        agent, broker = self.pair()
        reading: Future[list[bytes]] = self.meanwhile(lambda: list(broker))
        with agent as channel:
            channel.write_many(numbered(3))
        assert agent.state is State.CLOSED
        assert reading.result(SOON) == numbered(3)

    # --- opening ----------------------------------------------------------------------------

    def test_an_agent_may_come_before_its_broker(self) -> None:
        first = self.listen()
        address = str(first.address)
        first.close()
        coming = self.meanwhile(self.open, address)
        time.sleep(SHORT)
        broker = self.keep(self.listen(address).accept(timeout=SOON))
        coming.result(SOON).write(b"early bird")
        assert broker.read(timeout=SOON) == b"early bird"

    def test_the_descriptor_of_a_listener_tells_of_every_agent_that_came(self) -> None:
        if self.asyncio:
            return
        listener = self.listen()
        with select.epoll() as waiting:
            waiting.register(listener.fileno(), select.EPOLLIN)
            with raises(ChannelTimeout):
                listener.accept(timeout=0)
            coming = [self.meanwhile(self.open, listener.address) for _ in range(3)]
            time.sleep(2 * SHORT)  # so that more than one may come in at once
            brokers: list[Channel[bytes]] = []
            while len(brokers) < len(coming):
                assert waiting.poll(SOON), "an agent came, and nothing woke"
                with contextlib.suppress(ChannelTimeout):
                    brokers.append(self.keep(listener.accept(timeout=0)))
            while not all(agent.done() for agent in coming):
                for broker in brokers:
                    with contextlib.suppress(ChannelTimeout):
                        broker.read(timeout=SHORT / 10)

    def test_opening_where_nobody_listens_says_so(self) -> None:
        listener = self.listen()
        address = str(listener.address)
        listener.close()
        with raises(MChannelError):
            self.open(address, timeout=5 * SHORT)

    def test_accepting_times_out_when_nobody_comes(self) -> None:
        listener = self.listen()
        with raises(ChannelTimeout):
            listener.accept(timeout=SHORT)
        self.pair(listener)
