"""Which thresholds publishers compare with themselves, so that samples which change nothing need not travel.

A publisher that knows the thresholds of a series sends only samples on another side of one of them than the sample
before (:class:`mchannel.samples.Offload`). A rule may be offloaded when such samples are all that it needs: one
comparison of the newest sample of single endpoints, without ``for`` and ``nodata``. (MAVIS, section IV.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import attrs

from .terms import Operator
from .tree import Comparison, Instant, NoData, Rule

__all__ = ["Cost", "choose", "cuts"]

_WORTH, _STILL_WORTH = 0.5, 0.25  # shares of the samples that must be saved, to begin and to go on


def cuts(rule: Rule) -> frozenset[float] | None:
    """Return where what *rule* says of a value changes: all that matters is above which of them it is.

    None when the rule needs more than that, and cannot be offloaded.
    """
    condition = rule.condition
    if not isinstance(condition, Comparison) or not isinstance(condition.expression, Instant):
        return None
    if rule.hold is not None or rule.nodata is not NoData.KEEP:
        return None
    comparisons = (condition,) if rule.clear is None else (condition, rule.clear)
    return frozenset(cut for each in comparisons for cut in _cuts(each.operator, each.threshold))


def _cuts(operator: Operator, threshold: float) -> tuple[float, ...]:
    below = math.nextafter(threshold, -math.inf)
    match operator:
        case Operator.ABOVE | Operator.AT_MOST:
            return (threshold,)
        case Operator.AT_LEAST | Operator.BELOW:
            return (below,)
        case Operator.EQUAL | Operator.UNEQUAL:
            return (below, threshold)


@attrs.frozen
class Cost:
    """What a series costs, measured over some time."""

    series: int
    """The publisher's number."""
    samples: int
    """Samples that came or, of a series that is offloaded, had come in such a time before it was."""
    crossings: int
    """How many of them were on another side of a threshold than the one before, or still come."""
    cuts: int
    """Thresholds that its rules compare with."""
    is_free: bool = True
    """Whether nobody needs its other samples: no rule that cannot be offloaded, and no store of everything."""


def choose(costs: Iterable[Cost], most: int, held: frozenset[int] = frozenset()) -> frozenset[int]:
    """Return the series to offload to a publisher that compares with *most* thresholds at the most.

    Those that save most samples for each threshold come first, and those that are *held*, offloaded already, before
    others that save as much: what is taken back and given again costs more than it saves.
    """
    worth: list[tuple[float, bool, int, int]] = []
    for cost in costs:
        is_held = cost.series in held
        saved = cost.samples - cost.crossings
        if cost.is_free and cost.cuts and saved > (_STILL_WORTH if is_held else _WORTH) * cost.samples:
            worth.append((saved / cost.cuts * (2 if is_held else 1), is_held, -cost.series, cost.cuts))
    chosen: set[int] = set()
    for _, _, series, size in sorted(worth, reverse=True):
        if size <= most:
            chosen.add(-series)
            most -= size
    return frozenset(chosen)
