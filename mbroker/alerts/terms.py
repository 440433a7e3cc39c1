"""The terms of the language: functions, operators, windows and durations, and the bounds on their arguments."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeAlias

import attrs

__all__ = [
    "DAY",
    "PAIRWISE",
    "UNITS",
    "Count",
    "Function",
    "Operator",
    "Span",
    "Window",
    "check_least",
    "check_quantile",
    "check_window",
    "finite",
    "number",
]

DAY = 86_400_000  # milliseconds


class Function(Enum):
    """What makes one number of many: of the samples in a window (temporal) or of endpoints (spatial)."""

    MIN = "min"
    MAX = "max"
    MEAN = "mean"
    MEDIAN = "median"
    STDDEV = "stddev"
    VARIANCE = "variance"
    SUM = "sum"
    COUNT = "count"
    QUANTILE = "quantile"
    RATE = "rate"
    DELTA = "delta"
    EWMA = "ewma"
    ALL = "all"
    ANY = "any"
    ATLEAST = "atleast"

    @property
    def is_temporal(self) -> bool:
        """Whether it is applied to the window of a series."""
        return not self.is_quantifier

    @property
    def is_spatial(self) -> bool:
        """Whether it is applied to the members of a group."""
        return self not in (Function.RATE, Function.DELTA, Function.EWMA)

    @property
    def is_quantifier(self) -> bool:
        """Whether it says how many members the comparison must hold for."""
        return self in (Function.ALL, Function.ANY, Function.ATLEAST)

    @property
    def is_order(self) -> bool:
        """Whether it picks one of the values: only such functions can use infinite ones."""
        return self in (Function.MIN, Function.MAX, Function.MEDIAN, Function.QUANTILE)


PAIRWISE = (Function.STDDEV, Function.VARIANCE, Function.RATE, Function.DELTA)  # nothing to say of one value


class Operator(Enum):
    """How a number is compared with a threshold: exactly, as IEEE 754 doubles."""

    ABOVE = ">"
    AT_LEAST = ">="
    BELOW = "<"
    AT_MOST = "<="
    EQUAL = "=="
    UNEQUAL = "!="

    @property
    def holds(self) -> Callable[[float, float], bool]:
        """The comparison itself."""
        return _HOLDS[self]

    @property
    def wants_more(self) -> bool:
        """Whether a greater number satisfies it when a smaller one does: of ``>`` and ``>=``."""
        return self in (Operator.ABOVE, Operator.AT_LEAST)

    @property
    def negated(self) -> Operator:
        """The operator that holds exactly when this one does not."""
        return _NEGATED[self]


_HOLDS: dict[Operator, Callable[[float, float], bool]] = {
    Operator.ABOVE: operator.gt,
    Operator.AT_LEAST: operator.ge,
    Operator.BELOW: operator.lt,
    Operator.AT_MOST: operator.le,
    Operator.EQUAL: operator.eq,
    Operator.UNEQUAL: operator.ne,
}
_NEGATED = {
    Operator.ABOVE: Operator.AT_MOST,
    Operator.AT_LEAST: Operator.BELOW,
    Operator.BELOW: Operator.AT_LEAST,
    Operator.AT_MOST: Operator.ABOVE,
    Operator.EQUAL: Operator.UNEQUAL,
    Operator.UNEQUAL: Operator.EQUAL,
}


def _whole(least: int, most: int) -> Callable[[object, attrs.Attribute[Any], object], None]:
    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{attribute.name} must be a whole number from {least} to {most}, not {value!r:.60}")

    return check


def number(value: Any) -> Any:
    """Return a whole number as a float, and -0 as 0, which is the same threshold; leave the rest to validators."""
    try:
        return value + 0.0 if type(value) in (int, float) else value
    except OverflowError:
        return math.inf


def finite(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Refuse what is no finite number; a validator of attrs."""
    if type(value) is not float or not math.isfinite(value):
        raise ValueError(f"{attribute.name} must be a finite number, not {value!r:.60}")


@attrs.frozen
class Count:
    """A window that holds the last so many accepted samples of a series."""

    count: int = attrs.field(validator=_whole(1, 86_400))

    def __str__(self) -> str:
        """Return it as in the language: ``15``."""
        return str(self.count)


def _lasting(_: object, __: attrs.Attribute[Any], value: object) -> None:
    if type(value) is not int or not 1 <= value <= 366 * DAY:
        shown = _duration(value) if type(value) is int else f"{value!r:.60}"
        raise ValueError(f"a duration may last from 1ms to 366d, not {shown}")


@attrs.frozen
class Span:
    """A duration or, as a window, the samples of the last so many milliseconds: ``(now - span, now]``."""

    milliseconds: int = attrs.field(validator=_lasting)

    def __str__(self) -> str:
        """Return it as in the language, in the largest unit that says it: ``2m``, ``90s``."""
        return _duration(self.milliseconds)


def _duration(milliseconds: int) -> str:
    size, unit = next((size, unit) for size, unit in _UNITS if milliseconds % size == 0)
    return f"{milliseconds // size}{unit}"


_UNITS = ((DAY, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms"))
UNITS = {unit: size for size, unit in _UNITS}

Window: TypeAlias = Count | Span


def check_window(window: Window) -> None:
    """Refuse a window that holds too much."""
    if isinstance(window, Span) and window.milliseconds > 7 * DAY:
        raise ValueError(f"a window may last at most 7d, not {window}")


def check_quantile(quantile: float | None) -> None:
    """Refuse what is no quantile; six decimals, so that every implementation computes the rank in whole numbers."""
    if quantile is None:
        return
    if type(quantile) is not float or not (0 <= quantile <= 1 and round(quantile * 1e6) / 1e6 == quantile):
        raise ValueError(f"a quantile is from 0 to 1 with at most six decimals, not {quantile!r:.60}")


def check_least(least: int | None) -> None:
    """Refuse what no group can have at least so many of."""
    if least is not None and (type(least) is not int or not 1 <= least <= 1_000_000):
        raise ValueError(f"atleast needs a whole number from 1 to 1000000, not {least!r:.60}")
