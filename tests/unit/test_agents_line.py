"""A line is one channel that is opened again whenever it ends, and an outbox what waits for it."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import pytest

from mchannel import AsyncChannel, Event, listen_async
from mchannel.agents.discover import Way
from mchannel.agents.line import Line, Talk
from mchannel.agents.outbox import Labelled, Outbox
from mchannel.errors import AddressError, AuthenticationError, ChannelTimeout

SOON = (0.01,)
ADDRESS = "memory:///line"


async def way() -> Way:
    return Way(ADDRESS)


async def greet(channel: Talk) -> None:
    await channel.write(Event("hello"))


async def greet_and_wait(channel: Talk) -> None:
    await greet(channel)
    await channel.read()


async def test_a_line_ends_when_its_use_does_and_everything_is_acknowledged() -> None:
    async with asyncio.TaskGroup() as tasks, listen_async(ADDRESS) as listener:
        kept = tasks.create_task(Line("sla", way).keep(greet))
        channel = await listener.accept(timeout=30)
        assert channel.peer.name == "sla"
        heard = [event.topic async for event in channel]
        await asyncio.wait_for(kept, 30)
    assert heard == ["hello"]


async def test_a_use_that_takes_too_long_ends_the_line() -> None:
    async def linger(_: Talk) -> NoReturn:
        raise ChannelTimeout("not acknowledged in time")

    async with listen_async(ADDRESS):
        with pytest.raises(ChannelTimeout, match="not acknowledged"):
            await asyncio.wait_for(Line("sla", way).keep(linger), 30)


async def test_a_line_waits_for_its_broker_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    attempts, often = 0, asyncio.Event()

    async def refuse(address: str, **_: object) -> NoReturn:
        nonlocal attempts
        attempts += 1
        if attempts == 5:
            often.set()
        raise AuthenticationError(f"{address} does not know this end")

    line = Line("sla", way, open=refuse, pauses=SOON)
    kept = asyncio.create_task(line.keep(greet))
    await asyncio.wait_for(often.wait(), 30)
    kept.cancel()
    assert [record.getMessage() for record in caplog.records] == [
        "sla: memory:///line does not know this end; it is opened again as soon as that is possible"
    ]


async def test_a_host_that_does_not_answer_is_waited_for_longer(caplog: pytest.LogCaptureFixture) -> None:
    patience: list[float | None] = []
    often = asyncio.Event()

    async def wait(address: str, *, timeout: float | None, **_rest: object) -> NoReturn:
        patience.append(timeout)
        if len(patience) == 3:
            often.set()
        await asyncio.sleep(0)
        raise ChannelTimeout(f"nothing answered at {address}")

    kept = asyncio.create_task(Line("sla", way, open=wait).keep(greet))
    await asyncio.wait_for(often.wait(), 30)
    kept.cancel()
    assert patience[:3] == [2.0, 300.0, 300.0]
    assert [record.getMessage() for record in caplog.records] == ["sla: nothing answered at memory:///line"]


async def test_a_broker_that_closes_finds_the_line_again() -> None:
    async with listen_async(ADDRESS) as listener:
        kept = asyncio.create_task(Line("sla", way, pauses=SOON).keep(greet_and_wait))
        for _ in range(3):
            channel = await listener.accept(timeout=30)
            assert (await channel.read(timeout=30)).topic == "hello"
            channel.abort()
        kept.cancel()


async def test_a_broker_that_always_closes_soon_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="magent")
    async with listen_async(ADDRESS) as listener:
        kept = asyncio.create_task(Line("sla", way, pauses=SOON).keep(greet_and_wait))
        for _ in range(4):
            channel = await listener.accept(timeout=30)
            await channel.read(timeout=30)
            channel.abort()
        kept.cancel()
    told = [record.getMessage() for record in caplog.records if record.name == "magent"]
    assert len(told) == 2, told
    assert told[0] == "sla: open to memory:///line"


async def test_a_line_keeps_little_for_a_broker_that_does_not_read() -> None:
    wishes: dict[str, object] = {}
    noted = asyncio.Event()

    async def note(address: str, **given: object) -> AsyncChannel[Event]:
        wishes.update(given)
        noted.set()
        raise AddressError(address)

    kept = asyncio.create_task(Line("metrics", way, open=note).keep(greet))
    await asyncio.wait_for(noted.wait(), 30)
    kept.cancel()
    assert wishes == {
        "timeout": 2.0,
        "name": "metrics",
        "max_message": 65536,
        "window": 131072,
    }


def fill(outbox: Outbox) -> int:
    count = 0
    try:
        while True:
            outbox.write(Event("sla.epoch", value=count))
            count += 1
    except ChannelTimeout:
        return count


def test_an_outbox_takes_64_events_and_no_more() -> None:
    assert fill(Outbox()) == 64


async def test_an_event_stays_until_it_is_popped() -> None:
    outbox = Outbox()
    fill(outbox)
    for _ in range(2):
        event = await outbox.first()
        assert event is not None
        assert event.value == 0
    outbox.pop()
    event = await outbox.first()
    assert event is not None
    assert event.value == 1


async def test_the_next_event_tells_how_many_were_left_out_before_it() -> None:
    outbox = Outbox()
    for epoch in range(4):
        outbox.write(Event("sla.epoch", value=epoch))
    outbox.leave_out()
    outbox.leave_out()
    for value, detail in ((2, {"refused": 2}), (3, {})):
        event = await outbox.first()
        assert event is not None
        assert (event.value, event.detail) == (value, detail)
        outbox.pop()


async def test_who_waits_for_an_event_gets_it() -> None:
    outbox = Outbox()
    waiting = asyncio.create_task(outbox.first())
    await asyncio.sleep(0)
    outbox.write(Event("sla.epoch"))
    assert await asyncio.wait_for(waiting, 30) == Event("sla.epoch")


async def test_a_closed_outbox_gives_what_it_has_and_then_nothing() -> None:
    outbox = Outbox()
    outbox.write(Event("sla.epoch"))
    outbox.close()
    assert await outbox.first() == Event("sla.epoch")
    outbox.pop()
    assert await outbox.first() is None


async def test_closing_wakes_who_waits() -> None:
    outbox = Outbox()
    waiting = asyncio.create_task(outbox.first())
    await asyncio.sleep(0)
    outbox.close()
    assert await asyncio.wait_for(waiting, 30) is None


@pytest.mark.parametrize(("service", "detail"), [("shop", {"hard": 1, "service": "shop"}), ("", {"hard": 1})])
async def test_the_service_stands_in_the_detail(service: str, detail: dict[str, object]) -> None:
    outbox = Outbox()
    Labelled(outbox, service).write(Event("sla.epoch", detail={"hard": 1}))
    event = await outbox.first()
    assert event is not None
    assert event.detail == detail
