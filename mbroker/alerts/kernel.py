"""The matcher in C, with Python's types. Series, groups and rules are numbers; :mod:`.engine` knows more."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, TypeAlias

import attrs

from ._match import ffi, lib

__all__ = [
    "ABSENT",
    "NOTHING",
    "Compare",
    "Counters",
    "Flip",
    "Flips",
    "Kernel",
    "KernelError",
    "Made",
    "NoDataCode",
    "Step",
    "Term",
    "View",
]


class Made(IntEnum):
    """What is made of a window of a series, or of the members of a group."""

    LAST = 0
    MEAN = 1
    SUM = 2
    VARIANCE = 3
    STDDEV = 4
    COUNT = 5
    QUANTILE = 6
    SMALLEST = 7
    LARGEST = 8
    RATE = 9
    DELTA = 10
    EWMA = 11
    ABSENT = 12


class Compare(IntEnum):
    """How a value is compared with a threshold."""

    ABOVE = 0
    AT_LEAST = 1
    BELOW = 2
    AT_MOST = 3
    EQUAL = 4
    UNEQUAL = 5
    NEVER = 6


class Step(IntEnum):
    """What a rule's program does besides naming a term by its index."""

    NOT = 0xFD
    AND = 0xFE
    OR = 0xFF


class NoDataCode(IntEnum):
    """What silence of its series means to a rule."""

    KEEP = 0
    CLEAR = 1
    FIRE = 2


NOTHING = 0xFFFF_FFFF
"""The source of a term whose series does not exist yet: it is unknown until :meth:`Kernel.bind`."""


class KernelError(Exception):
    """The matcher refuses; nothing has changed."""


_EDGE = struct.Struct("@qdIII?3x")  # match_edge
assert _EDGE.size == ffi.sizeof("match_edge")

_REASONS = {
    lib.MATCH_NO_MEMORY: "there is no memory for it",
    lib.MATCH_BAD: "it names what is not there, is in use, or out of range",
    lib.MATCH_TOO_MANY: "there are too many already",
    lib.MATCH_TOO_LONG: "its window is longer than the engine keeps samples",
}


@attrs.frozen
class View:
    """A function of the last *samples* or the last *span* milliseconds of a series; neither: of the newest one."""

    made: Made
    samples: int = 0
    span: int = 0
    rank: int = 0
    """Of ``QUANTILE`` in millionths; of ``SMALLEST`` and ``LARGEST`` counted from 1."""


@attrs.frozen
class Term:
    """One comparison."""

    source: int
    """A series, a group or, among several terms, :data:`NOTHING`."""
    view: View
    compare: Compare = Compare.NEVER
    threshold: float = 0.0
    of_group: bool = False
    quorum: bool = False
    """Of a group: whether it is unknown unless all members are present."""


def ABSENT(series: int, span: int) -> Term:  # noqa: N802 -- one kind of term
    """Return the term that is true when *series* had no sample for *span* milliseconds."""
    return Term(series, View(Made.ABSENT, span=span))


Flip: TypeAlias = tuple[int, float, int, int, int, bool]
"""A rule begins or ends to fire; in this order:

- *at*: event time, or time of the broker's clock where that made the edge; milliseconds
- *value*: what was compared last; NaN if nothing was
- *rule*, and its *owner*, as :meth:`Kernel.add` was told
- *source*: the series of its first comparison, :data:`NOTHING` if that is of a group
- *fires*
"""


@attrs.frozen
class Flips:
    """What began and ended to fire. There may be a million a second, so that only who asks makes objects of them."""

    raw: bytes
    """Each a ``match_edge``, for :func:`._edges.fired`."""

    def __iter__(self) -> Iterator[Flip]:
        """Yield each, in the order in which they came about."""
        return _EDGE.iter_unpack(self.raw)


@attrs.frozen
class Counters:
    """What the matcher has seen and holds; each is described in native/match.h."""

    samples: int
    nans: int
    late: int
    infinite: int
    unknown: int
    crossings: int
    exact: int
    overflows: int
    rules: int
    streams: int
    series: int
    bytes: int


class Kernel:
    """One matcher, for one thread at a time.

    :exc:`KernelError` says that nothing has changed; :exc:`MemoryError` that memory ran out halfway, and that only a
    snapshot of before is of use.
    """

    def __init__(self, *, clock: int = 0, longest: int = 1 << 20, room: int = 4096) -> None:
        """Make an empty one; *longest*: samples kept of one series, *room*: edges handed over at a time."""
        self._engine = self._owned(lib.match_new(longest, clock))
        self._room = room

    @staticmethod
    def _owned(engine: Any) -> Any:
        if engine == ffi.NULL:
            raise MemoryError("no memory for the matcher")
        return ffi.gc(engine, lib.match_free)

    def _checked(self, result: int) -> int:
        if result < 0:
            raise KernelError(_REASONS[result])
        return result

    @property
    def counters(self) -> Counters:
        """What it has seen and holds."""
        counters = lib.match_count(self._engine)
        return Counters(*(getattr(counters, field.name) for field in attrs.fields(Counters)))

    def open_series(self, patience: int) -> int:
        """Return a new series, which is silent after *patience* milliseconds without a sample."""
        return self._checked(lib.match_open_series(self._engine, patience))

    def patience(self, series: int, patience: int) -> None:
        """Change the patience with *series*. If it is silent already, it stays so until its next sample."""
        self._checked(lib.match_patience(self._engine, series, patience))

    def seen(self, series: int) -> int:
        """Return what the clock was at the newest sample of *series* or, before the first one, when it was opened."""
        return self._checked(lib.match_seen(self._engine, series))

    def close_series(self, series: int) -> None:
        """Forget *series*, which no rule and no group may need."""
        self._checked(lib.match_close_series(self._engine, series))

    def open_group(self, member: View) -> int:
        """Return a new group; its members contribute *member*."""
        return self._checked(lib.match_open_group(self._engine, ffi.new("match_view *", _view(member))))

    def close_group(self, group: int) -> None:
        """Forget *group*, which no rule may need."""
        self._checked(lib.match_close_group(self._engine, group))

    def join(self, group: int, series: int, at: int = -(1 << 63)) -> None:
        """Make *series* a member of *group*; *at*: the time of the first sample, if that is the reason."""
        self._checked(lib.match_join(self._engine, group, series, at))

    def leave(self, group: int, series: int) -> None:
        """End the membership of *series*."""
        self._checked(lib.match_leave(self._engine, group, series))

    def add(
        self,
        *terms: Term,
        program: bytes = b"",
        hold: int = 0,
        clear: tuple[Compare, float] | None = None,
        nodata: NoDataCode = NoDataCode.KEEP,
        owner: int = 0,
    ) -> int:
        """Return a new rule; *program* combines the *terms* in reverse Polish notation, *hold* is in milliseconds.

        *owner*: a number that its edges tell.
        """
        sources = array("I", [term.source for term in terms])
        made = self.add_each(terms, sources, program=program, hold=hold, clear=clear, nodata=nodata, owner=owner)
        return made[0]

    def add_each(
        self,
        terms: Sequence[Term],
        sources: array[int],
        *,
        program: bytes = b"",
        hold: int = 0,
        clear: tuple[Compare, float] | None = None,
        nodata: NoDataCode = NoDataCode.KEEP,
        owner: int = 0,
    ) -> array[int]:
        """Return new rules that differ in the *sources* of their terms alone: first all of one, then of the next."""
        kept = ffi.new("match_term[]", [_term(term) for term in terms])
        steps = ffi.new("uint8_t[]", program)
        clears, bound = clear or (Compare.NEVER, 0.0)
        rule = ffi.new(
            "match_rule *",
            {
                "terms": kept,
                "program": steps,
                "count": len(terms),
                "length": len(program),
                "owner": owner,
                "hold": hold,
                "clear": bound,
                "clears": clears,
                "nodata": nodata,
            },
        )
        made = array("I", bytes(4 * (len(sources) // len(terms))))
        self._checked(
            lib.match_add_each(
                self._engine,
                rule,
                ffi.from_buffer("uint32_t[]", sources),
                len(made),
                ffi.from_buffer("uint32_t[]", made),
            )
        )
        return made

    def bind(self, rule: int, index: int, term: Term) -> None:
        """Let *term*, of a series that appeared, take the place of the one of *rule* that had :data:`NOTHING`."""
        self._checked(lib.match_bind(self._engine, rule, index, ffi.new("match_term *", _term(term))))

    def remove(self, rule: int) -> None:
        """Forget *rule*. No edge says so; take those that wait first."""
        self._checked(lib.match_remove(self._engine, rule))

    def fires(self, rule: int) -> bool:
        """Whether *rule* fires now."""
        return lib.match_fires(self._engine, rule)

    def source(self, rule: int) -> int:
        """Return what an edge of *rule* would say of its source."""
        return lib.match_source(self._engine, rule)

    def push(self, series: array[int], values: array[float], times: array[int]) -> Flips:
        """Match samples (arrays ``I``, ``d``, ``q`` of one length), return the edges; :meth:`settle` ends a batch."""
        count = len(series)
        if not count == len(values) == len(times):
            raise ValueError("series, values and times must be of one length")
        done, edges = 0, list[bytes]()
        while done < count:
            done += lib.match_push(
                self._engine,
                ffi.from_buffer("uint32_t[]", memoryview(series)[done:]),
                ffi.from_buffer("double[]", memoryview(values)[done:]),
                ffi.from_buffer("int64_t[]", memoryview(times)[done:]),
                count - done,
                self._room,
            )
            edges.append(self._taken())
        return Flips(b"".join(edges))

    def settle(self) -> Flips:
        """End a batch: match what waits for all samples of an instant, and what was added; return the edges."""
        lib.match_settle(self._engine)
        return self.take()

    def tick(self, clock: int) -> Flips:
        """Return the edges that time alone makes until *clock*, in milliseconds."""
        lib.match_tick(self._engine, clock)
        return self.take()

    def save(self) -> bytes:
        """Return all that it knows, edges that wait included. It ends the batch."""
        lib.match_settle(self._engine)
        size = self._checked(lib.match_save(self._engine, ffi.NULL, 0))
        image = ffi.new("uint8_t[]", size)
        lib.match_save(self._engine, image, size)
        return ffi.buffer(image, size)[:]

    def load(self, image: bytes) -> None:
        """Become what :meth:`save` wrote; raise :exc:`KernelError` if *image* is damaged or of another version."""
        engine = lib.match_load(ffi.from_buffer("uint8_t[]", image), len(image))
        if engine == ffi.NULL:
            raise KernelError("it is no snapshot that this version wrote, or it is damaged")
        self._engine = ffi.gc(engine, lib.match_free)

    def take(self) -> Flips:
        """Return the edges that wait."""
        return Flips(self._taken())

    def _taken(self) -> bytes:
        if lib.match_broken(self._engine):
            raise MemoryError("the matcher ran out of memory; restore its last snapshot")
        edges = lib.match_take(self._engine)
        return ffi.buffer(edges.first, edges.count * _EDGE.size)[:] if edges.count else b""


def _view(view: View) -> tuple[int, int, int, int]:
    return view.span, view.samples, view.rank, view.made


def _term(term: Term) -> tuple[object, ...]:
    return term.threshold, _view(term.view), term.source, term.of_group, term.compare, term.quorum
