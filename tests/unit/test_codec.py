"""What an event must be to be sent: just what a reader takes."""

from __future__ import annotations

import enum
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mchannel import CodecError, Event, EventCodec
from mchannel.packing import Limits, pack

TIGHT = Limits(text=8, binary=12, items=3)


class Colour(enum.IntEnum):
    RED = 4


def odd(**fields: Any) -> Event:
    """Return an event of what its types do not allow."""
    every: dict[str, Any] = {"topic": "t", **fields}
    return Event(**every)


BAD = {
    "a list for a value": odd(value=[1, 2]),
    "a tuple for a value": odd(value=(1, 2)),
    "a map for a value": odd(value={}),
    "an object for a value": odd(value=object()),
    "a number that is too large": odd(value=1 << 64),
    "a topic that is no text": odd(topic=5),
    "a topic of bytes": odd(topic=b"t"),
    "a source that is none": odd(source=None),
    "a topic that is too long": odd(topic="t" * 4097),
    "a source that is too long": odd(source="s" * 4097),
    "a text that is too long": odd(value="x" * 4097),
    "a text that is too long in UTF-8": odd(value="ä" * 2049),
    "a text that is none in UTF-8": odd(value="\ud800"),
    "bytes that are too long": odd(value=b"x" * ((1 << 20) + 1)),
    "a long topic beside long bytes": odd(topic="t" * 4097, value=b"x" * 5000),
    "a text in the detail that is too long": odd(detail={"a": "x" * 4097}),
    "bytes in the detail that are too long": odd(detail={"a": b"x" * ((1 << 20) + 1)}),
    "too many details": odd(detail={str(n): n for n in range(257)}),
    "too many in one detail": odd(detail={"a": (0,) * 257}),
    "a name that is a number": odd(detail={1: 2}),
    "a name of bytes": odd(detail={b"a": 2}),
    "a map in the detail": odd(detail={"a": {}}),
    "a tuple in a tuple": odd(detail={"a": ((1,),)}),
    "a detail that is no map": odd(detail=3),
    "a detail that is none": odd(detail=None),
}


@pytest.mark.parametrize("event", BAD.values(), ids=BAD)
def test_an_event_that_no_reader_takes_is_not_sent(event: Event) -> None:
    with pytest.raises(CodecError, match=r"\Aevent .{3,104} cannot be sent: .+\Z"):
        EventCodec().encode(event)


GOOD = {
    "nothing but a topic": Event("t"),
    "the longest text": Event("t", value="x" * 4096),
    "the longest bytes": Event("t", value=b"x" * (1 << 20)),
    "the most details": Event("t", detail={str(n): n for n in range(256)}),
    "the longest tuple": Event("t", detail={"a": ("",) * 256}),
    "long columns": Event("t", detail={"a": b"x" * 100_000, "b": (1, None, 0.5, "c", b"d", True)}),
    "the largest number": Event("t", value=(1 << 64) - 1),
}


@pytest.mark.parametrize("event", GOOD.values(), ids=GOOD)
def test_what_is_within_the_limits_arrives_whole(event: Event) -> None:
    assert EventCodec().decode(EventCodec().encode(event)) == event


def test_what_packs_as_a_scalar_is_one() -> None:
    event = odd(value=Colour.RED, detail=OrderedDict(words=["a", "b"], raw=bytearray(b"x")))
    assert EventCodec().decode(EventCodec().encode(event)) == odd(value=4, detail={"words": ("a", "b"), "raw": b"x"})


def test_an_extension_of_msgpack_is_no_tuple_of_scalars() -> None:
    five = pack(("t", "", None, 0.0, {"a": 1}))
    for extension in (b"\xd4\x05x", b"\xc7\x00\x05"):
        with pytest.raises(CodecError, match="not an event"):
            EventCodec().decode(five[:-1] + extension)


def scalars(depth: int) -> st.SearchStrategy[Any]:
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=14) | st.binary(max_size=14)
    return plain | st.lists(scalars(depth - 1), max_size=4).map(tuple) if depth else plain


@given(
    topic=st.text(max_size=14) | st.integers(),
    source=st.text(max_size=14),
    value=scalars(1),
    detail=st.dictionaries(st.text(max_size=14) | st.integers(), scalars(2), max_size=4),
)
def test_what_is_sent_is_what_a_reader_takes(topic: Any, source: str, value: Any, detail: Any) -> None:
    codec, event = EventCodec(TIGHT), Event(topic, source, value, 1.5, detail)
    try:
        packed = pack((topic, source, value, 1.5, detail))
        codec.decode(packed)
    except (CodecError, OverflowError, UnicodeEncodeError):
        with pytest.raises(CodecError):
            codec.encode(event)
    else:
        assert codec.encode(event) == packed
