"""Subscriptions on trial: how many, for whom, and how they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mbroker import alert_rows as rows
from mbroker import control
from mbroker.alert_trials import Trials
from mbroker.alerts import Subscription
from mbroker.alerts.history import Accepts
from mbroker.alerts.sample import Sample
from mbroker.alerts.selector import Endpoint, Series

LOAD = Subscription.parse("load > 1")
SERIES = Series("load", Endpoint({("domain", "web1")}))


class Past:
    """A sample a second, which come when they may."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.pause = 20.0
        self.told = 0
        self.error: Exception | None = None

    def intervals(self, wanted: Accepts) -> dict[Series, int]:
        return {}

    def read(self, wanted: Accepts, begin: int, end: int) -> Iterator[Sample]:
        for at in range(0, 100_000, 1000):
            yield Sample(SERIES, at, at / 50_000)
            self.told += 1
            self.go.wait(self.pause)
            if self.error:
                raise self.error


@pytest.fixture
def past() -> Iterator[Past]:
    made = Past()
    yield made
    made.go.set()


def until(look: Callable[[], rows.Task]) -> rows.Task:
    for _ in range(2000):
        task = look()
        if task.result or task.error:
            return task
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def test_a_trial_is_over_once(past: Past) -> None:
    past.go.set()
    trials = Trials(past, 10_000)
    number = trials.start(LOAD, ("beware",), 0, 100_000)
    result = until(lambda: trials.look(number)).result
    assert result is not None
    assert (result.text, result.samples, result.warnings) == ("load > 1", 100, ("beware",))
    assert [alert.since for alert in result.alerts] == [51.0]
    with pytest.raises(control.NoSuchThing, match="there is no trial 1 any more"):
        trials.look(number)


def test_a_trial_says_how_far_it_is(past: Past) -> None:
    trials = Trials(past, 10_000)
    number = trials.start(LOAD, (), 0, 100_000)
    assert trials.look(number).result is None
    past.go.set()
    assert until(lambda: trials.look(number)).share == 1.0


def test_few_are_tried_at_once(past: Past) -> None:
    trials = Trials(past, 10_000)
    for _ in range(2):
        trials.start(LOAD, (), 0, 100_000)
    with pytest.raises(control.Refused, match="2 subscriptions are being tried already"):
        trials.start(LOAD, (), 0, 100_000)


def test_those_that_ended_leave_room_for_others(past: Past) -> None:
    past.go.set()
    trials = Trials(past, 10_000)
    for _ in range(2):
        trials.start(LOAD, (), 0, 100_000)
    end = time.monotonic() + 20
    while any(each.name.startswith("trial ") for each in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert trials.start(LOAD, (), 0, 100_000) == 3


def test_what_nobody_looks_at_any_more_ends_and_makes_room(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    past.pause = 0.2
    trials = Trials(past, 10_000)
    for _ in range(2):
        trials.start(LOAD, (), 0, 100_000)
    monkeypatch.setattr("mbroker.alert_trials._ABANDONED", 0.0)
    trials.start(LOAD, (), 0, 100_000)
    end = time.monotonic() + 20
    while any(each.name.startswith("trial ") for each in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert past.told < 100, "nobody waited for the end"


def test_a_past_that_fails_is_told(past: Past) -> None:
    past.error = OSError("the disk has failed")
    past.go.set()
    trials = Trials(past, 10_000)
    number = trials.start(LOAD, (), 0, 100_000)
    assert "the disk has failed" in until(lambda: trials.look(number)).error
