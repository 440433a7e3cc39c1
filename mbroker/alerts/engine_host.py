"""Where engines run. A host, here or on another machine, is told in steps what its engines shall do."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import attrs

from .engine import Engine, Fired, TooMuchError
from .kernel import KernelError
from .selector import Series
from .tree import Rule

__all__ = [
    "EngineHost",
    "Engines",
    "Expect",
    "Follow",
    "Forget",
    "InProcess",
    "Leave",
    "LostError",
    "Match",
    "Pace",
    "Report",
    "Save",
    "Step",
    "Tasks",
    "Tick",
    "Unheard",
    "Worker",
]

Step: TypeAlias = Callable[[Engine], Any]
"""Something that an engine does. The same steps after the same snapshot have the same results, anywhere."""

Tasks: TypeAlias = Mapping[int, Sequence[Step]]
"""For each shard, steps in their order."""


class LostError(Exception):
    """A host is gone, and its engines with it."""


@attrs.frozen
class Expect:
    """Learn of series; returns their numbers."""

    series: tuple[Series, ...]

    def __call__(self, engine: Engine) -> list[int]:
        """Do it."""
        return [engine.number(series) for series in self.series]


@attrs.frozen
class Follow:
    """Follow a rule; returns its number."""

    rule: Rule

    def __call__(self, engine: Engine) -> int:
        """Do it."""
        return engine.add(self.rule)


@attrs.frozen
class Pace:
    """Learn how often series are read."""

    intervals: tuple[tuple[int, int | None], ...]
    """Numbers of series, and milliseconds."""

    def __call__(self, engine: Engine) -> None:
        """Do it."""
        for number, interval in self.intervals:
            engine.pace(number, interval)


@attrs.frozen
class Unheard:
    """Returns the numbers of some series of which nothing was heard since then."""

    before: int

    def __call__(self, engine: Engine) -> list[int]:
        """Do it."""
        return engine.unheard(self.before)


@attrs.frozen
class Forget:
    """Forget series that no alert needs; returns their numbers."""

    numbers: tuple[int, ...]

    def __call__(self, engine: Engine) -> list[int]:
        """Do it."""
        return engine.forget(self.numbers)


@attrs.frozen
class Leave:
    """Forget the rule of a number."""

    number: int

    def __call__(self, engine: Engine) -> None:
        """Do it."""
        engine.remove(self.number)


@attrs.frozen(eq=False)
class Match:
    """Match samples that arrived together; returns the edges."""

    now: int
    numbers: array[int] = attrs.field(factory=lambda: array("I"))
    values: array[float] = attrs.field(factory=lambda: array("d"))
    times: array[int] = attrs.field(factory=lambda: array("q"))

    def __call__(self, engine: Engine) -> list[Fired]:
        """Do it."""
        return engine.push(self.now, self.numbers, self.values, self.times)


@attrs.frozen
class Tick:
    """Let the clock run; returns the edges."""

    now: int

    def __call__(self, engine: Engine) -> list[Fired]:
        """Do it."""
        return engine.tick(self.now)


@attrs.frozen
class Save:
    """Returns a snapshot."""

    def __call__(self, engine: Engine) -> bytes:
        """Do it."""
        return engine.save()


@attrs.frozen
class Report:
    """What came of tasks."""

    results: Mapping[int, Sequence[Any]]
    """For each shard, those of its steps; of one that was refused, and changed nothing, the error."""
    busy: Mapping[int, int]
    """Nanoseconds of a processor that they took, by shard."""
    spent: int
    """Nanoseconds of a processor that the host took since its last report, what it was told and answered included."""
    problem: str = ""
    """What a rule lacks, in one line; empty when there is nothing."""


class EngineHost(Protocol):
    """Runs the engines of some shards. All may raise :exc:`LostError`, and always do after they did."""

    def place(self, shard: int, image: bytes) -> None:
        """Have the engine of *shard* from now on, as it was when *image* was saved."""
        ...

    def drop(self, shard: int) -> None:
        """Have the engine of *shard* no longer."""
        ...

    def start(self, tasks: Tasks) -> Callable[[], Report]:
        """Begin *tasks*; what is returned waits for their end. Tasks run in the order in which they began."""
        ...

    def close(self) -> None:
        """Give back what it takes; it is lost from now on. Does not raise."""
        ...


class Engines:
    """The engines of a host, on the host itself."""

    def __init__(self) -> None:
        self._engines: dict[int, Engine] = {}

    def place(self, shard: int, image: bytes) -> None:
        """Have the engine of *shard* from now on."""
        self._engines[shard] = Engine.load(image)

    def drop(self, shard: int) -> None:
        """Have the engine of *shard* no longer."""
        del self._engines[shard]

    def perform(self, tasks: Tasks) -> Report:
        """Do *tasks*."""
        results: dict[int, Sequence[Any]] = {}
        busy: dict[int, int] = {}
        for shard, steps in tasks.items():
            begin = time.thread_time_ns()
            results[shard] = [self._result(shard, step) for step in steps]
            busy[shard] = time.thread_time_ns() - begin
        problems = (engine.problem for engine in self._engines.values())
        return Report(results, busy, sum(busy.values()), next(filter(None, problems), ""))

    def _result(self, shard: int, step: Step) -> Any:
        try:
            return step(self._engines[shard])
        except (KernelError, TooMuchError) as error:
            return error


class Worker(Engines):
    """The engines of a host that is a process of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._spent = time.process_time_ns()

    def perform(self, tasks: Tasks) -> Report:
        """Do *tasks*."""
        report = super().perform(tasks)
        before, self._spent = self._spent, time.process_time_ns()
        return attrs.evolve(report, spent=self._spent - before)


class InProcess:
    """A host in this process. It is lost when an engine runs out of memory, after which only snapshots are of use."""

    def __init__(self) -> None:
        self._engines: Engines | None = Engines()

    def place(self, shard: int, image: bytes) -> None:
        """Have the engine of *shard* from now on."""
        self._try(lambda engines: engines.place(shard, image))

    def drop(self, shard: int) -> None:
        """Have the engine of *shard* no longer."""
        self._try(lambda engines: engines.drop(shard))

    def start(self, tasks: Tasks) -> Callable[[], Report]:
        """Do *tasks* at once."""
        report = self._try(lambda engines: engines.perform(tasks))
        return lambda: report

    def close(self) -> None:
        """Let the engines go."""
        self._engines = None

    def _try(self, do: Callable[[Engines], Any]) -> Any:
        if self._engines is None:
            raise LostError("the engines of this host are gone")
        try:
            return do(self._engines)
        except MemoryError as error:
            self.close()
            raise LostError(f"an engine ran out of memory: {error}") from None
