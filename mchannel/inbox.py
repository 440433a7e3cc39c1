"""The journal of received messages: what arrived, and what of it is finished.

A message is recorded once, by its session and number, and fsynced; when it is finished a mark
follows. What was recorded and not marked is the backlog of the next process. The marks are kept
when the journal is compacted, so that what a peer replays is recognised; see :mod:`mchannel.durable`.

The journal belongs to one process, and to one thread at a time; see :mod:`mchannel.journal`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import attrs

from mchannel.errors import JournalError
from mchannel.frame import is_number
from mchannel.journal import MAX_RECORD, Journal
from mchannel.packing import Limits, pack, unpack
from mchannel.transport import Peer

__all__ = ["MAX_PAYLOAD", "Inbox", "Recorded"]

_COMPACT = 1 << 20
"""Bytes of journal below which nothing is compacted."""
_MAX_SESSIONS = 8192
"""Sessions whose numbers are remembered, so that replays are recognised; twice what a gate holds."""
_LIMITS = Limits(text=4096, binary=MAX_RECORD, items=8)
MAX_PAYLOAD = MAX_RECORD - 16384
"""Longest payload that fits into a record with what is said about it."""


@attrs.frozen
class Recorded:
    """A message in the journal."""

    session: bytes
    number: int
    peer: Peer
    payload: bytes

    def encode(self) -> bytes:
        """Return the record as bytes."""
        peer = (self.peer.identity, self.peer.address, self.peer.name)
        return pack((self.session, self.number, peer, self.payload))


def _mark(session: bytes, number: int) -> bytes:
    return pack((session, number))


class Inbox:
    """What was received and is on disk. Methods raise JournalError when the disk refuses."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal.open(path)
        self._highest: OrderedDict[bytes, int] = OrderedDict()
        self._pending: dict[tuple[bytes, int], Recorded] = {}
        self._live = 0
        self._closed = False
        try:
            for record in self._journal.records:
                self._replay(record)
        except JournalError:
            self._journal.close()
            raise
        self.backlog = tuple(self._pending.values())
        """What a predecessor recorded and did not finish, oldest first."""

    def _replay(self, record: bytes) -> None:
        try:
            match unpack(record, _LIMITS):
                case (bytes() as session, number) if is_number(number):
                    self._pending.pop((session, number), None)
                case (
                    bytes() as session,
                    number,
                    (str() as who, str() as where, str() as name),
                    bytes() as payload,
                ) if is_number(number):
                    self._pending[session, number] = Recorded(session, number, Peer(who, where, name=name), payload)
                case _:
                    raise ValueError("malformed")
        except ValueError:
            raise JournalError(f"{self._journal.path} is no journal of received messages; move it away") from None
        self._reach(session, number)

    def record(self, message: Recorded) -> bool:
        """Put *message* on disk; False when it is there already."""
        if message.number <= self._highest.get(message.session, 0):
            return False
        self._journal.append(message.encode())
        self._pending[message.session, message.number] = message
        self._reach(message.session, message.number)
        return True

    def done(self, session: bytes, number: int) -> None:
        """Mark a message as finished. The mark survives a kill; after a power cut the message may come again.

        After :meth:`close` nothing is marked: the message will come again.
        """
        if not self._closed and self._pending.pop((session, number), None) is not None:
            self._journal.append(_mark(session, number), sync=False)
            if self._journal.size > max(_COMPACT, 4 * self._live):
                self._compact()

    def forget(self, session: bytes) -> None:
        """Drop the numbers of a session that ended: nothing of it can be replayed."""
        self._highest.pop(session, None)

    def close(self) -> None:
        """Let go of the journal; idempotent."""
        self._closed = True
        self._journal.close()

    def _reach(self, session: bytes, number: int) -> None:
        self._highest[session] = max(number, self._highest.get(session, 0))
        self._highest.move_to_end(session)
        if len(self._highest) > _MAX_SESSIONS:
            self._highest.popitem(last=False)

    def _compact(self) -> None:
        self._journal.rewrite(self._needed())
        self._live = self._journal.size

    def _needed(self) -> Iterator[bytes]:
        for message in self._pending.values():
            yield message.encode()
        for session, number in self._highest.items():
            if (session, number) not in self._pending:
                yield _mark(session, number)
