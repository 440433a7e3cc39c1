"""The asyncio face: what it does beyond its link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mchannel import AsyncChannel, AsyncListener, listen_async, open_async
from mchannel.errors import ChannelClosed, ChannelError, ChannelTimeout, CodecError
from mchannel.transport import State
from tests.unit.faces import RAW, WIRES, Numbers


@pytest.fixture(params=WIRES)
async def listener(request: pytest.FixtureRequest) -> AsyncIterator[AsyncListener[int]]:
    async with listen_async(request.param, Numbers(), insecure=True) as listener:
        yield listener


Ends = tuple[AsyncChannel[bytes], AsyncChannel[int]]


@pytest.fixture
async def ends(listener: AsyncListener[int]) -> AsyncIterator[Ends]:
    """An agent that writes what it likes, and a broker that reads numbers."""
    agent, broker = await asyncio.gather(
        open_async(str(listener.address), RAW, insecure=True), listener.accept(timeout=10)
    )
    yield agent, broker
    agent.abort()
    broker.abort()


@pytest.mark.parametrize("place", [0, 2, 4])
async def test_one_bad_message_in_a_batch_costs_none_of_the_good_ones(ends: Ends, place: int) -> None:
    agent, broker = ends
    good = [b"0", b"1", b"2", b"3"]
    await agent.write_many([*good[:place], b"bad", *good[place:]])
    await asyncio.sleep(0.2)
    found: list[int] = []
    bad = -1
    while len(found) + (bad >= 0) < 5:
        try:
            found += await broker.read_many(timeout=10)
        except CodecError:
            bad = len(found)
    assert (found, bad) == ([0, 1, 2, 3], place)


async def test_what_is_left_of_a_batch_is_read_before_it_is_acknowledged_or_handed_over(ends: Ends) -> None:
    agent, broker = ends
    await agent.write_many([b"0", b"bad", b"2"])
    await asyncio.sleep(0.2)
    assert await broker.read_many(timeout=10) == [0]
    broker.done()
    with pytest.raises(ChannelTimeout):
        await agent.flush(timeout=0.2)
    with pytest.raises(ChannelError, match="read them"):
        broker.handoff()
    with pytest.raises(CodecError):
        await broker.read(timeout=10)
    assert (await broker.receive(timeout=10)).value == 2
    broker.done()
    await agent.flush(timeout=10)


async def test_news_without_end_keeps_no_other_task_from_its_turn(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    _, broker = ends
    link = broker._link  # pyright: ignore[reportPrivateUsage]
    tick, rung = link.tick, 0

    def ring(now: float) -> None:
        nonlocal rung
        tick(now)
        rung += 1
        if rung < 1000 and link.on_news is not None:
            link.on_news()

    monkeypatch.setattr(link, "tick", ring)
    reading = asyncio.create_task(broker.read())
    while rung < 100:  # noqa: ASYNC110 - it counts turns
        await asyncio.sleep(0)
    assert rung < 1000
    reading.cancel()


async def test_what_came_between_the_look_and_the_asking_for_news_is_looked_for_again(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, broker = ends
    looks = iter([None, None, b"7"])
    monkeypatch.setattr(broker, "_recv", lambda: next(looks))
    monkeypatch.setattr(broker._link, "arm_readable", lambda: True)  # pyright: ignore[reportPrivateUsage]
    assert await broker.read(timeout=0) == 7


async def test_an_abort_wakes_whoever_waits_and_leaves_nothing_in_the_event_loop(ends: Ends) -> None:
    agent, _ = ends
    descriptor = agent._link.port.fileno()  # pyright: ignore[reportPrivateUsage]
    waiting = asyncio.create_task(agent.read())
    await asyncio.sleep(0.01)
    agent.abort()
    with pytest.raises(ChannelClosed):
        await asyncio.wait_for(waiting, 10)
    assert not asyncio.get_running_loop().remove_reader(descriptor), "it was still watched"


async def test_a_closed_listener_says_so(listener: AsyncListener[int]) -> None:
    waiting = asyncio.create_task(listener.accept())
    await asyncio.sleep(0.01)
    listener.close()
    with pytest.raises(ChannelClosed, match="listen again"):
        await waiting
    with pytest.raises(ChannelClosed):
        await listener.accept(timeout=0)
    with pytest.raises(ChannelClosed):
        listener.adopt(b"")


async def test_a_with_block_flushes_and_closes_what_it_opened(listener: AsyncListener[int]) -> None:
    opening = asyncio.create_task(open_async(str(listener.address), RAW, insecure=True))
    async with await listener.accept(timeout=10) as broker:
        async with await opening as agent:
            await agent.write(b"1")
            reading = asyncio.create_task(_all(broker))
        assert agent.state is State.CLOSED
        assert await asyncio.wait_for(reading, 10) == [1], "it was closed before it was read"
    assert broker.state is State.CLOSED


async def _all(channel: AsyncChannel[int]) -> list[int]:
    return [number async for number in channel]


async def test_a_with_block_that_fails_closes_without_waiting_and_hides_nothing(ends: Ends) -> None:
    agent, _ = ends
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
        async with agent:
            await agent.write(b"never read")
            raise ZeroDivisionError("the application's own")
    assert agent.state is State.CLOSED
