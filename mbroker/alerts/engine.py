"""Matches samples against rules: the language on one side, the matcher in C on the other.

What it says is what :class:`.reference.Reference` says of each rule. A rule at one endpoint or group is an *instance*,
which the matcher knows as a rule of its own. Of the millions that there may be no Python object is kept: an edge says
whose rule it is and of which series.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import attrs

from . import _edges, arrays, image, lower
from .ending import Endings
from .followed import Followed, keys
from .groups import Groups, spread_of
from .kernel import NOTHING, Counters, Flips, Kernel, KernelError
from .places import Places, Readers, Runs
from .sample import SILENT, Sample
from .selector import Endpoint, Series
from .tree import Rule, leaves

__all__ = ["Engine", "Fired", "TooMuchError"]

_FOREVER = 1 << 60
_NEVER = -(1 << 63)
_MOST_LOOKED = 4096  # series, when those are looked for that are gone


class TooMuchError(Exception):
    """A rule asks for more than the engine may keep; nothing was changed."""


class Fired(NamedTuple):
    """An alert begins or ends."""

    rule: int
    """The number that :meth:`Engine.add` returned."""
    key: Endpoint
    """The endpoint or, of a spatial rule, the values of its ``by`` labels."""
    firing: bool
    at: int
    value: float
    """What was compared last; NaN if nothing was."""


class Engine:
    """Follows any number of rules over any number of series. Times are whole milliseconds."""

    def __init__(self, now: int = 0, *, interval: int = 10_000, longest: int = 1 << 20) -> None:
        """Make one at time *now*; *interval* of samples at least, see :meth:`pace`; *longest*: samples of a series."""
        self._kernel = Kernel(clock=now, longest=longest)
        self._patience = SILENT * interval
        self._nothing = self._kernel.open_series(_FOREVER)  # counts what it drops
        self._known = Places()
        self._readers = Readers()
        self._rules: dict[int, Followed] = {}
        self._next = 1
        self._at: dict[int, int] = {}  # the places of instances of rules that are not simple
        self._groups = Groups(self._kernel, self._known)
        self._waiting: list[Fired] = []
        self.problem = ""
        """What a rule lacks, in one line; empty when there is nothing."""
        self._looked = 0  # where to go on to look for series that are gone

    @property
    def counters(self) -> Counters:
        """What the matcher has seen and holds."""
        return self._kernel.counters

    @property
    def places(self) -> Places:
        """The series that it knows."""
        return self._known

    # -- rules

    @property
    def rules(self) -> dict[int, Rule]:
        """The rules that it follows, by number."""
        return {number: followed.rule for number, followed in self._rules.items()}

    def add(self, rule: Rule) -> int:
        """Follow *rule* and return its number; raise :exc:`TooMuchError` if it needs more than may be kept.

        What fires at once is among the edges of the next batch or tick.
        """
        name, self._next = self._next, self._next + 1
        followed = self._rules[name] = Followed(rule)
        try:
            if followed.is_simple:
                (leaf,) = leaves(rule.condition)
                places, sources = array("I"), array("I")
                for place, number in self._known.accepted(leaf.selector):
                    places.append(place)
                    sources.append(number)
                self._instantiate(name, places, sources)
            else:
                self._groups.follow(rule)
                for place in dict.fromkeys(self._keys(rule)):
                    self._instantiate(name, (place,), self._sources(rule, place))
        except KernelError as error:
            self.remove(name)
            raise TooMuchError(f"the rule cannot be matched: {error}") from None
        for leaf in leaves(rule.condition):
            self._readers.file(leaf.selector, name)
        self._waiting += self._fired(self._kernel.tick(_NEVER))  # what is overdue: absence, and silence
        return name

    def remove(self, number: int) -> None:
        """Forget the rule of that *number*; its alerts end without an edge."""
        self._waiting = [fired for fired in [*self._waiting, *self._fired(self._kernel.take())] if fired.rule != number]
        followed = self._rules.pop(number)
        for leaf in leaves(followed.rule.condition):
            self._readers.drop(leaf.selector, number)
        for instance in followed.numbers:
            self._kernel.remove(instance)
            self._at.pop(instance, None)
        for place in followed.at:
            self._groups.release(followed.rule, self._known.endpoints[place])
        self._groups.leave(followed.rule)
        self._known.release(followed.at)

    def firing(self, number: int) -> frozenset[Endpoint]:
        """Return the keys of the alerts of a rule."""
        followed, source = self._rules[number], self._kernel.source
        firing = filter(self._kernel.fires, followed.numbers)
        places = (self._known.of[source(one)] if followed.is_simple else self._at[one] for one in firing)
        return frozenset(self._known.endpoints[place] for place in places)

    # -- what happens

    def register(self, *series: Series) -> None:
        """Expect samples of *series*, from now on."""
        for one in series:
            self.number(one)

    def number(self, series: Series) -> int:
        """Return the number of *series* for :meth:`push`; from now on its samples are expected."""
        number = self._known.find(series)
        return self._register(series) if number is None else number

    def pace(self, number: int, interval: int | None) -> None:
        """Expect samples of the series of that *number* every *interval* milliseconds, if that is longer than usual.

        The series is silent when :data:`.sample.SILENT` of them are missing. None: it is as any other.
        """
        self._kernel.patience(number, max(SILENT * (interval or 0), self._patience))

    def tick(self, now: int) -> list[Fired]:
        """Return the edges that time itself makes."""
        waiting, self._waiting = self._waiting, []
        return waiting + self._fired(self._kernel.tick(now))

    def push(self, now: int, numbers: array[int], values: array[float], times: array[int]) -> list[Fired]:
        """Return the edges of samples that arrive together at *now*: arrays ``I``, ``d`` and ``q`` of one length.

        Samples of numbers that :meth:`number` did not return are dropped, and counted.
        """
        return self.tick(now) + self._matched(numbers, values, times)

    def _matched(self, numbers: array[int], values: array[float], times: array[int]) -> list[Fired]:
        return self._fired(self._kernel.push(numbers, values, times)) + self._fired(self._kernel.settle())

    def batch(self, now: int, samples: Iterable[Sample]) -> list[Fired]:
        """Return the edges of samples that arrive together at *now*, also of series that are new."""
        edges = self.tick(now)
        numbers, values, times = array("I"), array("d"), array("q")
        for sample in samples:
            number = self._known.find(sample.series)
            if number is None:
                if sample.value != sample.value:
                    number = self._nothing
                else:
                    edges += self._fired(self._kernel.push(numbers, values, times))
                    numbers, values, times = array("I"), array("d"), array("q")
                    number = self._register(sample.series, sample.at)
            numbers.append(number)
            values.append(sample.value)
            times.append(sample.at)
        return edges + self._matched(numbers, values, times)

    def _fired(self, flips: Flips) -> list[Fired]:
        return _edges.fired(Fired, flips.raw, self._known.endpoints, self._known.of, self._at)

    # -- snapshots

    def save(self) -> bytes:
        """Return all that it knows; it ends the batch. Edges that were not taken yet are part of it."""
        self._waiting += self._fired(self._kernel.settle())
        waiting = [
            [fired.rule, self._known.place(fired.key), fired.firing, fired.at, fired.value] for fired in self._waiting
        ]
        table = [
            [self._patience, self._nothing, self._next],
            self._known.packed,
            [[metric, places.tobytes(), numbers.tobytes()] for metric, places, numbers in self._known.columns()],
            [self._packed(name, followed) for name, followed in self._rules.items()],
            self._groups.packed(self.rules.values()),
            waiting,
        ]
        return image.packed(table, self._kernel.save())

    def _packed(self, name: int, followed: Followed) -> list[object]:
        places, numbers = array("I", followed.at), array("I", followed.at.values())
        tree = arrays.arrays(followed.rule)
        return [name, tree, *(part.tobytes() for part in (followed.runs.pairs, places, numbers))]

    @classmethod
    def load(cls, snapshot: bytes) -> Engine:
        """Return the engine that :meth:`save` wrote; raise :exc:`.image.SnapshotError` when it is none, or damaged."""
        table, kernel = image.unpacked(snapshot)
        made = cls()
        try:
            made._restore(cast("Any", table), kernel)  # a sum says that it is as it was written
        except (KernelError, LookupError, TypeError, ValueError) as error:
            raise image.SnapshotError(f"the snapshot makes no sense to this version: {error}") from None
        return made

    def _restore(self, table: tuple[Any, ...], kernel: bytes) -> None:
        head, endpoints, metrics, rules, groups, waiting = table
        self._patience, self._nothing, self._next = head
        self._kernel.load(kernel)
        self._known = Places(endpoints)
        self._groups = Groups(self._kernel, self._known)
        for metric, at, numbers in metrics:
            for place, number in zip(array("I", at), array("I", numbers), strict=True):
                self._known.enter(metric, place, number)
        for name, tree, runs, places, numbers in rules:
            rule = arrays.tree(tree)[0]
            followed = self._rules[name] = Followed(rule, Runs(runs))
            followed.at.update(zip(array("I", places), array("I", numbers), strict=True))
            self._at.update(zip(array("I", numbers), array("I", places), strict=True))
            for place in followed.at:
                self._known.hold(place)
            for leaf in leaves(rule.condition):
                self._readers.file(leaf.selector, name)
        self._groups.restore(self.rules.values(), groups)
        for followed in self._rules.values():
            for place in followed.at:
                for _, group in self._groups.used(followed.rule, self._known.endpoints[place]):
                    group.users += 1
        known = self._known.endpoints
        self._waiting = [Fired(rule, known[int(place)], fires, at, value) for rule, place, fires, at, value in waiting]

    # -- series

    def _register(self, series: Series, at: int = _NEVER) -> int:
        number = self._kernel.open_series(self._patience)
        place = self._known.place(series.endpoint)
        self._known.enter(series.metric, place, number)
        for family, key in self._groups.of(series):
            with self._tolerant(series):
                self._groups.join(family, key, number, at)
        for name in self._readers.of(series):
            with self._tolerant(series):
                self._show(name, place, series, number)
        return number

    def _show(self, name: int, place: int, series: Series, number: int) -> None:
        """Let a rule see a series that is new."""
        followed = self._rules[name]
        if followed.is_simple:
            self._instantiate(name, (place,), array("I", [number]))
            return
        for each in dict.fromkeys(map(self._known.place, keys(followed.rule, series))):
            if each not in followed.at:
                self._instantiate(name, (each,), self._sources(followed.rule, each))
            else:
                self._bind(followed, each, series, number)

    @contextmanager
    def _tolerant(self, series: Series) -> Generator[None]:
        """Go on with the other rules when one can have no more: whoever publishes is not to blame."""
        try:
            yield
        except KernelError as error:
            self.problem = f"a rule does not follow all series of {series.metric}: {error}"

    def _keys(self, rule: Rule) -> Iterator[int]:
        for leaf in leaves(rule.condition):
            for place, _ in tuple(self._known.accepted(leaf.selector)):
                series = Series(leaf.selector.metric, self._known.endpoints[place])
                yield from map(self._known.place, keys(rule, series))

    def unheard(self, before: int) -> list[int]:
        """Return the numbers of series of which nothing was heard since the clock was *before*.

        Looks at some thousands, and at the next ones when it is called again.
        """
        known, seen = self._known, self._kernel.seen
        first = self._looked if self._looked < len(known.of) else 0
        self._looked = first + _MOST_LOOKED
        looked = range(first, min(self._looked, len(known.of)))
        return [number for number in looked if known.series(number) is not None and seen(number) < before]

    def forget(self, numbers: Iterable[int]) -> list[int]:
        """Forget the series of *numbers*, and return which; their numbers may be those of others from now on.

        Those stay that an alert needs: one of their own endpoint that fires or looks
        at others too, or one that fires of a group that would be empty. Other groups go on without them.
        """
        self._waiting += self._fired(self._kernel.take())  # edges name their rules and series by number
        known = ((number, self._known.series(number)) for number in numbers)
        going = {number: series for number, series in known if series is not None}
        endings = Endings(self._kernel, self._known, self._readers, self._groups, self._rules)
        while True:
            ends, needed = endings.ends(going)
            if not needed:
                break
            for number in needed:
                del going[number]
        for name, ending in ends.items():
            followed = self._rules[name]
            for instance in ending.instances:
                self._kernel.remove(instance)
                self._at.pop(instance, None)
            followed.runs = followed.runs.without(ending.instances)
            for place in ending.places:
                del followed.at[place]
                self._groups.release(followed.rule, self._known.endpoints[place])
            self._known.release(ending.places)
        for number, series in going.items():
            self._groups.part(series, number)
            self._kernel.close_series(number)
        self._known.drop(going)
        self._waiting += self._fired(self._kernel.settle())
        return [*going]

    # -- instances

    def _instantiate(self, name: int, places: Sequence[int], sources: array[int]) -> None:
        """Make the rule's instances at *places*, whose leaves look at *sources*: one after the other."""
        followed = self._rules[name]
        rule = followed.rule
        try:
            made = self._kernel.add_each(
                [lower.term(rule, leaf) for leaf in leaves(rule.condition)],
                sources,
                program=lower.program(rule.condition),
                hold=rule.hold.milliseconds if rule.hold else 0,
                clear=(lower.COMPARE[rule.clear.operator], rule.clear.threshold) if rule.clear else None,
                nodata=lower.NODATA[rule.nodata],
                owner=name,
            )
        except KernelError:
            for place in () if followed.is_simple else places:
                self._groups.release(rule, self._known.endpoints[place])
            raise
        if followed.is_simple:
            followed.runs.add(made)
        else:
            followed.at.update(zip(places, made, strict=True))
            self._at.update(zip(made, places, strict=True))
            for place in places:
                self._known.hold(place)

    def _bind(self, followed: Followed, place: int, series: Series, number: int) -> None:
        """Show the instance at *place* the *series* that it missed."""
        for index, leaf in enumerate(leaves(followed.rule.condition)):
            if leaf.by is None and leaf.selector.accepts(series):
                term = attrs.evolve(lower.term(followed.rule, leaf), source=number)
                self._kernel.bind(followed.at[place], index, term)

    def _sources(self, rule: Rule, place: int) -> array[int]:
        """Return what the leaves of the instance at *place* look at; groups are used from now on."""
        made = array("I")
        for leaf in leaves(rule.condition):
            spread = spread_of(leaf)
            if spread is not None:
                made.append(self._groups.use(spread, self._known.endpoints[place]))
                continue
            number = self._known.number(leaf.selector.metric, place)
            accepts = leaf.selector.accepts(Series(leaf.selector.metric, self._known.endpoints[place]))
            made.append(number if number is not None and accepts else NOTHING)
        return made
