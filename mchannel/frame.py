"""Frames: what travels between two sessions, bounded and checked before it is believed.

A frame is a header of 24 bytes in little-endian order, and a body::

    offset  size  field
         0     2  b"mC"
         2     1  kind
         3     1  flags
         4     4  epoch    which connection of the session this belongs to; others are ignored
         8     8  number   of the (first) message in DATA; of the last one sent in ACK, SUSPENDED and BYE
        16     8  ack      every message up to this one was taken care of by its reader
        24     -  body     the payload of DATA, or with MANY a msgpack array of payloads;
                           a msgpack array in HELLO and WELCOME; text in REFUSE
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import NamedTuple, TypeGuard, cast

import attrs

from mchannel.errors import ProtocolError
from mchannel.packing import Limits, pack, unpack
from mchannel.transport import MAX_MESSAGE, MAX_NAME, MAX_WINDOW, Delivery

__all__ = [
    "HEADER",
    "MAX_AUTHORS",
    "MOST_TOGETHER",
    "OVERHEAD",
    "VERSION",
    "Flag",
    "Frame",
    "Hello",
    "Kind",
    "Terms",
    "Welcome",
    "encode",
    "glance",
]

VERSION = 1
HEADER = struct.Struct("<2sBBIQQ")
OVERHEAD = HEADER.size
"""Bytes that a frame is longer than its body."""
MOST_TOGETHER = 1 << 16
"""Longest body of a frame with several messages: enough to share what a frame costs."""

_MAGIC = b"mC"
_MAX_REASON = 512
_MAX_CONTROL = 1024
MAX_AUTHORS = 8
"""Brokers that an agent remembers."""
_AUTHOR = (0, 8)
"""Bytes that name an author; none where the wire itself numbers."""
_MAX_NUMBER = 1 << 62
"""No honest session comes near; sums of two still fit the wire."""


class Kind(IntEnum):
    """What a frame is for."""

    HELLO = 1
    """Agent to broker: this is my session, this is what I have."""
    WELCOME = 2
    """Broker to agent: agreed, this is what I have; both replay the rest."""
    REFUSE = 3
    """Broker to agent: no, and why."""
    CALL = 4
    """Broker to agent: say HELLO (again); I do not know you, or I miss something."""
    DATA = 5
    ACK = 6
    SUSPEND = 7
    """Broker to agent: finish what you are sending and be quiet; ``number`` is the timeout in ms."""
    SUSPENDED = 8
    """All up to ``number`` was sent; nothing follows until the next HELLO."""
    BYE = 9
    """All up to ``number`` was sent and the session is over."""


class Flag(IntFlag):
    """Remarks on a frame."""

    PING = 1
    """This ACK wants an ACK in return."""
    MANY = 2
    """This DATA carries several messages, numbered from ``number`` on."""


_KINDS = {kind.value: kind for kind in Kind}
_MANY = Flag.MANY.value
_DATA = Kind.DATA.value  # an enum is slow to find its members, and these are looked at for each message
_DELIVERIES = {delivery.value for delivery in Delivery}


def encode_slowly(kind: int, epoch: int, number: int, ack: int, flags: int, body: bytes) -> bytes:
    """Return a frame as bytes."""
    return HEADER.pack(_MAGIC, kind, flags, epoch, number, ack) + body


def glance_slowly(data: bytes, limit: int, epoch: int, number: int) -> tuple[int, bytes] | None:
    """Return ack and payload of a DATA frame with this very *epoch* and *number*, one message of at most *limit* bytes.

    That is what most frames are. None for all else, which :meth:`Frame.decode` tells apart.
    """
    if not OVERHEAD <= len(data) <= OVERHEAD + limit:
        return None
    *start, ack = HEADER.unpack_from(data)
    if start != [_MAGIC, _DATA, 0, epoch, number] or number > _MAX_NUMBER or ack > _MAX_NUMBER:
        return None
    return ack, data[OVERHEAD:]


try:  # each message costs both
    from mchannel._frame import encode, glance
except ImportError:  # installed without the C
    encode, glance = encode_slowly, glance_slowly


class Frame(NamedTuple):
    """One frame, parsed."""

    kind: Kind
    epoch: int
    number: int = 0
    ack: int = 0
    flags: int = 0
    body: bytes = b""

    def encode(self) -> bytes:
        """Return the frame as bytes."""
        return encode(*self)

    @classmethod
    def decode(cls, data: bytes, limit: int) -> Frame:
        """Parse *data*; raise :class:`ProtocolError` when it is no frame, or DATA with more than *limit* bytes."""
        size = len(data) - OVERHEAD
        if size < 0:
            raise ProtocolError(f"a frame of {len(data)} bytes; the shortest has {OVERHEAD}")
        magic, kind, flags, epoch, number, ack = HEADER.unpack_from(data)
        known = _KINDS.get(kind)
        if magic != _MAGIC or known is None or flags > _MANY or number > _MAX_NUMBER or ack > _MAX_NUMBER:
            raise ProtocolError("not a frame of this protocol; is something else connected here?")
        if size > (limit if known is Kind.DATA else _MAX_CONTROL):
            raise ProtocolError(f"the peer sent {known.name} with {size} bytes, more than was agreed")
        return cls(known, epoch, number, ack, flags, data[OVERHEAD:])


def messages(flags: int, body: bytes) -> Sequence[bytes]:
    """Return the messages of a DATA frame; raise :class:`ProtocolError` when there are none."""
    if not flags & _MANY:
        return (body,)
    size = len(body)
    try:
        found = unpack(body, Limits(binary=size, items=size)) if size <= MOST_TOGETHER else ()
    except ValueError:
        found = ()
    if set(map(type, found)) != {bytes}:
        raise ProtocolError("malformed frame of several messages")
    return cast("tuple[bytes, ...]", found)


def _most_waiting(terms: Terms) -> int:
    return terms.window + terms.max_message + OVERHEAD


@attrs.frozen
class Terms:
    """What both ends agree on at HELLO; nothing of it changes while the session lives."""

    max_message: int
    window: int
    delivery: Delivery
    most_waiting: int = attrs.field(init=False, repr=False, default=attrs.Factory(_most_waiting, takes_self=True))
    """Bytes that may wait for a reader, with their headers: a window, which one message may exceed."""

    def join(self, other: Terms) -> Terms:
        """Return what both can bear."""
        latest = Delivery.LATEST in (self.delivery, other.delivery)
        return Terms(
            min(self.max_message, other.max_message),
            min(self.window, other.window),
            Delivery.LATEST if latest else Delivery.ALL,
        )

    def grant(self, asked: Terms, *, agreed: bool) -> Terms:
        """Return what a broker of these terms answers to HELLO.

        Raise :class:`ProtocolError` when they were *agreed* before, and the agent *asked* for others.
        """
        terms = self.join(asked)
        if agreed and terms != self:
            raise ProtocolError("the agent wants other terms than it agreed to; open a new channel for that")
        return terms

    def confirm(self, granted: Terms, *, agreed: bool) -> Terms:
        """Return what an agent that wanted these terms was *granted* by WELCOME, which may be less.

        Raise :class:`ProtocolError` when it is more, or not what was *agreed* before.
        """
        if granted != self.join(granted) or (agreed and granted != self):
            raise ProtocolError("the broker changed terms that were agreed")
        return granted

    def fields(self) -> tuple[object, ...]:
        """Return the terms as msgpack can carry them."""
        return (self.max_message, self.window, self.delivery.value)

    @classmethod
    def parse(cls, value: object) -> Terms:
        """Return the terms in *value*, checked."""
        match value:
            case (int() as size, int() as window, str() as delivery) if (
                delivery in _DELIVERIES and 0 < size <= MAX_MESSAGE and 0 < window <= MAX_WINDOW
            ):
                return cls(size, window, Delivery(delivery))
            case _:
                raise ProtocolError("malformed terms in a handshake")


_LIMITS = Limits(text=MAX_NAME, binary=64, items=16)


def _fields(body: bytes) -> tuple[object, ...]:
    try:
        return unpack(body, _LIMITS)
    except ValueError as error:
        raise ProtocolError(f"malformed handshake: {error}") from None


def _authors(value: object) -> tuple[tuple[bytes, int], ...]:
    found: list[tuple[bytes, int]] = []
    for each in cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,):
        match each:
            case (bytes() as author, int() as number) if len(author) in _AUTHOR and is_number(number):
                found.append((author, number))
            case _:
                raise ProtocolError("malformed HELLO")
    if len(found) > MAX_AUTHORS:
        raise ProtocolError("a HELLO that names too many brokers")
    return tuple(found)


def is_number(value: object) -> TypeGuard[int]:
    """Whether *value* can number a message."""
    return type(value) is int and 0 <= value <= _MAX_NUMBER


@attrs.frozen
class Hello:
    """The body of HELLO."""

    session: bytes
    """Sixteen random bytes, chosen by the agent."""
    name: str
    terms: Terms
    base: int
    """Number of the oldest message that the agent still holds, or will send next."""
    sent: int
    """Highest number that the agent has ever sent: up to here a broker may have seen them."""
    received: int
    """Last number that the agent has received from the broker side."""
    authors: tuple[tuple[bytes, int], ...] = ()
    """Who has written to the agent, and the last number that it received of each; the present one last."""

    def encode(self) -> bytes:
        """Return the body as bytes."""
        numbers = (self.base, self.sent, self.received)
        return pack([VERSION, self.session, self.name, self.terms.fields(), *numbers, self.authors])

    @classmethod
    def decode(cls, body: bytes) -> Hello:
        """Parse *body*; raise :class:`ProtocolError` when it is malformed or of another version."""
        match _fields(body):
            case [int() as version, *_] if version != VERSION:
                raise ProtocolError(
                    f"the peer speaks version {version} of the protocol, this end {VERSION}; upgrade the older"
                )
            case [_, bytes() as session, str() as name, terms, base, sent, received, authors] if (
                len(session) == 16
                and is_number(base)
                and base > 0
                and is_number(sent)
                and is_number(received)
                and name.isprintable()
            ):
                return cls(session, name, Terms.parse(terms), base, sent, received, _authors(authors))
            case _:
                raise ProtocolError("malformed HELLO")


@attrs.frozen
class Welcome:
    """The body of WELCOME."""

    session: bytes
    terms: Terms
    received: int | None
    """Last number that the broker side has received, or None when it knows nothing of the session."""
    base: int
    """Number of the oldest message that the broker side still holds, or will send next."""
    author: bytes = b""
    """Whose numbers these are: eight random bytes that a broker makes, and hands over with what it wrote."""

    def encode(self) -> bytes:
        """Return the body as bytes."""
        return pack([VERSION, self.session, self.terms.fields(), self.received, self.base, self.author])

    @classmethod
    def decode(cls, body: bytes) -> Welcome:
        """Parse *body*; raise :class:`ProtocolError` when it is malformed."""
        match _fields(body):
            case [int(), bytes() as session, terms, received, base, bytes() as author] if (
                len(session) == 16
                and (received is None or is_number(received))
                and is_number(base)
                and base > 0
                and len(author) in _AUTHOR
            ):
                return cls(session, Terms.parse(terms), received, base, author)
            case _:
                raise ProtocolError("malformed WELCOME")


def reason(body: bytes) -> str:
    """Return the text of a REFUSE, cleaned for logs and error messages."""
    text = body[:_MAX_REASON].decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)
