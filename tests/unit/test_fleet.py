"""Brokers that speak to each other over ZeroMQ with keys, on loopback."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from unittest.mock import Mock

import attrs
import pytest

from mbroker.fleet.custody import Kept
from mbroker.fleet.fleet import Away, Fleet, Member
from mbroker.fleet.message import Claim, Claimed, Message, MessageCodec, Numbered, Offer, Whereabouts, Wherever
from mbroker.fleet.parked import ParkedFile
from mbroker.fleet.records import RecordFile
from mchannel import keys
from mchannel.errors import CodecError, JournalError

DOMAIN = "aaaaaaaa-0000-4000-8000-000000000001"
SOON = 15.0


@attrs.define
class Desk:
    """What one broker hears, and how it answers."""

    heard: list[tuple[str, Message]] = attrs.field(factory=list[tuple[str, Message]])

    async def __call__(self, host: str, message: Message) -> Message | None:
        self.heard.append((host, message))
        match message:
            case Wherever(domain):
                return Whereabouts(domain, here=True, running=True)
            case Claim(domain):
                return Claimed(domain)
            case _:
                return None


@contextmanager
def free_ports(*names: str) -> Generator[dict[str, int]]:
    """Lend each a port that nobody else gets meanwhile: it is bound, and not listened at."""
    with ExitStack() as stack:
        ports: dict[str, int] = {}
        for name in names:
            held = stack.enter_context(socket.socket())
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as who listens there does
            held.bind(("127.0.0.1", 0))
            ports[name] = held.getsockname()[1]
        yield ports


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Keys of a, b and c, who know each other; and of a stranger, who knows them."""
    made = {name: tmp_path / name for name in ("a", "b", "c", "stranger")}
    for name, folder in made.items():
        keys.new(folder, name)
    for name, folder in made.items():
        for other, its in made.items():
            if other not in {name, "stranger"}:
                keys.trust(folder, other, keys.show(its))
    return made


def members(ports: Mapping[str, int], name: str) -> tuple[Member, ...]:
    return tuple(Member(other, f"tcp://127.0.0.1:{port}") for other, port in ports.items() if other != name)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.02)


def test_members_find_each_other_ask_and_tell(folders: dict[str, Path]) -> None:
    async def main(ports: dict[str, int]) -> None:
        desks = {name: Desk() for name in ports}
        fleets = {
            name: Fleet(name, members(ports, name), f"tcp://127.0.0.1:{port}", {"keys": folders[name]})
            for name, port in ports.items()
        }
        tasks = [asyncio.create_task(fleets[name].serve(desks[name])) for name in ports]
        await until(lambda: all(len(fleet.present) == 2 for fleet in fleets.values()))
        answer = await fleets["a"].ask("b", Wherever(DOMAIN), Whereabouts, SOON)
        assert answer == Whereabouts(DOMAIN, here=True, running=True)
        with pytest.raises(Away, match="another question"):
            await fleets["a"].ask("b", Claim(DOMAIN), Whereabouts, SOON)
        offer = Offer(DOMAIN, 7, (b"\x00" * 100_000,))
        await fleets["c"].tell(offer)
        await until(lambda: all(("c", offer) in desks[name].heard for name in "ab"))
        tasks[1].cancel()
        await until(lambda: set(fleets["a"].present) == {"c"})
        with pytest.raises(Away, match="b"):
            await fleets["a"].ask("b", Wherever(DOMAIN), Whereabouts, 0.2)
        again = Fleet("b", members(ports, "b"), f"tcp://127.0.0.1:{ports['b']}", {"keys": folders["b"]})
        tasks.append(asyncio.create_task(again.serve(desks["b"])))
        await until(lambda: set(fleets["a"].present) == {"b", "c"})
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    with free_ports(*"abc") as ports:
        asyncio.run(main(ports))


def test_a_host_that_is_not_named_in_the_configuration_is_not_heard(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    keys.trust(folders["a"], "stranger", keys.show(folders["stranger"]))  # as an agent, perhaps

    async def main(ports: dict[str, int]) -> None:
        desk = Desk()
        fleet = Fleet("a", (), f"tcp://127.0.0.1:{ports['a']}", {"keys": folders["a"]})
        stranger = Fleet(
            "stranger",
            members(ports, "stranger"),
            f"tcp://127.0.0.1:{ports['stranger']}",
            {"keys": folders["stranger"]},
        )
        tasks = [asyncio.create_task(fleet.serve(desk)), asyncio.create_task(stranger.serve(Desk()))]
        with pytest.raises(Away):
            await stranger.ask("a", Wherever(DOMAIN), Whereabouts, 2.0)
        await until(lambda: "no member of this fleet" in caplog.text)
        assert desk.heard == []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    with free_ports("a", "stranger") as ports:
        asyncio.run(main(ports))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"garbage",
        b"\x93\xa5Offer\x00\x80",  # nothing in it
        b"\x93\xa5Nosuch\x00\x80",
        b"\x92\xa5Claim\x00",
        b"\x93\xa5Claim\xff\x81\xa6domain\xa1x",  # a question numbered -1
        b"\x93\xa5Claim\x00\x82\xa6domain\xa1x\xa1y\x01",  # one field too many
        b"\x93\xa5Claim\x00\x81\xa6domain\x05",
    ],
)
def test_what_is_no_message_of_a_fleet_is_refused(payload: bytes) -> None:
    with pytest.raises(CodecError):
        MessageCodec().decode(payload)


@pytest.mark.parametrize("message", [Offer(DOMAIN, 7, (b"a", b"b")), Whereabouts(DOMAIN, here=True, running=False)])
def test_messages_travel(message: Message) -> None:
    codec = MessageCodec()
    assert codec.decode(codec.encode(Numbered(message, 3))) == Numbered(message, 3)


def test_parked_sessions_outlive_a_restart(tmp_path: Path) -> None:
    kept = (Kept(DOMAIN, 7, (b"one", b"two")),)
    file = ParkedFile(tmp_path / "parked")
    asyncio.run(file.keep(kept, {DOMAIN: 9}))
    file.close()
    again = ParkedFile(tmp_path / "parked")
    assert (again.kept, again.generations) == (kept, {DOMAIN: 9})
    asyncio.run(again.keep((), {}))
    again.close()
    with closing(ParkedFile(tmp_path / "parked")) as last:
        assert last.kept == ()


def test_what_a_full_disk_refused_is_written_when_it_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = (Kept(DOMAIN, 7, (b"one",)),)
    with closing(ParkedFile(tmp_path / "parked")) as file:
        with monkeypatch.context() as full:
            full.setattr(RecordFile, "keep", Mock(side_effect=JournalError("no space left on device")))
            asyncio.run(file.keep(kept, {DOMAIN: 9}))
        assert "no space left" in caplog.text
        assert (file.kept, file.generations) == ((), {})
        asyncio.run(file.keep(kept, {DOMAIN: 9}))
    with closing(ParkedFile(tmp_path / "parked")) as again:
        assert (again.kept, again.generations) == (kept, {DOMAIN: 9})


def test_a_slow_disk_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = threading.Event()
    slow.set()

    def fsync(_: int) -> None:
        slow.wait(SOON)

    monkeypatch.setattr(os, "fsync", fsync)

    async def main() -> None:
        keeping = asyncio.create_task(file.keep((Kept(DOMAIN, 7, ()),), {}))
        await asyncio.sleep(0.05)
        assert not keeping.done()
        slow.set()
        await keeping

    with closing(ParkedFile(tmp_path / "parked")) as file:
        slow.clear()
        asyncio.run(main())
