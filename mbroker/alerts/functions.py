"""What each function makes of numbers. None is what cannot be known: too few values, or beyond a double."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from fractions import Fraction

from .terms import Count, Function, Operator, Span
from .tree import Spatial, Temporal

__all__ = ["spatial", "temporal"]


def temporal(expression: Temporal, samples: Sequence[tuple[int, float]]) -> float | None:
    """Return the value of *expression* after the last of *samples*, which are all that were accepted, in order."""
    window = expression.window
    if expression.function is Function.EWMA:
        assert isinstance(window, Span)
        return _ewma(_finite(samples), window.milliseconds)
    if isinstance(window, Count):
        if len(samples) < window.count:
            return None
        within = samples[-window.count :]
    else:
        within = [(at, value) for at, value in samples if at > samples[-1][0] - window.milliseconds]
    match expression.function:
        case Function.RATE:
            return _rate(_finite(within))
        case Function.DELTA:
            return _delta(_finite(within))
        case function:
            return _aggregate(function, [value for _, value in within], expression.quantile)


def _finite(samples: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(at, value) for at, value in samples if math.isfinite(value)]


def _delta(samples: Sequence[tuple[int, float]]) -> float | None:
    return _rounded(lambda: Fraction(samples[-1][1]) - Fraction(samples[0][1])) if len(samples) >= 2 else None


def _ewma(samples: Sequence[tuple[int, float]], constant: int) -> float | None:
    average = None
    before = 0
    for at, value in samples:
        average = value if average is None else average + -math.expm1((before - at) / constant) * (value - average)
        before = at
    return average if average is None or math.isfinite(average) else None


def _rate(samples: Sequence[tuple[int, float]]) -> float | None:
    if len(samples) < 2:
        return None
    values = [value for _, value in samples]
    increase = sum(
        (Fraction(new) - Fraction(old) if new >= old else Fraction(new))  # a counter that fell was reset to 0
        for old, new in itertools.pairwise(values)
    )
    return _rounded(lambda: increase * 1000 / (samples[-1][0] - samples[0][0]))


def spatial(expression: Spatial, direction: Operator, values: Sequence[float]) -> float | None:
    """Return the value of *expression* over the members' *values*, of which there is at least one.

    All, any and at least k are one order statistic: of the values in the order in which they satisfy *direction*,
    the last, the first and the k-th. Its comparison holds exactly when that many members satisfy it.
    """
    ordered = sorted(values, reverse=direction.wants_more)
    match expression.function:
        case Function.ALL:
            return ordered[-1]
        case Function.ANY:
            return ordered[0]
        case Function.ATLEAST:
            assert expression.least is not None
            worst = -math.inf if direction.wants_more else math.inf
            return ordered[expression.least - 1] if expression.least <= len(ordered) else worst
        case function:
            return _aggregate(function, values, expression.quantile)


def _aggregate(function: Function, values: Sequence[float], quantile: float | None) -> float | None:
    """Order and count use all values; arithmetic leaves infinite ones out."""
    match function:
        case Function.COUNT:
            return float(len(values))
        case Function.MIN:
            return min(values)
        case Function.MAX:
            return max(values)
        case Function.MEDIAN:
            return _ranked(values, 0.5)
        case Function.QUANTILE:
            assert quantile is not None
            return _ranked(values, quantile)
        case _:
            return _arithmetic(function, [value for value in values if math.isfinite(value)])


def _ranked(values: Sequence[float], quantile: float) -> float:
    """Return the value of the nearest rank, ``ceil(quantile * n)``."""
    millionths = round(quantile * 1_000_000)
    rank = max(1, -(-millionths * len(values) // 1_000_000))
    return sorted(values)[rank - 1]


def _arithmetic(function: Function, values: Sequence[float]) -> float | None:
    """Exact, then rounded once; variance and stddev divide by n - 1."""
    if len(values) < (2 if function in (Function.VARIANCE, Function.STDDEV) else 1):
        return None
    match function:
        case Function.SUM:
            return _rounded(lambda: sum(map(Fraction, values)))
        case Function.MEAN:
            return _rounded(lambda: sum(map(Fraction, values)) / len(values))
        case Function.VARIANCE:
            return _rounded(lambda: statistics.variance(map(Fraction, values)))
        case Function.STDDEV:
            return _rounded(lambda: statistics.stdev(values))
        case _:
            raise AssertionError(function)


def _rounded(exact: Callable[[], Fraction | float]) -> float | None:
    """Return the nearest double; beyond their range nothing is known."""
    try:
        return float(exact())
    except OverflowError:
        return None
