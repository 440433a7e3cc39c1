"""What batches tell their reader and their writer, the newest alone, and a release after other reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from mchannel.errors import ProtocolError
from mchannel.transports.ring import Region, RingEnd, Side


@pytest.fixture
def region() -> Iterator[Region]:
    with Region.create(capacity=1 << 12, pool=1 << 16) as region:
        yield region


@pytest.fixture
def writer(region: Region) -> Iterator[RingEnd]:
    with RingEnd(region, Side.A) as end:
        yield end


@pytest.fixture
def reader(region: Region) -> Iterator[RingEnd]:
    with RingEnd(region, Side.B) as end:
        yield end


def test_a_batch_tells_where_each_of_its_messages_ends(writer: RingEnd, reader: RingEnd) -> None:
    written: list[int] = []
    for length in [0, 1, 8, 900, 700, 13, 2000, 900, 900]:  # the end of the ring lies among them
        if not writer.write(bytes(length)):
            assert written
            assert reader.read_many()
            assert reader.ends == written
            reader.done()
            written.clear()
            assert writer.write(bytes(length))
        written.append(writer.written)
    reader.read_many()
    assert reader.ends == written


def test_a_long_message_that_comes_alone_ends_where_the_reader_is(writer: RingEnd, reader: RingEnd) -> None:
    writer.write(b"short")
    reader.read_many()
    writer.write(bytes(20_000))
    assert reader.read_many() == [bytes(20_000)]
    assert reader.ends == [writer.written]


@pytest.mark.parametrize("length", [1, 100, 20_000])
def test_the_newest_is_read_and_those_before_it_are_acknowledged(writer: RingEnd, reader: RingEnd, length: int) -> None:
    assert reader.read_newest() is None
    assert writer.write_many([bytes([number]) * length for number in range(2)]) == 2
    older = writer.written
    assert writer.write(bytes([2]) * length)
    assert reader.read_newest() == bytes([2]) * length
    assert writer.acknowledged == older
    assert reader.read_newest() is None
    assert writer.acknowledged == writer.written


def test_the_newest_after_a_batch_that_left_something_is_the_newest_of_all(writer: RingEnd, reader: RingEnd) -> None:
    writer.write_many([b"1", b"2", b"3"])
    assert reader.read_many(1) == [b"1"]
    writer.write(b"4")
    assert reader.read_newest() == b"4"


def test_an_index_out_of_range_is_no_newest(region: Region, writer: RingEnd, reader: RingEnd) -> None:
    writer.write(b"1")
    memoryview(region.memory)[128:136] = (1 << 40).to_bytes(8, "little")
    with pytest.raises(ProtocolError):
        reader.read_newest()


def three_by_one(reader: RingEnd) -> list[bytes | None]:
    return [reader.read() for _ in range(3)]


def three_in_a_batch(reader: RingEnd) -> list[bytes]:
    return reader.read_many(3)


def three_in_a_blob(reader: RingEnd) -> list[bytes]:
    return [bytes([byte]) for byte in reader.read_fixed(1, 3)]


@pytest.mark.parametrize("read", [three_by_one, three_in_a_batch, three_in_a_blob])
def test_a_release_after_other_reads_goes_back_to_nothing(
    writer: RingEnd, reader: RingEnd, read: Callable[[RingEnd], list[bytes | None]]
) -> None:
    writer.write_many([b"0", b"1", b"2", b"3"])
    assert bytes(reader.peek() or b"") == b"0"
    assert read(reader) == [b"0", b"1", b"2"]
    received = reader.received
    reader.release()
    assert reader.received == reader.settled == received
    assert [reader.read(), reader.read()] == [b"3", None]


def test_what_was_peeked_last_is_what_a_release_is_done_with(writer: RingEnd, reader: RingEnd) -> None:
    writer.write_many([b"0", b"1", b"2"])
    reader.peek()
    reader.read_many(1)
    assert bytes(reader.peek() or b"") == b"1"
    reader.release()
    reader.release()
    assert [reader.read(), reader.read()] == [b"2", None]


def test_a_batch_that_found_room_for_a_part_lets_the_writer_wait_for_more(writer: RingEnd, reader: RingEnd) -> None:
    assert 0 < writer.write_many([b"x" * 100] * 100) < 100
    assert not writer.wait_writable(0.05)
    reader.read_many()
    reader.done()
    assert writer.wait_writable(0)
