"""Messages that came together, of which one may be no message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Literal, TypeVar

from mchannel.errors import ChannelError, CodecError
from mchannel.transport import Link

__all__ = ["Batch"]

T = TypeVar("T")


class Batch(Generic[T]):
    """What a link returned at once and its reader has not been given yet."""

    def __init__(self, link: Link, decode: Callable[[bytes], T], payloads: Sequence[bytes] = ()) -> None:
        self.recv_many = link.recv_many
        self._link = link
        self._decode = decode
        self.left = list(payloads)
        """Payloads of the messages that are left."""
        self._stamps: Sequence[tuple[int, bool]] = link.stamps if payloads else ()

    def gather(self, limit: int) -> Literal[True] | None:
        """Have messages: what is left, or up to *limit* from the link. None when there are none; raises ValueError."""
        if limit < 1:
            raise ValueError(f"limit must be a number of messages from 1 on, not {limit!r}")
        if not self.left:
            self.left = self.recv_many(limit)
            self._stamps = ()
        return True if self.left else None

    def refuse_handoff(self) -> None:
        """Raise ChannelError when something is left: the successor would never see it."""
        if self.left:
            raise ChannelError(f"{len(self.left)} messages of a batch are left; read them before a handoff")

    def next(self) -> T:
        """Return the first message, which must be there; raise CodecError when it is none. It is gone then."""
        return self._decode(self.left.pop(0))

    @property
    def stamp(self) -> tuple[int, bool]:
        """Number of what :meth:`next` returned last, and whether it is redelivered."""
        return self._stamps[-1 - len(self.left)]

    def take(self, limit: int) -> list[T]:
        """Return up to *limit* messages, those before one that does not decode; raise CodecError if it is the first."""
        found: list[T] = []
        append, decode = found.append, self._decode
        try:
            for payload in self.left[:limit]:
                append(decode(payload))
        except CodecError:
            self._stamps = self._stamps or self._link.stamps  # the rest may be asked for one by one
            if not found:
                del self.left[0]
                raise
        del self.left[: len(found)]
        return found
