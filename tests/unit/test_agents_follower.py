"""From a log to reports, while it grows."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from mchannel.agents.accesslog import reader
from mchannel.agents.follower import Follower
from mchannel.agents.meter import epoch_of
from mchannel.agents.sla import Recorder
from mchannel.event import Event

START = 1_700_000_000.0


@attrs.define
class World:
    """A log of whole lines, the clock beside it, and what the broker is told."""

    lines: list[str] = attrs.field(factory=list[str])
    now: float = START
    told: list[Event] = attrs.field(factory=list[Event])

    def read(self) -> Iterator[str]:
        lines, self.lines = self.lines, []
        yield from lines

    rest = read

    def write(self, message: Event, /, timeout: float | None = None) -> None:
        self.told.append(message)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def follower(world: World) -> Follower:
    recorder = Recorder(world, source="web1", clock=lambda: world.now, utilization=lambda: None)
    return Follower(reader("$msec $request_time"), recorder)


def test_a_request_counts_when_the_log_says_that_it_ended(world: World, follower: Follower) -> None:
    world.lines, world.now = [f"{START + 0.1:.3f} 0.001", f"{START + 0.6:.3f} 0.001"], START + 1.0
    assert follower.look(world)
    assert [event.detail["requests"] for event in world.told] == [1, 1]


def test_a_request_of_the_future_counts_now(world: World, follower: Follower) -> None:
    world.lines = [f"{START + 3600:.3f} 0.007"]
    follower.look(world)
    world.now += 0.5
    assert not follower.look(world)
    (event,) = world.told
    assert (event.detail["epoch"], event.detail["hard"]) == (epoch_of(START), 1)


def test_epochs_are_reported_while_a_long_log_is_read(world: World, follower: Follower) -> None:
    told: list[int] = []

    class Long(World):
        def read(self) -> Iterator[str]:
            for n in range(1001):
                world.now += 0.5 * (n == 999)
                told.append(len(world.told))
                yield f"{START:.3f} 0.001"

    follower.look(Long())
    assert told[999:] == [0, 1]
