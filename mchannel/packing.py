"""The one place that packs and unpacks msgpack: bounded, and never trusting what it reads."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import attrs
import msgpack  # type: ignore[import-untyped]  # ships no types

__all__ = ["Limits", "pack", "pack_array", "unpack"]

_msgpack: Any = msgpack


@attrs.frozen
class Limits:
    """What a packed value may hold; a peer that exceeds it is not read any further."""

    text: int = 4096
    """Longest string, in bytes."""
    binary: int = 4096
    """Longest byte string."""
    items: int = 256
    """Most entries of one array or map."""


def pack(value: object) -> bytes:
    """Return *value* as msgpack; raise TypeError, ValueError or OverflowError for what msgpack cannot hold."""
    packed: bytes = _msgpack.Packer().pack(value)
    return packed


def pack_array(packed: Collection[bytes]) -> bytes:
    """Return the array of what :func:`pack` made already, as it would make it of all at once."""
    return cast("bytes", _msgpack.Packer().pack_array_header(len(packed))) + b"".join(packed)


def _refuse(code: int, _: bytes) -> object:
    raise ValueError(f"extension {code}")


def unpack(data: bytes, limits: Limits) -> tuple[object, ...]:
    """Return the array in *data*, arrays as tuples; raise ValueError for anything else."""
    try:
        value: object = _msgpack.unpackb(
            data,
            use_list=False,
            strict_map_key=True,
            max_str_len=limits.text,
            max_bin_len=limits.binary,
            max_array_len=limits.items,
            max_map_len=limits.items,
            max_ext_len=0,
            ext_hook=_refuse,  # one of no length
        )
    except (ValueError, RecursionError, _msgpack.UnpackException) as error:
        raise ValueError(f"not msgpack within its limits ({str(error) or type(error).__name__})") from None
    if not isinstance(value, tuple):
        raise ValueError("not a msgpack array")
    return cast("tuple[object, ...]", value)
