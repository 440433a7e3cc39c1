"""Columns of samples in few bytes, bit for bit: what is kept of a series for a day takes about a byte a sample.

Numbers that are short decimals, which is what metrics mostly are, become whole numbers, others the difference of
their bits from those of the number before (as in Gorilla, VLDB 2015). Of whole numbers and times the steps are
stored, divided by what they have in common. The bytes are then put in order of their weight, so that the many that
are alike stand together, and whoever stores them deflates as many columns as are read together.
"""

from __future__ import annotations

import math
import struct
import sys
import zlib
from array import array
from collections.abc import Iterable
from itertools import accumulate, pairwise

__all__ = ["deflate", "inflate", "pack_times", "pack_values", "unpack_times", "unpack_values"]

_HEAD = struct.Struct("<bBqQq")  # decimals or _BITS, bytes of a step, first number, divisor of steps, shortest step
_BITS = -1
_DECIMALS = 6
_SCALES = [10.0**digits for digits in range(_DECIMALS + 1)]
_WHOLE = 1 << 53  # up to here every whole number is a double
_LEVEL = 6
_LONGEST = 1 << 24
_CODES = {1: "b", 2: "h", 4: "i", 8: "q"}


def deflate(data: bytes) -> bytes:
    """Return *data* in fewer bytes, with a checksum."""
    return zlib.compress(data, _LEVEL)


def inflate(blob: bytes, size: int) -> bytes:
    """Return the *size* bytes that :func:`deflate` was given; raise ValueError if *blob* is damaged."""
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(blob, size + 1)
    except zlib.error as error:
        raise ValueError(f"what was stored is damaged ({error})") from None
    if len(data) != size or not inflater.eof:
        raise ValueError(f"what was stored is damaged (not {size} bytes)")
    return data


def pack_times(times: array[int]) -> bytes:
    """Return *times* (code ``q``) in bytes that deflate well."""
    return _pack_whole(0, times)


def unpack_times(blob: bytes, count: int) -> array[int]:
    """Return the *count* times in *blob*; raise ValueError if it does not hold them."""
    digits, numbers = _unpack(blob, count)
    if digits:
        raise ValueError("a column of times that is none")
    return numbers


def pack_values(values: array[float]) -> bytes:
    """Return *values* (code ``d``), NaN and all, in bytes that deflate well."""
    exact = values.tobytes()
    try:
        most = max(max(values, default=0.0), -min(values, default=0.0))
        scales = [scale for scale in _SCALES if most * scale < _WHOLE]
        if scales and _are_decimals(values[:8], scales[-1]):  # else they are none of fewer digits either
            for digits, scale in enumerate(scales):
                if not _are_decimals(values[:8], scale):
                    continue
                whole = array("q", [round(value * scale) for value in values])
                if array("d", [number / scale for number in whole]).tobytes() == exact:
                    return _pack_whole(digits, whole)
    except (ValueError, OverflowError):
        pass  # NaN and the infinities are no decimals
    bits = array("Q", exact)
    changes = array("Q", [bit ^ before for bit, before in zip(bits, [0, *bits], strict=False)])
    return _HEAD.pack(_BITS, 8, 0, 1, 0) + _planes(changes)


def unpack_values(blob: bytes, count: int) -> array[float]:
    """Return the *count* values in *blob*; raise ValueError if it does not hold them."""
    digits, numbers = _unpack(blob, count)
    if digits == _BITS:
        changes = array("Q", numbers.tobytes())
        return array("d", array("Q", accumulate(changes, lambda before, change: before ^ change)).tobytes())
    scale = 10.0**digits
    return array("d", [number / scale for number in numbers])


def _are_decimals(values: Iterable[float], scale: float) -> bool:
    return all(round(value * scale) / scale == value for value in values)


def _pack_whole(digits: int, numbers: array[int]) -> bytes:
    first = numbers[0] if numbers else 0
    steps = [number - before for before, number in pairwise(numbers)]
    shortest = min(steps, default=0)
    # A clock that ticks evenly has steps that are alike; a gauge has steps around zero, which are best left so.
    base = max(0, shortest)
    if base:
        steps = [step - base for step in steps]
    divisor = math.gcd(*steps) or 1
    if divisor > 1:
        steps = [step // divisor for step in steps]
    most = max(max(steps, default=0), -min(steps, default=0))
    width = next(width for width in _CODES if most < 1 << (8 * width - 1))
    packed = _planes(array(_CODES[width], steps)) if most else b""
    return _HEAD.pack(digits, width, first, divisor, base) + packed


def _unpack(blob: bytes, count: int) -> tuple[int, array[int]]:
    """Return the decimals and the numbers (of :data:`_BITS`, the changes of bits)."""
    try:
        digits, width, first, divisor, base = _HEAD.unpack_from(blob)
        code = _CODES[width]
    except (KeyError, struct.error) as error:
        raise ValueError(f"a column that is damaged ({error})") from None
    if not 0 <= count <= _LONGEST:
        raise ValueError(f"a column of {count} numbers, which is too many")
    size = (count if digits == _BITS else max(count - 1, 0)) * width
    data = blob[_HEAD.size :] or bytes(size)
    if len(data) != size or not _BITS <= digits <= _DECIMALS:
        raise ValueError(f"a column of {len(data)} bytes, not {size}")
    steps = _unplaned(data, code, width)
    if digits == _BITS:
        return digits, steps
    try:
        numbers = array("q", accumulate((step * divisor + base for step in steps), initial=first))
    except OverflowError:
        raise ValueError("a column that leaves its range") from None
    return digits, numbers[:count]


def _planes(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    data, width = numbers.tobytes(), numbers.itemsize
    return b"".join(data[weight::width] for weight in range(width))


def _unplaned(data: bytes, code: str, width: int) -> array[int]:
    count = len(data) // width
    mixed = bytearray(len(data))
    for weight in range(width):
        mixed[weight::width] = data[weight * count : (weight + 1) * count]
    numbers: array[int] = array(code, bytes(mixed))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
