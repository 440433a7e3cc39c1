"""One host's events for any number of readers, quick or slow."""

from __future__ import annotations

import asyncio

import pytest

from mbroker.hypervisor import DomainInfo, EventStream, Kind, State
from mbroker.hypervisor.events import Fanout

A, B, C = (f"aaaaaaaa-0000-4000-8000-00000000000{number}" for number in range(3))


@pytest.fixture
def fanout() -> Fanout:
    return Fanout(lambda: 7.0)


def info(uuid: str, state: State = State.RUNNING) -> DomainInfo:
    return DomainInfo(uuid, "web", state, 1, 1 << 20)


async def waiting(events: EventStream) -> list[tuple[Kind, str]]:
    """Return what can be read without waiting."""
    found: list[tuple[Kind, str]] = []
    while True:
        task = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if not task.done():
            task.cancel()
            return found
        event = task.result()
        found.append((event.kind, event.domain))


async def test_every_reader_gets_every_event_in_order(fanout: Fanout) -> None:
    one, other = fanout.stream(8), fanout.stream(8)
    fanout.publish(Kind.ARRIVING, A, "web")
    fanout.publish(Kind.ARRIVED, A, "web")
    assert await waiting(one) == await waiting(other) == [(Kind.ARRIVING, A), (Kind.ARRIVED, A)]


async def test_the_state_after_each_event_is_told(fanout: Fanout) -> None:
    events = fanout.stream(8)
    fanout.publish(Kind.LEAVING, A, "web")
    event = await anext(events)
    assert (event.state, event.at, event.name) == (State.MOVING, 7.0, "web")


async def test_a_slow_reader_is_told_to_resync_and_then_what_is_so(fanout: Fanout) -> None:
    events = fanout.stream(3)
    fanout.publish(Kind.STARTED, A, "web")
    fanout.publish(Kind.STARTED, B, "web")
    assert len(await waiting(events)) == 2
    for _ in range(10):
        fanout.publish(Kind.PAUSED, A, "web")
        fanout.publish(Kind.RESUMED, A, "web")
    fanout.publish(Kind.STOPPED, B, "web")
    fanout.publish(Kind.STARTED, C, "web")
    assert await waiting(events) == [(Kind.RESYNC, ""), (Kind.GONE, B), (Kind.PRESENT, A), (Kind.PRESENT, C)]


async def test_a_slow_reader_holds_no_more_than_its_limit(fanout: Fanout) -> None:
    events = fanout.stream(3)
    for _ in range(1000):
        fanout.publish(Kind.RESUMED, A, "web")
        assert len(events._queue) <= 3  # pyright: ignore[reportPrivateUsage]


async def test_a_slow_reader_does_not_disturb_a_quick_one(fanout: Fanout) -> None:
    fanout.stream(1)
    quick = fanout.stream(8)
    for _ in range(5):
        fanout.publish(Kind.PAUSED, A, "web")
        assert await waiting(quick) == [(Kind.PAUSED, A)]


async def test_what_was_missed_while_away_follows_what_is_queued(fanout: Fanout) -> None:
    events = fanout.stream(8)
    fanout.publish(Kind.STARTED, A, "web")
    fanout.reconcile([info(B), info(C, State.OFF)])
    assert await waiting(events) == [(Kind.STARTED, A), (Kind.RESYNC, ""), (Kind.GONE, A), (Kind.PRESENT, B)]


async def test_events_right_after_a_resync_are_not_swallowed(fanout: Fanout) -> None:
    events = fanout.stream(8)
    fanout.reconcile([info(A)])
    fanout.publish(Kind.LEAVING, A, "web")
    assert await waiting(events) == [(Kind.RESYNC, ""), (Kind.PRESENT, A), (Kind.LEAVING, A)]


async def test_a_late_reader_begins_with_what_is_so(fanout: Fanout) -> None:
    fanout.publish(Kind.ARRIVING, A, "web")
    fanout.publish(Kind.STARTED, B, "web")
    fanout.publish(Kind.STOPPED, B, "web")
    event = await anext(fanout.stream(8))
    assert (event.kind, event.domain, event.state) == (Kind.PRESENT, A, State.MOVING)


async def test_a_closed_stream_ends_after_what_is_queued(fanout: Fanout) -> None:
    async with fanout.stream(8) as events:
        fanout.publish(Kind.STARTED, A, "web")
        fanout.close()
        fanout.publish(Kind.STOPPED, A, "web")
        assert [event.kind async for event in events] == [Kind.STARTED]
    assert [event async for event in fanout.stream(8)] == []


async def test_closing_wakes_a_reader_that_waits(fanout: Fanout) -> None:
    events = fanout.stream(8)
    reader = asyncio.ensure_future(anext(events, None))
    await asyncio.sleep(0)
    events.close()
    assert await reader is None


async def test_a_cancelled_wait_loses_nothing(fanout: Fanout) -> None:
    events = fanout.stream(8)
    reader = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    fanout.publish(Kind.STARTED, A, "web")
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert await waiting(events) == [(Kind.STARTED, A)]
