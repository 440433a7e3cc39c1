"""Samples on the wire: many values of many series in one event, as columns.

A publisher numbers its series, declares them once and from then on speaks of numbers. The numbers hold for one
*run* of the publisher, a random word; a broker that does not know the run, or a number, asks for them anew.

====================  =========================================================================
``metrics.series``    :class:`Declared`: these series have these numbers
``metrics.samples``   :class:`Samples`: values and times of series, told by number
``metrics.again``     :class:`Again`, from broker to publisher: declare all series (again)
``metrics.offload``   :class:`Offload`, from broker to publisher: send of these series only what matters
``metrics.offloaded`` :class:`Offloaded`: the publisher does so, or does so no longer
====================  =========================================================================

Columns are little-endian, and converted as a whole: what a batch costs hardly depends on how many it holds.
"""

from __future__ import annotations

import math
import re
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, Self, TypeAlias, TypeVar, cast

import attrs

from mchannel.errors import CodecError
from mchannel.event import Event, Scalar
from mchannel.packing import Limits, pack, unpack

__all__ = [
    "AGAIN",
    "GROUP",
    "MOST_CUTS",
    "MOST_DECLARED",
    "MOST_INTERVAL",
    "MOST_LABELS",
    "MOST_SAMPLES",
    "MOST_SERIES",
    "OFFLOAD",
    "OFFLOADED",
    "RESERVED",
    "SAMPLES",
    "SERIES",
    "Again",
    "Declared",
    "Labels",
    "Named",
    "Offload",
    "Offloaded",
    "Samples",
    "declarations",
    "is_label",
    "is_name",
]

T = TypeVar("T")
Item = TypeVar("Item", int, float)
Labels: TypeAlias = tuple[tuple[str, str], ...]
"""Pairs of name and value, sorted."""
_Whole: TypeAlias = "array[int]"
_Real: TypeAlias = "array[float]"

SERIES, SAMPLES, AGAIN = "metrics.series", "metrics.samples", "metrics.again"
OFFLOAD, OFFLOADED = "metrics.offload", "metrics.offloaded"
MOST_SERIES = 1 << 20
"""Series of one publisher: numbers are below."""
MOST_DECLARED = 4096
"""Series in one declaration."""
MOST_INTERVAL = 86_400_000
"""Milliseconds between two samples of a series."""
MOST_SAMPLES = 1 << 15
"""Samples in one event."""
MOST_CUTS = 4096
"""Thresholds in one offer."""
MOST_LABELS = 16
GROUP = "group"
"""The one label that may occur several times: an endpoint may belong to many groups."""
RESERVED = frozenset(["absent", "and", "by", "clear", "expire", "for", "keep", "nodata", "not", "or", "severity"])
"""Words of the subscription language, which name neither metrics nor labels."""

_RUNS = 1 << 63
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:]{0,127}")
_TEXT = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,256}")
_LIMITS = Limits(text=1024, binary=0, items=MOST_DECLARED)
_OVERHEAD = 256  # bytes of an event around what it carries
_ROW = 20  # bytes of a sample
_SWAPS = sys.byteorder == "big"


def is_name(text: object) -> bool:
    """Whether *text* may name a metric or a label: letters, digits, ``_ . :``, at most 128, no word of the language."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None and text not in RESERVED


def is_label(text: object) -> bool:
    """Whether *text* may be the value of a label: 1 to 256 characters, none of them a control character."""
    return isinstance(text, str) and _TEXT.fullmatch(text) is not None


class Named(NamedTuple):
    """A series by what it is called: a metric, and the labels of what it is observed at."""

    metric: str
    labels: Labels = ()

    def check(self) -> None:
        """Raise ValueError for a name that the subscription language could not say, and labels that are not sorted."""
        if not is_name(self.metric):
            raise ValueError(f"a metric must have a name, not {self.metric!r:.60}")
        if len(self.labels) > MOST_LABELS:
            raise ValueError(f"{self.metric} has {len(self.labels)} labels; {MOST_LABELS} are the most")
        for name, value in self.labels:
            if not is_name(name):
                raise ValueError(f"a label of {self.metric} must have a name, not {name!r:.60}")
            if not is_label(value):
                raise ValueError(f"label {name} of {self.metric} cannot be {value!r:.60}")
        for (one, value), (other, another) in pairwise(self.labels):
            if not (one < other or (one == other == GROUP and value < another)):
                raise ValueError(f"labels of {self.metric} must be sorted, and each be there once, but not {other}")


def _run(_: object, attribute: attrs.Attribute[int], value: object) -> None:
    if type(value) is not int or not 0 <= value < _RUNS:
        raise ValueError(f"{attribute.name} must be a whole number below 2^63, not {value!r:.60}")


@attrs.frozen
class Again:
    """Asks the publisher to declare all its series."""

    run: int = attrs.field(validator=_run)
    """The run that is meant; a publisher that has begun another has declared all of it already."""

    def to_event(self) -> Event:
        """Return the event that says so."""
        return Event(AGAIN, value=self.run)

    @classmethod
    def from_event(cls, event: Event) -> Self:
        """Return what *event* says; raise :exc:`~mchannel.errors.CodecError` when it is malformed."""
        return _read(lambda: cls(cast("int", event.value)))


@attrs.frozen
class Declared:
    """Says which series the numbers from *first* on are."""

    run: int = attrs.field(validator=_run)
    first: int
    series: tuple[Named, ...]
    interval: int | None = None
    """Milliseconds between two samples of each; None if the publisher does not say."""

    def __attrs_post_init__(self) -> None:
        """Refuse what has no meaning."""
        if len(self.series) > MOST_DECLARED:
            raise ValueError(f"{len(self.series)} series in one declaration; {MOST_DECLARED} are the most")
        if type(self.first) is not int or not 0 <= self.first <= MOST_SERIES - len(self.series):
            raise ValueError(f"series must have numbers below {MOST_SERIES}")
        if self.interval is not None and (type(self.interval) is not int or not 0 < self.interval <= MOST_INTERVAL):
            raise ValueError(f"interval must be 1 to {MOST_INTERVAL} milliseconds, not {self.interval!r:.60}")
        for named in self.series:
            named.check()

    def to_event(self) -> Event:
        """Return the event that says so."""
        detail: dict[str, Scalar | tuple[Scalar, ...]] = {
            "run": self.run,
            "series": pack([*map(_flat, self.series)]),
        }
        if self.interval is not None:
            detail["interval"] = self.interval
        return Event(SERIES, value=self.first, detail=detail)

    @classmethod
    def from_event(cls, event: Event) -> Self:
        """Return what *event* says; raise :exc:`~mchannel.errors.CodecError` when it is malformed."""
        return _read(
            lambda: cls(
                cast("int", event.detail.get("run")),
                cast("int", event.value),
                tuple(map(_named, unpack(_bytes(event, "series"), _LIMITS))),
                cast("int | None", event.detail.get("interval")),
            )
        )


def declarations(
    run: int, first: int, series: Sequence[Named], room: int, interval: int | None = None
) -> Iterator[Declared]:
    """Yield declarations of all *series*, numbered from *first* on, of which each fits a message of *room* bytes."""
    begin, size = 0, _OVERHEAD
    for at, named in enumerate(series):
        more = len(pack(_flat(named)))
        if at > begin and (size + more > room or at - begin == MOST_DECLARED):
            yield Declared(run, first + begin, tuple(series[begin:at]), interval)
            begin, size = at, _OVERHEAD
        size += more
    if begin < len(series):
        yield Declared(run, first + begin, tuple(series[begin:]), interval)


def _flat(named: Named) -> tuple[str, ...]:
    return (named.metric, *(word for label in named.labels for word in label))


def _named(value: object) -> Named:
    words = cast("tuple[object, ...]", value) if isinstance(value, tuple) else ()
    if not len(words) % 2 or not all(isinstance(word, str) for word in words):
        raise ValueError("a series must be a metric, and names and values of labels")
    metric, *rest = cast("tuple[str, ...]", words)
    return Named(metric, tuple(zip(rest[::2], rest[1::2], strict=True)))


@attrs.frozen
class Samples:
    """Samples in the order in which they were taken; each is one row of the three columns.

    Which numbers are declared, and which times are plausible, only the receiver knows: that is not checked here.
    """

    run: int = attrs.field(validator=_run)
    numbers: _Whole
    """Of the series; an ``array`` of type ``I``."""
    values: _Real
    """Type ``d``; NaN and infinities travel as they are."""
    times: _Whole
    """Whole milliseconds of the Unix clock at the source; type ``q``."""
    dropped: int = 0
    """How many samples of this run the publisher has thrown away so far, as they could not be sent in time."""

    def __attrs_post_init__(self) -> None:
        """Refuse what has no meaning."""
        if (self.numbers.typecode, self.values.typecode, self.times.typecode) != ("I", "d", "q"):
            raise ValueError("the columns must be arrays of the types I, d and q")
        if not len(self.numbers) == len(self.values) == len(self.times):
            raise ValueError("the columns must be of the same length")
        if len(self.numbers) > MOST_SAMPLES:
            raise ValueError(f"{len(self.numbers)} samples in one event; {MOST_SAMPLES} are the most")
        if type(self.dropped) is not int or not 0 <= self.dropped < _RUNS:
            raise ValueError("dropped must be a whole number")

    def __len__(self) -> int:
        """Return how many samples they are."""
        return len(self.numbers)

    @staticmethod
    def most_in(room: int) -> int:
        """Return how many samples go into a message of *room* bytes: at least one."""
        return max(1, min(MOST_SAMPLES, (room - _OVERHEAD) // _ROW))

    def to_event(self, at: float = 0.0) -> Event:
        """Return the event that says so; *at* is when it is sent, in seconds."""
        detail: dict[str, Scalar | tuple[Scalar, ...]] = {
            "run": self.run,
            "numbers": _packed(self.numbers),
            "values": _packed(self.values),
            "times": _packed(self.times),
        }
        if self.dropped:
            detail["dropped"] = self.dropped
        return Event(SAMPLES, value=len(self), at=at, detail=detail)

    @classmethod
    def from_event(cls, event: Event) -> Self:
        """Return what *event* says; raise :exc:`~mchannel.errors.CodecError` when it is malformed."""
        return _read(
            lambda: cls(
                cast("int", event.detail.get("run")),
                _column(array("I"), event, "numbers"),
                _column(array("d"), event, "values"),
                _column(array("q"), event, "times"),
                cast("int", event.detail.get("dropped", 0)),
            )
        )


def _milliseconds(_: object, attribute: attrs.Attribute[int], value: object) -> None:
    if type(value) is not int or not -_RUNS <= value < _RUNS:
        raise ValueError(f"{attribute.name} must be whole milliseconds, not {value!r:.60}")


@attrs.frozen
class Offload:
    """Asks the publisher to compare samples with thresholds itself, and to send only those that change something.

    It replaces what was asked before; without thresholds, everything is sent again. *Cuts* are thresholds of which
    all that matters is whether a value is above them: ``> c`` and ``<= c`` change at *c*, and ``>= c`` and ``< c`` at
    the double just below. (MAVIS, section IV, *selective offloading*.)
    """

    run: int = attrs.field(validator=_run)
    since: int = attrs.field(validator=_milliseconds)
    """Time of the newest sample of the publisher that the broker has; up to it nothing is held back."""
    refresh: int = attrs.field(validator=_milliseconds)
    """Milliseconds after which a series is told although nothing has changed."""
    numbers: _Whole
    """Of the series that the cuts are for; an ``array`` of type ``I``."""
    cuts: _Real
    """Type ``d``."""

    def __attrs_post_init__(self) -> None:
        """Refuse what has no meaning."""
        if (self.numbers.typecode, self.cuts.typecode) != ("I", "d") or len(self.numbers) != len(self.cuts):
            raise ValueError("the columns must be arrays of the types I and d, and of the same length")
        if len(self.cuts) > MOST_CUTS:
            raise ValueError(f"{len(self.cuts)} thresholds in one offer; {MOST_CUTS} are the most")
        if any(map(math.isnan, self.cuts)):
            raise ValueError("a threshold must be a number")

    def to_event(self) -> Event:
        """Return the event that says so."""
        detail: dict[str, Scalar | tuple[Scalar, ...]] = {
            "run": self.run,
            "since": self.since,
            "refresh": self.refresh,
            "numbers": _packed(self.numbers),
            "cuts": _packed(self.cuts),
        }
        return Event(OFFLOAD, value=len(self.cuts), detail=detail)

    @classmethod
    def from_event(cls, event: Event) -> Self:
        """Return what *event* says; raise :exc:`~mchannel.errors.CodecError` when it is malformed."""
        return _read(
            lambda: cls(
                cast("int", event.detail.get("run")),
                cast("int", event.detail.get("since")),
                cast("int", event.detail.get("refresh")),
                _column(array("I"), event, "numbers"),
                _column(array("d"), event, "cuts"),
            )
        )


@attrs.frozen
class Offloaded:
    """Says how many thresholds the publisher compares with from now on; none if it cannot, or has no time for it."""

    run: int = attrs.field(validator=_run)
    cuts: int

    def __attrs_post_init__(self) -> None:
        """Refuse what has no meaning."""
        if type(self.cuts) is not int or not 0 <= self.cuts <= MOST_CUTS:
            raise ValueError("cuts must be a whole number")

    def to_event(self) -> Event:
        """Return the event that says so."""
        return Event(OFFLOADED, value=self.cuts, detail={"run": self.run})

    @classmethod
    def from_event(cls, event: Event) -> Self:
        """Return what *event* says; raise :exc:`~mchannel.errors.CodecError` when it is malformed."""
        return _read(lambda: cls(cast("int", event.detail.get("run")), cast("int", event.value)))


def _read(build: Callable[[], T]) -> T:
    try:
        return build()
    except ValueError as error:
        raise CodecError(f"not what a publisher or its broker says: {error}") from None


def _bytes(event: Event, name: str) -> bytes:
    value = event.detail.get(name)
    if not isinstance(value, bytes):
        raise ValueError(f"{name} must be bytes")
    return value


def _packed(column: array[Item]) -> bytes:
    if _SWAPS:
        column = column[:]
        column.byteswap()
    return column.tobytes()


def _column(column: array[Item], event: Event, name: str) -> array[Item]:
    raw = _bytes(event, name)
    if len(raw) > MOST_SAMPLES * column.itemsize:
        raise ValueError(f"{name} is longer than {MOST_SAMPLES} samples")
    column.frombytes(raw)  # raises ValueError unless it is a whole number of items
    if _SWAPS:
        column.byteswap()
    return column
