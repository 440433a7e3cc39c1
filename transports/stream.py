"""Frames of several streams over one wire of bytes that may be torn anywhere. Does no I/O.

A virtio port keeps its descriptor while the domain moves, and whatever was under way when the host
let go of it is gone: the byte stream has holes, and begins in the middle. So frames are cut into
segments, and each segment can be found and checked by itself::

    END  segment, escaped  END  END  segment, escaped  END ...

    offset  size  field of a segment, little-endian
         0     1  flags     1: first of its frame, 2: last of its frame
         1     4  sequence  grows by one from segment to segment of a stream
         5     1  length of the key
         6     -  key       names the stream: four random bytes and a label, see :class:`Key`
         -     -  a piece of the frame, at most 4000 bytes
        -4     4  CRC-32 of all before

``END`` (0xC1) never occurs inside, as ``END`` is written ``ESC 1`` and ``ESC`` (0xF6) ``ESC 0``: so
whatever a message holds, it cannot pass for a segment after a tear. Both bytes are rare in msgpack
and never occur in text. An empty frame ends its stream.

On the key :data:`EVERYBODY` the ends speak about the wire. An end that has just opened or reached
it says :data:`BEGIN`: streams of before are over, introduce yourself. The other end answers
:data:`READY`. Nothing else is sent before one of these was heard.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import NamedTuple

import attrs

__all__ = ["BEGIN", "CAPACITY", "EVERYBODY", "LONGEST", "QUANTUM", "READY", "Demultiplexer", "Key", "Multiplexer"]

END = b"\xc1"
ESC = b"\xf6"
BEGIN, READY = b"begin", b"ready"
PIECE = 4000
"""Bytes of a frame in one segment: what a small frame may have to wait for, of each other stream."""
QUANTUM = 4096
"""Bytes that a stream may send before it is another's turn."""
CAPACITY = 1 << 18

_HEAD = struct.Struct("<BIB")
_CHECK = struct.Struct("<I")
_FIRST, _LAST, _WHOLE = 1, 2, 3
_NUMBER = 4
_LABEL = re.compile(rb"[A-Za-z0-9._-]{0,32}\Z")
_MOST = _HEAD.size + _NUMBER + 32 + PIECE + _CHECK.size
"""Bytes of the longest segment."""
LONGEST = 2 * _MOST + 2
"""Bytes of the longest segment on the wire, every byte escaped."""
_LEAST = _HEAD.size + _NUMBER + _CHECK.size
_WRAP = (1 << 32) - 1


class Key(NamedTuple):
    """Names a stream of a wire."""

    number: bytes
    """Four bytes, random, so that a process does not go on with the streams of one that died."""
    label: str = ""
    """What it is for, in at most 32 letters, digits, dots, dashes and underscores."""

    def encode(self) -> bytes:
        """Return the key as it is written into segments; raise ValueError when it cannot be."""
        label = self.label.encode("ascii", "replace")
        if len(self.number) != _NUMBER or not _LABEL.match(label):
            raise ValueError("a label has at most 32 letters, digits, dots, dashes and underscores")
        return self.number + label

    @classmethod
    def decode(cls, data: bytes) -> Key:
        """Return the key in *data*; raise ValueError when it is none."""
        if len(data) < _NUMBER or not _LABEL.match(data, _NUMBER):
            raise ValueError("not the key of a stream")
        return cls(data[:_NUMBER], data[_NUMBER:].decode())


EVERYBODY = Key(bytes(_NUMBER))
"""The key on which the ends speak about the wire."""


@attrs.define(eq=False)
class _Queue:
    """Frames of one stream that wait to be sent."""

    key: bytes
    frames: deque[bytes] = attrs.field(factory=deque[bytes])
    size: int = 0
    offset: int = 0
    """Bytes of the first frame that have left."""
    credit: int = 0
    """Bytes that may leave in this turn; below zero when the last segment was longer than that."""
    sequence: int = 0

    def segment(self) -> bytes:
        """Return the next segment, as it goes over the wire."""
        frame, offset = self.frames[0], self.offset
        piece = frame[offset : offset + PIECE]
        flags = 0 if offset else _FIRST
        self.offset += PIECE
        if self.offset >= len(frame):
            flags |= _LAST
            self.size -= len(frame)
            self.offset = 0
            self.frames.popleft()
        self.sequence = (self.sequence + 1) & _WRAP
        raw = _HEAD.pack(flags, self.sequence, len(self.key)) + self.key + piece
        raw += _CHECK.pack(zlib.crc32(raw))
        return END + raw.replace(ESC, ESC + b"\0").replace(END, ESC + b"\1") + END


class Multiplexer:
    """Takes frames of several streams and gives bytes to write, a fair share of each stream.

    Streams take turns of :data:`QUANTUM` bytes (deficit round robin), so that a frame waits for its
    own stream and for one turn of each other, however much waits there.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        """Bytes of frames that may wait in one stream before no more are taken."""
        self._queues: dict[Key, _Queue] = {}
        self._turns: deque[_Queue] = deque()
        """Queues with something in them; it is the first one's turn."""

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._turns)

    def put(self, key: Key, frame: bytes) -> bool:
        """Take one frame, or return False when too much waits in its stream; an empty stream takes any frame."""
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(key.encode())
        if queue.size and queue.size + len(frame) > self.capacity:
            return False
        self._append(queue, frame)
        return True

    def has_room(self, key: Key) -> bool:
        """Whether less than half of what may wait in a stream does."""
        queue = self._queues.get(key)
        return queue is None or queue.size < self.capacity // 2

    def take(self, size: int) -> bytes:
        """Return what is to be written next, whole segments: *size* bytes or a little more, if so much waits."""
        turns = self._turns
        if not turns:  # asked for after each message
            return b""
        taken: list[bytes] = []
        total = 0
        while turns and total < size:
            queue = turns[0]
            if queue.credit <= 0:
                queue.credit += QUANTUM
                if queue.credit <= 0:
                    turns.rotate(-1)
                    continue
            segment = queue.segment()
            taken.append(segment)
            total += len(segment)
            queue.credit -= len(segment)
            if not queue.frames:
                queue.credit = min(queue.credit, 0)
                turns.popleft()
            elif queue.credit <= 0:
                turns.rotate(-1)
        return b"".join(taken)

    def end(self, key: Key) -> None:
        """Tell the peer that a stream is over, after what waits in it."""
        queue = self._queues.get(key)
        self._append(_Queue(key.encode()) if queue is None else queue, b"")
        self.forget(key)

    def forget(self, key: Key) -> None:
        """Forget a stream; what waits in it still leaves."""
        self._queues.pop(key, None)

    def say(self, word: bytes) -> None:
        """Say BEGIN or READY to everybody."""
        self._append(_Queue(EVERYBODY.encode()), word)

    def clear(self) -> None:
        """Give up all that waits."""
        for queue in self._turns:
            queue.frames.clear()
            queue.size = queue.offset = 0
        self._turns.clear()

    def _append(self, queue: _Queue, frame: bytes) -> None:
        if not queue.frames:
            self._turns.append(queue)
        queue.frames.append(frame)
        queue.size += len(frame)


@attrs.define(eq=False)
class _Partial:
    """A frame of which the last segment has not come."""

    sequence: int
    data: bytearray = attrs.field(factory=bytearray)


class Demultiplexer:
    """Takes bytes as they come and gives the frames in them, each whole and unharmed or not at all.

    Holds no more than one segment, and of at most *streams* streams a frame of *limit* bytes each.
    """

    def __init__(self, limit: int, streams: int) -> None:
        self.limit = limit
        self.garbage = 0
        """Bytes, so far, that were no segment."""
        self.incomplete = 0
        """Bytes, so far, of frames that did not come whole, or were longer than *limit*."""
        self._streams = streams
        self._rest = b""
        self._overlong = False
        """Whether the segment that is coming in is too long already."""
        self._partials: OrderedDict[bytes, _Partial] = OrderedDict()
        self._keys: dict[bytes, Key] = {}
        """Keys that were decoded already; no more than *streams*."""

    def feed(self, data: bytes) -> Iterator[tuple[Key, bytes]]:
        """Take in *data* and yield the frames that it completes; exhaust it before the next call."""
        *segments, rest = (self._rest + data).split(END)
        if self._overlong and segments:
            self.garbage += len(segments.pop(0))
            self._overlong = False
        if self._overlong or len(rest) > LONGEST:
            self.garbage += len(rest)
            self._overlong, rest = True, b""
        self._rest = rest
        for segment in segments:
            if segment and (frame := self._segment(segment)) is not None:
                yield frame

    def begin(self) -> None:
        """Forget what was half received: the bytes that follow are another connection's."""
        self._rest, self._overlong = b"", False
        self._partials.clear()

    def _segment(self, escaped: bytes) -> tuple[Key, bytes] | None:
        raw = escaped.replace(ESC + b"\1", END).replace(ESC + b"\0", ESC) if ESC in escaped else escaped
        try:
            if not _LEAST <= len(raw) <= _MOST or zlib.crc32(raw[:-4]) != _CHECK.unpack_from(raw, len(raw) - 4)[0]:
                raise ValueError("no segment")
            flags, sequence, size = _HEAD.unpack_from(raw)
            start = _HEAD.size + size
            name, piece = raw[_HEAD.size : start], raw[start:-4]
            key = self._keys.get(name) or self._decode(name)
            if not piece and flags != _WHOLE:
                raise ValueError("a piece of nothing")
        except ValueError:
            self.garbage += len(escaped)
            return None
        if flags == _WHOLE and name not in self._partials:  # most frames are short
            return key, piece
        frame = self._piece(name, flags, sequence, piece)
        return None if frame is None else (key, frame)

    def _decode(self, name: bytes) -> Key:
        if len(self._keys) >= self._streams:
            self._keys.clear()
        key = self._keys[name] = Key.decode(name)
        return key

    def _piece(self, name: bytes, flags: int, sequence: int, piece: bytes) -> bytes | None:
        partial = self._partials.pop(name, None)
        if flags & _FIRST:
            self.incomplete += len(partial.data) if partial else 0  # its last segment was lost
            partial = _Partial(sequence)
        elif partial is None or sequence != (partial.sequence + 1) & _WRAP:
            self.incomplete += len(piece) + (len(partial.data) if partial else 0)
            return None
        partial.data += piece
        partial.sequence = sequence
        if len(partial.data) > self.limit:
            self.incomplete += len(partial.data)
            return None
        if flags & _LAST:
            return bytes(partial.data)
        self._partials[name] = partial
        if len(self._partials) > self._streams:
            self.incomplete += len(self._partials.popitem(last=False)[1].data)
        return None
