"""Hypervisors that exist in memory: any number of hosts in one world of domains, for tests.

What they do to domains follows QEMU under libvirt, events and their order included; nothing takes
time. The world watches that a domain never runs twice: neither on two hosts at once, nor again from memory that
a run elsewhere has overtaken.

::

    world = World()
    a, b = world.host("a"), world.host("b")
    web = world.boot(a, "web1")
    world.plan(Fault(Step.SWITCH, Trouble.ERROR))
    with pytest.raises(MigrationFailed):
        await a.migrate(web, b.uri)
    world.check()
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Self
from uuid import UUID

import attrs

from .domain import DomainInfo, Port, State, Statistics
from .errors import HypervisorError, HypervisorUnreachable, NoSuchDomain, StillAttached
from .events import EventStream, Fanout, Kind
from .fake_migration import Fault, Half, Move, Step, Trouble
from .migration import DEFAULTS, MigrationOptions, Progress

__all__ = ["FakeHypervisor", "Fault", "Step", "Trouble", "World"]

_ALIAS = re.compile(r"<alias name=['\"](ua-[\w-]+)['\"]")


async def _instantly(_step: Step, _domain: str) -> None:
    await asyncio.sleep(0)


@attrs.define(eq=False)
class World:
    """Hosts, and the domains that move between them."""

    now: Callable[[], float] = time.monotonic
    """The clock of events and statistics."""
    at_step: Callable[[Step, str], Awaitable[None]] = _instantly
    """Awaited before each step of a migration, with the domain's UUID: a test can wait, look or act here."""
    violations: list[str] = attrs.field(factory=list[str], init=False)
    """What must never happen and did; see :meth:`check`."""
    stubborn: set[str] = attrs.field(factory=set[str], init=False)
    """Aliases of devices that no guest lets go of."""
    hosts: dict[str, FakeHypervisor] = attrs.field(factory=dict[str, "FakeHypervisor"], init=False)
    """Every host by its URI."""
    _faults: list[Fault] = attrs.field(factory=list[Fault], init=False)
    _latest: Counter[str] = attrs.field(factory=Counter[str], init=False)
    """How often each domain was let run: memory of an earlier count is overtaken."""
    _files: dict[Path, Half] = attrs.field(factory=dict[Path, Half], init=False)
    _numbers: count[int] = attrs.field(factory=lambda: count(1), init=False)

    def host(self, name: str) -> FakeHypervisor:
        """Return the host called *name*, new or not; its URI is ``fake://NAME``."""
        uri = f"fake://{name}"
        if uri not in self.hosts:
            self.hosts[uri] = FakeHypervisor(uri, self)
        return self.hosts[uri]

    def boot(
        self, host: FakeHypervisor, name: str, *, ports: Sequence[str] = ("org.mchannel.0",), persistent: bool = True
    ) -> str:
        """Start a new domain on *host* and return its UUID."""
        uuid = str(UUID(int=0xAAAAAAAA_0000_4000_8000_000000000000 + next(self._numbers)))
        info = DomainInfo(uuid, name, State.OFF, vcpus=1, memory=1 << 28, persistent=persistent)
        info = attrs.evolve(info, ports=tuple(Port(port, "", connected=True) for port in ports))
        host.halves[uuid] = Half(host.place(info), started=self.now())
        self.run(host, uuid)
        host.tell(Kind.STARTED, host.halves[uuid])
        return uuid

    def plan(self, *faults: Fault) -> None:
        """Let the next migrations that come to the steps of *faults* meet them, each once."""
        self._faults.extend(faults)

    def take(self, step: Step) -> Trouble | None:
        """Return what is planned for *step*, once."""
        for fault in self._faults:
            if fault.step is step:
                self._faults.remove(fault)
                return fault.trouble
        return None

    def run(self, host: FakeHypervisor, domain: str) -> None:
        """Let a half of *domain* run on *host*, and take down what that violates."""
        half = host.halves[domain]
        elsewhere = [each.uri for each in self.running(domain) if each is not host]
        if elsewhere:
            self.violations.append(f"{half.info.name} runs at {host.uri} and at {', '.join(elsewhere)}")
        if half.memory != self._latest[domain]:
            self.violations.append(f"{half.info.name} runs at {host.uri} from memory that a later run has overtaken")
        self._latest[domain] += 1
        half.memory = self._latest[domain]
        half.state, half.left = State.RUNNING, None

    def running(self, domain: str) -> list[FakeHypervisor]:
        """Return the hosts on which *domain* runs, which no caller of a hypervisor could know for sure."""
        return [
            host for host in self.hosts.values() if domain in host.halves and host.halves[domain].state is State.RUNNING
        ]

    def check(self) -> None:
        """Raise AssertionError when a domain ever ran twice."""
        assert not self.violations, "; ".join(self.violations)

    def put_file(self, path: Path, half: Half) -> None:
        """Keep the memory of a domain in a file that all hosts see."""
        self._files[path] = half

    def get_file(self, path: Path) -> Half:
        """Return the memory in a file."""
        if path not in self._files:
            raise HypervisorError(f"there is no saved domain in {path}")
        return attrs.evolve(self._files[path])


@attrs.define(eq=False)
class FakeHypervisor:
    """One host of a :class:`World`; a :class:`~mbroker.hypervisor.Hypervisor`."""

    uri: str
    world: World
    halves: dict[str, Half] = attrs.field(factory=dict[str, Half], init=False)
    """What this host has of each domain, by UUID: all of it, or one half while it moves."""
    alive: bool = attrs.field(default=True, init=False)
    """Whether the host runs at all."""
    calls: Counter[str] = attrs.field(factory=Counter[str], init=False)
    """How often each method was called."""
    _fanout: Fanout = attrs.field(
        default=attrs.Factory(lambda self: Fanout(self.world.now), takes_self=True), init=False
    )
    _answering: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _connected: bool = attrs.field(default=True, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    _moves: set[Move] = attrs.field(factory=set[Move], init=False)

    def __attrs_post_init__(self) -> None:
        self._answering.set()

    # What a test does to a host

    def kill(self) -> None:
        """Cut its power: every domain on it is lost, and definitions stay."""
        self.alive = False
        for uuid, half in tuple(self.halves.items()):
            if half.info.persistent and not half.incoming:
                half.state = State.OFF
            else:
                del self.halves[uuid]
        self.disconnect()

    def revive(self) -> None:
        """Let it boot again, and the connection be made again."""
        self.alive = True
        self.reconnect()

    def disconnect(self) -> None:
        """Stop its daemon: domains run on, calls fail, events are lost."""
        self._connected = False

    def reconnect(self) -> None:
        """Start its daemon again; readers of events are told what is so."""
        self._connected = True
        self._fanout.reconcile(half.described for half in self.halves.values())

    def orphan(self) -> None:
        """Let its migrations be those of a process that dies: cancel them next."""
        for move in self._moves:
            move.orphaned = True

    def hang(self) -> None:
        """Let its daemon answer nothing until :meth:`answer`."""
        self._answering.clear()

    def answer(self) -> None:
        """Let its daemon answer again."""
        self._answering.set()

    # What the steps of a migration do

    def tell(self, kind: Kind, half: Half) -> None:
        """Publish that *kind* happened to *half*, which is as it is now."""
        if self.reachable:
            self._fanout.publish(kind, half.info.uuid, half.info.name, half.state)

    @property
    def reachable(self) -> bool:
        """Whether its daemon runs."""
        return self.alive and self._connected and not self._closed

    def place(self, info: DomainInfo) -> DomainInfo:
        """Return *info* with the sockets of its ports on this host."""
        folder = f"/run/{self.uri.removeprefix('fake://')}/{info.uuid}"
        return attrs.evolve(info, ports=tuple(attrs.evolve(port, path=f"{folder}/{port.name}") for port in info.ports))

    def forget(self, domain: str) -> Half:
        """Drop what there is of *domain* and return it, off."""
        half = self.halves.pop(domain)
        half.state = State.OFF
        return half

    def let_run(self, domain: str, ticket: str) -> None:
        """Let a half run that a migration left here."""
        half = self.halves[domain]
        if half.state is State.MOVING:
            self._check(half, ticket)
            half.info = attrs.evolve(half.info, arrival=None)
            self.world.run(self, domain)
            self.tell(Kind.RESUMED, half)

    def _check(self, half: Half, ticket: str) -> None:
        arrival = half.info.arrival
        if half.state is not State.MOVING or half.incoming or ticket != (arrival.ticket if arrival else ""):
            raise HypervisorError(f"{self.uri}: {half.info.name} was not left here by that migration")
        if any(move.half is half for move in self._moves):
            raise HypervisorError(f"{self.uri}: {half.info.name} is being migrated")

    # What a hypervisor does

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        """Whether its daemon answers."""
        return self.reachable

    async def close(self) -> None:
        """End all streams."""
        self._closed = True
        self._fanout.close()

    async def _reach(self, method: str) -> None:
        self.calls[method] += 1
        await self._answering.wait()
        await asyncio.sleep(0)
        if not self.reachable:
            raise HypervisorUnreachable(f"{self.uri} does not answer; is its daemon running? It is tried again")

    async def _half(self, domain: str, method: str) -> Half:
        await self._reach(method)
        named = [half for half in self.halves.values() if half.info.name == domain]
        half = self.halves.get(domain.lower()) or (named[0] if named else None)
        if half is None:
            raise NoSuchDomain(f"{self.uri} has no such domain: {domain}")
        return half

    async def _running(self, domain: str, method: str) -> Half:
        half = await self._half(domain, method)
        if not half.state.active:
            raise HypervisorError(f"{self.uri}: domain {half.info.name} is not running")
        return half

    async def domains(self) -> list[DomainInfo]:
        """Return all domains."""
        await self._reach("domains")
        return [half.described for half in self.halves.values()]

    async def info(self, domain: str) -> DomainInfo:
        """Return the domain of this UUID or name."""
        return (await self._half(domain, "info")).described

    async def state(self, domain: str) -> State | None:
        """Return what the domain does here."""
        try:
            return (await self._half(domain, "state")).state
        except NoSuchDomain:
            return None

    async def left(self, domain: str) -> bool | None:
        """Tell how a domain ended."""
        await self._reach("left")
        half = self.halves.get(domain)
        return half.left if half is not None and half.state is State.OFF else None

    async def statistics(self) -> dict[str, Statistics]:
        """Return counters: a domain uses all of its CPU, so far as its quota lets it."""
        await self._reach("statistics")
        return {
            uuid: Statistics(seconds := half.cpu_seconds(self.world.now()), (seconds,), half.info.memory)
            for uuid, half in self.halves.items()
            if half.state.active
        }

    def events(self, *, limit: int = 256) -> EventStream:
        """Return the events from now on, beginning with the domains that are present."""
        return self._fanout.stream(limit)

    async def set_quota(self, domain: str, share: float | None) -> None:
        """Limit each virtual CPU."""
        if share is not None and not share >= 0.1:
            raise ValueError(f"a virtual CPU needs at least 0.1 of a CPU, not {share}")
        half = await self._running(domain, "set_quota")
        half.quota = share

    async def attach(self, domain: str, xml: str) -> None:
        """Plug a device in."""
        half = await self._running(domain, "attach")
        half.info = attrs.evolve(half.info, devices=half.info.devices | set(_ALIAS.findall(xml)))

    async def detach(self, domain: str, alias: str, *, timeout: float = 10.0) -> None:
        """Unplug a device."""
        half = await self._running(domain, "detach")
        if alias not in half.info.devices:
            raise HypervisorError(f"{self.uri}: {half.info.name} has no device {alias}")
        if alias in self.world.stubborn:
            await asyncio.sleep(timeout)
            raise StillAttached(f"{domain} did not let go of {alias} in {timeout:g} s")
        half.info = attrs.evolve(half.info, devices=half.info.devices - {alias})

    async def pause(self, domain: str) -> None:
        """Stop a running domain's CPUs."""
        half = await self._running(domain, "pause")
        if half.state is State.RUNNING:
            half.state = State.PAUSED
            self.tell(Kind.PAUSED, half)

    async def resume(self, domain: str) -> None:
        """Let a paused domain run on."""
        half = await self._running(domain, "resume")
        if half.state is State.MOVING:
            raise HypervisorError(f"{half.info.name} is half of a migration; its other half may run")
        if half.state is State.PAUSED:
            self.world.run(self, half.info.uuid)
            self.tell(Kind.RESUMED, half)

    async def admit(self, domain: str, ticket: str) -> None:
        """Let a domain run that a migration left here."""
        self.let_run((await self._running(domain, "admit")).info.uuid, ticket)

    async def discard(self, domain: str, ticket: str) -> None:
        """Drop what a migration left here of a domain that goes on elsewhere."""
        half = await self._running(domain, "discard")
        self._check(half, ticket)
        self.tell(Kind.STOPPED, self.forget(half.info.uuid))

    async def save(self, domain: str, path: Path) -> None:
        """Write the memory of a domain to a file."""
        half = await self._running(domain, "save")
        if half.state is State.MOVING:
            raise HypervisorError(f"{self.uri}: {half.info.name} is being migrated")
        half.state = State.PAUSED
        self.tell(Kind.PAUSED, half)
        self.world.put_file(path, attrs.evolve(half))
        half.state, half.left = State.OFF, False
        if not half.info.persistent:
            self.forget(half.info.uuid)
        self.tell(Kind.SAVED, half)

    async def restore(self, path: Path) -> None:
        """Let a saved domain run on."""
        await self._reach("restore")
        half = self.world.get_file(path)
        present = self.halves.get(half.info.uuid)
        if present is not None and present.state.active:
            raise HypervisorError(f"{self.uri}: {half.info.name} is already active")
        half.info = self.place(half.info)
        self.halves[half.info.uuid] = half
        self.world.run(self, half.info.uuid)
        self.tell(Kind.RESTORED, half)
        self.tell(Kind.RESUMED, half)

    async def destroy(self, domain: str) -> None:
        """Stop a domain at once."""
        half = await self._running(domain, "destroy")
        half.state = State.OFF
        if half.incoming or not half.info.persistent:
            self.forget(half.info.uuid)
        self.tell(Kind.STOPPED, half)

    async def migrate(
        self,
        domain: str,
        destination: str,
        options: MigrationOptions = DEFAULTS,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Move a domain, meeting the faults that are planned."""
        half = await self._half(domain, "migrate")
        if not half.state.active:
            raise NoSuchDomain(f"{half.info.name} does not run at {self.uri}; start it there first")
        move = Move(self.world, self, destination, half, options, progress)
        self._moves.add(move)
        try:
            await move.make()
        finally:
            self._moves.discard(move)
