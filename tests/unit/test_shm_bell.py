"""A bell wakes whoever waits, also when something else than the event loop takes it off the socket."""

from __future__ import annotations

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
