"""What the history promises, as a program and its checks; and the same with bugs planted."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from mbroker.alerts.history import History
from mbroker.alerts.names import Names
from mbroker.alerts.segment import Segment
from mbroker.alerts.selector import Selector, Series

from .points import Ack, Program

__all__ = ["BUGS", "check", "check_power_cut", "good", "program"]

LOAD = Selector("load")
_SMALL = 7000  # bytes


def series(number: int) -> Series:
    return Series("load", frozenset({("host", f"web{number}")}))


def program(kind: type[History]) -> Program:
    """Return the program in which samples come and are sealed, with one restart between."""

    def run(folder: Path, ack: Ack) -> None:
        for life in range(2):
            history = kind(folder)
            for second in range(10 * life, 10 * life + 4):
                history.name(0, series(second % 3))
                history.append(array("I", [0]), array("d", [float(second)]), array("q", [second]))
                ack(f"appended {second}")
                if second % 4 == 2:
                    history.seal(second)
                    ack(f"sealed {second}")
            history.close()

    return run


def crowd(kind: type[History]) -> Program:
    """Return the program in which one source takes so much that it has to lose what is oldest of it."""

    def run(folder: Path, ack: Ack) -> None:
        history = kind(folder, size=_SMALL)
        history.name(1, Series("noise", frozenset({("host", "crowd")})))
        for second in range(6):
            history.name(0, series(second % 3))
            noise = [math.sin(second * 1000 + at) for at in range(200)]
            history.append(array("I", [0] + [1] * 200), array("d", [second, *noise]), array("q", [second] * 201))
            ack(f"appended {second}")
            history.seal(second)
            ack(f"sealed {second}")
        assert "crowd is cut short" in history.problem
        history.close()

    return run


def check(folder: Path, acked: Sequence[str]) -> None:
    """See that all is there that was, once, and that work goes on."""
    _check(folder, [int(number) for verb, number in map(str.split, acked) if verb == "appended"])


def check_power_cut(folder: Path, acked: Sequence[str]) -> None:
    """See that all is there that was sealed."""
    sealed = max((int(number) for verb, number in map(str.split, acked) if verb == "sealed"), default=-1)
    appended = [int(number) for verb, number in map(str.split, acked) if verb == "appended"]
    _check(folder, [number for number in appended if number <= sealed])


def _check(folder: Path, promised: Sequence[int]) -> None:
    with History(folder) as history:
        assert not history.problem, history.problem
        found = [(sample.at, sample.value, sample.series) for sample in history.read(LOAD, 0, 1000)]
        assert all(one == (one[0], float(one[0]), series(one[0] % 3)) for one in found), (
            f"others than there were: {found}"
        )
        times = [at for at, *_ in found]
        assert len(set(times)) == len(times), f"twice: {times}"
        assert set(promised) <= set(times), f"promised {promised}, found {times}"
        history.name(7, series(7))
        history.append(array("I", [7]), array("d", [7.0]), array("q", [500]))
        history.seal(500)
    with History(folder) as history:
        assert {sample.at for sample in history.read(LOAD, 0, 1000)} == {*times, 500}, "what came afterwards is lost"


class _Lazy(Names):
    """Names that are written when nobody asks for it."""

    __slots__ = ()

    def sync(self) -> None:
        pass


class NamesLater(History):
    """Lets samples be on disk before the names of their series are."""

    def append(self, numbers: array[int], values: array[float], times: array[int]) -> None:
        self._names.__class__ = _Lazy
        super().append(numbers, values, times)
        self._names.__class__ = Names
        self._names.sync()


class ForgetsFirst(History):
    """Removes the journal before what was in it is sealed."""

    def _seal(self, live: object) -> None:
        write: Callable[..., Segment] = Segment.write

        def late(path: Path, columns: object) -> Segment:
            columns = list(columns)  # type: ignore[call-overload]
            path.with_suffix(".live").unlink()
            return write(path, columns)

        Segment.write = late  # type: ignore[method-assign, assignment]
        super()._seal(live)  # type: ignore[arg-type]
        Segment.write = write  # type: ignore[method-assign]


class StripsFirst(History):
    """Removes a file before it is written again without a source."""

    def _strip(self, segment: Segment, gone: set[int]) -> None:
        whole = segment.path.with_suffix(".whole")
        segment.path.rename(whole)
        rest = attrs.evolve(segment, path=whole).without(gone)
        assert rest is not None
        whole.rename(segment.path)
        self._segments[self._segments.index(segment)] = attrs.evolve(rest, path=segment.path)


BUGS = {kind.__name__: program(kind) for kind in (NamesLater, ForgetsFirst)}
BUGS[StripsFirst.__name__] = crowd(StripsFirst)
GOOD = {"good": program(History), "crowded": crowd(History)}
good, crowded = GOOD.values()
