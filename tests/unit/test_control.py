"""Questions and answers between the command and the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mbroker import control
from mchannel import Event, Peer, open_async
from mchannel.errors import AddressError


@asynccontextmanager
async def answering(folder: Path, answers: control.Answers | None = None) -> AsyncGenerator[str]:
    """Lend an address at which a daemon answers, if nothing else, that it knows no agents."""
    address = f"ipc://{folder}/control.sock"
    async with control.listen(address) as listener:
        task = asyncio.create_task(control.answer(listener, answers or {"control.agents": lambda _: []}))
        yield address
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_who_may_not_ask_is_not_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Peer] = []

    def nobody(peer: Peer) -> bool:
        asked.append(peer)
        return False

    monkeypatch.setattr(control, "may_ask", nobody)
    async with answering(tmp_path) as address:
        with pytest.raises(control.Unreachable):
            await asyncio.to_thread(control.ask_agents, address)
    assert asked


async def test_who_may_ask_is_answered_and_asks_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Peer] = []

    def everybody(peer: Peer) -> bool:
        asked.append(peer)
        return True

    monkeypatch.setattr(control, "may_ask", everybody)
    async with answering(tmp_path) as address:
        assert await asyncio.to_thread(control.ask_agents, address) == ()
    assert [peer.name for peer in asked] == [""]


async def test_an_answer_carries_the_number_of_its_question(tmp_path: Path) -> None:
    async with answering(tmp_path) as address, await open_async(address) as channel:
        for number, topic in enumerate(("control.agents", "control.nonsense")):
            await channel.write(Event(topic, detail={"question": number}))
            assert (await channel.read(timeout=10)).detail == {"question": number}


def test_an_answer_to_another_question_is_passed_over() -> None:
    said = [Event("control.answer", value="1", detail={"question": 1}), Event("control.answer", value="2")]

    class Channel:
        """Holds answers for one who was killed, and then ours."""

        def write(self, question: Event, timeout: float) -> None:
            said.append(Event("control.answer", value="3", detail=question.detail))

        def read(self, timeout: float) -> Event:
            return said.pop(0)

    channel: Any = Channel()
    assert control._ask(channel, "control.status") == 3  # pyright: ignore[reportPrivateUsage]


async def test_an_answer_of_any_length_arrives_whole(tmp_path: Path) -> None:
    rows = [f"{number:09}" for number in range(200_000)]
    async with answering(tmp_path, {"control.rows": lambda _: rows}) as address:
        assert await asyncio.to_thread(control.ask, address, list[str], "control.rows") == rows


async def test_an_answer_that_does_not_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_PARTS", 2)
    monkeypatch.setattr(control, "_PART", 10)
    async with answering(tmp_path, {"control.rows": lambda size: "x" * int(size)}) as address:
        assert await asyncio.to_thread(control.ask, address, str, "control.rows", "18") == "x" * 18
        with pytest.raises(control.ControlError, match="longer than"):
            await asyncio.to_thread(control.ask, address, str, "control.rows", "19")


async def test_a_long_refusal_arrives_whole_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_PART", 10)

    def refuse(_: str) -> None:
        raise control.NoSuchThing("there is no such thing as that one")

    async with answering(tmp_path, {"control.refuse": refuse}) as address:
        with pytest.raises(control.NoSuchThing, match=r"^there is no such thing as that one$"):
            await asyncio.to_thread(control.ask, address, str, "control.refuse")


async def test_a_question_that_is_too_long_is_said_to_be(tmp_path: Path) -> None:
    async with answering(tmp_path) as address:
        with pytest.raises(control.ControlError, match="too long to ask"):
            await asyncio.to_thread(control.ask, address, str, "control.agents", "x" * (2 << 20))


def test_an_address_on_a_network_is_refused() -> None:
    with pytest.raises(AddressError, match="its own host only"):
        control.ask_status("tcp://127.0.0.1:7600")
