"""An array packed piece by piece is the one that is packed at once."""

from __future__ import annotations

import msgpack  # type: ignore[import-untyped]  # ships no types
import pytest

from mchannel.packing import Limits, pack, pack_array, unpack


@pytest.mark.parametrize("length", [0, 1, 15, 16, 65_535, 65_536])
def test_an_array_of_packed_values_is_the_packed_array(length: int) -> None:
    values = [[number, "text", b"bytes"] for number in range(length)]
    packed = pack_array([pack(value) for value in values])
    assert packed == pack(values)
    assert unpack(packed, Limits(items=1 << 17)) == tuple(map(tuple, values))


@pytest.mark.parametrize(
    "value",
    [
        ["x" * 9],
        [b"x" * 9],
        [[0] * 9],
        [{str(number): 0 for number in range(9)}],
        [0] * 9,
        [msgpack.ExtType(5, b"x")],
        [msgpack.ExtType(5, b"")],
        [msgpack.Timestamp(0)],
    ],
    ids=lambda value: type(value[0]).__name__,
)
def test_what_exceeds_a_limit_is_not_read(value: list[object]) -> None:
    limits = Limits(text=8, binary=8, items=8)
    with pytest.raises(ValueError, match="not msgpack within its limits"):
        unpack(pack(value), limits)
