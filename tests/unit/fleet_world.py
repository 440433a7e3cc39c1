"""Brokers, a fleet and hypervisors in one process, in time that passes only when everybody waits."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar, cast
from unittest import mock

import attrs

from mbroker.fleet.departures import Departure, Departures
from mbroker.fleet.fleet import Away, Fleet, Member
from mbroker.fleet.message import Message
from mbroker.fleet.mover import Mover
from mbroker.fleet.parked import ParkedFile
from mbroker.fleet.records import RecordFile
from mbroker.fleet.residents import Residents
from mbroker.hypervisor.fake import FakeHypervisor, World
from mchannel import transport
from mchannel.address import Address
from mchannel.aio import AsyncChannel, AsyncListener, open_async
from mchannel.errors import ChannelError, NotListening
from mchannel.event import Event
from mchannel.face import Message as Received
from mchannel.framed import Framed
from mchannel.transport import Acceptor, Options, Scheme, State, Transport
from mchannel.transports.memory import MEMORY

T = TypeVar("T")

PACE = 0.5
"""Seconds between two numbers."""


class _Selector(selectors.DefaultSelector):
    """Never sleeps: the loop's clock is put forward instead."""

    def __init__(self) -> None:
        super().__init__()
        self.slept = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everybody waits, and nothing will ever happen")
        if not ready and timeout:
            self.slept += timeout
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._skipped = _Selector()
        self.guests: dict[str, World] = {}
        """The world of each domain that has an agent, by UUID."""
        super().__init__(self._skipped)

    def time(self) -> float:
        return self._skipped.slept

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        """Run it at once: no time passes while a thread works."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def _listen(address: Address, options: Options) -> Acceptor:
    return MEMORY.listen(Address("memory", path=address.path), options)


def _connect(address: Address, options: Options) -> Transport:
    """Reach the broker of the host that runs the domain now, as its virtio port does."""
    domain = address.path
    for host in cast("_Loop", asyncio.get_running_loop()).guests[domain].running(domain):
        (port,) = host.halves[domain].info.ports
        pipe = cast("Any", MEMORY.connect(Address("memory", path=port.path.lstrip("/")), options))
        pipe.other.peer = attrs.evolve(pipe.other.peer, identity=domain)
        return cast("Transport", pipe)
    raise NotListening(f"{domain} does not run")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* in time of its own, where pipes in memory stand for virtio ports."""
    loop, load = _Loop(), transport._load  # pyright: ignore[reportPrivateUsage]

    def load_here(name: str) -> Scheme:
        return Framed(_connect, _listen) if name == "virtio" else load(name)

    with (
        mock.patch.object(transport, "_load", load_here),
        mock.patch.object(time, "monotonic", loop.time),
        asyncio.Runner(loop_factory=lambda: loop) as runner,
    ):
        return runner.run(main)


@attrs.define(eq=False)
class Network:
    """What lies between the brokers."""

    cut: bool = False
    deaf: set[str] = attrs.field(factory=set[str])
    """Brokers that hang: they hear, and do not answer."""
    false: dict[str, Callable[[Message], Message | None]] = attrs.field(
        factory=dict[str, "Callable[[Message], Message | None]"]
    )
    """Brokers that answer wrongly."""
    brokers: dict[str, Broker] = attrs.field(factory=dict[str, "Broker"])
    heard: list[Received[Event]] = attrs.field(factory=list[Received[Event]])
    """What brokers heard of agents, in the order in which they took note of it."""
    told: Counter[str] = attrs.field(factory=Counter[str])
    """How many numbers each broker told agents."""


class FakeFleet:
    """As :class:`~mbroker.fleet.fleet.Fleet`, without wires."""

    def __init__(self, name: str, network: Network, names: tuple[str, ...]) -> None:
        self.name = name
        self.on_change: Callable[[], None] | None = None
        self.members = {other: Member(other, f"tcp://{other}:7700", f"fake://{other}") for other in names}
        self._network = network

    @property
    def present(self) -> frozenset[str]:
        return frozenset(name for name in self.members if self._reaches(name))

    def _reaches(self, host: str) -> bool:
        return not self._network.cut and self._network.brokers[host].up

    async def serve(self, desk: object) -> None:
        await asyncio.Event().wait()

    async def ask(self, host: str, question: Message, kind: type[T], timeout: float) -> T:
        answer = None
        try:
            async with asyncio.timeout(timeout):
                await asyncio.sleep(0.001)
                if not self._reaches(host) or host in self._network.deaf:
                    await asyncio.Event().wait()
                answer = await self._network.brokers[host].hear(self.name, question)
        except TimeoutError:
            raise Away(f"{host} did not answer") from None
        if host in self._network.false:
            answer = self._network.false[host](question)
        if not isinstance(answer, kind):
            raise Away(f"{host} gave an answer to another question")
        return answer

    async def tell(self, message: Message, host: str | None = None) -> None:
        for name in [host] if host else list(self.members):
            if self._reaches(name) and name not in self._network.deaf:
                broker = self._network.brokers[name]
                asyncio.get_running_loop().call_later(0.001, broker.post, self.name, message)


def _close(*files: ParkedFile | RecordFile[Departure] | None) -> None:
    for file in files:
        if file is not None:
            file.close()


@attrs.define(eq=False)
class Broker:
    """One mbrokerd: it can be killed and started."""

    name: str
    hypervisor: FakeHypervisor
    network: Network
    names: tuple[str, ...]
    folder: Path
    residents: Residents | None = None
    mover: Mover | None = None
    _task: asyncio.Task[None] | None = None
    _parked: ParkedFile | None = None
    _departures: RecordFile[Departure] | None = None
    _quiet: asyncio.Event = attrs.field(factory=asyncio.Event)

    @property
    def up(self) -> bool:
        return self.residents is not None

    async def hear(self, host: str, message: Message) -> Message | None:
        assert self.residents is not None
        return await self.residents.hear(host, message)

    def post(self, host: str, message: Message) -> None:
        if self.residents is not None:
            _tasks.add(task := asyncio.ensure_future(self.residents.hear(host, message)))
            task.add_done_callback(_tasks.discard)

    def start(self) -> None:
        if self.up:
            return
        fleet = cast("Fleet", FakeFleet(self.name, self.network, tuple(n for n in self.names if n != self.name)))
        self._parked = ParkedFile(self.folder / f"{self.name}.parked")
        clock = asyncio.get_running_loop().time
        self.residents = Residents(
            self._welcome, self.hypervisor, self._parked, fleet, clock=clock, unix=lambda: clock() + 1e9
        )
        self._departures = RecordFile(self.folder / f"{self.name}.departures", Departure)
        departures = Departures(self._departures, self.hypervisor, fleet)
        self._task = asyncio.ensure_future(self._run(fleet, self.residents, departures))
        self.network_changed()

    async def _run(self, fleet: Fleet, residents: Residents, departures: Departures) -> None:
        files = self._parked, self._departures
        try:
            async with asyncio.TaskGroup() as tasks:
                self.mover = Mover(self.hypervisor, fleet, residents, departures, tasks)
                tasks.create_task(residents.run())
        finally:
            _close(*files)

    def hush(self) -> None:
        """Tell agents nothing more."""
        self._quiet.set()

    async def _welcome(self, listener: AsyncListener[Event], _: str) -> None:
        """Take note of what agents say, and tell them numbers."""
        async with asyncio.TaskGroup() as tasks:
            async for channel in listener:
                tasks.create_task(self._hear(channel))

    async def _hear(self, channel: AsyncChannel[Event]) -> None:
        telling = asyncio.create_task(self._tell(channel))
        try:
            while True:
                self.network.heard.append(await channel.receive())
        except ChannelError:
            pass  # handed over, or at its end
        finally:
            telling.cancel()

    async def _tell(self, channel: AsyncChannel[Event]) -> None:
        with contextlib.suppress(ChannelError):
            while not self._quiet.is_set():
                await asyncio.sleep(PACE)
                if channel.state is State.OPEN:
                    number = self.network.told[self.name]
                    await channel.write(Event("number", source=self.name, value=number))
                    self.network.told[self.name] += 1

    def network_changed(self) -> None:
        for broker in self.network.brokers.values():
            if broker.residents is not None:
                broker.residents.members_changed()

    def kill(self) -> None:
        if self._task is not None:
            self.hypervisor.orphan()
            self._task.cancel()
        self.residents = self.mover = self._task = None
        _close(self._parked, self._departures)
        self.network_changed()


@attrs.define(eq=False)
class Agent:
    """A program in a domain that tells its broker numbers, and counts those that it is told."""

    world: World
    domain: str
    said: int = 0
    heard: list[tuple[str, int]] = attrs.field(factory=list[tuple[str, int]])
    """Broker and number."""
    _quiet: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def run(self) -> None:
        """Talk until cancelled."""
        cast("_Loop", asyncio.get_running_loop()).guests[self.domain] = self.world
        async with await open_async(f"virtio:///{self.domain}", timeout=None) as channel, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._hear(channel))
            while not self._quiet.is_set():
                await channel.write(Event("number", value=self.said))
                self.said += 1
                await asyncio.sleep(PACE)
            await asyncio.Event().wait()

    def hush(self) -> None:
        """Say nothing more."""
        self._quiet.set()

    async def _hear(self, channel: AsyncChannel[Event]) -> None:
        async for event in channel:
            self.heard.append((event.source, int(str(event.value))))


_tasks: set[asyncio.Future[Message | None]] = set()


def fleet(folder: Path, *names: str) -> tuple[World, Network]:
    """Return the hosts *names*, with a broker running on each; needs a running loop of :func:`run`."""
    world, network = World(now=asyncio.get_running_loop().time), Network()
    for name in names:
        network.brokers[name] = Broker(name, world.host(name), network, names, folder)
    for broker in network.brokers.values():
        broker.start()
    return world, network
