"""Groups: values of many series, which spatial rules put together.

A group is there while some rule asks for such groups and it has a member, or an alert looks at it. So what the windows
of its members hold does not depend on when the first alert looked.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import attrs

from . import lower
from .kernel import Kernel, KernelError, View
from .places import Places
from .selector import Endpoint, Selector, Series, project
from .tree import Absent, Comparison, Rule, Spatial, leaves

__all__ = ["Family", "Group", "Groups", "Spread", "spread_of"]

_EVER = -(1 << 63)


@attrs.define
class Group:
    """Those that have the same values of some labels."""

    number: int
    """The matcher's."""
    users: int = 0
    """How often alerts look at it."""
    members: int = 0


@attrs.frozen
class Spread:
    """What groups have in common: what they make of which members, and what tells the groups apart."""

    view: View
    selector: Selector
    by: tuple[str, ...]


@attrs.define
class Family:
    """The groups of a spread."""

    spread: Spread
    users: int = 0
    """How often rules ask for them."""
    groups: dict[Endpoint, Group] = attrs.field(factory=dict[Endpoint, Group])

    def found(self, endpoint: Endpoint) -> Endpoint:
        """Return which of them is looked at for the alert of *endpoint*."""
        (found,) = project(endpoint, self.spread.by)
        return found


class Groups:
    """Everyone who asks for the same values of the same members shares their groups."""

    def __init__(self, kernel: Kernel, known: Places) -> None:
        """Make groups in *kernel* of the series that are *known*."""
        self._kernel = kernel
        self._known = known
        self._families: dict[str, dict[Spread, Family]] = {}  # by their metrics

    def follow(self, rule: Rule) -> None:
        """Keep what *rule* asks for, until :meth:`leave`, also if this raises :exc:`.kernel.KernelError`."""
        for family in self._asked(rule):
            for place, number in self._known.accepted(family.spread.selector):
                for key in project(self._known.endpoints[place], family.spread.by):
                    self.join(family, key, number)

    def leave(self, rule: Rule) -> None:
        """Keep no longer what *rule* alone asked for, which has no alerts any more."""
        for spread in _spreads(rule):
            families = self._families[spread.selector.metric]
            families[spread].users -= 1
            if not families[spread].users:
                for group in families.pop(spread).groups.values():
                    self._kernel.close_group(group.number)

    def _asked(self, rule: Rule) -> list[Family]:
        """Note what *rule* asks for; return what nobody asked for before."""
        new: list[Family] = []
        for spread in _spreads(rule):
            families = self._families.setdefault(spread.selector.metric, {})
            if spread not in families:
                families[spread] = Family(spread)
                new.append(families[spread])
            families[spread].users += 1
        return new

    # -- members

    def of(self, series: Series) -> Iterator[tuple[Family, Endpoint]]:
        """Yield where *series* belongs."""
        for spread, family in self._families.get(series.metric, {}).items():
            if spread.selector.accepts(series):
                for key in project(series.endpoint, spread.by):
                    yield family, key

    def joined(self, series: Series) -> Iterator[Group]:
        """Yield the groups that *series* is a member of."""
        return (family.groups[key] for family, key in self.of(series) if key in family.groups)

    def join(self, family: Family, key: Endpoint, number: int, at: int = _EVER) -> None:
        """Make the series of that *number* a member; *at*: the time of its first sample, if that is why."""
        group = self._group(family, key)
        try:
            self._kernel.join(group.number, number, at)
            group.members += 1
        finally:
            self._tidy(family, key)

    def part(self, series: Series, number: int) -> None:
        """End what *series*, of that *number*, is a member of."""
        for family, key in self.of(series):
            with suppress(KernelError, KeyError):  # there was no room for it
                self._kernel.leave(family.groups[key].number, number)
                family.groups[key].members -= 1
                self._tidy(family, key)

    # -- alerts

    def use(self, spread: Spread, endpoint: Endpoint) -> int:
        """Return the number of the group that is looked at for the alert of *endpoint*, from now on."""
        family = self._families[spread.selector.metric][spread]
        group = self._group(family, family.found(endpoint))
        group.users += 1
        return group.number

    def used(self, rule: Rule, endpoint: Endpoint) -> Iterator[tuple[Spread, Group]]:
        """Yield what the alert of *rule* at *endpoint* looks at."""
        for spread in _spreads(rule):
            family = self._families[spread.selector.metric][spread]
            yield spread, family.groups[family.found(endpoint)]

    def release(self, rule: Rule, endpoint: Endpoint) -> None:
        """Look no longer at what the alert of *rule* at *endpoint* looked at."""
        for spread in _spreads(rule):
            family = self._families[spread.selector.metric][spread]
            key = family.found(endpoint)
            family.groups[key].users -= 1
            self._tidy(family, key)

    def _group(self, family: Family, key: Endpoint) -> Group:
        group = family.groups.get(key)
        if group is None:
            group = family.groups[key] = Group(self._kernel.open_group(family.spread.view))
        return group

    def _tidy(self, family: Family, key: Endpoint) -> None:
        """Close a group that is of no use."""
        group = family.groups[key]
        if not (group.users or group.members):
            self._kernel.close_group(family.groups.pop(key).number)

    # -- snapshots

    def packed(self, rules: Iterable[Rule]) -> list[object]:
        """Return, for msgpack, what there is for *rules*, which are all that ask."""
        asked = dict.fromkeys(spread for rule in rules for spread in _spreads(rule))
        kept = [self._families[spread.selector.metric][spread].groups for spread in asked]
        return [
            [[*map(list, groups)], array("I", [one.number for one in groups.values()]).tobytes()] for groups in kept
        ]

    def restore(self, rules: Iterable[Rule], packed: Iterable[tuple[Any, Any]]) -> None:
        """Become what :meth:`packed` said; nothing looks at the groups yet."""
        asked = [family for rule in rules for family in self._asked(rule)]
        for family, (keys, numbers) in zip(asked, packed, strict=True):
            family.groups.update(zip(map(Endpoint, keys), map(Group, array("I", numbers)), strict=True))
            for place, _ in self._known.accepted(family.spread.selector):
                for key in project(self._known.endpoints[place], family.spread.by) & family.groups.keys():
                    family.groups[key].members += 1


def spread_of(leaf: Comparison | Absent) -> Spread | None:
    """Return whose groups *leaf* looks at, None if it looks at single endpoints."""
    if isinstance(leaf, Absent) or not isinstance(leaf.expression, Spatial):
        return None
    return Spread(lower.member(leaf.expression), leaf.selector, leaf.expression.by)


def _spreads(rule: Rule) -> list[Spread]:
    return [spread for spread in map(spread_of, leaves(rule.condition)) if spread is not None]
