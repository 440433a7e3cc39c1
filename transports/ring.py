"""One end of a shared-memory ring: messages as bytes, in order, acknowledged by reading on.

The C ring does the work and knows the rules (native/ring.h); here its codes become values and exceptions. One thread
may read an end and one may write it. The lock of the interpreter is given up only while an end waits.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from enum import IntEnum
from mmap import MAP_PRIVATE, mmap
from struct import iter_unpack
from types import TracebackType
from typing import Final, Self

from mchannel._quick import Quick
from mchannel._ring import ffi, lib
from mchannel.errors import ChannelClosed, MessageTooBig, ProtocolError
from mchannel.transports.region import Lanes, Region

__all__ = ["Region", "RingEnd", "Side"]

_BATCH: Final = 4096
_PERIOD: Final = 0.05
_EMPTY: Final = lib.MC_EMPTY
_TIMEOUT: Final = lib.MC_TIMEOUT
_INTERRUPTED: Final = lib.MC_INTERRUPTED
_ATTENTION: Final = lib.MCP_ATTENTION
_VIOLATIONS: Final = (
    "nothing",
    "the header of the shared memory is not one of ours",
    "the writer's index is out of range",
    "the reader's index is out of range",
    "the index of what was taken is out of range",
    "a record's length, type or flags cannot be",
    "a long message lies outside the pool",
)


class Side(IntEnum):
    """Which end: A writes the first lane and reads the second, B the reverse."""

    A = 0
    B = 1


class RingEnd(Quick):
    """The writer of one direction of a region and the reader of the other.

    It starts where its predecessor, if there was one, stopped: messages that the predecessor may have seen come
    again and say so (:attr:`redelivered`), and :attr:`written` tells which writes were published. *limit* bounds a
    message in bytes, in both directions. *spin* is how many seconds a wait looks before it sleeps.

    *bell* is the descriptor that wakes this end when it was armed, *peer_bell* the one that wakes the peer: sockets, of
    which one pair serves both ends (``bell == peer_bell``), or eventfds if the peer is trusted, since it could make a
    write to an eventfd block. Both stay the caller's. *futex* tells whether waits may use a futex, which is the
    fastest but never crosses the boundary of a guest; without it they sleep on *bell*, and without that they poll.

    *attention* is called about every 50 ms from within calls, also from those that wait: the place to look at a
    control socket, and to raise. The call that it interrupted has not happened then.

    Every method raises ProtocolError once the peer has broken a rule, for ever, and ChannelClosed after
    :meth:`close`. Joining a region whose indices cannot be raises ProtocolError.
    """

    __slots__ = (
        "_attention",
        "_bell",
        "_buffer",
        "_end",
        "_ends",
        "_lengths",
        "_memory",
        "_peeked",
        "_region",
        "_room",
        "_scratch",
    )

    def __init__(
        self,
        region: Lanes,
        side: Side,
        *,
        bell: int | None = None,
        peer_bell: int | None = None,
        futex: bool = True,
        spin: float = 20e-6,
        limit: int | None = None,
        attention: Callable[[], object] | None = None,
    ) -> None:
        self._region = region
        self._memory = region.memory
        self._peeked: memoryview | None = None
        self._bell = -1 if bell is None else bell
        self._attention = attention
        # A batch is a quarter of the ring at most: the writer fills the rest meanwhile. Slices of an mmap are the
        # fastest way from memory to bytes.
        self._room = max(region.capacity // 4, 1 << 14)
        self._scratch = mmap(-1, self._room, flags=MAP_PRIVATE)
        self._end = end = ffi.new("mcp_end *")
        self._join(int(ffi.cast("uintptr_t", end)))
        end.scratch = self._buffer = ffi.from_buffer(self._scratch)
        end.lengths = self._lengths = ffi.new("uint32_t[]", _BATCH)
        end.ends = self._ends = ffi.new("uint64_t[]", _BATCH)
        end.period = 0.0 if attention is None else _PERIOD
        peer = -1 if peer_bell is None else peer_bell
        most = region.pool if limit is None else limit
        if lib.mcp_join(end, region.base, region.capacity, region.pool, side, most, self._bell, peer, futex, spin):
            raise self._error(lib.MC_BROKEN)

    # ---- writing

    def write_many(self, messages: Sequence[bytes]) -> int:
        """Publish as many *messages* as there is room for, at once, and return how many.

        Raise MessageTooBig when the first is too long; one further on ends the batch before it.
        """
        blob = b"".join(messages)
        lengths = ffi.from_buffer("uint32_t[]", array("I", map(len, messages)))
        while (code := lib.mcp_write_many(self._end, blob, lengths, len(messages))) < 0:
            self._goes_on(code)
        return code

    def write_fixed(self, records: bytes, size: int) -> int:
        """Publish the records of *size* bytes that *records* holds, as many as there is room for; return how many.

        Raise ValueError if *records* is not a whole number of them.
        """
        if size < 1 or len(records) % size:
            raise ValueError(f"{len(records)} bytes are not a whole number of records of {size} bytes")
        while (code := lib.mcp_write_fixed(self._end, records, size, len(records) // size)) < 0:
            self._goes_on(code)
        return code

    # ---- reading

    def read_many(self, limit: int = _BATCH) -> list[bytes]:
        """Acknowledge what was handed out before, and return the messages that are there, at most *limit*."""
        while (code := lib.mcp_read_many(self._end, self._room, min(limit, _BATCH))) < 0:
            if code == _EMPTY:
                return []
            if code == lib.MC_NO_ROOM:  # a long message comes alone
                message = self.read()
                return [] if message is None else [message]
            self._goes_on(code)
        blob = self._scratch[: self._end.used]
        if self._end.alike and blob:
            return [message for (message,) in iter_unpack(f"{len(blob) // code}s", blob)]
        end = 0
        return [blob[end : (end := end + length)] for length in ffi.unpack(self._lengths, code)]

    def read_fixed(self, size: int, limit: int = _BATCH) -> bytes:
        """Like :meth:`read_many` for messages of *size* bytes, back to back in one blob.

        It stops before a message of another size; raise ValueError when that is the next one.
        """
        count = min(limit, self._room // size)
        while (code := lib.mcp_read_fixed(self._end, size, count)) < 0:
            if code == _EMPTY:
                return b""
            if code == lib.MC_MISMATCH:
                raise ValueError(f"the next message is not one of {size} bytes; read() returns it")
            self._goes_on(code)
        return self._scratch[: code * size]

    def peek(self) -> memoryview | None:
        """Acknowledge what was handed out before, and return the next message where it lies, or None.

        It is the same until :meth:`release`, or until another method reads it. For peers that are trusted: another
        one could change it meanwhile.
        """
        self._let_go()
        while (code := lib.mcp_peek(self._end)) < 0:
            if code == _EMPTY:
                return None
            self._goes_on(code)
        self._peeked = memoryview(self._memory)[self._end.view : self._end.view_end].toreadonly()
        return self._peeked

    def release(self) -> None:
        """Be done with the message that :meth:`peek` showed; the view is no longer valid."""
        self._let_go()
        lib.mcp_release(self._end)

    def done(self) -> None:
        """Acknowledge all that was handed out, without asking for more."""
        lib.mcp_done(self._end)

    @property
    def redelivered(self) -> int:
        """How many messages of the last call that read a predecessor may have seen already; they come first."""
        return lib.mcp_redelivered(self._end)

    # ---- waiting

    def wait_readable(self, timeout: float | None) -> bool:
        """Spin, then sleep, until :meth:`read` has something to return or raise, at most *timeout* seconds."""
        left = -1.0 if timeout is None else timeout
        while code := lib.mcp_wait_readable(self._end, left):
            if not self._goes_on(code):
                return False
            left = self._end.left
        return True

    def wait_writable(self, timeout: float | None) -> bool:
        """Spin, then sleep, until there is more room than the last write found, at most *timeout* seconds."""
        left = -1.0 if timeout is None else timeout
        while code := lib.mcp_wait_writable(self._end, left):
            if not self._goes_on(code):
                return False
            left = self._end.left
        return True

    def arm_readable(self) -> bool:
        """Ask for the bell, once, when a message comes; True if there is something already: then do not sleep.

        A later wait in this direction takes the request back.
        """
        return bool(lib.mcp_arm_readable(self._end, lib.MC_FD))

    def arm_writable(self) -> bool:
        """Ask for the bell, once, when there is more room than the last write found; True if there is already."""
        return bool(lib.mcp_arm_writable(self._end, lib.MC_FD))

    def disarm(self) -> None:
        """Ask for the bell no more, in either direction."""
        lib.mcp_arm_readable(self._end, lib.MC_POLL)
        lib.mcp_arm_writable(self._end, lib.MC_POLL)

    def drain(self) -> None:
        """Silence the bell after it woke this end."""
        lib.mc_bell_drain(self._bell)

    # ---- indices, in bytes since the region was made

    @property
    def written(self) -> int:
        """Where what this end, or its predecessor, published ends: a write that raised it is in the ring."""
        return lib.mcp_written(self._end)

    @property
    def taken(self) -> int:
        """How far the peer may have seen what was written."""
        index = lib.mcp_peer_taken(self._end)
        self._check()
        return index

    @property
    def acknowledged(self) -> int:
        """How far the peer is done with what was written."""
        index = lib.mcp_peer_acknowledged(self._end)
        self._check()
        return index

    @property
    def received(self) -> int:
        """How far this end has read."""
        return lib.mcp_received(self._end)

    @property
    def ends(self) -> list[int]:
        """:attr:`received` after each of the messages that the last :meth:`read_many` returned."""
        count = self._end.count
        return ffi.unpack(self._ends, count) if count > 0 else [self.received]

    @property
    def settled(self) -> int:
        """How far this end has acknowledged what it read."""
        return lib.mcp_settled(self._end)

    @property
    def rung(self) -> int:
        """How often this end had to wake the peer."""
        return lib.mcp_rung(self._end)

    # ---- ending

    def close(self) -> None:
        """Leave; idempotent, also after an error. What was read last stays unacknowledged without :meth:`done`."""
        self._let_go()
        lib.mcp_close(self._end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _let_go(self) -> None:
        if self._peeked is not None:
            self._peeked.release()
            self._peeked = None

    def _goes_on(self, code: int) -> bool:
        """Tell whether to call again after *code*, which is no result; raise what it means."""
        if code == _ATTENTION and self._attention is not None:
            self._attention()
        elif code == _TIMEOUT:
            return False
        elif code != _INTERRUPTED:
            raise self._error(code)
        return True

    def _check(self) -> None:
        if lib.mcp_broken(self._end):
            raise self._error(lib.MC_BROKEN)

    def _error(self, code: int) -> Exception:
        if code == lib.MC_TOO_BIG:
            return MessageTooBig("the message is longer than this channel's limit; send it in parts")
        if code == lib.MC_CLOSED:
            return ChannelClosed("this end of the ring was closed; open the channel anew")
        why = _VIOLATIONS[lib.mcp_broken(self._end)]
        return ProtocolError(f"the peer broke the rules of the ring: {why}; the channel is closed for good")
