"""Columns of samples come back bit for bit, and are small when they are what metrics are."""

from __future__ import annotations

import math
import random
import struct
from array import array
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbroker.alerts.columns import deflate, inflate, pack_times, pack_values, unpack_times, unpack_values

whole = st.integers(-(1 << 61), 1 << 61)
decimals = st.integers(-(10**9), 10**9).flatmap(lambda number: st.sampled_from([number / 10**by for by in range(7)]))


@given(st.lists(st.one_of(whole, st.integers(0, 5000))))
def test_times_come_back(times: list[int]) -> None:
    column = array("q", times)
    assert unpack_times(pack_times(column), len(column)) == column


@given(st.one_of(st.lists(st.floats()), st.lists(decimals), st.lists(st.sampled_from([0.0, -0.0, math.nan, 1.5]))))
def test_values_come_back_bit_for_bit(values: list[float]) -> None:
    column = array("d", values)
    assert unpack_values(pack_values(column), len(column)).tobytes() == column.tobytes()


def test_another_nan_stays_another() -> None:
    column = array("d", struct.pack("<QQ", 0x7FF8000000000001, 0xFFF8000000000000))
    assert unpack_values(pack_values(column), 2).tobytes() == column.tobytes()


def test_what_does_not_change_takes_next_to_nothing() -> None:
    assert len(deflate(pack_values(array("d", [71.3] * 10_000)))) < 30
    assert len(deflate(pack_times(array("q", range(0, 10_000_000, 1000))))) < 30


def test_percentages_of_one_decimal_take_about_a_byte() -> None:
    dice = random.Random(7)
    values = array("d", [20.0])
    for _ in range(899):
        values.append(round(20 + 0.8 * (values[-1] - 20) + dice.gauss(0, 2), 1))
    assert len(deflate(pack_values(values))) / 900 < 1.1


@given(st.binary(max_size=64), st.integers(0, 64))
def test_garbage_is_refused_or_read_as_so_many_numbers(blob: bytes, count: int) -> None:
    for unpack in (unpack_times, unpack_values):
        with suppress(ValueError):
            assert len(unpack(blob, count)) == count


@pytest.mark.parametrize("blob", [deflate(bytes(1000)), deflate(bytes(2))[:-1], deflate(b"")])
def test_what_does_not_inflate_to_its_size_is_refused(blob: bytes) -> None:
    with pytest.raises(ValueError, match="what was stored is damaged"):
        inflate(blob, 2)


@given(st.binary(max_size=99), st.integers(0, 999))
def test_a_flipped_bit_is_found(data: bytes, bit: int) -> None:
    blob = bytearray(deflate(data))
    blob[bit // 8 % len(blob)] ^= 1 << bit % 8
    with suppress(ValueError):
        assert inflate(bytes(blob), len(data)) == data
