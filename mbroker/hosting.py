"""The side of a broker that faces its hypervisor: domains, the fleet, and migrations between hosts."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any

import attrs

from mbroker import control
from mbroker.config import FleetSection, Loaded
from mbroker.fleet.departures import Departure, Departures
from mbroker.fleet.fleet import Away, Fleet, Member
from mbroker.fleet.lanes import Lanes, lane_size
from mbroker.fleet.message import Hail, Hailed
from mbroker.fleet.migration import MigrationError, NoSuchHost, Progress, Result
from mbroker.fleet.mover import Mover
from mbroker.fleet.parked import ParkedFile
from mbroker.fleet.records import RecordFile
from mbroker.fleet.residents import Residents
from mbroker.hypervisor import Hypervisor, HypervisorError, HypervisorUnreachable, NoSuchDomain, connect, is_xen
from mbroker.serve import Node
from mbroker.values import Invalid, build, plain
from mchannel.errors import MChannelError
from mchannel.transport import Wishes

__all__ = ["Begun", "DomainRow", "Hosting", "LaneRow", "LaneWanted", "MemberRow", "MigrationRow", "Wanted"]

_SHORTEST, _LONGEST = 1.0, 30.0
"""Seconds between two attempts to reach the hypervisor at the start: the first, and the last after doubling."""

_HAIL = 1.5
"""Seconds that a member has to say what it runs."""
_SLOW = 2.0
"""Seconds after which whoever asked for a migration or a lane is told that it takes longer."""

_log = logging.getLogger(__name__)


@attrs.frozen
class DomainRow:
    """A domain as the hypervisor and this broker see it."""

    name: str
    uuid: str
    state: str
    port: bool
    """Whether it has the port for channels; Xen's need none."""
    attended: bool
    """Whether this broker listens to it."""


@attrs.frozen
class MemberRow:
    """Another host of the fleet."""

    name: str
    address: str
    present: bool
    hypervisor: str
    version: str = ""
    """Of mchannel there; empty when it does not answer."""
    ahead: float = 0.0
    """Seconds by which its clock is ahead of this host's."""


@attrs.frozen
class Wanted:
    """A migration that is asked for."""

    domain: str
    """UUID or name."""
    host: str
    live: bool = True
    timeout: float = attrs.field(default=300.0, validator=attrs.validators.gt(0))
    request: str = ""
    """Tells this wish from others: who asks again for the same begins nothing again."""


@attrs.frozen
class Begun:
    """The migration that was asked for."""

    number: int = 0
    """0 while the hypervisor is slow to say whether there is such a domain: ask again."""


@attrs.frozen
class MigrationRow:
    """A migration, under way or ended."""

    number: int
    name: str
    destination: str
    progress: Progress
    result: Result | None = None


@attrs.frozen
class LaneWanted:
    """Shared memory for the channels of a domain that is asked for, or is to go."""

    domain: str
    """UUID or name."""
    on: bool


@attrs.frozen
class LaneRow:
    """How that stands."""

    done: bool
    """False: ask again."""


@attrs.frozen(eq=False)
class _Change:
    """A lane that is being turned on or off."""

    on: bool
    task: asyncio.Task[None]


class Hosting:
    """What ``[hypervisor]`` and ``[fleet]`` ask for."""

    def __init__(self, loaded: Loaded, node: Node) -> None:
        """Open what is needed; :meth:`run` does the work. Needs a running event loop.

        Raises :exc:`~mbroker.config.ConfigError`.
        """
        config = loaded.config
        self._node = node
        self._loaded = loaded
        self._section = config.hypervisor
        self._hypervisor: Hypervisor | None = None
        self._fleet: Fleet | None = None
        self._residents: Residents | None = None
        self._mover: Mover | None = None
        self._lanes: Lanes | None = None
        self._starting: dict[str, asyncio.Task[int]] = {}
        """By request, until a while after whoever asked was told."""
        self._changes: dict[str, _Change] = {}
        """For each domain the last wish, until whoever had it was told how it ended."""
        self._changing: set[asyncio.Task[None]] = set()
        self._parked: ParkedFile | None = None
        self._departures: RecordFile[Departure] | None = None
        if config.hypervisor is not None:
            try:
                self._parked = ParkedFile(config.broker.state / "parked.journal")
                self._departures = RecordFile(config.broker.state / "departures.journal", Departure)
            except MChannelError as error:
                raise loaded.error("broker", "state", reason=error) from None
        if config.fleet is not None:
            try:
                self._fleet = _fleet(config.broker.name, config.fleet)
            except MChannelError as error:
                raise loaded.error("fleet", "listen", reason=error) from None

    async def run(self) -> None:
        """Attend to the domains of this host until cancelled; nothing to do without a hypervisor."""
        if self._section is None or self._parked is None or self._departures is None:
            return
        try:
            hypervisor = self._hypervisor = self._hypervisor or await self._connect(self._section.uri)
            async with hypervisor:
                port = self._section.port
                lanes = None if is_xen(self._section.uri) else Lanes(hypervisor, default=lane_size(self._section.lane))
                self._lanes = lanes
                self._residents = Residents(
                    self._node.welcome, hypervisor, self._parked, self._fleet, port=port, lanes=lanes
                )
                async with asyncio.TaskGroup() as tasks:
                    if self._fleet is not None:
                        departures = Departures(self._departures, hypervisor, self._fleet)
                        self._mover = Mover(
                            hypervisor, self._fleet, self._residents, departures, tasks, port=port, lanes=lanes
                        )
                    tasks.create_task(self._residents.run())
        finally:
            for task in (*self._changing, *self._starting.values()):
                task.cancel()
            self._hypervisor = self._residents = self._mover = self._lanes = None
            self.close()

    def close(self) -> None:
        """Let go of what was opened; idempotent."""
        if self._fleet is not None:
            self._fleet.close()
        for file in (self._parked, self._departures):
            if file is not None:
                file.close()

    @property
    def answers(self) -> control.Answers:
        """What can be asked."""
        return {
            "control.domains": self._domains,
            "control.fleet": self._members,
            "control.migrate": self._migrate,
            "control.migration": self._migration,
            "control.lane": self._lane,
        }

    async def open(self) -> None:
        """Try the hypervisor; one that does not answer is tried again by :meth:`run`.

        Raises :exc:`~mbroker.config.ConfigError` when it never will, as libvirt's binding is missing.
        """
        if self._section is not None:
            try:
                self._hypervisor = await connect(self._section.uri)
            except HypervisorUnreachable as error:
                _log.warning("%s; trying again", error)
            except HypervisorError as error:
                raise self._loaded.error("hypervisor", "uri", reason=str(error)) from None

    async def _connect(self, uri: str) -> Hypervisor:
        pause, said = _SHORTEST, ""
        while True:
            try:
                return await connect(uri)
            except HypervisorUnreachable as error:
                if str(error) != said:
                    said = str(error)
                    _log.warning("%s; trying again", error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST)

    async def _domains(self, _: str) -> list[Any]:
        hypervisor, residents = self._hypervisor, self._residents
        if hypervisor is None or residents is None:
            raise self._absent()
        try:
            domains = await hypervisor.domains()
        except HypervisorError as error:
            raise _refused(error) from None
        port = self._section.port if self._section else ""
        twice: Mapping[str, str] = {} if self._mover is None else self._mover.twice
        return [
            plain(
                DomainRow(
                    each.name,
                    each.uuid,
                    f"{each.state.value}, also on {twice[each.uuid]}" if each.uuid in twice else each.state.value,
                    each.xen or any(found.name == port for found in each.ports),
                    each.uuid in residents.attended,
                )
            )
            for each in sorted(domains, key=lambda each: each.name)
        ]

    async def _members(self, _: str) -> list[Any]:
        fleet = self._joined()
        rows = await asyncio.gather(*(_row(fleet, member) for _, member in sorted(fleet.members.items())))
        return [plain(row) for row in rows]

    def _joined(self) -> Fleet:
        if self._fleet is None:
            raise control.Refused("this host is in no fleet; add [fleet] to the configuration of mbrokerd")
        return self._fleet

    async def _migrate(self, value: str) -> Mapping[str, Any]:
        self._joined()
        if self._mover is None:
            raise self._absent()
        try:
            wanted: Wanted = build(Wanted, json.loads(value))
            task = self._starting.get(wanted.request)
            if task is None:
                task = self._start(self._mover, wanted)
            done, _ = await asyncio.wait((task,), timeout=_SLOW)
            shown: Mapping[str, Any] = plain(Begun(task.result() if done else 0))
        except (MigrationError, HypervisorError, Invalid, ValueError) as error:
            raise _refused(error) from None
        return shown

    def _start(self, mover: Mover, wanted: Wanted) -> asyncio.Task[int]:
        """Begin a migration; how that went is remembered for a while, as whoever asked may ask again."""
        start = mover.start(wanted.domain, wanted.host, live=wanted.live, timeout=wanted.timeout)
        task = self._starting[wanted.request or secrets.token_hex(8)] = asyncio.create_task(start)

        def ended(_: asyncio.Task[int]) -> None:
            if not task.cancelled():
                task.exception()  # or asyncio says that nobody looked at it, when whoever asked is gone
            asyncio.get_running_loop().call_later(5 * _SLOW, self._forget_start, task)

        task.add_done_callback(ended)
        return task

    def _forget_start(self, task: asyncio.Task[int]) -> None:
        self._starting = {request: each for request, each in self._starting.items() if each is not task}

    def _migration(self, value: str) -> Mapping[str, Any]:
        if self._mover is None:
            raise self._absent()
        try:
            number = int(value)
            found = self._mover.migration(number)
        except (ValueError, MigrationError) as error:
            raise _refused(error) from None
        row = MigrationRow(number, found.order.name, found.order.destination, found.progress, found.result)
        shown: Mapping[str, Any] = plain(row)
        return shown

    async def _lane(self, value: str) -> Mapping[str, Any]:
        hypervisor, lanes = self._hypervisor, self._lanes
        if hypervisor is None:
            raise self._absent()
        if lanes is None:
            raise control.Refused("shared memory is plugged into guests of KVM; Xen's bring their own")
        try:
            wanted: LaneWanted = build(LaneWanted, json.loads(value))
            uuid = (await hypervisor.info(wanted.domain)).uuid
            change = self._changes.get(uuid)
            if change is None or change.on != wanted.on:
                change = self._change(lanes, uuid, on=wanted.on)
            done, _ = await asyncio.wait((change.task,), timeout=_SLOW)
            if done:
                self._forget(uuid, change)
                change.task.result()
        except (MChannelError, HypervisorError, Invalid, ValueError) as error:
            raise _refused(error) from None
        shown: Mapping[str, Any] = plain(LaneRow(done=bool(done)))
        return shown

    def _change(self, lanes: Lanes, domain: str, *, on: bool) -> _Change:
        """Begin to fulfil a wish; how it ended is remembered for a while, as whoever asked asks again."""
        task = asyncio.create_task(lanes.turn_on(domain) if on else lanes.turn_off(domain))
        change = self._changes[domain] = _Change(on, task)
        self._changing.add(task)

        def ended(_: asyncio.Task[None]) -> None:
            self._changing.discard(task)
            if not task.cancelled():
                task.exception()  # or asyncio says that nobody looked at it, when whoever asked is gone
            asyncio.get_running_loop().call_later(5 * _SLOW, self._forget, domain, change)

        task.add_done_callback(ended)
        return change

    def _forget(self, domain: str, change: _Change) -> None:
        if self._changes.get(domain) is change:
            del self._changes[domain]

    def _absent(self) -> control.Refused:
        if self._section is None:
            return control.Refused("this broker knows no hypervisor; add [hypervisor] to the configuration of mbrokerd")
        return control.Absent(f"the hypervisor at {self._section.uri} does not answer; is its libvirtd running?")


def _refused(error: Exception) -> control.Refused:
    match error:
        case NoSuchDomain() | NoSuchHost():
            return control.NoSuchThing(str(error))
        case HypervisorUnreachable():
            return control.Absent(str(error))
        case _:
            return control.Refused(str(error))


async def _row(fleet: Fleet, member: Member) -> MemberRow:
    row = MemberRow(member.name, member.address, member.name in fleet.present, member.hypervisor)
    asked = time.time()
    try:
        hailed = await fleet.ask(member.name, Hail(), Hailed, _HAIL)
    except Away:
        return row
    return attrs.evolve(row, version=hailed.version, ahead=hailed.unix - (asked + time.time()) / 2)


def _fleet(name: str, section: FleetSection) -> Fleet:
    members = tuple(Member(host, each.address, each.hypervisor or "") for host, each in section.hosts.items())
    wishes: Wishes = {"keys": section.keys} if section.keys else {}
    return Fleet(name, members, section.listen, wishes)
