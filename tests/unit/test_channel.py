"""The blocking face: what it does beyond its link."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

import mchannel
from mchannel import Channel, Listener
from mchannel.errors import ChannelBroken, ChannelClosed, ChannelError, ChannelTimeout, CodecError
from mchannel.patience import Opening
from mchannel.transport import Link, State, find_scheme
from tests.unit.faces import RAW, WIRES, Numbers, attended, both_ends


@pytest.fixture(params=WIRES)
def listener(request: pytest.FixtureRequest) -> Iterator[Listener[int]]:
    with mchannel.listen(request.param, Numbers(), insecure=True) as listener:
        yield listener


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


Ends = tuple[Channel[bytes], Channel[int]]


@pytest.fixture
def ends(listener: Listener[int]) -> Iterator[Ends]:
    """An agent that writes what it likes, and a broker that reads numbers."""
    with both_ends(listener) as made:
        yield made


def gather(broker: Channel[int]) -> None:
    """Wait until what was written can be read as one batch."""
    time.sleep(0.2)
    with suppress(ChannelTimeout):
        broker.flush(timeout=0)


def read_many(broker: Channel[int], count: int) -> tuple[list[int], int]:
    """Return *count* messages and errors: the messages, and before which place an error was raised."""
    found: list[int] = []
    bad = -1
    while len(found) + (bad >= 0) < count:
        try:
            found += broker.read_many(timeout=10)
        except CodecError:
            bad = len(found)
    return found, bad


@pytest.mark.parametrize("place", [0, 2, 4])
def test_one_bad_message_in_a_batch_costs_none_of_the_good_ones(ends: Ends, place: int) -> None:
    agent, broker = ends
    good = [b"0", b"1", b"2", b"3"]
    agent.write_many([*good[:place], b"bad", *good[place:]])
    gather(broker)
    assert read_many(broker, 5) == ([0, 1, 2, 3], place)


def test_what_is_left_of_a_batch_can_be_read_one_by_one_with_its_numbers(ends: Ends) -> None:
    agent, broker = ends
    agent.write_many([b"0", b"bad", b"2", b"3"])
    gather(broker)
    assert broker.read_many(timeout=10) == [0]
    with pytest.raises(CodecError):
        broker.read(timeout=10)
    second, third = broker.receive(timeout=10), broker.receive(timeout=10)
    assert (second.value, third.value) == (2, 3)
    assert third.number > second.number
    agent.write(b"4")
    fourth = broker.receive(timeout=10)
    assert fourth.value == 4
    assert fourth.number > third.number


@pytest.fixture
def pairs(listener: Listener[int], threads: ThreadPoolExecutor) -> Iterator[list[Ends]]:
    """Two pairs of ends with a small window."""
    found: list[Ends] = []
    for _ in range(2):
        coming = threads.submit(mchannel.open, str(listener.address), RAW, insecure=True, window=1 << 16)
        broker = listener.accept(10)
        found.append((attended(broker, coming), broker))
    yield found
    for agent, broker in found:
        for end in (agent, broker):
            with suppress(ChannelError):
                end.close(timeout=0)


def test_a_message_of_a_batch_has_the_number_that_it_has_when_it_is_read_alone(pairs: list[Ends]) -> None:
    """Lengths such that over shared memory the ring's end lies within the batch."""
    before, batch = [b"%1000d" % 0] * 10, [b"0", b"bad", *(b"%1000d" % number for number in range(8)), b"bad", b"8"]
    for agent, broker in pairs:
        agent.write_many(before)
        for _ in before:
            broker.read(timeout=10)
        agent.write_many(batch)
        gather(broker)
    (_, together), (_, alone) = pairs
    assert together.read_many(timeout=10) == [0]
    assert alone.read(timeout=10) == 0
    for broker in (together, alone):
        with pytest.raises(CodecError):
            broker.read(timeout=10)
    numbers = [together.receive(timeout=10).number for _ in range(8)]
    assert numbers == [alone.receive(timeout=10).number for _ in range(8)]


def test_nothing_of_a_batch_is_acknowledged_before_all_of_it_was_handed_out(
    ends: Ends, threads: ThreadPoolExecutor
) -> None:
    agent, broker = ends
    agent.write_many([b"0", b"bad", b"2"])
    gather(broker)
    assert broker.read_many(timeout=10) == [0]
    broker.done()
    with pytest.raises(ChannelTimeout):
        agent.flush(timeout=0.2)
    with pytest.raises(CodecError):
        broker.read_many(timeout=10)
    assert broker.read_many(timeout=10) == [2]
    flushing = threads.submit(agent.flush, 10)
    broker.done()
    flushing.result(10)


def test_a_batch_that_is_half_read_is_not_handed_over(ends: Ends, threads: ThreadPoolExecutor) -> None:
    agent, broker = ends
    agent.write_many([b"0", b"bad", b"2"])
    gather(broker)
    assert broker.read_many(timeout=10) == [0]
    waiting = threads.submit(agent.read, 1)
    broker.suspend(timeout=10)
    with pytest.raises(ChannelError, match="read them"):
        broker.handoff()
    with suppress(CodecError):
        broker.read(timeout=10)
    assert broker.read(timeout=10) == 2
    broker.handoff()
    with pytest.raises(ChannelTimeout):
        waiting.result(10)


def test_a_closed_listener_says_so(listener: Listener[int]) -> None:
    listener.close()
    uses: list[Callable[[], object]] = [listener.accept, listener.fileno, lambda: listener.adopt(b"")]
    for use in uses:
        with pytest.raises(ChannelClosed, match="listen again"):
            use()


def test_a_closed_channel_has_no_descriptor(ends: Ends, listener: Listener[int]) -> None:
    agent, broker = ends
    assert agent.fileno() >= 0
    assert broker.fileno() >= 0
    agent.close()
    listener.close()
    for end in ends:
        with pytest.raises(ChannelClosed):
            end.fileno()


@pytest.mark.parametrize("wire", ["memory:///descriptors", "shm:///descriptors"])
def test_descriptors_are_given_back(wire: str, threads: ThreadPoolExecutor) -> None:
    gc.collect()  # what other tests left must not end meanwhile
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with mchannel.listen(wire, RAW) as listener:
            listener.fileno()
            coming = threads.submit(mchannel.open, wire, RAW)
            broker = listener.accept(10)
            agent = attended(broker, coming)
            with agent, broker:
                agent.fileno()
                broker.fileno()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def _accept(listener: Listener[int], link: Link, late: float) -> Channel[int]:
    while time.monotonic() < late:
        link.port.pump()
        link.tick(time.monotonic())
        with suppress(ChannelTimeout):
            return listener.accept(0.01)
    raise AssertionError("nobody came")


def ended(listener: Listener[int], *written: int) -> tuple[Opening, Link]:
    """Return an opening whose peer has answered and closed before this end looked."""
    opening = Opening.of(str(listener.address), {"insecure": True}, 10)
    link = find_scheme(opening.address).dial(opening.address, opening.options)
    late = time.monotonic() + 10
    broker = _accept(listener, link, late)
    for number in written:
        broker.write(number, timeout=10)
    with suppress(ChannelTimeout):
        broker.close(timeout=0)
    while link.state is not State.ENDED and time.monotonic() < late:
        link.wait_readable(0.01)
        link.port.pump()
        link.tick(time.monotonic())
    return opening, link


def test_a_broker_that_closes_at_once_broke_the_channel(listener: Listener[int]) -> None:
    opening, link = ended(listener)
    with pytest.raises(ChannelBroken, match="see its log"):
        opening.answer(link)
    link.close()


def test_what_a_broker_wrote_before_it_closed_at_once_is_read(listener: Listener[int]) -> None:
    opening, link = ended(listener, 1, 2)
    channel = Channel(link, Numbers(), opening.answer(link))
    assert list(channel) == [1, 2]
    channel.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, ChannelTimeout])
def test_an_opening_that_is_interrupted_leaves_nothing_open(
    error: type[BaseException], listener: Listener[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled: list[Link] = []

    def interrupted(_: Opening, link: Link) -> bool:
        dialled.append(link)
        raise error

    monkeypatch.setattr(Opening, "is_answered", interrupted)
    with pytest.raises(error):
        mchannel.open(str(listener.address), RAW, insecure=True)
    assert [link.state for link in dialled] == [State.CLOSED]


def test_a_flush_ends_with_the_channel() -> None:
    with mchannel.listen("memory:///flush", RAW) as listener, ThreadPoolExecutor() as threads:
        opening = threads.submit(mchannel.open, "memory:///flush", RAW)
        broker = listener.accept(timeout=10)
        agent = attended(broker, opening)
        agent.write(b"never read")
        with suppress(ChannelTimeout):
            broker.close(timeout=0)
        with pytest.raises(ChannelBroken, match="before the peer had acknowledged"):
            agent.flush()  # without a timeout
        agent.close()
