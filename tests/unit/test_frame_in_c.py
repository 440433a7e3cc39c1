"""Frames in C: the same as in Python, whatever comes."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mchannel.frame import HEADER, encode_slowly, glance_slowly

pytest.importorskip("mchannel._frame", reason="the C is not built here")

from mchannel._frame import encode, glance

NUMBERS = st.integers(0, (1 << 64) - 1) | st.integers((1 << 62) - 2, (1 << 62) + 2) | st.integers(0, 9)
EPOCHS = st.integers(0, (1 << 32) - 1) | st.integers(0, 3)
LIMITS = st.integers(-1, 50) | st.sampled_from([1 << 30, (1 << 63) - 1])


@given(st.binary(max_size=40), LIMITS, EPOCHS, NUMBERS)
def test_a_glance_at_anything_sees_what_python_sees(data: bytes, limit: int, epoch: int, number: int) -> None:
    assert glance(data, limit, epoch, number) == glance_slowly(data, limit, epoch, number)


@given(st.binary(max_size=40), LIMITS, EPOCHS, NUMBERS, NUMBERS, st.data())
def test_a_glance_at_a_frame_sees_what_python_sees(
    body: bytes, limit: int, epoch: int, number: int, ack: int, data: st.DataObject
) -> None:
    mostly = [st.just(b"mC"), st.just(5), st.just(0), st.just(epoch), st.just(number)]
    others = [st.sampled_from([b"Mc", b"mc"]), st.integers(0, 10), st.integers(0, 4), EPOCHS, NUMBERS]
    spoilt = data.draw(st.none() | st.integers(0, 4))
    parts = [data.draw(others[i] if i == spoilt else part) for i, part in enumerate(mostly)]
    frame = HEADER.pack(*parts, ack) + body
    assert glance(frame, limit, epoch, number) == glance_slowly(frame, limit, epoch, number)


def test_a_glance_takes_the_next_message_and_no_other_frame() -> None:
    assert glance(encode(5, 1, 2, 3, 0, b"body"), 4, 1, 2) == (3, b"body")
    for other in ((6, 1, 2, 3, 0), (5, 2, 2, 3, 0), (5, 1, 1, 3, 0), (5, 1, 3, 3, 0), (5, 1, 2, 3, 2)):
        assert glance(encode(*other, b"body"), 4, 1, 2) is None
    assert glance(encode(5, 1, 2, 3, 0, b"body"), 3, 1, 2) is None


@given(
    st.tuples(
        st.integers(0, 255),
        st.integers(0, (1 << 32) - 1),
        st.integers(0, (1 << 64) - 1),
        st.integers(0, (1 << 64) - 1),
        st.integers(0, 255),
        st.binary(max_size=40),
    )
)
def test_frames_are_encoded_as_python_does(fields: tuple[int, int, int, int, int, bytes]) -> None:
    assert encode(*fields) == encode_slowly(*fields)


FIELDS = (5, 1, 2, 3, 0, b"body")


@pytest.mark.parametrize("position", range(6))
@pytest.mark.parametrize("wrong", [None, "x", -1, 1 << 64, 1.5])
def test_no_frame_is_made_of_what_fits_no_field(position: int, wrong: Any) -> None:
    fields: Any = [*FIELDS[:position], wrong, *FIELDS[position + 1 :]]
    for make in (encode, encode_slowly):
        with pytest.raises((TypeError, OverflowError, struct.error)):
            make(*fields)


@pytest.mark.parametrize(("position", "wrong"), [(0, 256), (1, 1 << 32), (4, 256)])
def test_no_field_of_a_frame_is_cut(position: int, wrong: int) -> None:
    fields: Any = [*FIELDS[:position], wrong, *FIELDS[position + 1 :]]
    with pytest.raises(OverflowError):
        encode(*fields)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (b"", 1, 2),
        (b"", 1, 2, 3, 4),
        ("", 1, 2, 3),
        (bytearray(30), 1, 2, 3),
        *[(b"", *(wrong if i == at else 1 for i in range(3))) for at in range(3) for wrong in ("1", None, 1 << 64)],
        (b"", 1, -1, 1),
        (b"", 1, 1, -1),
    ],
)
def test_a_glance_takes_bytes_a_limit_an_epoch_and_a_number(arguments: Any) -> None:
    with pytest.raises((TypeError, OverflowError)):
        glance(*arguments)
