"""What one broker hands to another, so that a session goes on there."""

from __future__ import annotations

from typing import cast

import attrs

from mchannel.errors import ProtocolError
from mchannel.frame import Terms, is_number
from mchannel.packing import Limits, pack, unpack

__all__ = ["Handoff"]


@attrs.frozen
class Handoff:
    """The broker side of a suspended session, to be taken up by another broker."""

    session: bytes
    name: str
    epoch: int
    terms: Terms
    received: int
    """Last number that the reader has marked as done."""
    base: int
    """Number of the first message in :attr:`unacknowledged`, or of the next one to be sent."""
    unacknowledged: tuple[bytes, ...]
    unsure: int
    """Messages up to this number may have been seen by a broker that died earlier."""
    author: bytes
    """Who wrote :attr:`unacknowledged`, as the agent was told; see :class:`mchannel.frame.Welcome`."""
    foreign: int = 0
    """Bytes of the window that messages of brokers that died earlier take, as the agent has not read them."""

    def encode(self) -> bytes:
        """Return the handoff as bytes."""
        terms = self.terms.fields()
        numbers = (self.epoch, self.received, self.base, self.unsure, self.foreign)
        return pack((self.session, self.name, self.author, terms, numbers, self.unacknowledged))

    @classmethod
    def decode(cls, data: bytes) -> Handoff:
        """Parse *data*; raise :class:`ProtocolError` when it is malformed."""
        try:
            session, name, author, terms, numbers, kept = unpack(data, Limits(text=255, binary=1 << 30, items=1 << 22))
            epoch, received, base, unsure, foreign = _numbers(numbers)
            if not (isinstance(session, bytes) and isinstance(name, str) and len(session) == 16):
                raise ValueError("malformed")
            if not (isinstance(author, bytes) and len(author) == 8):
                raise ValueError("nobody wrote it")
            agreed = Terms.parse(terms)
            if not (epoch < 1 << 32 and base > 0 and foreign <= agreed.window):
                raise ValueError("numbers out of range")
            return cls(session, name, epoch, agreed, received, base, _payloads(kept), unsure, author, foreign)
        except ValueError as error:
            raise ProtocolError(f"not a session that was handed over: {error}") from None


def _numbers(value: object) -> tuple[int, ...]:
    items = cast("tuple[object, ...]", value) if isinstance(value, tuple) else ()
    found = tuple(each for each in items if is_number(each))
    if len(found) != len(items):
        raise ValueError("a number was expected")
    return found


def _payloads(value: object) -> tuple[bytes, ...]:
    items = cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,)
    found = tuple(each for each in items if isinstance(each, bytes))
    if len(found) != len(items):
        raise ValueError("messages were expected")
    return found
