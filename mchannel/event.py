"""The one message that agents and brokers understand without agreeing on more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import attrs

__all__ = ["Detail", "Event", "Scalar"]

Scalar: TypeAlias = bool | int | float | str | bytes | None
Detail: TypeAlias = Mapping[str, "Scalar | tuple[Scalar, ...]"]

_NO_DETAIL: Detail = {}


def _finite(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{attribute.name} must be a finite number of Unix seconds, not {value}")


@attrs.frozen(slots=True)
class Event:
    """One fact from one place.

    A broker that receives an event replaces :attr:`source` by the domain that the channel
    belongs to: who speaks is known from the channel, never from what is said.
    """

    topic: str
    """Dotted name of what happened, most general part first: ``sla.epoch``, ``cpu.usage``."""

    source: str = ""
    """The domain, host or device that the fact is about."""

    value: Scalar = None
    """The fact itself, when it is one number or word."""

    at: float = attrs.field(default=0.0, validator=_finite)
    """When it was observed, in seconds of the Unix clock at the source."""

    detail: Detail = attrs.field(default=_NO_DETAIL)
    """Named scalars, or tuples of scalars, that go with the fact."""
