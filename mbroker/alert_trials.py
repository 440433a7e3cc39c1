"""Subscriptions that are tried on the stored past, each in a thread of its own, while whoever asked looks on."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Generator
from functools import partial

import attrs

from mbroker import alert_rows as rows
from mbroker import control
from mbroker.alerts import Subscription
from mbroker.alerts.engine import TooMuchError
from mbroker.alerts.explain import Explanation, Past, Place, explain

__all__ = ["Trials"]

_AT_ONCE = 2
_ABANDONED = 10.0  # seconds after which nobody looks on any more
_WORK, _REST = 0.02, 0.01  # seconds: others need the interpreter too
_ALERTS = 200  # that are shown


@attrs.define(eq=False)
class _Trial:
    """One subscription; written by its thread, read by whoever looks."""

    subscription: Subscription
    warnings: tuple[str, ...]
    looked: float
    share: float = 0.0
    result: Explanation | None = None
    error: str = ""

    @property
    def is_over(self) -> bool:
        """Whether it came to an end."""
        return self.result is not None or bool(self.error)

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody looks on any more."""
        return time.monotonic() - self.looked > _ABANDONED

    def run(self, steps: Generator[float, None, Explanation]) -> None:
        """Go through *steps*, with rests, unless nobody looks on."""
        rested = time.monotonic()
        try:
            while not self.is_abandoned:
                self.share = next(steps)
                if time.monotonic() - rested > _WORK:
                    time.sleep(_REST)
                    rested = time.monotonic()
            self.error = "nobody looked on"
        except StopIteration as end:
            self.result = end.value
        except TooMuchError as error:
            self.error = str(error)
        except Exception as error:  # whoever looks on is told; the daemon goes on
            self.error = f"it failed: {error!r:.200}"


class Trials:
    """The trials that go on."""

    def __init__(self, past: Past, interval: int, *, offload: bool = False, home: Place = Place.BROKER) -> None:
        """Try on *past*; the rest is as for :func:`mbroker.alerts.explain.explain`."""
        self._explain = partial(explain, past=past, interval=interval, most=_ALERTS, offload=offload, home=home)
        self._trials: dict[int, _Trial] = {}
        self._numbers = itertools.count(1)

    def start(self, subscription: Subscription, warnings: tuple[str, ...], begin: int, end: int) -> int:
        """Begin to try *subscription* and return the trial's number; raise Refused when too many are."""
        self._trials = {number: trial for number, trial in self._trials.items() if not trial.is_abandoned}
        if sum(1 for trial in self._trials.values() if not trial.is_over) >= _AT_ONCE:
            raise control.Refused(f"{_AT_ONCE} subscriptions are being tried already; try again soon")
        steps = self._explain(subscription, begin=begin, end=end)
        number, trial = next(self._numbers), _Trial(subscription, warnings, time.monotonic())
        self._trials[number] = trial
        threading.Thread(target=trial.run, args=(steps,), name=f"trial {number}", daemon=True).start()
        return number

    def look(self, number: int) -> rows.Task:
        """Return how a trial stands, once it is over for the last time; raise NoSuchThing."""
        trial = self._trials.get(number)
        if trial is None:
            raise control.NoSuchThing(f"there is no trial {number} any more; begin again")
        trial.looked = time.monotonic()
        if not trial.is_over:
            return rows.Task(trial.share)
        del self._trials[number]
        return rows.Task(1.0, None if trial.result is None else _row(trial, trial.result), trial.error)


def _row(trial: _Trial, found: Explanation) -> rows.ExplainRow:
    return rows.ExplainRow(
        str(trial.subscription),
        found.series,
        found.samples,
        None if found.oldest is None else found.oldest / 1000,
        found.cost.value,
        found.place.value,
        tuple(rows.alert(each, str(trial.subscription)) for each in found.alerts),
        found.more,
        trial.warnings,
    )
