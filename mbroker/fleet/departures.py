"""Domains that this host sends to others, on disk until it is sure where each of them is.

A domain arrives paused and is admitted when this host has let go of it. When a broker dies in between, or a host or
its libvirtd cannot be reached, halves stay behind that must not both run. The host that the domain left is the one that
knows whether it came back, and therefore the one that decides, by :func:`verdict`, as soon as both can be asked.
That a domain is not here does not tell: it may have gone on here, by an operator's hand, and ended. So what was seen of
it is noted on disk, and where nothing was seen an operator decides. Until then the domain runs at one host or at none.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from enum import Enum

import attrs

from mbroker.fleet.fleet import Fleet
from mbroker.fleet.message import Admit, Discard, Whereabouts, Wherever
from mbroker.fleet.records import RecordFile
from mbroker.hypervisor import DomainEvent, Hypervisor, HypervisorError, Kind, State
from mchannel.errors import MChannelError

__all__ = ["Departure", "Departures", "Verdict", "verdict"]

_LOOK = 1.0
"""Seconds between two looks at a departure that is not settled."""
_ANSWER = 5.0
"""Seconds that the destination has to answer."""
_AGAIN = 60.0
"""Seconds between two cries that a domain runs twice."""
_WORD = 30.0
"""Seconds that a domain waits here, paused, before the operator is told."""

_log = logging.getLogger(__name__)


@attrs.frozen
class Departure:
    """A domain on its way from this host, or one that may have left a half elsewhere."""

    domain: str
    """UUID."""
    name: str
    host: str
    """Name of the member of the fleet that it goes to."""
    ticket: str
    stayed: bool = False
    """Whether it ran on here since: what the destination has of it must never run."""
    left: bool = False
    """Whether it was seen to leave: this host let go of it, and it did not run on here."""


class Verdict(Enum):
    """What is to be done about a departure."""

    SETTLED = "settled"
    WAIT = "wait"
    """The hypervisors are not done with it."""
    ASK = "ask"
    """Nobody saw whether it left or ended here: only an operator can tell whether the other half is up to date."""
    TWICE = "twice"
    """It is whole here and runs there: nobody but an operator can tell whose work is to be lost."""
    ADMIT_HERE = "admit here"
    DISCARD_HERE = "discard here"
    ADMIT_THERE = "admit there"
    DISCARD_THERE = "discard there"


def verdict(departure: Departure, here: State | None, there: Whereabouts) -> Verdict:
    """Return what is to be done, by what both hypervisors say while no migration of this broker moves the domain."""
    arrived = there.ticket == departure.ticket
    if _whole(here) and there.running:
        return Verdict.TWICE
    if departure.stayed or _whole(here):
        return Verdict.DISCARD_THERE if arrived and not there.running else Verdict.SETTLED
    if here is State.MOVING:
        if arrived or there.running:
            return Verdict.DISCARD_HERE
        return Verdict.WAIT if there.here else Verdict.ADMIT_HERE
    if not arrived:
        return Verdict.SETTLED
    return Verdict.ADMIT_THERE if departure.left or there.running else Verdict.ASK  # of one that runs, only the mark


def _whole(state: State | None) -> bool:
    return state is not None and state.active and state is not State.MOVING


class Departures:
    """The domains that one host sends away."""

    def __init__(self, file: RecordFile[Departure], hypervisor: Hypervisor, fleet: Fleet) -> None:
        """Go on with what *file* says."""
        self._file = file
        self._departures = {each.ticket: each for each in file.found}
        self._written = file.found
        self._writing = asyncio.Lock()
        self._hypervisor = hypervisor
        self._fleet = fleet
        self._moving: dict[str, str] = {}
        """Ticket by domain of the migrations under way, which the hypervisors decide."""
        self._said: set[str] = set()
        """Tickets of which the operator was told."""
        self._cried: dict[str, float] = {}
        """Tickets of domains that run twice, and when that was said."""
        self._waiting: set[str] = set()
        """Domains that are looked at again in a while, as they may wait here."""
        self._wake = asyncio.Event()

    @property
    def twice(self) -> Mapping[str, str]:
        """Return the domains that are whole here and run elsewhere, too, each with that host."""
        return {each.domain: each.host for ticket in self._cried if (each := self._departures.get(ticket))}

    @asynccontextmanager
    async def leaving(self, domain: str, name: str, host: str) -> AsyncGenerator[str]:
        """Note that *domain* is moved to *host* within the block, and give the ticket for that.

        Raises JournalError when it cannot be noted. Afterwards, however that ended, :meth:`run` settles it.
        """
        ticket = secrets.token_hex(8)
        self._departures[ticket] = Departure(domain, name, host, ticket)
        self._moving[domain] = ticket
        try:
            try:
                await self._write()
            except MChannelError:
                del self._departures[ticket]
                raise
            yield ticket
        finally:
            del self._moving[domain]
            self._wake.set()

    async def run(self) -> None:
        """Settle departures, and say what waits here, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(tasks))
            while True:
                self._wake.clear()
                for departure in tuple(self._departures.values()):
                    if departure.domain not in self._moving:
                        try:
                            await self._settle(departure)
                        except (HypervisorError, MChannelError) as error:
                            _log.debug("%s: %s", departure.name, error)
                wait = _LOOK if self._departures.keys() - self._moving.values() else None
                try:
                    async with asyncio.timeout(wait):
                        await self._wake.wait()
                except TimeoutError:
                    pass

    async def _settle(self, departure: Departure) -> None:
        """Take one step towards the end of a departure."""
        domain, host, ticket = departure.domain, departure.host, departure.ticket
        here = await self._hypervisor.state(domain)
        departure = await self._seen(departure, here)
        try:
            there = await self._fleet.ask(host, Wherever(domain), Whereabouts, _ANSWER)
        except MChannelError as error:
            self._tell(departure, here, str(error))
            return
        if domain in self._moving or there.domain != domain:
            return
        departure = self._departures[ticket]  # as events were heard meanwhile
        await self._write()
        found = verdict(departure, here, there)
        if found is not Verdict.TWICE:
            self._cried.pop(ticket, None)
        _log.log(logging.DEBUG if found in _QUIET else logging.WARNING, "%s: %s", departure.name, found.value)
        match found:
            case Verdict.ADMIT_HERE:
                await self._hypervisor.admit(domain, "")
            case Verdict.DISCARD_HERE:
                await self._hypervisor.discard(domain, "")
                await self._put(
                    attrs.evolve(self._departures[ticket], left=True)
                )  # not before: it may be resumed until then
                self._wake.set()  # and admit it there
            case Verdict.ADMIT_THERE:
                await self._fleet.ask(host, Admit(domain, ticket), Whereabouts, _ANSWER)
            case Verdict.DISCARD_THERE:
                await self._fleet.ask(host, Discard(domain, ticket), Whereabouts, _ANSWER)
            case Verdict.SETTLED:
                del self._departures[ticket]
                self._said.discard(ticket)
                await self._write()
            case Verdict.ASK:
                self._say(departure, _ASK, host, departure.name, departure.name)
            case Verdict.TWICE:
                if await self._hypervisor.state(domain) is here:  # not moved between both answers
                    self._cry(departure)
            case Verdict.WAIT:
                pass

    async def _seen(self, departure: Departure, here: State | None) -> Departure:
        """Note what the hypervisor knows of the domain's end here; raises JournalError while that is not on disk."""
        if not departure.stayed:
            left = False if _whole(here) else None
            if here is not None and not here.active and not departure.left:
                left = await self._hypervisor.left(departure.domain)
            departure = self._departures[departure.ticket]  # as events were heard meanwhile
            if left is not None:
                self._departures[departure.ticket] = departure = attrs.evolve(departure, left=left, stayed=not left)
        await self._write()
        return departure

    def _tell(self, departure: Departure, here: State | None, why: str) -> None:
        """Say once what an operator can do when the destination is silent."""
        if departure.stayed:
            return
        name, host = departure.name, departure.host
        if here is State.MOVING:
            self._say(departure, _SILENT, host, host, name, why)
        else:
            self._say(departure, "is not here any more, and may be paused on %s until that answers (%s)", host, why)

    def _cry(self, departure: Departure) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._cried.get(departure.ticket, -math.inf) >= _AGAIN:
            self._cried[departure.ticket] = now
            _log.error(
                "%s RUNS TWICE, ON %s AND ON %s: at once, stop the one whose work is to be lost, by: virsh destroy %s",
                *(departure.name, self._fleet.name, departure.host, departure.name),
            )

    def _say(self, departure: Departure, words: str, *what: str) -> None:
        """Say once of a departure what an operator can do."""
        if departure.ticket not in self._said:
            self._said.add(departure.ticket)
            _log.warning(f"%s {words}", departure.name, *what)

    async def _listen(self, tasks: asyncio.TaskGroup) -> None:
        """Note what comes back here, and what waits here."""
        async with self._hypervisor.events() as events:
            async for event in events:
                waits = event.kind is Kind.PAUSED or (event.kind is Kind.PRESENT and event.state is State.MOVING)
                if event.kind in {Kind.LEAVING, Kind.LEFT, Kind.ARRIVED, Kind.RESUMED}:
                    await self._note(event)
                elif waits and event.domain not in self._waiting:
                    self._waiting.add(event.domain)
                    tasks.create_task(self._warn(event.domain))

    async def _note(self, event: DomainEvent) -> None:
        moving = self._moving.get(event.domain)
        for departure in tuple(self._departures.values()):
            if departure.domain == event.domain:
                ours = moving == departure.ticket
                if event.kind is not Kind.LEFT:
                    stayed = event.kind is not Kind.LEAVING or not ours
                    await self._put(attrs.evolve(departure, stayed=stayed, left=False))
                elif (ours or moving is None) and not departure.stayed:
                    await self._put(attrs.evolve(departure, left=True))

    async def _warn(self, domain: str) -> None:
        """Tell the operator of a domain that arrived and is not let run: where it came from, nobody says so."""
        await asyncio.sleep(_WORD)
        self._waiting.discard(domain)
        try:
            info = await self._hypervisor.info(domain)
        except HypervisorError:
            return
        if info.state is State.MOVING and info.arrival is not None:
            _log.warning(
                "%s is here, whole and paused, until the broker of %s says that it left there; if you are sure that"
                " it has not run there since, and never will: virsh resume %s; if it has: virsh destroy %s",
                *(info.name, info.arrival.source, info.name, info.name),
            )

    async def _put(self, departure: Departure) -> None:
        if departure.ticket in self._departures:
            self._departures[departure.ticket] = departure
            try:
                await self._write()
            except MChannelError as error:
                _log.warning("what becomes of %s waits until it can be noted: %s", departure.name, error)

    async def _write(self) -> None:
        """Have the departures on disk as they are; raises JournalError, and then the next call tries again."""
        async with self._writing:
            if self._written != (departures := tuple(self._departures.values())):
                await asyncio.to_thread(self._file.keep, departures)
                self._written = departures


_QUIET = {Verdict.SETTLED, Verdict.WAIT, Verdict.ASK, Verdict.TWICE}
_SILENT = (
    "is paused here until %s can say whether it has it; if %s is lost: virsh resume %s, while this broker runs,"
    " which notes it and drops what the other may have (%s)"
)
_ASK = (
    "is not here any more, and whether it left or ran on here and ended was not seen; %s has it as it was then,"
    " whole and paused. There, if it ran on here: virsh destroy %s; only if it did not: virsh resume %s"
)
