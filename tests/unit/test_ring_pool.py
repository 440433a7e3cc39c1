"""Where long messages lie: no chunk in flight is overwritten, forgotten, or believed to lie where none can."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mchannel.errors import ProtocolError
from mchannel.transports.ring import Region, RingEnd, Side

SMALL = 1 << 12
POOL = 1 << 16
CHUNKS = 1024
"""The most chunks in flight (MC_CHUNKS)."""


@pytest.fixture
def region() -> Iterator[Region]:
    with Region.create(capacity=SMALL, pool=POOL) as region:
        yield region


@pytest.mark.parametrize("first", range(5000, POOL, 5000))
@pytest.mark.parametrize("length", [POOL // 2, POOL - 5000])
def test_a_chunk_in_flight_is_not_overwritten_wherever_an_empty_pool_begins_again(
    region: Region, first: int, length: int
) -> None:
    writer, reader = RingEnd(region, Side.A), RingEnd(region, Side.B)
    assert writer.write(b"f" * first)
    assert reader.read() == b"f" * first
    reader.done()
    assert writer.write(b"a" * length)
    follows = [message for message in (b"b" * (POOL // 2), b"c" * 5000) if writer.write(message)]
    assert follows
    assert [reader.read() for _ in range(1 + len(follows))] == [b"a" * length, *follows]


def test_the_writer_keeps_account_of_a_bounded_number_of_chunks() -> None:
    length = 1 << 13  # too long for a record of this ring, short enough for more chunks than there may be
    with Region.create(capacity=1 << 15, pool=1 << 24) as region:
        writer, reader = RingEnd(region, Side.A), RingEnd(region, Side.B)
        messages = [number.to_bytes(2, "little") * (length // 2) for number in range(CHUNKS + 1)]
        assert writer.write_many(messages) == CHUNKS
        assert not writer.write(messages[-1])
        assert reader.read() == messages[0]
        reader.done()
        assert writer.write(messages[-1])
        assert [reader.read() for _ in range(CHUNKS)] == messages[1:]


@pytest.mark.parametrize(
    "chunks",
    [
        [(0, 2000), (1000, 2000)],
        [(8000, 2000), (1000, 2000)],
        [(0, 2000), (POOL + 2000, 2000)],
        [(1000, 2000), (POOL, 2000)],
    ],
    ids=["overlapping", "behind", "beyond the pool", "over the first"],
)
def test_a_successor_of_a_writer_refuses_chunks_that_cannot_be_in_flight(
    region: Region, chunks: list[tuple[int, int]]
) -> None:
    words = [word for at, length in chunks for word in (2 << 32 | 16, at, length)]
    memory = memoryview(region.memory)
    memory[SMALL : SMALL + 8 * len(words)] = b"".join(word.to_bytes(8, "little") for word in words)
    memory[128:136] = (8 * len(words)).to_bytes(8, "little")  # the tail
    with pytest.raises(ProtocolError, match="pool"):
        RingEnd(region, Side.A)
