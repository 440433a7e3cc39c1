"""Frames of several streams over a wire of bytes that may be torn anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mchannel.transports.stream import (
    CAPACITY,
    EVERYBODY,
    LONGEST,
    QUANTUM,
    READY,
    Demultiplexer,
    Key,
    Multiplexer,
)

SLA, METRICS = Key(b"\1\2\3\4", "sla"), Key(b"\xc1\xf6\0\1", "metrics")
LIMIT = 1 << 20
NASTY = st.lists(st.sampled_from([b"\xc1", b"\xf6", b"\0", b"\1", b"a"]), max_size=40).map(b"".join)
PIECES = st.tuples(NASTY.filter(bool) | st.binary(min_size=1, max_size=40), st.sampled_from([1, 1, 1, 200, 1000]))
FRAMES = st.lists(st.tuples(st.sampled_from([SLA, METRICS]), PIECES), max_size=10)
"""What frames are made of: a few bytes, over and over."""

SIZES = st.lists(st.integers(1, 5000), min_size=1, max_size=5)
PLACES = st.tuples(st.integers(0, 1 << 20), st.integers(0, 1 << 20))
Drawn = list[tuple[Key, tuple[bytes, int]]]


def made(drawn: Drawn) -> list[tuple[Key, bytes]]:
    """Return the frames."""
    return [(key, piece * count) for key, (piece, count) in drawn]


def wired(frames: Sequence[tuple[Key, bytes]]) -> bytes:
    """Return what goes over the wire, each frame whole before the next."""
    mux = Multiplexer()
    sent = bytearray()
    for key, frame in frames:
        assert mux.put(key, frame)
        sent += mux.take(LIMIT)
    return bytes(sent)


def received(demux: Demultiplexer, data: bytes, sizes: Sequence[int] = (1 << 30,)) -> list[tuple[Key, bytes]]:
    """Return what arrives when *data* comes in portions of *sizes*, over and over, though not in too many."""
    found: list[tuple[Key, bytes]] = []
    at, turn = 0, 0
    while at < len(data):
        size = max(sizes[turn % len(sizes)], len(data) // 500)
        found += demux.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    return found


@given(FRAMES, SIZES)
def test_frames_arrive_whole_and_in_order_however_the_bytes_are_portioned(drawn: Drawn, sizes: list[int]) -> None:
    frames = made(drawn)
    demux = Demultiplexer(LIMIT, 8)
    assert received(demux, wired(frames), sizes) == frames
    assert demux.garbage == demux.incomplete == 0


@given(FRAMES, st.integers(0, 10), PIECES, SIZES)
def test_garbage_between_two_frames_harms_none_of_them(
    drawn: Drawn, at: int, garbage: tuple[bytes, int], sizes: list[int]
) -> None:
    frames = made(drawn)
    wire = wired(frames[:at]) + garbage[0] * garbage[1] + wired(frames[at:])
    assert received(Demultiplexer(LIMIT, 8), wire, sizes) == frames


@given(FRAMES, PLACES, NASTY)
def test_a_tear_takes_the_frames_that_it_hits_and_no_others(
    drawn: Drawn, places: tuple[int, int], instead: bytes
) -> None:
    frames = made(drawn)
    mux = Multiplexer()
    ends = [0]
    wire = b""
    for key, frame in frames:
        mux.put(key, frame)
        wire += mux.take(LIMIT)
        ends.append(len(wire))
    start, end = sorted(place % (len(wire) + 1) for place in places)
    spans = zip(frames, ends[:-1], ends[1:], strict=True)
    whole = [frame for frame, begin, finish in spans if finish <= start or end <= begin]
    found = received(Demultiplexer(LIMIT, 8), wire[:start] + instead + wire[end:])
    rest, left = iter(frames), iter(found)
    assert all(each in rest for each in found), "a frame was invented, or came out of order"
    assert all(each in left for each in whole), "a frame was lost that was not hit"


@given(st.integers(4001, 30_000), st.integers(4001, 30_000), PLACES)
def test_the_head_of_one_frame_and_the_tail_of_another_never_make_a_third(
    first: int, second: int, places: tuple[int, int]
) -> None:
    frames = [(SLA, b"1" * first), (SLA, b"2" * second)]
    wire = wired(frames)
    start, end = sorted(place % (len(wire) + 1) for place in places)
    assert all(each in frames for each in received(Demultiplexer(LIMIT, 8), wire[:start] + wire[end:]))


@example(b"\xc1" * 100)
@given(st.binary(max_size=2000))
def test_noise_is_no_frame_and_is_counted(noise: bytes) -> None:
    demux = Demultiplexer(LIMIT, 8)
    assert received(demux, noise + b"\xc1") == []
    assert demux.garbage == len(noise.replace(b"\xc1", b""))


def test_a_message_that_looks_like_segments_does_not_become_one_after_a_tear() -> None:
    forged = wired([(METRICS, b"forged")])
    wire = wired([(SLA, b"x" * 100 + forged + b"x" * 100)])
    for cut in range(len(wire)):
        assert received(Demultiplexer(LIMIT, 8), wire[cut:])[1:] == []
        assert (METRICS, b"forged") not in received(Demultiplexer(LIMIT, 8), wire[cut:])


def test_every_flipped_bit_is_noticed() -> None:
    wire = wired([(SLA, b"a message that matters")])
    for place in range(len(wire) * 8):
        hit = bytearray(wire)
        hit[place // 8] ^= 1 << place % 8
        assert received(Demultiplexer(LIMIT, 8), bytes(hit)) in ([], [(SLA, b"a message that matters")])


def test_a_frame_beyond_the_limit_is_not_kept() -> None:
    demux = Demultiplexer(10_000, 8)
    assert received(demux, wired([(SLA, b"x" * 10_001), (SLA, b"short"), (SLA, b"y" * 10_000)])) == [
        (SLA, b"short"),
        (SLA, b"y" * 10_000),
    ]
    assert demux.incomplete > 10_000


def test_segments_without_an_end_hold_no_memory() -> None:
    demux = Demultiplexer(10_000, 2)
    for number in range(50):
        mux = Multiplexer()
        mux.put(Key(number.to_bytes(4, "big")), b"x" * 9000)
        assert not received(demux, mux.take(1))  # the first segment of three
    assert len(demux._partials) == 2  # pyright: ignore[reportPrivateUsage]
    assert not received(demux, b"x" * 100 * LONGEST)
    assert len(demux._rest) <= LONGEST  # pyright: ignore[reportPrivateUsage]


def test_ever_new_keys_hold_no_memory() -> None:
    demux = Demultiplexer(LIMIT, 2)
    frames = [(Key(number.to_bytes(4, "big")), b"whole") for number in range(50)]
    assert received(demux, wired(frames)) == frames
    assert len(demux._keys) <= 2  # pyright: ignore[reportPrivateUsage]


def test_a_piece_of_nothing_is_garbage() -> None:
    mux = Multiplexer()
    mux.put(SLA, b"x" * 9000)
    start = mux.take(1)
    assert received(demux := Demultiplexer(LIMIT, 8), start) == []
    import struct
    import zlib

    raw = struct.pack("<BIB", 0, 2, 7) + SLA.encode()
    for _ in range(100):
        assert not received(demux, b"\xc1" + raw + struct.pack("<I", zlib.crc32(raw)) + b"\xc1")
    assert demux.garbage == 100 * (len(raw) + 4)


def test_a_whole_frame_in_the_middle_of_another_ends_that_one() -> None:
    first, last = (segment + b"\xc1" for segment in wired([(SLA, b"1" * 6000)]).split(b"\xc1") if segment)
    demux = Demultiplexer(LIMIT, 8)
    assert received(demux, first + wired([(SLA, b"whole")]) + last) == [(SLA, b"whole")]
    assert demux.incomplete == 6000


def test_the_segments_of_a_frame_are_numbered_on_after_the_greatest_number() -> None:
    mux = Multiplexer()
    mux.put(SLA, b"before")
    mux._queues[SLA].sequence = (1 << 32) - 3  # pyright: ignore[reportPrivateUsage]
    mux.put(SLA, b"x" * 12_000)
    assert received(Demultiplexer(LIMIT, 8), mux.take(LIMIT)) == [(SLA, b"before"), (SLA, b"x" * 12_000)]


def test_bytes_of_another_connection_are_not_joined_to_those_before() -> None:
    wire = wired([(SLA, b"x" * 9000)])
    demux = Demultiplexer(LIMIT, 8)
    assert received(demux, wire[: len(wire) // 2]) == []
    demux.begin()
    assert received(demux, wire[len(wire) // 2 :] + wired([(SLA, b"new")])) == [(SLA, b"new")]


def test_the_pieces_that_follow_on_another_connection_make_no_frame_of_one_begun_before() -> None:
    mux = Multiplexer()
    mux.put(SLA, b"x" * 9000)
    demux = Demultiplexer(LIMIT, 8)
    assert received(demux, mux.take(1)) == []
    demux.begin()
    assert received(demux, mux.take(LIMIT)) == []


# --- sharing ----------------------------------------------------------------------------------


def test_a_small_frame_waits_for_one_turn_of_each_other_stream() -> None:
    mux = Multiplexer()
    bulky = [Key(bytes([1, 2, 3, number])) for number in range(5)]
    for key in bulky:
        for _ in range(10):
            mux.put(key, b"x" * 25_000)
    mux.take(50_000)
    mux.put(SLA, b"urgent")
    demux, sent = Demultiplexer(LIMIT, 8), 0
    while True:
        data = mux.take(1)
        sent += len(data)
        if (SLA, b"urgent") in received(demux, data):
            break
    assert sent <= len(bulky) * 2 * QUANTUM + 100


@given(st.lists(st.integers(1, 60_000), min_size=2, max_size=5), st.sampled_from([b"a", b"\xc1"]))
def test_streams_that_always_have_something_to_send_share_the_wire_evenly(sizes: list[int], letter: bytes) -> None:
    mux = Multiplexer(60_000)
    keys = [Key(bytes([0, 0, 1, number])) for number in range(len(sizes))]
    sent = dict.fromkeys(keys, 0)
    for _ in range(60):
        for key, size in zip(keys, sizes, strict=True):
            while mux.has_room(key):
                assert mux.put(key, letter * size)
        data = mux.take(1)
        for segment in data.split(b"\xc1"):
            for key in keys:
                if key.number in segment[:16].replace(b"\xf6\1", b"\xc1").replace(b"\xf6\0", b"\xf6"):
                    sent[key] += len(segment) + 2
    assert max(sent.values()) - min(sent.values()) <= 2 * (QUANTUM + LONGEST)


def test_a_stream_that_is_empty_after_each_long_segment_gets_no_more_than_its_share() -> None:
    mux, demux = Multiplexer(), Demultiplexer(LIMIT, 8)
    frames = {SLA: b"x" * 3000, METRICS: b"\xc1" * 4000}  # the latter twice as long on the wire: more than a turn
    sent = dict.fromkeys(frames, 0)
    for key in (SLA, SLA, METRICS):
        mux.put(key, frames[key])
    for _ in range(200):
        data = mux.take(1)
        ((key, frame),) = received(demux, data)
        sent[key] += len(data)
        mux.put(key, frame)
    assert sent[METRICS] <= sent[SLA] + QUANTUM + LONGEST


def test_a_stream_with_too_much_waiting_takes_no_more_and_others_do() -> None:
    mux = Multiplexer()
    taken = 0
    while mux.put(SLA, b"x" * 10_000):
        taken += 10_000
    assert CAPACITY - 10_000 < taken <= CAPACITY
    assert not mux.has_room(SLA)
    assert mux.put(METRICS, b"y")
    assert mux.has_room(METRICS)
    mux.take(CAPACITY)
    assert mux.has_room(SLA)
    assert mux.put(SLA, b"x" * 10_000)


def test_a_frame_longer_than_a_queue_is_taken_when_nothing_waits() -> None:
    mux = Multiplexer()
    assert mux.put(SLA, b"x" * 2 * CAPACITY)
    assert not mux.put(SLA, b"y")
    assert received(Demultiplexer(LIMIT, 8), mux.take(1 << 62)) == [(SLA, b"x" * 2 * CAPACITY)]
    assert not mux


def test_a_stream_ends_after_what_waits_in_it() -> None:
    mux = Multiplexer()
    mux.put(SLA, b"last words")
    mux.end(SLA)
    mux.end(METRICS)
    assert received(Demultiplexer(LIMIT, 8), mux.take(1 << 62)) == [
        (SLA, b"last words"),
        (SLA, b""),
        (METRICS, b""),
    ]


def test_what_is_given_up_in_the_middle_of_a_frame_spoils_nothing_that_follows() -> None:
    mux = Multiplexer()
    mux.put(SLA, b"x" * 20_000)
    begun = mux.take(1)
    mux.clear()
    assert not mux
    mux.say(READY)
    mux.put(SLA, b"next")
    assert received(Demultiplexer(LIMIT, 8), begun + mux.take(1 << 62)) == [(EVERYBODY, READY), (SLA, b"next")]


@pytest.mark.parametrize("key", [Key(b"123"), Key(b"1234", "a b"), Key(b"1234", "x" * 33), Key(b"1234", "ä")])
def test_a_key_that_cannot_be_written_is_refused(key: Key) -> None:
    with pytest.raises(ValueError, match="label"):
        key.encode()


@pytest.mark.parametrize("data", [b"", b"123", b"1234a b", b"1234\n", b"1234" + b"x" * 33])
def test_a_key_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="key"):
        Key.decode(data)
