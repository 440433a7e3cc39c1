"""What policies read out of events about one epoch.

Events come from guests, so a field that is missing or makes no sense is treated as not said. Nothing
here raises: a guest that could make a policy raise could have it benched for every other domain.
"""

from __future__ import annotations

import math

import attrs

from mchannel.event import Event

__all__ = ["SlaEpoch", "fraction"]


def _number(value: object) -> float | None:
    """Return *value* as a finite number that is not negative, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number >= 0.0 else None


def fraction(value: object) -> float | None:
    """Return *value* as a number of 0.0..1.0, or None. Utilisation measured a little above 1 is 1."""
    number = _number(value)
    return None if number is None else min(number, 1.0)


@attrs.frozen
class SlaEpoch:
    """One ``sla.epoch`` event, checked."""

    hard: float
    """Fraction of the epoch's requests that took longer than the hard threshold."""
    soft: float
    """The same for the soft threshold; never below :attr:`hard`, which it includes."""
    p99_ms: float | None
    """99th percentile of the response time in milliseconds, None in an epoch without requests."""
    hard_ms: float | None
    """The agent's hard threshold in milliseconds."""
    utilization: float | None
    """Utilisation of its virtual CPUs as the guest sees it, 0.0..1.0."""

    @classmethod
    def read(cls, event: Event) -> SlaEpoch | None:
        """Return what *event* says, or None when it does not even say how many requests were late."""
        hard = fraction(event.value)
        if hard is None:
            return None
        detail = event.detail
        requests, late = _number(detail.get("requests")), _number(detail.get("soft"))
        soft = min(late / requests, 1.0) if requests and late is not None else hard
        return cls(
            hard=hard,
            soft=max(soft, hard),
            p99_ms=_number(detail.get("p99_ms")),
            hard_ms=_number(detail.get("hard_ms")),
            utilization=fraction(detail.get("utilization")),
        )
