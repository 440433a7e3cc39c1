"""An array packed piece by piece is the one that is packed at once."""

from __future__ import annotations

import pytest

from mchannel.packing import Limits, pack, pack_array, unpack


@pytest.mark.parametrize("length", [0, 1, 15, 16, 65_535, 65_536])
def test_an_array_of_packed_values_is_the_packed_array(length: int) -> None:
    values = [[number, "text", b"bytes"] for number in range(length)]
    packed = pack_array([pack(value) for value in values])
    assert packed == pack(values)
    assert unpack(packed, Limits(items=1 << 17)) == tuple(map(tuple, values))
