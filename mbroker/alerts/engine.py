"""Matches samples against rules: the language on one side, the matcher in C on the other.

What it says is what :class:`.reference.Reference` says, but for a rule that is added when its series are known: it
finds the windows that other rules keep as they are, and begins the others empty.
"""

from __future__ import annotations

import itertools
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator

import attrs

from . import lower
from .kernel import ABSENT, Compare, Counters, Kernel, KernelError, Made, Term, View
from .kernel import Edge as KernelEdge
from .reference import Sample
from .selector import Endpoint, Selector, Series, project
from .tree import Absent, Comparison, Rule, Spatial, leaves

__all__ = ["Engine", "Fired", "TooMuchError"]

_FOREVER = 1 << 60
_NEVER = -(1 << 63)


class TooMuchError(Exception):
    """A rule asks for more than the engine may keep; nothing was changed."""


@attrs.frozen
class Fired:
    """An alert begins or ends."""

    rule: int
    """The number that :meth:`Engine.add` returned."""
    key: Endpoint
    """The endpoint or, of a spatial rule, the values of its ``by`` labels."""
    firing: bool
    at: int
    value: float
    """What was compared last; NaN if nothing was."""


@attrs.define
class _Group:
    number: int
    view: View
    members: set[Series] = attrs.field(factory=set[Series])
    users: int = 0


_GroupKey = tuple[View, Selector, tuple[str, ...], Endpoint]


@attrs.define
class _Instance:
    """A rule at one endpoint or group: what the matcher knows as a rule."""

    rule: int
    key: Endpoint
    number: int
    missing: frozenset[Series | None]
    """Series that it would read and that do not exist yet."""
    groups: tuple[_GroupKey, ...]
    firing: bool = False


class Engine:
    """Follows any number of rules over any number of series. Times are whole milliseconds."""

    def __init__(self, now: int = 0, *, interval: int = 10_000, longest: int = 1 << 20) -> None:
        """Make one at time *now*; *interval* of samples, of which three may miss; *longest*: samples of a series."""
        self._kernel = Kernel(clock=now, longest=longest)
        self._patience = 3 * interval
        self._nothing = self._kernel.open_series(_FOREVER)
        self._series: dict[Series, int] = {}
        self._metrics: defaultdict[str, set[Series]] = defaultdict(set)
        self._rules: dict[int, Rule] = {}
        self._readers: defaultdict[str, set[int]] = defaultdict(set)
        self._instances: dict[int, dict[Endpoint, _Instance]] = {}
        self._numbers: dict[int, _Instance] = {}
        self._groups: dict[_GroupKey, _Group] = {}
        self._names = itertools.count()

    @property
    def counters(self) -> Counters:
        """What the matcher has seen and holds."""
        return self._kernel.counters

    # -- rules

    def add(self, rule: Rule) -> int:
        """Follow *rule* and return its number; raise :exc:`TooMuchError` if it needs more than may be kept.

        What fires at once is among the edges of the next batch or tick.
        """
        number = next(self._names)
        self._rules[number] = rule
        self._instances[number] = {}
        selectors = [leaf.selector for leaf in leaves(rule.condition)]
        try:
            known = {s for selector in selectors for s in self._metrics[selector.metric] if selector.accepts(s)}
            for key in dict.fromkeys(key for series in known for key in self._keys(rule, series)):
                self._instantiate(number, key)
        except KernelError as error:
            self.remove(number)
            raise TooMuchError(f"the rule cannot be matched: {error}") from None
        for selector in selectors:
            self._readers[selector.metric].add(number)
        return number

    def remove(self, number: int) -> None:
        """Forget the rule of that *number*; its alerts end without an edge."""
        rule = self._rules.pop(number)
        for leaf in leaves(rule.condition):
            self._readers[leaf.selector.metric].discard(number)
        for instance in self._instances.pop(number).values():
            self._discard(instance)

    def firing(self, number: int) -> frozenset[Endpoint]:
        """Return the keys of the alerts of a rule."""
        return frozenset(key for key, instance in self._instances[number].items() if instance.firing)

    # -- what happens

    def register(self, *series: Series) -> None:
        """Expect samples of *series*, from now on."""
        for one in series:
            if one not in self._series:
                self._register(one)

    def tick(self, now: int) -> list[Fired]:
        """Return the edges that time itself makes."""
        return self._fired(self._kernel.tick(now))

    def batch(self, now: int, samples: Iterable[Sample]) -> list[Fired]:
        """Return the edges of samples that arrive together at *now*."""
        edges = self.tick(now)
        numbers, values, times = array("I"), array("d"), array("q")
        for sample in samples:
            number = self._series.get(sample.series)
            if number is None:
                if sample.value != sample.value:
                    number = self._nothing  # counts it, and drops it
                else:
                    edges += self._fired(self._kernel.push(numbers, values, times))
                    numbers, values, times = array("I"), array("d"), array("q")
                    number = self._register(sample.series, sample.at)
            numbers.append(number)
            values.append(sample.value)
            times.append(sample.at)
        edges += self._fired(self._kernel.push(numbers, values, times))
        return edges + self._fired(self._kernel.settle())

    def _fired(self, edges: Iterable[KernelEdge]) -> list[Fired]:
        return [fired for edge in edges for fired in self._told(edge)]

    def _told(self, edge: KernelEdge) -> Iterator[Fired]:
        instance = self._numbers.get(edge.rule)
        if instance is not None and instance.firing is not edge.fires:
            instance.firing = edge.fires
            yield Fired(instance.rule, instance.key, edge.fires, edge.at, edge.value)

    # -- series

    def _register(self, series: Series, at: int = _NEVER) -> int:
        number = self._series[series] = self._kernel.open_series(self._patience)
        self._metrics[series.metric].add(series)
        for (_, selector, by, key), group in self._groups.items():
            if selector.accepts(series) and key in project(series.endpoint, by):
                self._kernel.join(group.number, number, at)
        for name in sorted(self._readers[series.metric]):
            rule = self._rules[name]
            for key in self._keys(rule, series):
                old = self._instances[name].get(key)
                if old is None or series in old.missing:
                    self._instantiate(name, key)
        return number

    def _keys(self, rule: Rule, series: Series) -> Iterator[Endpoint]:
        for leaf in leaves(rule.condition):
            if leaf.selector.accepts(series):
                if leaf.by is None:
                    yield series.endpoint
                elif not rule.is_local and len(leaf.by) == len(rule.by):
                    yield from project(series.endpoint, leaf.by)

    # -- instances

    def _instantiate(self, name: int, key: Endpoint) -> None:
        """Make the rule's instance for *key*, or make it anew because a series appeared; what fires goes on firing."""
        rule = self._rules[name]
        missing: set[Series | None] = set()
        groups: list[_GroupKey] = []
        old = self._instances[name].get(key)
        firing = old is not None and old.firing
        try:
            terms = [self._term(rule, leaf, key, missing, groups) for leaf in leaves(rule.condition)]
            number = self._kernel.add(
                *terms,
                program=lower.program(rule.condition),
                hold=rule.hold.milliseconds if rule.hold else 0,
                clear=(lower.COMPARE[rule.clear.operator], rule.clear.threshold) if rule.clear else None,
                nodata=lower.NODATA[rule.nodata],
                fires=firing,
            )
        except KernelError:
            self._release(groups)
            raise
        made = _Instance(name, key, number, frozenset(missing), tuple(groups), firing)
        if old is not None:
            self._discard(old)
        self._instances[name][key] = self._numbers[number] = made

    def _discard(self, instance: _Instance) -> None:
        self._kernel.remove(instance.number)
        del self._numbers[instance.number]
        self._release(instance.groups)

    def _term(
        self,
        rule: Rule,
        leaf: Comparison | Absent,
        key: Endpoint,
        missing: set[Series | None],
        groups: list[_GroupKey],
    ) -> Term:
        compare, threshold = (
            (Compare.NEVER, 0.0) if isinstance(leaf, Absent) else (lower.COMPARE[leaf.operator], leaf.threshold)
        )
        if isinstance(leaf, Comparison) and isinstance(leaf.expression, Spatial):
            view, quorum = lower.reduced(leaf.expression, lower.direction(rule, leaf))
            by = leaf.expression.by
            names = set(by)
            found = frozenset(pair for pair in key if pair[0] in names)
            group = self._group((lower.member(leaf.expression), leaf.selector, by, found))
            groups.append((lower.member(leaf.expression), leaf.selector, by, found))
            return Term(group, view, compare, threshold, of_group=True, quorum=quorum)
        series = Series(leaf.selector.metric, key)
        source = self._series.get(series) if leaf.selector.accepts(series) else None
        if source is None:
            missing.add(series)
            return Term(self._nothing, View(Made.LAST), Compare.EQUAL, 0.0)
        if isinstance(leaf, Absent):
            return ABSENT(source, leaf.span.milliseconds)
        return Term(source, lower.member(leaf.expression), compare, threshold)

    # -- groups

    def _group(self, key: _GroupKey) -> int:
        """Return the group's number: everyone who asks for the same values of the same members shares it."""
        group = self._groups.get(key)
        if group is None:
            view, selector, by, found = key
            group = self._groups[key] = _Group(self._kernel.open_group(view), view)
            for series in self._metrics[selector.metric]:
                if selector.accepts(series) and found in project(series.endpoint, by):
                    self._kernel.join(group.number, self._series[series])
        group.users += 1
        return group.number

    def _release(self, keys: Iterable[_GroupKey]) -> None:
        for key in keys:
            group = self._groups[key]
            group.users -= 1
            if not group.users:
                self._kernel.close_group(group.number)
                del self._groups[key]
