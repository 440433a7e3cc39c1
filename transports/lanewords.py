"""What a guest and its MVM say about shared memory, on a stream of their own beside the session's.

::

    guest                                MVM
    want VERSION LABEL      ->
                            <-   offer NONCE OFFSET SIZE   when there is memory, now or later
    take NONCE              ->                             mapped; nothing is written yet
                            <-   go NONCE                  mapped here too: say HELLO through it
    ring                   <->   ring                      look into the ring
                            <-   leave NONCE               it is about to be unplugged
    left NONCE              ->                             unmapped here, or never mapped
"""

from __future__ import annotations

from typing import Final, TypeAlias

import attrs

from mchannel.errors import ProtocolError
from mchannel.packing import Limits, pack, unpack
from mchannel.transports.slot import NONCE, Place

__all__ = ["LABEL", "RING", "Go", "Leave", "Left", "Offer", "Ring", "Take", "Want", "Word", "decode"]

LABEL: Final = ".lane"
"""Label of the streams on which these words are said."""
VERSION: Final = 1
_LIMITS: Final = Limits(text=32, binary=NONCE, items=4)


@attrs.frozen
class Want:
    """The guest can use shared memory for a channel of this label."""

    label: str
    version: int = VERSION

    def encode(self) -> bytes:
        """Return the word as it is sent."""
        return pack(("want", self.version, self.label))


@attrs.frozen
class Offer:
    """There is a slot for it."""

    place: Place

    def encode(self) -> bytes:
        """Return the word as it is sent."""
        return pack(("offer", self.place.nonce, self.place.offset, self.place.size))


@attrs.frozen
class _Named:
    nonce: bytes

    def encode(self) -> bytes:
        """Return the word as it is sent."""
        return pack((type(self).__name__.lower(), self.nonce))


class Take(_Named):
    """The guest has mapped the slot."""


class Go(_Named):
    """The MVM has mapped it too."""


class Leave(_Named):
    """The guest is to unmap it."""


class Left(_Named):
    """The guest has."""


@attrs.frozen
class Ring:
    """There is something in the ring, or room."""

    def encode(self) -> bytes:
        """Return the word as it is sent."""
        return RING


RING: Final = pack(("ring",))
Word: TypeAlias = Want | Offer | Take | Go | Leave | Left | Ring


def decode(data: bytes) -> Word:
    """Return the word in *data*; raise ProtocolError when there is none."""
    if data == RING:
        return Ring()
    try:
        match unpack(data, _LIMITS):
            case ("want", int(version), str(label)):
                return Want(label, version)
            case ("offer", bytes(nonce), int(offset), int(size)):
                return Offer(Place(nonce, offset, size))
            case ("take", bytes(nonce)):
                return Take(nonce)
            case ("go", bytes(nonce)):
                return Go(nonce)
            case ("leave", bytes(nonce)):
                return Leave(nonce)
            case ("left", bytes(nonce)):
                return Left(nonce)
            case _:
                raise ValueError("unknown")
    except ValueError:
        raise ProtocolError("not a word about shared memory") from None
