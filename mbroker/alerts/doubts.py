"""What fires by the book and not by the engine, which may not know enough yet: it fires on until it is found false."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

import attrs

from . import past
from .engine import Fired, TooMuchError
from .matcher import Matcher
from .selector import Endpoint
from .tree import NoData, Rule

__all__ = ["Doubts"]


@attrs.define
class _Doubted:
    """A rule of which something is in doubt."""

    rule: Rule
    opposite: int | None = None
    """The engine's number of the rule that tells where this one is false; None if it could not be had."""
    keys: set[Endpoint] = attrs.field(factory=set[Endpoint])


class Doubts:
    """Where rules, by the engine's numbers, are in doubt; while one is, its opposite is followed too."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self._rules: dict[int, _Doubted] = {}
        self._opposites: dict[int, int] = {}

    def __len__(self) -> int:
        """Return of how many rules."""
        return len(self._rules)

    def look(self, number: int, rule: Rule) -> None:
        """Look from now on for where *rule* is false: that it does not fire may mean that too little is known of it."""
        doubted = self._rules.setdefault(number, _Doubted(rule))
        if doubted.opposite is None:
            with suppress(TooMuchError, ValueError):
                doubted.opposite = self._matcher.add(past.opposite(rule))
                self._opposites[doubted.opposite] = number

    def put(self, number: int, rule: Rule, keys: set[Endpoint]) -> None:
        """Doubt what fires at *keys* and nothing else of that rule."""
        if keys:
            self.look(number, rule)
            self._rules[number].keys = keys
        else:
            self.trust(number)

    def at(self, number: int) -> set[Endpoint]:
        """Return where a rule is in doubt."""
        return self._rules[number].keys if number in self._rules else set()

    def settle(self, number: int, key: Endpoint) -> bool:
        """Doubt what fires at *key* no longer; tell whether that was in doubt."""
        doubted = self._rules.get(number)
        if doubted is None or key not in doubted.keys:
            return False
        doubted.keys.discard(key)
        if not doubted.keys:
            self.trust(number)
        return True

    def trust(self, number: int) -> None:
        """Look no more for where a rule is false."""
        doubted = self._rules.pop(number, None)
        if doubted is not None and doubted.opposite is not None:
            del self._opposites[doubted.opposite]
            self._matcher.remove(doubted.opposite)

    def settled(self, fired: Iterable[Fired]) -> list[Fired]:
        """Return edges as they are to be told, of which nothing is in doubt any more.

        Where a rule was in doubt, that its opposite begins is that it ends; what else opposites do is left out.
        """
        told: list[Fired] = []
        for edge in fired:
            denied = self._opposites.get(edge.rule)
            if denied is None:
                self.settle(edge.rule, edge.key)
                told.append(edge)
            elif edge.firing and self.settle(denied, edge.key):
                told.append(edge._replace(rule=denied, firing=False))
        return told

    def false(self) -> Iterator[tuple[int, Endpoint]]:
        """Yield rules, each with what was in doubt and is false, whether by samples or by silence."""
        for number, doubted in list(self._rules.items()):
            if doubted.opposite is None:  # nothing will ever tell
                false = set(doubted.keys)
            else:
                false = doubted.keys & self._matcher.firing(doubted.opposite)
            if doubted.rule.nodata is NoData.CLEAR:
                false |= doubted.keys - past.heard(doubted.rule, self._matcher.places)
            for key in false:
                self.settle(number, key)
                yield number, key
