"""Brokers, a fleet and hypervisors in one process, in time that passes only when everybody waits."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs

from mbroker.fleet.departures import Departure, Departures
from mbroker.fleet.fleet import Away, Fleet, Member
from mbroker.fleet.message import Message
from mbroker.fleet.mover import Mover
from mbroker.fleet.parked import ParkedFile
from mbroker.fleet.records import RecordFile
from mbroker.fleet.residents import Residents
from mbroker.hypervisor.fake import FakeHypervisor, World

T = TypeVar("T")


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


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* in time of its own."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
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


async def _welcome(*_: object) -> None:
    """Attend to nobody."""
    await asyncio.Event().wait()


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
            _welcome, self.hypervisor, self._parked, fleet, clock=clock, unix=lambda: clock() + 1e9
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


_tasks: set[asyncio.Future[Message | None]] = set()


def fleet(folder: Path, *names: str) -> tuple[World, Network]:
    """Return the hosts *names*, with a broker running on each; needs a running loop of :func:`run`."""
    world, network = World(now=asyncio.get_running_loop().time), Network()
    for name in names:
        network.brokers[name] = Broker(name, world.host(name), network, names, folder)
    for broker in network.brokers.values():
        broker.start()
    return world, network
