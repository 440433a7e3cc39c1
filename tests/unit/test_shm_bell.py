"""A bell wakes whoever waits, also when something else than the event loop takes it off the socket."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mchannel.address import Address
from mchannel.transport import Link, Options, State
from mchannel.transports.shm import SHM


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[Link, Link]]:
    address = Address.parse(f"shm://{tmp_path}/w")
    gate = SHM.bind(address, Options())
    agent, broker = SHM.dial(address, Options()), None
    late = time.monotonic() + 5
    while broker is None or agent.state is not State.OPEN:
        assert time.monotonic() < late
        gate.port.pump()
        broker = broker or gate.accept()
        agent.tick(time.monotonic())
    yield agent, broker
    agent.close()
    broker.close()
    gate.close()


def test_a_bell_that_a_tick_silences_is_still_news(ends: tuple[Link, Link]) -> None:
    agent, broker = ends
    news: list[bool] = []
    broker.on_news = lambda: news.append(True)
    broker.arm_readable()
    assert broker.recv() is None
    agent.send(b"hello")
    broker.tick(time.monotonic())  # as an asyncio face does between its last look and its wait
    assert news


def test_a_goodbye_that_a_tick_hears_is_still_news(ends: tuple[Link, Link]) -> None:
    agent, broker = ends
    news: list[bool] = []
    broker.on_news = lambda: news.append(True)
    agent.close()
    broker.tick(time.monotonic())
    assert news


def test_a_tick_that_hears_nothing_is_no_news(ends: tuple[Link, Link]) -> None:
    _, broker = ends
    news: list[bool] = []
    broker.tick(time.monotonic())
    broker.on_news = lambda: news.append(True)
    broker.arm_readable()
    broker.tick(time.monotonic())
    assert not news


def test_the_descriptor_outlives_a_link_that_is_let_go_until_it_is_closed(ends: tuple[Link, Link]) -> None:
    _, broker = ends
    descriptor = broker.port.fileno()
    broker.leave()
    os.fstat(descriptor)  # an event loop that waits at it would wait at another's else
    broker.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)


def test_an_end_with_something_unread_by_its_peer_is_not_flushed_after_it_was_let_go(ends: tuple[Link, Link]) -> None:
    agent, broker = ends
    assert broker.flushed
    broker.send(b"never read")
    for end in (broker, agent):
        end.leave()
        end.close()
    assert (agent.flushed, broker.flushed) == (True, False)


def test_whoever_waits_is_told_when_the_link_is_let_go(ends: tuple[Link, Link]) -> None:
    _, broker = ends
    news: list[State] = []
    broker.on_news = lambda: news.append(broker.state)
    broker.leave()
    assert news == [State.CLOSED]
