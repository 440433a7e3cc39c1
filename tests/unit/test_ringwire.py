"""Frames through a ring, over plain memory with eventfds as bells."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Iterator
from mmap import mmap

import attrs
import pytest

from mchannel.errors import ChannelBroken, ProtocolError
from mchannel.frame import Frame, Kind
from mchannel.transport import Peer
from mchannel.transports.region import Lanes, lanes_size
from mchannel.transports.ring import RingEnd, Side
from mchannel.transports.ringwire import RingPort, RingWire

CAPACITY = 1 << 16
POOL = 1 << 14
LONGEST = 1 << 20
TAIL, HEAD = 128, 256  # of the first lane


class EventBell:
    """An eventfd for either end."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.rings = 0

    def ring(self) -> None:
        self.rings += 1
        os.eventfd_write(self.fd, 1)

    def silence(self) -> None:
        os.eventfd_read(self.fd)


@attrs.define(eq=False)
class End:
    """A wire, what it rings and is woken by, and what it heard."""

    wire: RingWire
    bell: EventBell
    port: RingPort
    heard: list[bytes] = attrs.Factory(list[bytes])
    error: Exception | None = None

    def heed(self) -> None:
        self.bell.silence()
        self.wire.hear()

    def take(self) -> None:
        if self.error is not None:
            return  # as a link, which lets go then
        try:
            while (frame := self.wire.recv()) is not None:
                self.heard.append(frame)
        except (ChannelBroken, ProtocolError) as error:
            self.error = error

    def awake(self) -> bool:
        return bool(select.select([self.port], [], [], 0)[0])


@attrs.define(eq=False)
class Pair:
    """Both ends of one ring."""

    memory: mmap
    agent: End
    broker: End
    released: list[str]

    def run(self) -> None:
        """Pump until nobody is awake."""
        for _ in range(10_000):
            ends = [end for end in (self.agent, self.broker) if end.awake()]
            if not ends:
                return
            for end in ends:
                end.port.pump()
        raise AssertionError("the ends wake each other for ever")

    def close(self) -> None:
        for end in (self.agent, self.broker):
            end.wire.close()
            end.port.close()
            os.close(end.bell.fd)

    def poke(self, at: int, value: int) -> None:
        self.memory[at : at + 8] = struct.pack("<Q", value)


def make(memory: mmap, *, longest: int = LONGEST) -> Pair:
    released: list[str] = []
    first, second = EventBell(), EventBell()

    def end(side: Side, own: EventBell, peer: EventBell) -> End:
        def release() -> None:
            released.append(side.name)

        port, who = RingPort(), Peer(side.name, f"ring:{side.name}")
        made = End(RingWire(Lanes(memory), side, peer.ring, port, who, longest=longest, release=release), own, port)
        port.watch(own.fd, made.heed)
        made.wire.on_news = made.take
        return made

    return Pair(memory, end(Side.A, first, second), end(Side.B, second, first), released)


def memory() -> mmap:
    found = mmap(-1, lanes_size(CAPACITY, POOL))
    Lanes.lay_out(found, CAPACITY, POOL)
    return found


@pytest.fixture
def pair() -> Iterator[Pair]:
    found = make(memory())
    found.run()
    yield found
    found.close()


def test_a_frame_arrives_and_wakes_the_other_end(pair: Pair) -> None:
    assert pair.agent.wire.send(b"hello")
    assert pair.broker.awake()
    pair.run()
    assert pair.broker.heard == [b"hello"]


def test_an_end_that_found_nothing_sleeps(pair: Pair) -> None:
    assert not pair.agent.awake()
    assert not pair.broker.awake()


def test_a_peer_that_is_awake_is_not_rung_again(pair: Pair) -> None:
    rings = pair.broker.bell.rings
    for _ in range(10):
        pair.agent.wire.send(b"x")
    assert pair.broker.bell.rings == rings + 1


@pytest.mark.parametrize("size", [0, 1, POOL - 9, POOL - 1, POOL, 3 * POOL, LONGEST])
def test_a_frame_of_any_size_arrives_whole(pair: Pair, size: int) -> None:
    frame = os.urandom(size)
    pair.agent.wire.send(frame)
    pair.run()
    assert pair.broker.heard == [frame]


def test_frames_that_do_not_fit_are_put_off_and_go_on_by_themselves(pair: Pair) -> None:
    sent = 0
    while pair.agent.wire.send(b"%6d" % sent + bytes(1000)):
        sent += 1
    assert not pair.agent.wire.send(b"too much")
    pair.run()
    assert [int(frame[:6]) for frame in pair.broker.heard] == list(range(sent))


def test_a_flood_is_taken_in_portions(pair: Pair) -> None:
    for number in range(600):
        assert pair.agent.wire.send(b"%d" % number)
    pair.broker.port.pump()
    assert 0 < len(pair.broker.heard) < 600
    assert pair.broker.awake()
    pair.run()
    assert len(pair.broker.heard) == 600


def test_a_peer_that_writes_as_fast_as_it_is_read_does_not_hold_the_loop(pair: Pair) -> None:
    def take() -> None:
        while len(pair.broker.heard) < 2000 and (frame := pair.broker.wire.recv()) is not None:
            pair.broker.heard.append(frame)
            assert pair.agent.wire.send(b"more")

    pair.broker.wire.on_news = take
    for _ in range(100):
        pair.agent.wire.send(b"more")
    pair.broker.port.pump()
    assert 100 < len(pair.broker.heard) < 600
    assert pair.broker.awake()


def test_a_reader_that_stops_early_is_called_again(pair: Pair) -> None:
    found: list[bytes | None] = []
    pair.broker.wire.on_news = lambda: found.append(pair.broker.wire.recv())
    for number in range(3):
        pair.agent.wire.send(b"%d" % number)
    pair.run()
    assert found == [b"0", b"1", b"2"]


def test_what_was_sent_before_the_peer_went_can_still_be_read(pair: Pair) -> None:
    for number in range(600):
        pair.agent.wire.send(b"%d" % number)
    pair.broker.wire.fail(ChannelBroken("gone"))
    pair.run()
    assert len(pair.broker.heard) == 600
    assert isinstance(pair.broker.error, ChannelBroken)
    with pytest.raises(ChannelBroken, match="gone"):
        pair.broker.wire.send(b"x")


def test_a_peer_that_went_and_broke_the_rules_is_one_that_broke_the_rules(pair: Pair) -> None:
    pair.broker.wire.fail(ChannelBroken("gone"))
    pair.poke(TAIL, 1 << 40)
    pair.run()
    assert isinstance(pair.broker.error, ProtocolError)
    pair.broker.wire.fail(ChannelBroken("gone again"))
    with pytest.raises(ProtocolError):
        pair.broker.wire.send(b"x")


def test_a_successor_that_joins_amid_a_frame_hears_the_next_one_whole(pair: Pair) -> None:
    pair.agent.wire.send(bytes(CAPACITY))
    pair.broker.wire.on_news = None  # only a part of it was read
    end = RingEnd(Lanes(pair.memory), Side.B, futex=False)
    assert end.read() is not None
    end.done()
    end.close()
    successor = make(pair.memory)
    for one in (pair.agent, pair.broker):
        one.wire.close()
    successor.agent.wire.send(b"whole")
    successor.run()
    assert successor.broker.heard == [b"whole"]


def test_what_a_writer_began_before_it_died_is_part_of_nothing(pair: Pair) -> None:
    pair.agent.wire.close()
    with RingEnd(Lanes(pair.memory), Side.A, futex=False) as end:
        for record in (b"\x01begun", b"\x03whole", b"\x02ended", b"\x01two ", b"\x02parts"):
            end.write(record)
        pair.broker.wire.hear()
    assert pair.broker.heard == [b"whole", b"two parts"]


def test_a_wire_that_comes_after_another_calls_its_own_session(pair: Pair) -> None:
    wire = RingWire(
        Lanes(pair.memory), Side.A, lambda: None, pair.agent.port, Peer("b", "b"), longest=LONGEST, anew=True
    )
    first = wire.recv()
    assert first is not None
    assert Frame.decode(first, 0).kind is Kind.CALL
    assert wire.recv() is None
    wire.close()


@pytest.mark.parametrize(("at", "value"), [(TAIL, 1 << 40), (TAIL, 4)])
def test_an_index_that_cannot_be_ends_the_wire(pair: Pair, at: int, value: int) -> None:
    pair.poke(at, value)
    pair.broker.wire.hear()
    pair.run()
    assert isinstance(pair.broker.error, ProtocolError)
    with pytest.raises(ProtocolError):
        pair.broker.wire.send(b"x")


@pytest.mark.parametrize("record", [b"", b"\x04x", b"\xffx"])
def test_a_part_that_is_marked_in_no_known_way_ends_the_wire(pair: Pair, record: bytes) -> None:
    pair.agent.wire.close()
    with RingEnd(Lanes(pair.memory), Side.A, futex=False) as hostile:
        hostile.write(record)
        pair.broker.wire.hear()
        pair.run()
    assert isinstance(pair.broker.error, ProtocolError)


def test_a_frame_without_end_ends_the_wire() -> None:
    pair = make(memory(), longest=10_000)
    pair.agent.wire.close()
    with RingEnd(Lanes(pair.memory), Side.A, futex=False) as hostile:
        hostile.write(b"\x01" + bytes(4000))
        for _ in range(3):
            hostile.write(b"\x00" + bytes(4000))
        pair.run()
    assert isinstance(pair.broker.error, ProtocolError)
    assert pair.broker.heard == []


def test_a_wire_that_was_closed_touches_its_memory_no_more(pair: Pair) -> None:
    pair.agent.wire.close()
    pair.agent.wire.close()
    assert pair.released == ["A"]
    before = pair.memory[:]
    with pytest.raises(ChannelBroken):
        pair.agent.wire.send(b"x")
    with pytest.raises(ChannelBroken):
        pair.agent.wire.recv()
    pair.agent.wire.hear()
    assert pair.memory[:] == before
