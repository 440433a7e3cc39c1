"""What a Xen guest offers domain 0, and where in xenstore both look for it."""

from __future__ import annotations

import re
from typing import Final

import attrs

from mchannel.address import Address
from mchannel.errors import AddressError, ProtocolError
from mchannel.transport import Options

__all__ = ["HOLD", "Offer", "channel_name", "folder", "is_channel_name", "longest"]

HOLD: Final = 600
"""Longest quiesce, in seconds."""
_PAGES: Final = 256  # most that a guest can make domain 0 map for one channel
_LAST_PORT: Final = (1 << 17) - 1
_SLACK: Final = 1 << 16  # bytes of a frame beyond its longest message
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")


@attrs.frozen
class Offer:
    """What a guest offers: the port of an event channel, and the references of its pages in order."""

    port: int
    references: tuple[int, ...]

    def encode(self) -> bytes:
        """Return the value of the node: the version, the port and the references, in decimal."""
        return " ".join(map(str, (1, self.port, *self.references))).encode()

    @classmethod
    def decode(cls, value: bytes) -> Offer:
        """Return what *value* says; raise :class:`ProtocolError` unless all of it can be."""
        words = value.split(b" ", _PAGES + 3)
        if len(words) < 3 or len(words) > _PAGES + 2 or not all(len(word) <= 10 and word.isdigit() for word in words):
            raise ProtocolError(f"an offer is a version, a port and 1 to {_PAGES} page references")
        version, port, *references = map(int, words)
        if version != 1:
            raise ProtocolError(f"the offer has version {version}; this end knows version 1")
        if not 0 < port <= _LAST_PORT:
            raise ProtocolError(f"no event channel has the port {port}")
        if max(references) >= 1 << 32 or len(set(references)) != len(references):
            raise ProtocolError("the page references of the offer are out of range, or not all different")
        return cls(port, tuple(references))


def folder(name: str, domain: int | None = None) -> str:
    """Return where the channel *name* stands in xenstore: of this domain, or of another one."""
    return ("" if domain is None else f"/local/domain/{domain}/") + f"data/mchannel/{name}"


def channel_name(address: Address) -> str:
    """Return the name in *address*; raises AddressError."""
    address.refuse_options()
    if address.port is not None or not _NAME.match(address.path):
        raise AddressError(f"{address}: a name has 1 to 64 letters, digits, dashes or underscores, like xen:///mgmt")
    return address.path


def is_channel_name(name: str) -> bool:
    """Whether a channel can be called so; names in a guest's part of xenstore are the guest's choice."""
    return _NAME.match(name) is not None


def longest(options: Options) -> int:
    """Return how long a frame may be, in bytes."""
    return options.max_message + _SLACK
