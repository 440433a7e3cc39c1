"""A broker that is killed anywhere between a message and its effect loses none of them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import attrs
import pytest

import mbroker.broker
import mbroker.serve
from mbroker.action import Action, Notify, SetFrequency
from mbroker.actuator import Outcome
from mbroker.broker import Broker, Budget
from mbroker.host import Domain, Host
from mbroker.registry import AgentState, Registry
from mbroker.serve import Node
from mchannel.aio import AsyncChannel, listen_async
from mchannel.event import Event
from tests.crash.lines import enumerate_lines
from tests.crash.points import Ack, Report

MESSAGES = 8
AGENT = f"""
import sys, mchannel
with mchannel.open(sys.argv[1], timeout=60, name="sla", heartbeat=0.1) as channel:
    for number in range({MESSAGES}):
        channel.write(mchannel.Event("sla.epoch", value=number), timeout=60)
        channel.flush(timeout=60)
"""


@attrs.define
class Numbered:
    """Lets the clock follow the numbers."""

    topics: tuple[str, ...] = ()

    def decide(self, event: Event, host: Host) -> Iterable[Action]:
        yield Notify(event.source, str(event.value))
        yield SetFrequency(event.source, level=1 - host.level(event.source))


@attrs.define
class Effects:
    """An actuator whose effect is a line in a file."""

    file: Path
    number: object = None
    handles: tuple[type[Action], ...] = (SetFrequency,)

    def apply(self, action: Action) -> Outcome:
        with self.file.open("a") as file:
            file.write(f"{self.number}\n")
        return Outcome(action, done=True)

    def restore(self) -> list[Outcome]:
        return []

    def close(self) -> None:
        pass


class Numbering(Node):
    """Tells the actuator which message it is about."""

    def take(self, event: Event) -> list[Outcome]:
        (effects,) = self.actuators
        assert isinstance(effects, Effects)
        effects.number = event.value
        return super().take(event)


class MarksFirst(Numbering):
    """Planted bug: acknowledges a message before its effect."""

    async def attend(self, channel: AsyncChannel[Event], domain: str | None) -> None:
        read = channel.read

        async def read_and_mark(timeout: float | None = None) -> Event:
            event = await read(timeout)
            channel.done()
            return event

        channel.read = read_and_mark  # type: ignore[method-assign]
        await super().attend(channel, domain)


def serve(kind: type[Node], folder: Path, agent: subprocess.Popen[bytes] | None = None) -> None:
    """Serve the one agent until it said goodbye, or until its process *agent* has ended."""
    host = Host("h", (1000, 2400), {"web1": Domain("web1", 1)})
    budget = Budget(rate=1000, burst=1000)
    node = kind(Broker(host, [Numbered()], budget=budget), Registry("h"), [Effects(folder / "effects")])

    def goodbye() -> bool:
        return any(known.state is AgentState.GONE for known in node.registry.agents())

    async def main() -> None:
        async with listen_async(f"shm://{folder}/agent", heartbeat=0.1) as listener:
            welcome = asyncio.create_task(node.welcome(listener, "web1"))
            async with asyncio.timeout(30):
                while not ((agent and agent.poll() is not None) or goodbye()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            welcome.cancel()
            with suppress(asyncio.CancelledError):
                await welcome

    asyncio.run(main())


def at_lines(kind: type[Node], folder: Path, *, first: bool = False) -> Report:
    pytest.importorskip("mchannel._ring")
    agents: dict[Path, subprocess.Popen[bytes]] = {}

    def seed(work: Path) -> None:
        agents[work] = subprocess.Popen([sys.executable, "-c", AGENT, f"shm://{work}/agent"])

    def program(work: Path, _: Ack) -> None:
        serve(kind, work)

    def check(work: Path, _: Sequence[str]) -> None:
        agent = agents.pop(work)
        try:
            serve(Numbering, work, agent)
            assert agent.wait(30) == 0, "the agent was let down"
        finally:
            agent.kill()
            agent.wait()
        seen = [int(line) for line in (work / "effects").read_text().split()]
        assert sorted(set(seen)) == list(range(MESSAGES)), f"lost some: {seen}"
        assert len(seen) <= MESSAGES + 1, f"repeated more than the one that was not acknowledged: {seen}"

    return enumerate_lines(
        program, check, modules=[mbroker.serve, mbroker.broker], folder=folder, seed=seed, most=30, first=first
    )


@pytest.mark.timeout(900)
def test_a_kill_at_any_line_between_message_and_effect(tmp_path: Path) -> None:
    report = at_lines(Numbering, tmp_path)
    assert report.points >= 30
    assert report.violations == ()


@pytest.mark.timeout(900)
def test_killing_at_lines_finds_the_planted_bug(tmp_path: Path) -> None:
    assert at_lines(MarksFirst, tmp_path, first=True).violations
