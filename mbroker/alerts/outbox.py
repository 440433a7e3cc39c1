"""Where notices wait until they are told: what the pipeline needs of the book, and the same for a while in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Protocol

import attrs

from .alert import Notice, State
from .silence import Silence

__all__ = ["Memory", "Outbox"]


class Outbox(Protocol):
    """Keeps notices until they are told, whatever dies meanwhile."""

    def notices(self, now: int, limit: int = ...) -> Sequence[Notice]:
        """Return the first *limit* that are due at *now*, oldest first; an end only with, or after, its begin."""
        ...

    def silences(self, now: int) -> Sequence[Silence]:
        """Return those that are not over at *now*."""
        ...

    def told(self, notices: Sequence[Notice], now: int) -> None:
        """Let go of *notices*: they were told."""
        ...

    def postpone(self, notice: Notice, due: int, error: str) -> None:
        """Do not return *notice* before *due*, and count the failure, whose reason is *error*."""
        ...

    def refuse(self, notices: Sequence[Notice], now: int, error: str) -> None:
        """Let go of *notices* that will never be told, and write into the audit trail why."""
        ...


class Memory:
    """An outbox that lasts as long as the process: for what nobody wants to hear of after a restart."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, State, str], Notice] = {}

    def put(self, notices: Iterable[Notice]) -> None:
        """Add *notices*; one that is there already stays as it is."""
        for notice in notices:
            self._waiting.setdefault(notice.id, notice)

    def notices(self, now: int, limit: int = 1000) -> list[Notice]:
        """Return the first *limit* that are due at *now*, oldest first; an end only with, or after, its begin."""
        held = {(n.alert.id, n.receiver) for n in self._waiting.values() if n.due > now and n.alert.until is None}
        due = (n for n in self._waiting.values() if n.due <= now and (n.alert.id, n.receiver) not in held)
        return list(itertools.islice(due, limit))

    def silences(self, now: int) -> Sequence[Silence]:
        """Return none: there are none here."""
        return ()

    def told(self, notices: Sequence[Notice], now: int) -> None:
        """Let go of *notices*."""
        for notice in notices:
            self._waiting.pop(notice.id, None)

    def postpone(self, notice: Notice, due: int, error: str) -> None:
        """Do not return *notice* before *due*, and count the failure."""
        if notice.id in self._waiting:
            self._waiting[notice.id] = attrs.evolve(notice, due=due, attempts=notice.attempts + 1)

    def refuse(self, notices: Sequence[Notice], now: int, error: str) -> None:
        """Let go of *notices*; the log says why."""
        self.told(notices, now)
