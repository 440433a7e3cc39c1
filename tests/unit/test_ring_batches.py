"""What a reader of many messages learns about each, and how it gets the newest alone."""

from __future__ import annotations

from collections.abc import Iterator

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
