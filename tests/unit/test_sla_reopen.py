"""A channel that is opened again."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest

from mchannel.agents.reopen import Reopening
from mchannel.errors import ChannelBroken, ChannelError, ChannelTimeout, CodecError, MessageTooBig, NotListening
from mchannel.event import Event

EVENT = Event("t")


@attrs.define
class Wire:
    error: Exception | None = None
    written: int = 0
    closed: bool = False

    def write(self, message: Event, /, timeout: float | None = None) -> None:
        if self.error is not None:
            raise self.error
        self.written += 1

    def flush(self, timeout: float | None = None) -> None:
        """All is acknowledged."""

    def close(self) -> None:
        self.closed = True
        if self.error is not None:
            raise self.error


@attrs.define
class Broker:
    """What *connect* reaches."""

    wires: list[Wire] = attrs.field(factory=list[Wire])
    down: bool = False
    attempts: int = 0
    now: float = 0.0

    def connect(self) -> Wire:
        self.attempts += 1
        if self.down:
            raise NotListening("nobody there")
        self.wires.append(Wire())
        return self.wires[-1]

    def channel(self) -> Reopening:
        return Reopening(self.connect, monotonic=lambda: self.now)


@pytest.fixture
def broker() -> Broker:
    return Broker()


def refused(write: Callable[..., None]) -> bool:
    try:
        write(EVENT)
    except (ChannelError, NotListening):
        return True
    return False


def test_it_is_opened_at_once(broker: Broker) -> None:
    broker.down = True
    with pytest.raises(NotListening):
        broker.channel()


def test_a_broken_channel_is_closed_and_opened_again_after_a_pause(broker: Broker) -> None:
    channel = broker.channel()
    broker.wires[0].error = ChannelBroken("gone")
    assert refused(channel.write)
    assert broker.wires[0].closed
    assert refused(channel.write)
    assert broker.attempts == 1
    broker.now = 0.5
    channel.write(EVENT)
    assert broker.wires[1].written == 1


def test_a_full_channel_is_kept(broker: Broker) -> None:
    channel = broker.channel()
    broker.wires[0].error = ChannelTimeout("full")
    with pytest.raises(ChannelTimeout):
        channel.write(EVENT, timeout=0)
    broker.wires[0].error = None
    channel.write(EVENT)
    assert broker.attempts == 1


@pytest.mark.parametrize("error", [CodecError("no event"), MessageTooBig("too long")])
def test_a_message_that_can_never_be_sent_is_no_reason_to_open_it_again(broker: Broker, error: Exception) -> None:
    channel = broker.channel()
    broker.wires[0].error = error
    with pytest.raises(type(error)):
        channel.write(EVENT)
    broker.wires[0].error = None
    channel.write(EVENT)
    assert (broker.attempts, broker.wires[0].written, broker.wires[0].closed) == (1, 1, False)


def test_attempts_become_rarer_until_one_succeeds(broker: Broker) -> None:
    channel = broker.channel()
    broker.wires[0].error, broker.down = ChannelBroken("gone"), True
    for _ in range(1000):
        refused(channel.write)
        broker.now += 0.1
    assert broker.attempts == 14  # at once, then after 0.5, 1, 2, 5 and every 10 of 100 seconds
    broker.down, broker.now = False, 200.0
    channel.write(EVENT)
    broker.wires[-1].error = ChannelBroken("gone")
    refused(channel.write)
    broker.now += 0.5
    channel.write(EVENT)


def test_closing_twice_does_no_harm(broker: Broker) -> None:
    channel = broker.channel()
    broker.wires[0].error = ChannelTimeout("unacknowledged")
    channel.close()
    channel.close()
    assert broker.wires[0].closed
