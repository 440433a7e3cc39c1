"""Freshness for history: what a writer of the latest may send, and what its reader sees."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

import mchannel
from mchannel.codec import RawCodec
from mchannel.errors import EndOfChannel
from mchannel.frame import OVERHEAD, Frame, Kind, Terms
from mchannel.session import Role, Session, Timing
from mchannel.transport import Delivery
from tests.unit.faces import attended

WINDOW, SIZE = 10_000, 100
FIT = WINDOW // (SIZE + OVERHEAD)
TERMS = Terms(1000, WINDOW, Delivery.LATEST)


def payload(number: int) -> bytes:
    return b"%d" % number + b"." * (SIZE - len(b"%d" % number))


def value(data: bytes) -> int:
    return int(data.rstrip(b"."))


class Ends:
    """A writer and a reader on a wire without limit, which is the worst that there is."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.writer = Session(Role.AGENT, b"s" * 16, TERMS, Timing())
        self.reader = Session(Role.BROKER, b"s" * 16, TERMS, Timing())
        self.writer.hello(self.now)
        self.exchange()

    def exchange(self) -> None:
        while self.writer.outgoing or self.reader.outgoing:
            self.carry(self.writer, self.reader)
            self.carry(self.reader, self.writer)

    def carry(self, source: Session, sink: Session) -> None:
        while source.outgoing:
            sink.receive(source.outgoing.popleft(), self.now)

    def write(self, numbers: Iterator[int] | range) -> list[bytes]:
        """Write, and return the messages that went on the wire."""
        wire: list[bytes] = []
        for number in numbers:
            assert self.writer.send(payload(number)), "latest never waits"
            wire += self.writer.outgoing
            self.writer.outgoing.clear()
        return [frame for frame in wire if Frame.decode(frame, 1000).kind is Kind.DATA]


@pytest.fixture
def ends() -> Ends:
    return Ends()


def test_a_reader_that_stops_lets_no_more_than_a_window_be_sent_or_kept(ends: Ends) -> None:
    wire = ends.write(range(10_000))
    assert sum(map(len, wire)) <= WINDOW
    kept = pickle.dumps(ends.writer)
    assert len(kept) < 2 * WINDOW


def test_after_a_pause_the_newest_is_read_first(ends: Ends) -> None:
    for frame in ends.write(range(10_000)):
        ends.reader.receive(frame, ends.now)
    assert ends.reader.next() is None, "the writer has not said yet what is newest"
    ends.exchange()
    message = ends.reader.next()
    assert message is not None
    assert value(message[1]) == 9999


def test_a_writer_that_does_not_answer_delays_a_read_no_longer_than_agreed(ends: Ends) -> None:
    for frame in ends.write(range(10_000)):
        ends.reader.receive(frame, ends.now)
    assert ends.reader.take(10) == []
    due = ends.reader.deadline()
    assert due is not None
    assert due <= ends.now + Timing().catch_up
    ends.reader.tick(ends.now + Timing().catch_up)
    assert [value(payload) for _, payload, _ in ends.reader.take(10)] == [FIT - 1]


def test_a_reader_that_never_reads_does_not_stop_the_writer(ends: Ends) -> None:
    for number in range(1000):
        ends.writer.send(payload(number))
        ends.exchange()
    message = ends.reader.next()
    assert message is not None
    assert value(message[1]) == 999


def test_the_last_message_of_a_writer_that_closed_is_read_without_waiting(ends: Ends) -> None:
    for frame in ends.write(range(5)):
        ends.reader.receive(frame, ends.now)
    ends.writer.close()
    ends.carry(ends.writer, ends.reader)
    message = ends.reader.next()
    assert message is not None
    assert value(message[1]) == 4
    with pytest.raises(EndOfChannel):
        ends.reader.next()


def test_what_was_held_back_is_sent_after_a_reconnection(ends: Ends) -> None:
    ends.write(range(10_000))  # all of it is lost with the connection
    ends.writer.hello(ends.now)
    ends.exchange()
    message = ends.reader.next()
    assert message is not None
    assert value(message[1]) == 9999
    ends.reader.done()
    ends.reader.acknowledge()
    ends.exchange()
    assert ends.writer.flushed


@pytest.mark.parametrize("address", ["memory:///latest", "ipc:///latest"])
def test_over_a_wire_too_the_newest_is_read_first_after_a_pause(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCHANNEL_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("mchannel.framed.Timing", partial(Timing, catch_up=10.0))  # for a machine that is busy
    raw = RawCodec()
    with ThreadPoolExecutor() as threads, mchannel.listen(address, raw) as listener:
        coming = threads.submit(mchannel.open, address, raw, delivery="latest", window=1 << 16, max_message=1 << 12)
        broker = listener.accept(timeout=10)
        agent = attended(broker, coming)
        for number in range(5000):
            agent.write(str(number).encode().ljust(1000), timeout=0)
        flushing = threads.submit(agent.flush, 10)  # it goes on to hear what the reader says
        assert int(broker.read(timeout=10)) == 4999
        broker.done()
        flushing.result(10)
        agent.close()
