"""What a Nagios plug-in says: its exit status, and the performance data behind the bar in its output.

Any plug-in of the Monitoring Plugins guidelines is read, unchanged: one line or many, labels in quotes, units, ranges.

========================================  =============================================================
``nagios.state{check}``                   0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN
``nagios.value{check,label,unit}``        seconds, bytes, percent or a bare number, whatever it was said in
``nagios.min`` ``nagios.max``             where it says them
``nagios.warning`` ``nagios.critical``    1 when the value is where its range says that one should be told
========================================  =============================================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import attrs

from mchannel.agents.publisher import Reading
from mchannel.samples import Named

__all__ = ["Datum", "Range", "from_output", "perfdata"]

_UNITS: dict[str, tuple[str, float]] = {
    "": ("", 1.0),
    "%": ("%", 1.0),
    "c": ("c", 1.0),
    "s": ("s", 1.0),
    "ms": ("s", 1e-3),
    "us": ("s", 1e-6),
    "ns": ("s", 1e-9),
    "B": ("B", 1.0),
} | {f"{letter}{infix}B": ("B", 1024.0**power) for power, letter in enumerate("KMGTPE", 1) for infix in ("", "i")}
"""Units that plug-ins write, and what they are in the one that is told. KB has meant 1024 bytes there all along."""

_NUMBER = re.compile(r"[-+]?(?:[0-9]{1,64}(?:[.,][0-9]{0,64})?|[.,][0-9]{1,64})(?:[eE][-+]?[0-9]{1,8})?")
_DATUM = re.compile(
    r"(?<!\S)(?:'(?P<quoted>(?:[^']|''){1,200})'|(?P<plain>[^\s'=][^\s=]{0,199}))"
    rf"=(?P<value>{_NUMBER.pattern}|U)(?P<unit>(?![-+.,])[^\s;0-9]{{0,32}})(?P<rest>(?:;[^\s;]{{0,80}}){{0,4}})(?=\s|$)"
)
"""Each part is bounded, and what is longer passed over: the time is in proportion to the text, whatever is in it."""

_MOST = 1000  # of one plug-in


def _number(text: str) -> float | None:
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text.replace(",", "."))  # as a plug-in in another locale writes it
    return value if math.isfinite(value) else None


@attrs.frozen
class Range:
    """Values that one should be told of: those outside of it or, where it says so, inside."""

    low: float = 0.0
    high: float = math.inf
    inside: bool = False

    @classmethod
    def parse(cls, text: str, scale: float = 1.0) -> Range | None:
        """Return the range in *text*, such as ``10``, ``10:``, ``~:10``, ``10:20`` or ``@10:20``; None for no range."""
        inside, ends = text.startswith("@"), text.removeprefix("@")
        first, colon, second = ends.partition(":")
        if not colon:
            first, second = "", first
        if not ends:
            return None
        low = -math.inf if first == "~" else 0.0 if not first else _number(first)
        high = math.inf if not second else _number(second)
        if low is None or high is None or low > high:
            return None
        return cls(low * scale, high * scale, inside)

    def alerts(self, value: float) -> bool:
        """Whether one should be told of *value*."""
        return (self.low <= value <= self.high) is self.inside


@attrs.frozen
class Datum:
    """One value of a plug-in's performance data."""

    label: str
    unit: str
    """``s``, ``B``, ``%``, ``c`` for a counter, empty, or what the plug-in made up."""
    value: float | None
    """None when the plug-in could not determine it (``U``)."""
    warning: Range | None = None
    critical: Range | None = None
    low: float | None = None
    high: float | None = None


def perfdata(text: str) -> Iterator[Datum]:
    """Yield what can be understood of the performance data in *text*; what is between is passed over."""
    for match in _DATUM.finditer(text):
        quoted = match["quoted"]
        label = match["plain"] if quoted is None else quoted.replace("''", "'")
        value = _number(match["value"])
        if value is None and match["value"] != "U":
            continue
        unit, scale = _UNITS.get(match["unit"], (match["unit"], 1.0))
        warning, critical, low, high = (match["rest"].split(";")[1:] + [""] * 4)[:4]
        yield Datum(
            label,
            unit,
            None if value is None else value * scale,
            Range.parse(warning, scale),
            Range.parse(critical, scale),
            _scaled(low, scale),
            _scaled(high, scale),
        )


def _scaled(text: str, scale: float) -> float | None:
    value = _number(text)
    return None if value is None else value * scale


def _performance(output: str) -> str:
    """Return what stands behind the bar of the first line, and behind the first bar in the lines after it."""
    first, _, more = output.partition("\n")
    return f"{first.partition('|')[2]} {more.partition('|')[2]}"


def from_output(check: str, status: int, output: str) -> Iterator[Reading]:
    """Yield what a plug-in says that ended with *status*; one that it may not end with is UNKNOWN."""
    at = ("check", check)
    yield Reading(Named("nagios.state", (at,)), float(status if 0 <= status <= 3 else 3))
    for number, datum in enumerate(perfdata(_performance(output))):
        if number == _MOST:
            return
        named = (at, ("label", datum.label))
        unit = (("unit", datum.unit),) if datum.unit else ()
        if datum.value is not None:
            yield Reading(Named("nagios.value", named + unit), datum.value)
            if datum.warning:
                yield Reading(Named("nagios.warning", named), float(datum.warning.alerts(datum.value)))
            if datum.critical:
                yield Reading(Named("nagios.critical", named), float(datum.critical.alerts(datum.value)))
        if datum.low is not None:
            yield Reading(Named("nagios.min", named + unit), datum.low)
        if datum.high is not None:
            yield Reading(Named("nagios.max", named + unit), datum.high)
