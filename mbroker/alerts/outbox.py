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

    def receivers(self) -> Sequence[str]:
        """Return the names of those who are to be told something."""
        ...

    def news(self, receiver: str, after: int = ..., limit: int = ...) -> Sequence[tuple[int, Notice]]:
        """Return what *receiver* is to be told, oldest first: the first *limit* whose numbers are higher than *after*.

        What comes later has a higher number.
        """
        ...

    def untold(self, receiver: str, alerts: Iterable[str]) -> Sequence[Notice]:
        """Return what *receiver* is still to be told of *alerts*, given by their ids, as they are now."""
        ...

    def silences(self, now: int) -> Sequence[Silence]:
        """Return those that are not over at *now*."""
        ...

    def told(self, notices: Sequence[Notice], now: int) -> None:
        """Let go of *notices*: they were told."""
        ...

    def postpone(self, notice: Notice, due: int, error: str) -> None:
        """Note that *notice* is not to be tried before *due*, and count the failure, whose reason is *error*."""
        ...

    def refuse(self, notices: Sequence[Notice], now: int, error: str) -> None:
        """Let go of *notices* that will never be told, and write into the audit trail why."""
        ...


class Memory:
    """An outbox that lasts as long as the process: for what nobody wants to hear of after a restart."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting: dict[tuple[str, State, str], tuple[int, Notice]] = {}

    def put(self, notices: Iterable[Notice]) -> None:
        """Add *notices*; one that is there already stays as it is."""
        for notice in notices:
            self._waiting.setdefault(notice.id, (next(self._numbers), notice))

    def receivers(self) -> list[str]:
        """Return the names of those who are to be told something."""
        return sorted({notice.receiver for _, notice in self._waiting.values()})

    def news(self, receiver: str, after: int = 0, limit: int = 1000) -> list[tuple[int, Notice]]:
        """Return the first *limit* that *receiver* is to be told, oldest first, of numbers higher than *after*."""
        found = (each for each in self._waiting.values() if each[1].receiver == receiver and each[0] > after)
        return list(itertools.islice(found, limit))

    def untold(self, receiver: str, alerts: Iterable[str]) -> list[Notice]:
        """Return what *receiver* is still to be told of *alerts*, given by their ids."""
        ids = [(name, state, receiver) for name in alerts for state in State]
        return [self._waiting[id_][1] for id_ in ids if id_ in self._waiting]

    def silences(self, now: int) -> Sequence[Silence]:
        """Return none: there are none here."""
        return ()

    def told(self, notices: Sequence[Notice], now: int) -> None:
        """Let go of *notices*."""
        for notice in notices:
            self._waiting.pop(notice.id, None)

    def postpone(self, notice: Notice, due: int, error: str) -> None:
        """Note that *notice* is not to be tried before *due*, and count the failure."""
        if notice.id in self._waiting:
            number, _ = self._waiting[notice.id]
            self._waiting[notice.id] = number, attrs.evolve(notice, due=due, attempts=notice.attempts + 1)

    def refuse(self, notices: Sequence[Notice], now: int, error: str) -> None:
        """Let go of *notices*; the log says why."""
        self.told(notices, now)
