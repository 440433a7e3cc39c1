"""Codecs: how messages become bytes, and how bytes of a stranger become messages."""

from __future__ import annotations

from typing import Protocol, TypeVar, cast

import attrs

from mchannel.errors import CodecError
from mchannel.event import Detail, Event, Scalar
from mchannel.packing import Limits, pack, unpack

__all__ = ["Codec", "EventCodec", "RawCodec"]

T = TypeVar("T")

_SCALARS = frozenset(map(type, (None, True, 1, 1.0, "", b"")))
_TEXT = frozenset((str,))


class Codec(Protocol[T]):
    """Turns the application's messages into bytes and back. One instance belongs to one channel."""

    def encode(self, message: T) -> bytes:
        """Return *message* as bytes; raise :class:`CodecError` when it is not of this codec."""
        ...

    def decode(self, payload: bytes) -> T:
        """Return the message in *payload*; raise :class:`CodecError` when there is none. Never trusts it."""
        ...


class RawCodec:
    """Bytes as they are."""

    def encode(self, message: bytes) -> bytes:
        """Return *message*."""
        if not isinstance(message, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise CodecError(f"a raw channel carries bytes, not {type(message).__name__}")
        return message

    def decode(self, payload: bytes) -> bytes:
        """Return *payload*."""
        return payload


@attrs.frozen
class EventCodec:
    """:class:`~mchannel.event.Event` as a msgpack array of five, within limits that hold for both ends."""

    limits: Limits = attrs.field(default=Limits(binary=1 << 20))
    """Bytes may be long, as columns of samples are: how long a message is at all, its channel bounds."""

    _short: int = attrs.field(
        default=attrs.Factory(lambda self: min(self.limits.text, self.limits.binary), takes_self=True),
        init=False,
        eq=False,
        repr=False,
    )
    """In so many bytes no text and no bytes can be too long."""

    def encode(self, message: Event) -> bytes:
        """Return *message* as msgpack; raise :class:`CodecError` for one that a reader would refuse."""
        if not isinstance(message, Event):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise CodecError(f"this channel carries Event, not {type(message).__name__}; pass codec= to carry others")
        topic, source, value = message.topic, message.source, message.value
        try:
            detail = dict(message.detail)
            packed = pack((topic, source, value, message.at, detail))
            size = len(packed)
            if size > self._short and type(value) is bytes and len(value) <= self.limits.binary:
                size -= len(value)
            if (
                size > self._short
                or type(value) not in _SCALARS
                or type(topic) is not str
                or type(source) is not str
                or (detail and not _is_detail(detail, self.limits.items))
            ):  # it is long, or of unusual classes: a reader knows
                self._read(packed)
        except (TypeError, ValueError, OverflowError) as error:
            raise CodecError(f"event {str(topic)[:100]!r} cannot be sent: {error}") from None
        return packed

    def decode(self, payload: bytes) -> Event:
        """Return the event in *payload*; raise :class:`CodecError` for anything else."""
        try:
            return self._read(payload)
        except (ValueError, OverflowError) as error:
            raise CodecError(f"not an event: {error}") from None

    def _read(self, payload: bytes) -> Event:
        match unpack(payload, self.limits):
            case (str() as topic, str() as source, value, int() | float() as at, detail) if type(
                value
            ) in _SCALARS and (detail == {} or _is_detail(detail, self.limits.items)):
                return Event(topic, source, cast("Scalar", value), float(at), cast("Detail", detail))
            case _:
                raise ValueError(
                    "it must have a topic, a source, a scalar, a time, and named scalars or tuples of them"
                )


def _is_detail(detail: object, items: int) -> bool:
    """Whether these are named scalars, or tuples of scalars, nowhere more than *items*."""
    if type(detail) is not dict:
        return False
    named = cast("dict[object, object]", detail)
    if len(named) > items or not _TEXT.issuperset(map(type, named)):
        return False
    if _SCALARS.issuperset(map(type, named.values())):
        return True
    for value in named.values():
        parts = cast("tuple[object, ...]", value if type(value) is tuple else (value,))
        if len(parts) > items or not _SCALARS.issuperset(map(type, parts)):
            return False
    return True
