"""A process that is forked off has copies of channels and listeners, and ends none of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import pytest

import mchannel
from mchannel import AsyncChannel, AsyncListener, Channel, Listener, listen_async, open_async
from mchannel.transport import State
from tests.unit.faces import RAW, WIRES, attended, both_ends

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def in_a_child(work: Callable[[], object]) -> int:
    """Return how a forked process ended that did *work*: 0 when nothing was raised and it took no ten seconds."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    late = time.monotonic() + 10
    while time.monotonic() < late:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture(params=WIRES)
def listener(request: pytest.FixtureRequest) -> Iterator[Listener[bytes]]:
    with mchannel.listen(request.param, RAW, insecure=True) as listener:
        yield listener


Ends = tuple[Channel[bytes], Channel[bytes]]


@pytest.fixture
def ends(listener: Listener[bytes]) -> Iterator[Ends]:
    with both_ends(listener) as made:
        yield made


def fail_inside(channel: Channel[bytes]) -> None:
    with suppress(ZeroDivisionError), channel:
        raise ZeroDivisionError


def end_by_a_with_block(channel: Channel[bytes]) -> None:
    with channel:
        pass


@pytest.mark.parametrize("leave", [Channel[bytes].close, end_by_a_with_block, fail_inside])
def test_a_child_that_closes_its_copy_of_a_channel_ends_neither_end(
    leave: Callable[[Channel[bytes]], None], ends: Ends
) -> None:
    agent, broker = ends
    for end in ends:
        end.fileno()
        end.write(b"not acknowledged yet")
    for end in ends:
        assert in_a_child(partial(leave, end)) == 0
    assert agent.read(timeout=10) == broker.read(timeout=10) == b"not acknowledged yet"
    agent.write(b"there", timeout=10)
    assert broker.read(timeout=10) == b"there"
    broker.write(b"and back", timeout=10)
    assert agent.read(timeout=10) == b"and back"
    assert (agent.state, broker.state) == (State.OPEN, State.OPEN)


def test_a_child_that_closes_its_copy_of_a_listener_keeps_nobody_from_coming(listener: Listener[bytes]) -> None:
    assert in_a_child(listener.close) == 0
    with ThreadPoolExecutor() as threads:
        coming = threads.submit(mchannel.open, str(listener.address), RAW, insecure=True)
        broker = listener.accept(10)
        agent = attended(broker, coming)
    agent.write(b"here I am")
    assert broker.read(timeout=10) == b"here I am"
    broker.done()
    agent.close(timeout=0.1)


@pytest.mark.parametrize("wire", WIRES)
async def test_a_child_that_aborts_its_copies_takes_no_news_from_the_event_loop(wire: str) -> None:
    listener: AsyncListener[bytes] = listen_async(wire, RAW, insecure=True)
    async with listener:
        agent: AsyncChannel[bytes] = await open_async(str(listener.address), RAW, insecure=True)
        broker = await listener.accept(timeout=10)

        def leave() -> None:
            agent.abort()
            broker.abort()
            listener.close()

        assert in_a_child(leave) == 0
        await agent.write(b"there", timeout=10)
        assert await broker.read(timeout=10) == b"there"
        await broker.write(b"and back", timeout=10)
        assert await agent.read(timeout=10) == b"and back"
        agent.abort()
        broker.abort()
