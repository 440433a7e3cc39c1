"""Hostile guests: their own channel suffers, one line says why, and their neighbours notice nothing."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import pytest

from mbroker.action import Action
from mbroker.broker import Broker
from mbroker.fleet.parked import ParkedFile
from mbroker.fleet.residents import Residents
from mbroker.host import Host
from mbroker.hypervisor import Port
from mbroker.hypervisor.events import Kind as Change
from mbroker.hypervisor.fake import World
from mbroker.hypervisor.fake_migration import Half
from mbroker.registry import Registry
from mbroker.serve import Node
from mchannel import Event
from mchannel.aio import listen_async
from mchannel.codec import EventCodec
from mchannel.frame import Frame, Hello, Kind, Terms, Welcome
from mchannel.journal import Journal
from mchannel.transport import Delivery
from mchannel.transports import domain
from mchannel.transports.stream import EVERYBODY, Demultiplexer, Key, Multiplexer

TERMS = Terms(65536, 1 << 20, Delivery.ALL)
SESSION = b"0123456789abcdef"
KEY = Key(b"abcd", "sla")
SOON = 20.0


class Guest:
    """A domain whose port is in the hands of the test."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mux, self.demux = Multiplexer(1 << 40), Demultiplexer(1 << 20, 64)
        self.attached = asyncio.Event()
        self.visits = 0
        """How often the host has connected."""
        self.hello: Frame | None = None
        """What is said to a host that connects."""
        self.server: asyncio.Server | None = None

    async def start(self) -> None:
        self.server = await asyncio.start_unix_server(self._met, self.path)

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.visits:
            self.writer.close()
        self.reader, self.writer = reader, writer
        self.visits += 1
        self.demux.begin()
        self.attached.set()
        if self.hello is not None:
            self.say(self.hello)

    def say(self, frame: Frame | bytes, key: Key = KEY) -> None:
        self.mux.put(key, frame if isinstance(frame, bytes) else frame.encode())
        self.writer.write(self.mux.take(1 << 62))

    async def hear(self, kind: Kind) -> Frame:
        """Return the next frame of *kind*."""
        async with asyncio.timeout(SOON):
            while True:
                said = await self.reader.read(1 << 16)
                for key, data in list(self.demux.feed(said)):
                    if key != EVERYBODY and data and (frame := Frame.decode(data, 1 << 20)).kind is kind:
                        return frame
                if not said:  # the host hung up, and will connect again
                    await asyncio.sleep(0.01)

    async def open(self, epoch: int = 1, session: bytes = SESSION, *, received: int = 0) -> Frame:
        """Say HELLO, and return the WELCOME."""
        await asyncio.wait_for(self.attached.wait(), SOON)
        self.hello = Frame(Kind.HELLO, epoch, body=Hello(session, "agent", TERMS, 1, 0, received).encode())
        self.say(self.hello)
        return await self.hear(Kind.WELCOME)

    def number(self, number: int, epoch: int = 1) -> None:
        """Say one event, as message and as value *number*."""
        self.say(Frame(Kind.DATA, epoch, number, body=EventCodec().encode(Event("number", value=number))))

    def close(self) -> None:
        if self.server is not None:
            self.server.close()
        if self.visits:
            self.writer.close()


class Recorder:
    """A policy that only listens."""

    topics: tuple[str, ...] = ("number",)

    def __init__(self) -> None:
        self.heard: dict[str, list[object]] = defaultdict(list)

    def decide(self, event: Event, host: Host) -> tuple[Action, ...]:
        self.heard[event.source].append(event.value)
        return ()


@attrs.define(eq=False)
class Stage:
    """A broker with two domains: one is hostile, and one honest."""

    hostile: Guest
    honest: Guest
    recorder: Recorder
    parked: ParkedFile
    leave: Callable[[], None]
    """The hostile domain begins to go elsewhere."""

    async def heard(self, source: str, count: int) -> list[object]:
        """Return what a domain said, once that is *count* events."""
        async with asyncio.timeout(SOON):
            while len(self.recorder.heard[source]) < count:  # noqa: ASYNC110 - a policy is not asynchronous
                await asyncio.sleep(0.01)
        return self.recorder.heard[source]


@asynccontextmanager
async def stage() -> AsyncGenerator[Stage]:
    with TemporaryDirectory(prefix="mc-") as made:
        folder = Path(made)
        world, recorder = World(), Recorder()
        host = world.host("node1")
        guests: dict[str, Guest] = {}
        halves: dict[str, Half] = {}
        for name in ("hostile", "honest"):
            half = halves[name] = host.halves[world.boot(host, name)]
            guests[name] = Guest(folder / name)
            half.info = attrs.evolve(half.info, ports=(Port("org.mchannel.0", str(folder / name)),))
            await guests[name].start()
        journal, parked = Journal.open(folder / "agents"), ParkedFile(folder / "parked")
        node = Node(Broker(Host("node1"), [recorder]), Registry("node1", journal))
        running = asyncio.create_task(Residents(node.welcome, host, parked).run())
        try:
            yield Stage(
                **guests, recorder=recorder, parked=parked, leave=lambda: host.tell(Change.LEAVING, halves["hostile"])
            )
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            for guest in guests.values():
                guest.close()
            node.registry.close()
            parked.close()


async def _garbage(guest: Guest) -> None:
    noise = random.Random(1).randbytes(1 << 16)
    for _ in range(64):
        guest.writer.write(noise)
        with suppress(TimeoutError):  # the host does not hear it for a while
            await asyncio.wait_for(guest.writer.drain(), 0.05)


async def _flood(guest: Guest) -> None:
    await guest.open()
    for number in range(1, 400):
        guest.say(Frame(Kind.DATA, 1, number, body=bytes(60_000)))
        with suppress(TimeoutError):
            await asyncio.wait_for(guest.writer.drain(), 0.01)


async def _streams(guest: Guest) -> None:
    await asyncio.wait_for(guest.attached.wait(), SOON)
    hello = Frame(Kind.HELLO, 1, body=Hello(SESSION, "agent", TERMS, 1, 0, 0).encode())
    for number in range(1, 2000):
        guest.say(hello, Key(number.to_bytes(4)))


async def _no_events(guest: Guest) -> None:
    await guest.open()
    for number in range(1, 2000):
        guest.say(Frame(Kind.DATA, 1, number, body=b"no event"))


async def _no_frames(guest: Guest) -> None:
    await guest.open()
    for _ in range(100):
        guest.say(b"no frame")


async def _impossible(guest: Guest) -> None:
    await guest.open()
    guest.say(Frame(Kind.ACK, 1, 0, ack=1 << 40))


@pytest.mark.parametrize("attack", [_garbage, _flood, _streams, _no_events, _no_frames, _impossible])
async def test_a_hostile_guest_gets_one_line_in_the_log_and_its_neighbour_is_served(
    attack: Callable[[Guest], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    async with stage() as on:
        await asyncio.gather(on.hostile.attached.wait(), on.honest.open())
        attacking = asyncio.ensure_future(attack(on.hostile))
        for number in range(1, 201):
            on.honest.number(number)
            await asyncio.sleep(0.005)
        assert await on.heard("honest", 200) == list(range(1, 201))
        await attacking
        await asyncio.sleep(0.2)
    lines = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR", "CRITICAL")]
    assert 1 <= len(lines) <= 2, lines
    hostile = on.hostile.path.name
    assert all(hostile in line for line in lines), lines
    assert not any(record.exc_info for record in caplog.records)


async def test_a_domain_leaves_at_once_though_its_guest_never_answers() -> None:
    async with stage() as on:
        await on.hostile.open()
        on.hostile.number(1)
        assert await on.heard("hostile", 1) == [1]
        on.leave()  # from here on the guest reads nothing and says nothing
        async with asyncio.timeout(SOON):
            while not on.parked.kept:  # noqa: ASYNC110 - a file is not asynchronous
                await asyncio.sleep(0.01)
        assert len(on.parked.kept[0].snapshots) == 1
        await on.honest.open()
        on.honest.number(1)
        assert await on.heard("honest", 1) == [1]


async def test_what_is_said_in_an_old_epoch_is_not_heard_again() -> None:
    async with stage() as on:
        await on.hostile.open(epoch=1)
        on.hostile.number(1, epoch=1)
        await on.heard("hostile", 1)
        await on.hostile.open(epoch=2)
        on.hostile.number(2, epoch=1)
        on.hostile.number(1, epoch=2)
        on.hostile.number(2, epoch=2)
        on.hostile.number(3, epoch=2)
        assert await on.heard("hostile", 3) == [1, 2, 3]


async def test_sessions_that_were_handed_over_for_one_domain_are_of_no_use_to_another() -> None:
    mine, its = "aaaaaaaa-0000-4000-8000-000000000001", "aaaaaaaa-0000-4000-8000-000000000002"
    with TemporaryDirectory(prefix="mc-") as folder:
        victim, thief = Guest(Path(folder, "victim")), Guest(Path(folder, "thief"))
        await victim.start()
        await thief.start()
        listener = listen_async(f"virtio://{victim.path}?domain={mine}")
        accepting = asyncio.create_task(listener.accept(SOON))
        await victim.open()
        channel = await accepting
        await channel.write(Event("secret"))
        (snapshot,) = listener.hand_over()

        listener = listen_async(f"virtio://{thief.path}?domain={its}")
        listener.adopt(snapshot)
        welcome = Welcome.decode((await thief.open()).body)
        assert welcome.received is None  # it knows nothing of that session
        assert (await listener.accept(SOON)).peer.identity == its
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await thief.hear(Kind.DATA)
        listener.close()
        victim.close()
        thief.close()


async def test_a_hypervisor_that_took_nothing_is_connected_to_again_until_the_guest_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(domain, "_SILENCE", 0.05)
    async with stage() as on:
        await asyncio.wait_for(on.honest.attached.wait(), SOON)
        async with asyncio.timeout(SOON):
            while on.honest.visits < 3:  # noqa: ASYNC110 - a server does not tell
                await asyncio.sleep(0.01)
        await on.honest.open()
        heard_at = on.honest.visits
        on.honest.number(1)
        assert await on.heard("honest", 1) == [1]
        await asyncio.sleep(0.5)
        assert on.honest.visits == heard_at
