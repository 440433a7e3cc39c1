"""What the daemon does with an open channel, and with signals; without a process."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import attrs
import pytest

from mchannel import EventCodec
from mchannel.agents.daemon import Daemon, _serve
from mchannel.agents.settings import AgentSettings, MetricsSettings, Settings
from mchannel.errors import MessageTooBig
from mchannel.event import Event
from mchannel.transport import State

QUICK = Settings(metrics=MetricsSettings(interval=0.05))


@attrs.define
class Broker:
    """The other end, which takes events of up to *longest* bytes, and none about *unwanted*."""

    longest: int = 1 << 16
    unwanted: str = ""
    state: State = State.OPEN
    heard: asyncio.Queue[Event] = attrs.field(factory=asyncio.Queue[Event])
    asked: asyncio.Queue[Event] = attrs.field(factory=asyncio.Queue[Event])

    async def write(self, message: Event, timeout: float | None = None) -> None:
        if len(EventCodec().encode(message)) > self.longest or message.topic == self.unwanted:
            raise MessageTooBig("too long")
        self.heard.put_nowait(message)

    async def read(self, timeout: float | None = None) -> Event:
        return await self.asked.get()

    async def hear(self, topic: str) -> Event:
        while (event := await asyncio.wait_for(self.heard.get(), 30)).topic != topic:
            pass
        return event


async def test_a_report_that_can_never_be_sent_is_left_out_and_the_others_are_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    daemon, broker = Daemon(Settings()), Broker(longest=1000)
    texts = ("", "x" * 5000, "y" * 2000, "", "x" * 5000, "")
    for epoch, text in enumerate(texts):
        daemon._outbox.write(Event("sla.epoch", value=epoch, detail={"text": text}))
    daemon._outbox.close()
    await asyncio.wait_for(daemon._report(broker), 30)
    heard = [broker.heard.get_nowait() for _ in range(broker.heard.qsize())]
    assert [(event.value, event.detail.get("refused")) for event in heard] == [(0, None), (3, 2), (5, 1)]
    (record,) = caplog.records
    assert record.getMessage().startswith("sla.epoch is left out, as the broker cannot take it: event 'sla.epoch'")


async def test_metrics_that_are_too_long_for_the_broker_keep_no_others_back(caplog: pytest.LogCaptureFixture) -> None:
    daemon, broker = Daemon(QUICK), Broker(unwanted="metrics.cpu")
    measuring = asyncio.create_task(daemon._measure(broker))
    for _ in range(2):
        await broker.hear("metrics.load")
    measuring.cancel()
    assert caplog.messages == ["metrics.cpu is left out, as the broker cannot take it: too long"]


async def test_an_answer_that_can_never_be_sent_keeps_no_others_back() -> None:
    daemon, broker = Daemon(Settings(agent=AgentSettings(source="web1"))), Broker(longest=200)
    obeying = asyncio.create_task(daemon._obey(broker))
    for value in ("x" * 250, 7):
        broker.asked.put_nowait(Event("command.ping", value=value))
    assert (await broker.hear("command.pong")).value == 7
    obeying.cancel()


async def test_what_nobody_hears_is_not_measured() -> None:
    daemon, broker = Daemon(QUICK), Broker(state=State.SUSPENDED)
    measuring = asyncio.create_task(daemon._measure(broker))
    await asyncio.sleep(0.1)
    assert broker.heard.empty()
    broker.state = State.OPEN
    await broker.hear("metrics.cpu")
    measuring.cancel()


@pytest.fixture
def _signals() -> Iterator[None]:
    """Put the handlers back that an event loop forgets."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
def test_sighup_at_the_end_begins_nothing() -> None:
    class Ending(Daemon):
        async def serve(self, stop: asyncio.Event) -> None:
            signal.raise_signal(signal.SIGTERM)
            await stop.wait()
            signal.raise_signal(signal.SIGHUP)
            await asyncio.sleep(0.05)

    read: list[Settings] = []

    def again() -> Settings:
        read.append(Settings())
        return read[-1]

    asyncio.run(_serve(Ending(Settings()), again))
    assert read == []
