"""Keeps shards on hosts, whichever hosts come and go.

What each shard did since its last snapshot is kept. When a host is lost its shards do it again elsewhere: the same
steps have the same results, so that those that were returned already are known, and each is returned once.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from .engine_host import EngineHost, LostError, Report, Save, Step
from .placement import winner

__all__ = ["Housing"]

_MOST_AGAIN = 10_000_000  # nanoseconds of a processor that what a shard does again may take,
_MOST_SNAPSHOTS = 3  # unless a snapshot takes so many times less
_STAGGER = 16  # shards take their snapshots at so many different times
_TRIALS = 3
_MOST_LOSSES = 64  # that are remembered


@attrs.define
class _Shard:
    image: bytes
    """Its last snapshot."""
    host: str = ""
    """Where it is; empty: nowhere."""
    done: list[Step] = attrs.field(factory=list[Step])
    """What it was told since the snapshot."""
    busy: int = 0
    """How many nanoseconds of a processor that took."""
    most: int = _MOST_AGAIN
    """How many it may take."""


class Housing:
    """Shards, and the hosts that they are on.

    A host that is lost is one less; the last one is replaced. :exc:`.engine_host.LostError` is raised when a shard
    is lost wherever it is placed: then what is here is of no use any more.
    """

    def __init__(self, hosts: int, make: Callable[[], EngineHost]) -> None:
        """Have so many *hosts*, each of which *make* makes."""
        self._make = make
        self._names = map("host {}".format, itertools.count(1))
        self._hosts: dict[str, EngineHost] = {}
        self._shards: dict[int, _Shard] = {}
        self._busy: Counter[str] = Counter()
        self._lost: deque[str] = deque(maxlen=_MOST_LOSSES)
        self.problem = ""
        """What a rule lacks on a host, in one line; empty when there is nothing."""
        try:
            for _ in range(hosts):
                self._hosts[next(self._names)] = make()
        except LostError:
            self.close()
            raise

    @property
    def where(self) -> dict[str, frozenset[int]]:
        """Which shards each host has."""
        return {
            name: frozenset(shard for shard, kept in self._shards.items() if kept.host == name) for name in self._hosts
        }

    def open(self, shard: int, image: bytes) -> None:
        """Have one more shard: the engine of a snapshot."""
        self._shards[shard] = _Shard(image, busy=_MOST_AGAIN * (shard % _STAGGER) // _STAGGER)

    def do(self, tasks: Mapping[int, Sequence[Step]]) -> dict[int, Sequence[Any]]:
        """Have shards take steps, all hosts at once, and return their results."""
        self._house()
        parts: defaultdict[str, dict[int, Sequence[Step]]] = defaultdict(dict)
        for shard, steps in tasks.items():
            self._shards[shard].done += steps
            parts[self._shards[shard].host][shard] = steps
        answers = self._answers(parts)
        for shard, again in self._house().items():
            if shard in tasks:  # unless it had answered before its host was lost, the last results are new
                answers.setdefault(shard, again[-len(tasks[shard]) :])
        for shard in tasks:
            if self._shards[shard].busy > self._shards[shard].most:
                self._keep(shard)
        return {shard: answers[shard] for shard in tasks}

    def images(self) -> dict[int, bytes]:
        """Return snapshots of all shards."""
        self._house()
        for shard in self._shards:
            self._keep(shard)
        while any(kept.done for kept in self._shards.values()):  # a host was lost meanwhile
            self._house()
            for shard in self._shards:
                self._keep(shard)
        return {shard: kept.image for shard, kept in self._shards.items()}

    def shares(self, elapsed: int) -> dict[str, float]:
        """Return how much of a processor each host took since the last call, *elapsed* nanoseconds ago."""
        busy, self._busy = self._busy, Counter()
        return {name: busy[name] / elapsed for name in self._hosts}

    def losses(self) -> list[str]:
        """Return what is to be said of hosts that were lost since the last call, a line each."""
        lost = [*self._lost]
        self._lost.clear()
        return lost

    # -- hosts come and go

    def grow(self) -> str:
        """Have one more host and return its name; the shards that it wins move there."""
        name = next(self._names)
        self._hosts[name] = self._make()
        self._leave([shard for shard in self._shards if winner(shard, self._hosts) == name])
        self._house()
        return name

    def shrink(self, name: str) -> None:
        """Have one host less; raise ValueError if it is the only one, or there is none of that name."""
        if name not in self._hosts or len(self._hosts) == 1:
            raise ValueError(f"{name} cannot go and leave another one: the hosts are {', '.join(self._hosts)}")
        self._leave([shard for shard, kept in self._shards.items() if kept.host == name])
        if name in self._hosts:  # unless it was lost meanwhile
            self._end(name)
        self._house()

    def close(self) -> None:
        """Give back all hosts."""
        for name in tuple(self._hosts):
            self._end(name)

    def _leave(self, shards: Iterable[int]) -> None:
        """Take *shards* from their hosts, as they are now."""
        for shard in shards:
            self._keep(shard)
            host, self._shards[shard].host = self._shards[shard].host, ""
            if host:
                try:
                    self._hosts[host].drop(shard)
                except LostError as error:
                    self._lose(host, error)

    def _lose(self, name: str, error: LostError) -> None:
        """Do without a host that is lost, if that is not done."""
        if name in self._hosts:
            self._lost.append(f"{name} is lost, and its shards go on elsewhere: {error}")
            self._end(name)

    def _end(self, name: str) -> None:
        """End a host. Its shards are nowhere."""
        self._hosts.pop(name).close()
        for kept in self._shards.values():
            if kept.host == name:
                kept.host = ""

    # -- shards

    def _answers(self, parts: Mapping[str, Mapping[int, Sequence[Step]]]) -> dict[int, Sequence[Any]]:
        """Return what hosts answer, without those that are lost."""
        begun: list[tuple[str, Callable[[], Report]]] = []
        answers: dict[int, Sequence[Any]] = {}
        for name, part in parts.items():
            try:
                begun.append((name, self._hosts[name].start(part)))
            except LostError as error:
                self._lose(name, error)
        for name, wait in begun:
            try:
                report = wait()
            except LostError as error:
                self._lose(name, error)
            else:
                self._note(name, report)
                for shard, took in report.busy.items():
                    self._shards[shard].busy += took
                answers.update(report.results)
        return answers

    def _note(self, name: str, report: Report) -> None:
        self._busy[name] += report.spent
        self.problem = report.problem or self.problem

    def _keep(self, shard: int) -> None:
        """Take a snapshot of *shard*, unless it is nowhere: then what it did must be done again anyway."""
        kept = self._shards[shard]
        if kept.host:
            try:
                report = self._hosts[kept.host].start({shard: [Save()]})()
            except LostError as error:
                self._lose(kept.host, error)
            else:
                self._note(kept.host, report)
                (kept.image,) = report.results[shard]
                kept.done, kept.busy = [], 0
                kept.most = max(_MOST_AGAIN, _MOST_SNAPSHOTS * report.busy[shard])

    def _house(self) -> dict[int, Sequence[Any]]:
        """Place each shard that is nowhere and let it do again what it did; return the results of that."""
        results: dict[int, Sequence[Any]] = {}
        trials: Counter[int] = Counter()
        while (shard := next((shard for shard, kept in self._shards.items() if not kept.host), None)) is not None:
            if not self._hosts:
                trials[shard] += 1  # of hosts that were there before, several may have been lost already
                if trials[shard] > _TRIALS:
                    raise LostError(f"shard {shard} is lost wherever it is placed; go on from a snapshot")
                self._hosts[next(self._names)] = self._make()
            kept = self._shards[shard]
            name = winner(shard, self._hosts)
            try:
                self._hosts[name].place(shard, kept.image)
                report = self._hosts[name].start({shard: kept.done})()
            except LostError as error:
                self._lose(name, error)
            else:
                self._note(name, report)
                kept.host = name
                results.setdefault(shard, report.results[shard])
        return results
