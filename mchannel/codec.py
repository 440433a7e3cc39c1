"""Codecs: how messages become bytes, and how bytes of a stranger become messages."""

from __future__ import annotations

from typing import Protocol, TypeGuard, TypeVar, cast

import attrs

from mchannel.errors import CodecError
from mchannel.event import Detail, Event, Scalar
from mchannel.packing import Limits, pack, unpack

__all__ = ["Codec", "EventCodec", "RawCodec"]

T = TypeVar("T")


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
    """:class:`~mchannel.event.Event` as a msgpack array of five, decoded within limits."""

    limits: Limits = attrs.field(default=Limits(binary=1 << 20))
    """Bytes may be long, as columns of samples are: how long a message is at all, its channel bounds."""

    def encode(self, message: Event) -> bytes:
        """Return *message* as msgpack; raise :class:`CodecError` for values that no scalar type holds."""
        if not isinstance(message, Event):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise CodecError(f"this channel carries Event, not {type(message).__name__}; pass codec= to carry others")
        try:
            return pack((message.topic, message.source, message.value, message.at, dict(message.detail)))
        except (TypeError, ValueError, OverflowError) as error:
            raise CodecError(f"event {message.topic!r} cannot be sent: {error}") from None

    def decode(self, payload: bytes) -> Event:
        """Return the event in *payload*; raise :class:`CodecError` for anything else."""
        try:
            match unpack(payload, self.limits):
                case (str() as topic, str() as source, value, int() | float() as at, detail) if _scalar(value):
                    return Event(topic, source, value, float(at), _detail(detail))
                case _:
                    raise ValueError("expected topic, source, value, at and detail")
        except (ValueError, OverflowError) as error:
            raise CodecError(f"not an event: {error}") from None


def _scalar(value: object) -> TypeGuard[Scalar]:
    return value is None or isinstance(value, (str, bool, int, float, bytes))


def _detail(value: object) -> Detail:
    if not isinstance(value, dict):
        raise ValueError("detail must be a map")
    if not value:  # as of most events
        return {}
    for key, item in cast("dict[object, object]", value).items():
        parts = cast("tuple[object, ...]", item) if isinstance(item, tuple) else (item,)
        if not isinstance(key, str) or not all(map(_scalar, parts)):
            raise ValueError("detail must hold named scalars, or tuples of scalars")
    return cast("Detail", value)
