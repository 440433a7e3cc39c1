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

HEADERS = st.builds(
    HEADER.pack,
    st.sampled_from([b"mC", b"Mc", b"mc"]),
    st.integers(0, 10) | st.just(5),
    st.integers(0, 4),
    st.integers(0, (1 << 32) - 1),
    *[st.integers(0, (1 << 64) - 1) | st.integers((1 << 62) - 2, (1 << 62) + 2) | st.integers(0, 9)] * 2,
)


@given(
    st.binary(max_size=40) | st.builds(bytes.__add__, HEADERS, st.binary(max_size=40)),
    st.integers(-1, 50) | st.sampled_from([1 << 30, (1 << 63) - 1]),
)
def test_a_glance_sees_what_python_sees(data: bytes, limit: int) -> None:
    assert glance(data, limit) == glance_slowly(data, limit)


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
    "arguments", [(), (b"",), (b"", 1, 2), ("", 1), (bytearray(30), 1), (b"", "1"), (b"", 1 << 63)]
)
def test_a_glance_takes_bytes_and_a_limit(arguments: Any) -> None:
    with pytest.raises((TypeError, OverflowError)):
        glance(*arguments)
