"""What ends when series are forgotten."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

import attrs

from .followed import Followed, keys
from .groups import Group, Groups
from .kernel import Kernel
from .places import Places, Readers
from .selector import Series
from .tree import Rule, leaves

__all__ = ["Ending", "Endings"]


@attrs.define
class Ending:
    """What of a rule ends."""

    instances: set[int] = attrs.field(factory=set[int])
    """The matcher's numbers of them."""
    places: dict[int, None] = attrs.field(factory=dict[int, None])
    """Where they are, if the rule is not simple."""


@attrs.frozen
class Endings:
    """Looks for what would end, and changes nothing."""

    _kernel: Kernel
    _known: Places
    _readers: Readers
    _groups: Groups
    _rules: Mapping[int, Followed]

    def ends(self, going: dict[int, Series]) -> tuple[dict[int, Ending], set[int]]:
        """Return of each rule what ends with those series, and which of them are needed."""
        leaving = Counter(group.number for series in going.values() for group in self._groups.joined(series))
        readers: defaultdict[int, list[int]] = defaultdict(list)
        for number, series in going.items():
            for name in self._readers.of(series):
                readers[name].append(number)
        ends: dict[int, Ending] = {}
        needed: set[int] = set()
        for name, numbers in readers.items():
            followed, ending = self._rules[name], Ending()
            if followed.is_simple:
                wanted = frozenset(numbers)
                looking = [(one, source) for one in followed.runs if (source := self._kernel.source(one)) in wanted]
                needed.update(source for one, source in looking if self._kernel.fires(one))
                ending.instances.update(one for one, _ in looking)
            else:
                for number in numbers:
                    needed.update(self._ends_at(followed, number, going, leaving, ending))
            ends[name] = ending
        return ends, needed

    def _ends_at(
        self, followed: Followed, number: int, going: dict[int, Series], leaving: Mapping[int, int], ending: Ending
    ) -> Iterator[int]:
        """Note which alerts of a rule that is not simple end with a series; yield its number if one needs it."""
        rule = followed.rule
        for place in dict.fromkeys(map(self._known.place, keys(rule, going[number]))):
            instance = followed.at.get(place)
            if instance is None:  # there was no room for it
                continue
            if rule.is_local:
                stays = any(source not in going for source in self._own(rule, place))
            else:
                stays = any(group.members > leaving[group.number] for group in self._finest(rule, place))
            if not stays and not self._kernel.fires(instance):
                ending.instances.add(instance)
                ending.places[place] = None
            elif rule.is_local or not stays:
                yield number

    def _own(self, rule: Rule, place: int) -> Iterator[int]:
        """Yield the series of the endpoint at *place* that *rule* looks at."""
        endpoint = self._known.endpoints[place]
        for leaf in leaves(rule.condition):
            number = self._known.number(leaf.selector.metric, place)
            if leaf.by is None and number is not None and leaf.selector.accepts(Series(leaf.selector.metric, endpoint)):
                yield number

    def _finest(self, rule: Rule, place: int) -> Iterator[Group]:
        """Yield the groups that the alert at *place* is of."""
        used = self._groups.used(rule, self._known.endpoints[place])
        return (group for spread, group in used if len(spread.by) == len(rule.by))
