"""What matches samples against rules, one engine or many, as whoever feeds it sees it."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Protocol

from .engine import Fired
from .places import Places
from .selector import Endpoint, Series
from .tree import Rule

__all__ = ["Matcher"]


class Matcher(Protocol):
    """What :class:`.engine.Engine` and :class:`.shards.Shards` have in common."""

    @property
    def places(self) -> Places:
        """The series that it knows."""
        ...

    @property
    def rules(self) -> dict[int, Rule]:
        """The rules that it follows, by number."""
        ...

    @property
    def problem(self) -> str:
        """What a rule lacks, in one line; empty when there is nothing."""
        ...

    def add(self, rule: Rule) -> int:
        """Follow *rule* and return its number; raise :exc:`.engine.TooMuchError` if it needs more than may be kept."""
        ...

    def remove(self, number: int) -> None:
        """Forget the rule of that *number*; its alerts end without an edge."""
        ...

    def firing(self, number: int) -> frozenset[Endpoint]:
        """Return the keys of the alerts of a rule."""
        ...

    def number(self, series: Series) -> int:
        """Return the number of *series* for :meth:`push`; from now on its samples are expected."""
        ...

    def pace(self, number: int, interval: int | None) -> None:
        """Expect samples of that series every *interval* milliseconds, if that is longer than usual."""
        ...

    def unheard(self, before: int) -> list[int]:
        """Return the numbers of some series of which nothing was heard since the clock was *before*."""
        ...

    def forget(self, numbers: Iterable[int]) -> list[int]:
        """Forget the series of *numbers* that no alert needs, and return which."""
        ...

    def tick(self, now: int) -> list[Fired]:
        """Return the edges that time itself makes."""
        ...

    def push(self, now: int, numbers: array[int], values: array[float], times: array[int]) -> list[Fired]:
        """Return the edges of samples that arrive together at *now*: arrays ``I``, ``d`` and ``q`` of one length."""
        ...

    def save(self) -> bytes:
        """Return all that it knows."""
        ...
