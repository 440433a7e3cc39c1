"""Messages that came together, of which one may be no message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from mchannel.errors import ChannelError, CodecError

__all__ = ["Batch"]

T = TypeVar("T")


class Batch(Generic[T]):
    """What a link returned at once and its reader has not been given yet."""

    def __init__(self, decode: Callable[[bytes], T], payloads: Sequence[bytes] = ()) -> None:
        self._decode = decode
        self._payloads = list(payloads)

    def __len__(self) -> int:
        """Return how many are left."""
        return len(self._payloads)

    def fill(self, payloads: list[bytes]) -> None:
        """Hold *payloads*; nothing may be left of those before."""
        self._payloads = payloads

    def refuse_handoff(self) -> None:
        """Raise ChannelError when something is left: the successor would never see it."""
        if self._payloads:
            raise ChannelError(f"{len(self._payloads)} messages of a batch are left; read them before a handoff")

    def next(self) -> T:
        """Return the first message, which must be there; raise CodecError when it is none. It is gone then."""
        return self._decode(self._payloads.pop(0))

    def take(self, limit: int) -> list[T]:
        """Return up to *limit* messages, those before one that does not decode; raise CodecError if it is the first."""
        found: list[T] = []
        append, decode = found.append, self._decode
        try:
            for payload in self._payloads[:limit]:
                append(decode(payload))
        except CodecError:
            if not found:
                del self._payloads[0]
                raise
        del self._payloads[: len(found)]
        return found
