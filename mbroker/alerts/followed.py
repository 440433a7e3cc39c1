"""Rules that are followed: at which endpoints and groups they have alerts, and what the matcher calls those."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from .places import Runs
from .selector import Endpoint, Series, project
from .tree import Absent, Comparison, Rule, leaves

__all__ = ["Followed", "keys"]


@attrs.define
class Followed:
    """A rule, and its instances."""

    rule: Rule
    runs: Runs = attrs.field(factory=Runs)
    """The matcher's numbers of them, if the rule is simple."""
    at: dict[int, int] = attrs.field(factory=dict[int, int])
    """The numbers by place otherwise, for a series that appears may belong to an instance that exists."""

    @property
    def is_simple(self) -> bool:
        """Whether each series that it reads has an instance to itself."""
        return self.rule.is_local and isinstance(self.rule.condition, Comparison | Absent)

    @property
    def numbers(self) -> Iterable[int]:
        """The matcher's numbers of the instances."""
        return self.runs if self.is_simple else self.at.values()


def keys(rule: Rule, series: Series) -> Iterator[Endpoint]:
    """Yield the alerts that *rule* has because *series* is there: those of its finest comparisons that read it."""
    for leaf in leaves(rule.condition):
        if leaf.selector.accepts(series):
            if leaf.by is None:
                yield series.endpoint
            elif not rule.is_local and len(leaf.by) == len(rule.by):
                yield from project(series.endpoint, leaf.by)
