"""The form of a snapshot: a version, a table in msgpack, the matcher's own image, and a sum that tells damage."""

from __future__ import annotations

import struct
import zlib

from mchannel import packing

__all__ = ["SnapshotError", "packed", "unpacked"]

_MAGIC = b"mchannel alerts\x02"  # its last byte is the version
_HEAD = struct.Struct("<16sIQ")  # magic, CRC-32 of all that follows it, bytes of the table
_SUMMED = _HEAD.size - 8
_LIMITS = packing.Limits(text=1024, binary=1 << 32, items=1 << 28)


class SnapshotError(Exception):
    """It is no snapshot that this version wrote, or it is damaged."""


def packed(table: object, kernel: bytes) -> bytes:
    """Return a snapshot of *table*, which msgpack can hold, and the image of the *kernel*."""
    body = packing.pack(table)
    size = struct.pack("<Q", len(body))
    summed = zlib.crc32(kernel, zlib.crc32(body, zlib.crc32(size)))
    return b"".join([_MAGIC, struct.pack("<I", summed), size, body, kernel])


def unpacked(image: bytes) -> tuple[tuple[object, ...], bytes]:
    """Return what was packed in *image*; raise :exc:`SnapshotError` when it is something else, or damaged."""
    try:
        magic, summed, size = _HEAD.unpack_from(image)
        if magic != _MAGIC or zlib.crc32(memoryview(image)[_SUMMED:]) != summed:
            raise SnapshotError("it is no snapshot that this version wrote, or it is damaged")
        return packing.unpack(image[_HEAD.size : _HEAD.size + size], _LIMITS), image[_HEAD.size + size :]
    except (struct.error, ValueError):
        raise SnapshotError("it is no snapshot that this version wrote, or it is damaged") from None
