"""What the ring promises to a channel, seen from Python."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from mchannel.errors import ChannelClosed, MessageTooBig, ProtocolError
from mchannel.transports.ring import Region, RingEnd, Side

SMALL = 1 << 12
LONG = 1 << 14
READER_FLAG = 384
"""Where the reader of what side A writes says that it sleeps."""


@pytest.fixture
def region() -> Iterator[Region]:
    with Region.create(capacity=SMALL, pool=1 << 16) as region:
        yield region


@pytest.fixture
def writer(region: Region) -> Iterator[RingEnd]:
    with RingEnd(region, Side.A) as end:
        yield end


@pytest.fixture
def reader(region: Region) -> Iterator[RingEnd]:
    with RingEnd(region, Side.B) as end:
        yield end


def fill(end: RingEnd, message: bytes = b"x" * 100) -> int:
    count = 0
    while end.write(message):
        count += 1
    return count


# ---- messages


def test_a_message_arrives_as_it_was_written(writer: RingEnd, reader: RingEnd) -> None:
    assert writer.write(b"one")
    assert reader.read() == b"one"


def test_both_directions_work_at_once(writer: RingEnd, reader: RingEnd) -> None:
    writer.write(b"there")
    reader.write(b"back")
    assert (reader.read(), writer.read()) == (b"there", b"back")


def test_an_empty_ring_reads_as_none(reader: RingEnd) -> None:
    assert reader.read() is None
    assert reader.read_many() == []
    assert reader.read_fixed(8) == b""
    assert reader.peek() is None


def test_an_empty_message_is_a_message(writer: RingEnd, reader: RingEnd) -> None:
    writer.write(b"")
    assert reader.read() == b""
    assert reader.read() is None


def test_messages_of_every_length_survive_many_turns_of_ring_and_pool(writer: RingEnd, reader: RingEnd) -> None:
    for length in [*range(70), *range(900, 1100), *range(LONG - 9, LONG + 9), 40_000, 1 << 16] * 3:
        message = os.urandom(length)
        assert writer.write(message)
        assert reader.read() == message
        reader.done()


def test_order_holds_when_short_and_long_messages_mix(writer: RingEnd, reader: RingEnd) -> None:
    sent = [bytes([i]) * (5000 if i % 3 else 20) for i in range(200)]
    received: list[bytes] = []
    waiting = iter(sent)
    message = next(waiting, None)
    while len(received) < len(sent):
        while message is not None and writer.write(message):
            message = next(waiting, None)
        while (found := reader.read()) is not None:
            received.append(found)
    assert received == sent


def test_a_full_ring_refuses_and_takes_more_after_an_acknowledgement(writer: RingEnd, reader: RingEnd) -> None:
    count = fill(writer)
    assert count > 20
    assert reader.read() is not None
    assert not writer.write(b"x" * 100)  # read, but not yet acknowledged
    reader.done()
    assert writer.write(b"x" * 100)


def test_a_full_pool_refuses_and_takes_more_after_an_acknowledgement(writer: RingEnd, reader: RingEnd) -> None:
    assert fill(writer, b"y" * LONG) == 4
    reader.read()
    reader.done()
    assert writer.write(b"z" * LONG)
    assert [reader.read() for _ in range(4)] == [b"y" * LONG] * 3 + [b"z" * LONG]


def test_a_message_as_large_as_the_pool_fits_wherever_the_pool_stands(writer: RingEnd, reader: RingEnd) -> None:
    for message in (b"a" * 30_000, b"b" * (1 << 16), b"c" * 50_000, b"d" * (1 << 16)):
        assert writer.write(message)
        assert reader.read() == message
        reader.done()


def test_a_message_larger_than_the_limit_is_refused_and_the_ring_goes_on(region: Region, reader: RingEnd) -> None:
    writer = RingEnd(region, Side.A, limit=50)
    with pytest.raises(MessageTooBig):
        writer.write(b"x" * 51)
    assert writer.write(b"x" * 50)
    assert reader.read() == b"x" * 50


def test_a_message_beyond_the_readers_limit_is_a_violation(region: Region, writer: RingEnd) -> None:
    reader = RingEnd(region, Side.B, limit=50)
    writer.write(b"x" * 51)
    with pytest.raises(ProtocolError):
        reader.read()


# ---- batches


def test_a_batch_arrives_whole_and_in_order(writer: RingEnd, reader: RingEnd) -> None:
    batch = [b"", b"a", b"bc" * 50, b"d"]
    assert writer.write_many(batch) == 4
    assert reader.read_many() == batch


def test_a_batch_is_taken_as_far_as_there_is_room(writer: RingEnd, reader: RingEnd) -> None:
    batch = [b"%04d" % i * 25 for i in range(100)]
    taken = writer.write_many(batch)
    assert 20 < taken < 100
    assert writer.write_many(batch[taken:]) == 0
    assert reader.read_many() == batch[:taken]


def test_a_batch_with_a_message_too_long_ends_before_it(writer: RingEnd, reader: RingEnd) -> None:
    batch = [b"a", b"x" * ((1 << 16) + 1), b"b"]
    assert writer.write_many(batch) == 1
    with pytest.raises(MessageTooBig):
        writer.write_many(batch[1:])
    assert reader.read_many() == [b"a"]


def test_a_batch_with_long_messages_keeps_its_order(writer: RingEnd, reader: RingEnd) -> None:
    batch = [b"a", b"x" * 30_000, b"b", b"y" * LONG]
    assert writer.write_many(batch) == 4
    received: list[bytes] = []
    while found := reader.read_many():
        received += found
    assert received == batch


def test_a_batch_is_bounded_by_the_readers_limit(writer: RingEnd, reader: RingEnd) -> None:
    writer.write_many([b"a", b"b", b"c"])
    assert reader.read_many(2) == [b"a", b"b"]
    assert reader.read_many(2) == [b"c"]


def test_a_batch_is_acknowledged_by_the_next_read(writer: RingEnd, reader: RingEnd) -> None:
    writer.write_many([b"a", b"b"])
    reader.read_many()
    assert (writer.acknowledged, writer.taken) == (0, writer.written)
    assert reader.read_many() == []
    assert writer.acknowledged == writer.written


def test_records_of_one_size_travel_as_one_blob(writer: RingEnd, reader: RingEnd) -> None:
    blob = os.urandom(8 * 64)
    assert writer.write_fixed(blob, 64) == 8
    assert reader.read_fixed(64, limit=3) == blob[: 3 * 64]
    assert reader.read_fixed(64) == blob[3 * 64 :]


def test_a_blob_must_be_whole_records(writer: RingEnd) -> None:
    with pytest.raises(ValueError, match="whole number"):
        writer.write_fixed(b"123", 2)
    with pytest.raises(ValueError, match="whole number"):
        writer.write_fixed(b"123", 0)


def test_a_blob_stops_before_a_message_of_another_size(writer: RingEnd, reader: RingEnd) -> None:
    writer.write_many([b"1234", b"5678", b"9"])
    assert reader.read_fixed(4) == b"12345678"
    with pytest.raises(ValueError, match="not one of 4 bytes"):
        reader.read_fixed(4)
    assert reader.read() == b"9"


# ---- zero copy


def test_a_peeked_message_stays_until_it_is_released(writer: RingEnd, reader: RingEnd) -> None:
    writer.write_many([b"first", b"second"])
    assert bytes(reader.peek() or b"") == b"first"
    assert bytes(reader.peek() or b"") == b"first"
    reader.release()
    assert bytes(reader.peek() or b"") == b"second"


def test_a_released_view_cannot_be_used(writer: RingEnd, reader: RingEnd) -> None:
    writer.write(b"x" * 20_000)
    view = reader.peek()
    assert view is not None
    assert view.readonly
    reader.release()
    with pytest.raises(ValueError, match="released"):
        len(view.tobytes())
    assert writer.acknowledged == writer.written


def test_closing_releases_the_view(writer: RingEnd, reader: RingEnd) -> None:
    writer.write(b"x")
    view = reader.peek()
    assert view is not None
    reader.close()
    with pytest.raises(ValueError, match="released"):
        view.tobytes()


# ---- acknowledgement and succession


def test_a_message_is_taken_when_read_and_acknowledged_when_the_next_is_asked_for(
    writer: RingEnd, reader: RingEnd
) -> None:
    writer.write(b"a")
    assert (writer.taken, writer.acknowledged) == (0, 0)
    reader.read()
    assert (writer.taken, writer.acknowledged) == (writer.written, 0)
    reader.read()
    assert writer.acknowledged == writer.written
    assert reader.received == reader.settled == writer.written


def test_done_acknowledges_without_asking_for_more(writer: RingEnd, reader: RingEnd) -> None:
    writer.write_many([b"a", b"b"])
    reader.read()
    reader.done()
    assert 0 < writer.acknowledged < writer.written
    assert reader.read() == b"b"


def test_a_successor_reads_again_what_was_not_acknowledged_and_says_so(region: Region, writer: RingEnd) -> None:
    writer.write_many([b"a", b"b", b"c"])
    with RingEnd(region, Side.B) as first:
        assert [first.read(), first.read()] == [b"a", b"b"]
        assert not first.redelivered
    with RingEnd(region, Side.B) as second:
        assert (second.read(), second.redelivered) == (b"b", 1)
        assert (second.read(), second.redelivered) == (b"c", 0)


def test_a_successor_counts_the_redelivered_messages_of_a_batch(region: Region, writer: RingEnd) -> None:
    writer.write_many([b"a", b"b", b"c"])
    with RingEnd(region, Side.B) as first:
        first.read_many(2)
    with RingEnd(region, Side.B) as second:
        assert (second.read_many(), second.redelivered) == ([b"a", b"b", b"c"], 2)


def test_a_long_message_is_redelivered_too(region: Region, writer: RingEnd) -> None:
    writer.write(b"l" * LONG)
    with RingEnd(region, Side.B) as first:
        first.read()
    with RingEnd(region, Side.B) as second:
        assert (second.read(), second.redelivered) == (b"l" * LONG, 1)


def test_a_writers_successor_goes_on_behind_what_was_published(region: Region, reader: RingEnd) -> None:
    with RingEnd(region, Side.A) as first:
        first.write(b"a")
        first.write(b"l" * LONG)
        published = first.written
    with RingEnd(region, Side.A) as second:
        assert second.written == published
        assert fill(second, b"m" * LONG) == 3  # the chunk in flight is not overwritten
    assert [reader.read() for _ in range(6)] == [b"a", b"l" * LONG, *[b"m" * LONG] * 3, None]


def test_a_writers_successor_finds_the_whole_pool_free_when_all_is_acknowledged(
    region: Region, reader: RingEnd
) -> None:
    with RingEnd(region, Side.A) as first:
        first.write(b"l" * 40_000)
    reader.read()
    reader.done()
    with RingEnd(region, Side.A) as second:
        assert second.write(b"m" * (1 << 16))
    assert reader.read() == b"m" * (1 << 16)


# ---- waiting


def test_a_wait_on_an_empty_ring_ends_at_its_timeout(reader: RingEnd) -> None:
    start = time.monotonic()
    assert not reader.wait_readable(0.05)
    assert reader.read(timeout=0.05) is None
    assert time.monotonic() - start >= 0.1


def test_a_sleeping_reader_is_woken_by_a_message(region: Region, writer: RingEnd, reader: RingEnd) -> None:
    def wake() -> None:
        flag = memoryview(region.memory)[READER_FLAG : READER_FLAG + 4]
        while not any(flag):
            time.sleep(0.01)
        writer.write(b"wake")

    thread = threading.Thread(target=wake)
    thread.start()
    assert reader.read(timeout=None) == b"wake"
    thread.join()
    assert writer.rung == 1


def test_a_reader_that_is_awake_is_not_rung(writer: RingEnd, reader: RingEnd) -> None:
    for _ in range(10):
        writer.write(b"x")
        reader.read()
    assert writer.rung == reader.rung == 0


def test_a_sleeping_writer_is_woken_by_an_acknowledgement(writer: RingEnd, reader: RingEnd) -> None:
    fill(writer)
    reader.read()
    thread = threading.Timer(0.05, reader.done)
    thread.start()
    assert writer.wait_writable(5)
    assert writer.write(b"x" * 100)
    thread.join()


def test_a_writer_with_room_does_not_wait(writer: RingEnd) -> None:
    assert writer.wait_writable(None)


def test_a_signal_handler_runs_during_a_wait(reader: RingEnd) -> None:
    class Rang(Exception):
        pass

    def ring(_number: int, _frame: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise Rang

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)  # again and again: the first may come before the wait
        with pytest.raises(Rang):
            reader.wait_readable(None)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_close_ends_the_wait_of_another_thread(reader: RingEnd) -> None:
    thread = threading.Timer(0.05, reader.close)
    thread.start()
    with pytest.raises(ChannelClosed):
        reader.read(timeout=None)
    thread.join()


def test_attention_is_called_during_a_wait_and_may_raise(region: Region) -> None:
    class Gone(Exception):
        pass

    calls: list[float] = []

    def look() -> None:
        calls.append(time.monotonic())
        if len(calls) == 3:
            raise Gone

    reader = RingEnd(region, Side.B, attention=look)
    with pytest.raises(Gone):
        reader.read(timeout=None)
    assert calls[2] - calls[1] >= 0.02


def test_attention_is_called_now_and_then_by_a_busy_loop(region: Region) -> None:
    calls: list[float] = []
    writer = RingEnd(region, Side.A, attention=lambda: calls.append(time.monotonic()))
    reader = RingEnd(region, Side.B)
    end = time.monotonic() + 20
    while len(calls) < 3:
        assert time.monotonic() < end, "nobody looked"
        assert writer.write(b"x")
        assert reader.read() == b"x"
    assert calls[2] - calls[1] >= 0.02


# ---- the bell


@pytest.fixture
def bells() -> Iterator[tuple[socket.socket, socket.socket]]:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with a, b:
        yield a, b


def rings(fd: int, timeout: float = 0) -> bool:
    return bool(select.select([fd], [], [], timeout)[0])


def test_an_armed_reader_is_rung_once(region: Region, bells: tuple[socket.socket, socket.socket]) -> None:
    a, b = (bell.fileno() for bell in bells)
    writer = RingEnd(region, Side.A, bell=a, peer_bell=a)
    reader = RingEnd(region, Side.B, bell=b, peer_bell=b)
    writer.write(b"unarmed")
    assert not rings(b)
    reader.read()
    assert not reader.arm_readable()
    writer.write(b"one")
    writer.write(b"two")
    assert rings(b)
    reader.drain()
    assert not rings(b)
    assert writer.rung == 1


def test_arming_a_ring_with_a_message_says_so_and_does_not_ring(
    region: Region, bells: tuple[socket.socket, socket.socket]
) -> None:
    a, b = (bell.fileno() for bell in bells)
    writer = RingEnd(region, Side.A, bell=a, peer_bell=a)
    reader = RingEnd(region, Side.B, bell=b, peer_bell=b)
    writer.write(b"one")
    assert reader.arm_readable()
    writer.write(b"two")
    assert not rings(b)


def test_an_armed_writer_is_rung_by_an_acknowledgement(
    region: Region, bells: tuple[socket.socket, socket.socket]
) -> None:
    a, b = (bell.fileno() for bell in bells)
    writer = RingEnd(region, Side.A, bell=a, peer_bell=a)
    reader = RingEnd(region, Side.B, bell=b, peer_bell=b)
    fill(writer)
    reader.read()
    assert not writer.arm_writable()
    reader.done()
    assert rings(a)


def test_a_disarmed_reader_is_not_rung(region: Region, bells: tuple[socket.socket, socket.socket]) -> None:
    a, b = (bell.fileno() for bell in bells)
    writer = RingEnd(region, Side.A, bell=a, peer_bell=a)
    reader = RingEnd(region, Side.B, bell=b, peer_bell=b)
    reader.arm_readable()
    reader.disarm()
    writer.write(b"x")
    assert not rings(b)


def test_an_eventfd_serves_as_a_bell(region: Region) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        writer = RingEnd(region, Side.A, peer_bell=fd)
        reader = RingEnd(region, Side.B, bell=fd)
        reader.arm_readable()
        writer.write(b"x")
        assert rings(fd)
        reader.drain()
        assert not rings(fd)
    finally:
        os.close(fd)


def test_without_a_futex_a_wait_sleeps_on_the_bell(region: Region, bells: tuple[socket.socket, socket.socket]) -> None:
    a, b = (bell.fileno() for bell in bells)
    writer = RingEnd(region, Side.A, bell=a, peer_bell=a, futex=False)
    reader = RingEnd(region, Side.B, bell=b, peer_bell=b, futex=False)
    thread = threading.Timer(0.05, writer.write, [b"wake"])
    thread.start()
    assert reader.read(timeout=None) == b"wake"
    thread.join()
    assert not rings(b)


def test_without_futex_and_bell_a_wait_polls(region: Region) -> None:
    writer = RingEnd(region, Side.A, futex=False)
    reader = RingEnd(region, Side.B, futex=False)
    thread = threading.Timer(0.05, writer.write, [b"seen"])
    thread.start()
    assert reader.read(timeout=None) == b"seen"
    thread.join()
    assert writer.rung == 0


# ---- violations and ends


def overwrite(region: Region, offset: int, value: int) -> None:
    memoryview(region.memory)[offset : offset + 8] = value.to_bytes(8, "little")


TAIL, HEAD, TAKEN, DATA = 128, 256, 264, 4096


@pytest.mark.parametrize("tail", [4, SMALL + 8, 1 << 63, (1 << 64) - 8], ids=["crooked", "far", "huge", "behind"])
def test_a_tail_out_of_range_is_a_violation_for_ever(region: Region, reader: RingEnd, tail: int) -> None:
    overwrite(region, TAIL, tail)
    with pytest.raises(ProtocolError, match="writer's index"):
        reader.read()
    overwrite(region, TAIL, 0)
    for call in (reader.read, reader.read_many, reader.peek, lambda: reader.write(b"x")):
        with pytest.raises(ProtocolError):
            call()
    reader.close()


@pytest.mark.parametrize("head", [4, SMALL, 1 << 63, (1 << 64) - 8], ids=["crooked", "far", "huge", "behind"])
def test_a_head_out_of_range_is_a_violation_for_ever(region: Region, writer: RingEnd, head: int) -> None:
    fill(writer)
    overwrite(region, HEAD, head + 8 if head == SMALL else head)
    with pytest.raises(ProtocolError, match="reader's index"):
        writer.write(b"x" * 100)
    overwrite(region, HEAD, 0)
    with pytest.raises(ProtocolError):
        writer.read()


def test_a_taken_index_out_of_range_is_a_violation(region: Region, writer: RingEnd) -> None:
    writer.write(b"x")
    overwrite(region, TAKEN, 1 << 20)
    with pytest.raises(ProtocolError, match="taken"):
        assert writer.taken < 0
    with pytest.raises(ProtocolError):
        RingEnd(region, Side.B)


@pytest.mark.parametrize(
    "word",
    [1 << 31, 5000, 9, 3 << 32 | 8, 1 << 48 | 8, 1 << 32 | 8, 2 << 32 | 8],
    ids=["huge", "beyond the ring", "beyond the tail", "type", "flags", "pad in the middle", "short chunk"],
)
def test_a_record_that_cannot_be_is_a_violation(region: Region, reader: RingEnd, word: int) -> None:
    overwrite(region, DATA, word)
    overwrite(region, TAIL, 16)
    with pytest.raises(ProtocolError, match="record"):
        reader.read()


@pytest.mark.parametrize(
    ("index", "length"), [(0, (1 << 16) + 1), (8, 1 << 16), (0, (1 << 64) - 1)], ids=["long", "over the end", "huge"]
)
def test_a_chunk_outside_the_pool_is_a_violation(region: Region, reader: RingEnd, index: int, length: int) -> None:
    overwrite(region, DATA, 2 << 32 | 16)
    overwrite(region, DATA + 8, index)
    overwrite(region, DATA + 16, length)
    overwrite(region, TAIL, 24)
    with pytest.raises(ProtocolError, match="pool"):
        reader.read()


def test_a_flag_of_no_known_kind_rings_nothing(region: Region, writer: RingEnd, reader: RingEnd) -> None:
    overwrite(region, 384, 77)
    assert writer.write(b"x")
    assert writer.rung == 0
    assert reader.read() == b"x"


def test_a_closed_end_says_so(writer: RingEnd) -> None:
    writer.close()
    writer.close()
    for call in (writer.read, writer.read_many, writer.peek, lambda: writer.write(b"x")):
        with pytest.raises(ChannelClosed):
            call()


def test_an_end_outlives_its_region(region: Region, writer: RingEnd, reader: RingEnd) -> None:
    region.close()
    writer.write(b"x")
    assert reader.read() == b"x"
