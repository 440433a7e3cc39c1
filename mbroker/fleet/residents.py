"""The domains of this host and their channels: carries out what :mod:`mbroker.fleet.custody` orders."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from pathlib import Path

import attrs

from mbroker.fleet.custody import Attend, Custody, Part, Tell
from mbroker.fleet.fleet import Fleet
from mbroker.fleet.lanes import Lanes
from mbroker.fleet.message import (
    Admit,
    Claim,
    Claimed,
    Discard,
    Expect,
    Expected,
    Hail,
    Hailed,
    Message,
    Offer,
    Offering,
    Taken,
    Whereabouts,
    Wherever,
)
from mbroker.fleet.parked import ParkedFile
from mbroker.hypervisor import DomainInfo, Hypervisor, HypervisorError, HypervisorUnreachable, Kind, NoSuchDomain, State
from mchannel.aio import AsyncListener, listen_async
from mchannel.errors import MChannelError
from mchannel.event import Event
from mchannel.transports.ivshmem import LaneGate

__all__ = ["PORT", "Residents", "Welcome"]

Welcome = Callable[[AsyncListener[Event], str], Coroutine[None, None, None]]

PORT = "org.mchannel.0"
"""The virtio port that domains are given for their channels."""

_RETRY = 0.5
"""Seconds until a hypervisor that did not answer is asked again about a domain."""

_log = logging.getLogger(__name__)


@attrs.frozen
class _Door:
    """Where a domain's agents come in."""

    name: str
    address: str
    listener: AsyncListener[Event]
    task: asyncio.Task[None]


class Residents:
    """Attends to every domain that runs here, and passes its sessions on when it goes elsewhere."""

    def __init__(
        self,
        welcome: Welcome,
        hypervisor: Hypervisor,
        parked: ParkedFile,
        fleet: Fleet | None = None,
        *,
        port: str = PORT,
        lanes: Lanes | None = None,
        clock: Callable[[], float] = time.monotonic,
        unix: Callable[[], float] = time.time,
    ) -> None:
        """Attend to the domains of *hypervisor* that have a port called *port*: *welcome* serves their agents.

        It is given a listener and the domain's name, and runs until cancelled. *lanes* plugs shared memory in.
        """
        self._welcome = welcome
        self._hypervisor = hypervisor
        self._fleet = fleet
        self._port = port
        self._lanes = lanes
        self._clock = clock
        self._unix = unix
        self._file = parked
        others: frozenset[str] = frozenset(fleet.members if fleet is not None else ())
        self._custody = Custody(parked.kept, others, clock(), parked.generations)
        self._doors: dict[str, _Door] = {}
        self._late: dict[str, Attend] = {}
        """Domains to attend to when the hypervisor answers again."""
        self._unfit: dict[str, Attend] = {}
        """Domains that cannot be attended to: their sessions wait until they go elsewhere."""
        self._doubtful: set[str] = set()
        """Domains whose socket may be another one by now."""
        self._wake = asyncio.Event()

    @property
    def attended(self) -> frozenset[str]:
        """UUIDs of the domains whose channels end here."""
        return frozenset(self._doors)

    async def run(self) -> None:
        """Attend until cancelled. Agents are not told goodbye: they look for the successor of this broker."""
        if self._fleet is not None:
            self._fleet.on_change = self.members_changed
            self.members_changed()
        async with asyncio.TaskGroup() as tasks:
            if self._fleet is not None:
                tasks.create_task(self._fleet.serve(self.hear))
            tasks.create_task(self._listen())
            try:
                await self._carry_out(tasks)
            finally:  # before those who serve the channels end, which would say goodbye
                try:
                    if self._lanes is not None:
                        await self._lanes.leave()
                finally:
                    self._shut()

    def _shut(self) -> None:
        for domain, door in self._doors.items():
            if self._lanes is not None:
                self._lanes.part(domain)
            door.listener.close()
        self._doors.clear()

    async def hear(self, host: str, message: Message) -> Message | None:
        """Take in what the member *host* says; return the answer to a question."""
        now = self._clock()
        match message:
            case Offering():
                self._custody.on_offering(host, message, now)
            case Offer():
                self._custody.on_offer(message, now)
            case Taken():
                self._custody.on_taken(message)
            case Claim():
                self._custody.on_claim(host, message)
            case Claimed():
                self._custody.on_claimed(host, message, now)
            case Wherever():
                return await self.whereabouts(message.domain)
            case Expect():
                return await self._expect(message)
            case Admit(domain, ticket):
                await self._hypervisor.admit(domain, ticket)
                return await self.whereabouts(domain)
            case Discard(domain, ticket):
                await self._hypervisor.discard(domain, ticket)
                return await self.whereabouts(domain)
            case Hail():
                return Hailed(version("mchannel"), self._unix())
            case _:
                _log.warning("fleet member %s answered what nobody asked", host)
        self._wake.set()
        return None

    async def whereabouts(self, domain: str) -> Whereabouts:
        """Return what is known here of *domain*; raises HypervisorUnreachable."""
        try:
            info = await self._hypervisor.info(domain)
        except NoSuchDomain:
            return Whereabouts(domain, here=False, running=False)
        return Whereabouts(
            domain,
            here=info.state.active,
            running=info.state is State.RUNNING,
            attended=domain in self._doors,
            ticket=info.arrival.ticket if info.arrival is not None else "",
            moving=info.state is State.MOVING,
        )

    async def _expect(self, expect: Expect) -> Expected:
        try:
            state = await self._hypervisor.state(expect.domain)
        except HypervisorError as error:
            return Expected(willing=False, reason=f"its hypervisor does not answer: {error}")
        if state is not None and state.active:
            return Expected(willing=False, reason=f"a domain of this UUID is {state.value} there already")
        return Expected(willing=True)

    async def _listen(self) -> None:
        """Take in the hypervisor's events."""
        async with self._hypervisor.events() as events:
            async for event in events:
                if event.kind is Kind.PRESENT and event.domain in self._doors:
                    self._doubtful.add(event.domain)  # events were missed
                self._custody.happened(event, self._clock())
                self._wake.set()

    def members_changed(self) -> None:
        """Note who of the fleet is there now."""
        if self._fleet is not None:
            self._custody.on_members(self._fleet.present)
            self._wake.set()

    async def _carry_out(self, tasks: asyncio.TaskGroup) -> None:
        custody = self._custody
        while True:
            self._wake.clear()
            custody.tick(self._clock())
            while custody.orders:
                match custody.orders.popleft():
                    case Attend() as attend:
                        await self._attend(attend, tasks)
                    case Part(domain):
                        self._part(domain)
                    case Tell(message, host) if self._fleet is not None:
                        await self._fleet.tell(message, host)
                    case _:
                        pass  # there is nobody to tell
            while self._doubtful:
                await self._look_again(self._doubtful.pop(), tasks)
            await self._file.keep(custody.parked, custody.generations)
            due = custody.deadline()
            wait = None if due is None else max(due - self._clock(), 0)
            if self._late:
                wait = _RETRY if wait is None else min(wait, _RETRY)
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                pass
            for attend in tuple(self._late.values()):
                await self._attend(attend, tasks)

    async def _attend(self, order: Attend, tasks: asyncio.TaskGroup) -> None:
        domain = order.domain
        try:
            info = await self._hypervisor.info(domain)
            where = self._address(info)
            self._close(domain)  # what an earlier life of it left
            listener = listen_async(where, name="mbrokerd")
        except HypervisorUnreachable as error:
            if domain not in self._late:
                _log.warning("cannot attend to domain %s yet: %s", domain, error)
            self._late[domain] = order
            return
        except (HypervisorError, MChannelError) as error:  # it has no port, or is gone already
            self._late.pop(domain, None)
            self._unfit[domain] = order
            _log.info("cannot attend to domain %s: %s", domain, error)
            return
        self._late.pop(domain, None)
        self._unfit.pop(domain, None)
        for snapshot in order.snapshots:
            try:
                listener.adopt(snapshot, overtaken=order.overtaken)
            except MChannelError as error:
                _log.warning("%s: a session that was handed over cannot be read: %s", info.name, error)
        _log.info("attending to %s, with %d sessions handed over", info.name, len(order.snapshots))
        if self._lanes is not None and isinstance(listener.gate, LaneGate):
            self._lanes.attend(info, listener.gate, Path(info.port(self._port).path))
        task = tasks.create_task(self._welcome(listener, info.name))
        self._doors[domain] = _Door(info.name, where, listener, task)

    def _address(self, info: DomainInfo) -> str:
        """Return where to listen to a domain; raises NoSuchPort."""
        address = info.address(self._port)
        if self._lanes is None:
            return address
        return address.replace("virtio:", "ivshmem:", 1)  # shared memory may be plugged in beside the port

    async def _look_again(self, domain: str, tasks: asyncio.TaskGroup) -> None:
        """Go to the domain's new socket, if it has one: it was stopped and started while nobody looked."""
        door = self._doors.get(domain)
        try:
            where = self._address(await self._hypervisor.info(domain))
        except HypervisorError:
            return
        if door is not None and door.address != where:
            await self._attend(Attend(domain, self._close(domain)), tasks)

    def _part(self, domain: str) -> None:
        waiting = self._late.pop(domain, None) or self._unfit.pop(domain, None)
        snapshots = self._close(domain) if waiting is None else waiting.snapshots
        self._custody.parted(domain, snapshots, self._unix())

    def _close(self, domain: str) -> tuple[bytes, ...]:
        """Stop listening to *domain*, and return what is left of its sessions."""
        door = self._doors.pop(domain, None)
        if door is None:
            return ()
        if self._lanes is not None:
            self._lanes.part(domain)
        snapshots = door.listener.hand_over()
        door.task.cancel()
        _log.info("parted from %s, with %d sessions", door.name, len(snapshots))
        return snapshots
