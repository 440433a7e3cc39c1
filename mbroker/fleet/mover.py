"""The migrations that this broker was asked for: one at a time of each domain, with what is known of each."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable, Mapping

import attrs

from mbroker.fleet.departures import Departures
from mbroker.fleet.fleet import Fleet
from mbroker.fleet.lanes import Lanes
from mbroker.fleet.message import Expect, Expected, Whereabouts, Wherever
from mbroker.fleet.migration import MigrationError, NoSuchHost, Order, Progress, Result, migrate
from mbroker.fleet.residents import PORT, Residents
from mbroker.hypervisor import Hypervisor, MigrationOptions
from mbroker.hypervisor import Progress as Copied

__all__ = ["Migration", "Mover"]

_ANSWER = 5.0
"""Seconds that a member of the fleet has to answer."""
_REMEMBERED = 64
"""Migrations that ended and can still be asked about."""


@attrs.define(eq=False)
class Migration:
    """One migration, under way or ended."""

    order: Order
    progress: Progress
    result: Result | None = None


class Mover:
    """Moves domains of this host to others of its fleet."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        fleet: Fleet,
        residents: Residents,
        departures: Departures,
        tasks: asyncio.TaskGroup,
        *,
        port: str = PORT,
        lanes: Lanes | None = None,
    ) -> None:
        """Use *hypervisor*; *tasks* outlives every migration. Domains must have a port called *port*.

        *departures* settles what earlier migrations left behind, in one of *tasks*. *lanes* takes shared memory out
        before a move.
        """
        self._lanes = lanes
        self._hypervisor = hypervisor
        self._port = port
        self._fleet = fleet
        self._residents = residents
        self._departures = departures
        self._tasks = tasks
        tasks.create_task(departures.run())
        self._migrations: dict[int, Migration] = {}
        self._numbers = itertools.count(secrets.randbits(48))
        """Begin anywhere: who asks for one from before a restart must not be told of another migration."""

    async def start(self, domain: str, host: str, *, live: bool, timeout: float) -> int:
        """Begin to move *domain*, a UUID or name, to *host*; return the number of the migration.

        Raises MigrationError, and HypervisorError when there is no such domain or it has no port: then nobody
        could tell from its channels that it has arrived.
        """
        if host != self._fleet.name and host not in self._fleet.members:
            known = ", ".join(sorted(self._fleet.members)) or "none"
            raise NoSuchHost(f"{host} is no host of this fleet; known are {known}")
        if host != self._fleet.name and not self._fleet.members[host].hypervisor:
            raise MigrationError(
                f"[fleet.hosts.{host}] hypervisor is missing in the configuration;"
                f" give the URI by which this host reaches it, such as qemu+tls://{host}/system"
            )
        info = await self._hypervisor.info(domain)
        if info.state.active and host != self._fleet.name:  # else that is said first
            info.address(self._port)
        for each in self._migrations.values():
            if each.order.domain == info.uuid and each.result is None:
                raise MigrationError(
                    f"{info.name} is being moved already, to {each.order.destination}: {each.progress.step}"
                )
        order = Order(info.uuid, info.name, self._fleet.name, host, live, timeout)
        ended = [number for number, each in self._migrations.items() if each.result is not None]
        for number in ended[:-_REMEMBERED]:
            del self._migrations[number]
        number = next(self._numbers)
        migration = self._migrations[number] = Migration(order, Progress("check", 0))
        self._tasks.create_task(self._run(migration))
        return number

    def migration(self, number: int) -> Migration:
        """Return the migration of that number; raises MigrationError."""
        try:
            return self._migrations[number]
        except KeyError:
            raise MigrationError(
                f"no migration has the number {number}: it ended long ago, or this broker was started since;"
                " see where the domain is by: mbroker domains"
            ) from None

    @property
    def twice(self) -> Mapping[str, str]:
        """Return the domains that are here and run elsewhere, too, each with that host: an operator must stop one."""
        return self._departures.twice

    async def _run(self, migration: Migration) -> None:
        def advance(progress: Progress) -> None:
            migration.progress = progress

        migration.result = await migrate(self, migration.order, advance)

    # --- what the steps stand on -----------------------------------------------------------

    async def here(self, domain: str) -> Whereabouts:
        """Return what this host's hypervisor says."""
        return await self._residents.whereabouts(domain)

    async def there(self, host: str, domain: str) -> Whereabouts:
        """Return what the destination says."""
        return await self._fleet.ask(host, Wherever(domain), Whereabouts, _ANSWER)

    async def expect(self, order: Order) -> Expected:
        """Ask the destination."""
        return await self._fleet.ask(order.destination, Expect(order.domain, order.name), Expected, _ANSWER)

    async def unplug(self, domain: str) -> None:
        """Take its shared memory out."""
        if self._lanes is not None:
            await self._lanes.unplug(domain)

    async def plug(self, domain: str) -> None:
        """Give it shared memory again."""
        if self._lanes is not None:
            await self._lanes.plug(domain)

    async def move(self, order: Order, on_copied: Callable[[float], None]) -> None:
        """Let the hypervisors move the domain."""

        def copied(progress: Copied) -> None:
            on_copied(progress.fraction)

        to = self._fleet.members[order.destination].hypervisor
        async with self._departures.leaving(order.domain, order.name, order.destination) as ticket:
            options = MigrationOptions(live=order.live, timeout=order.timeout, ticket=ticket)
            await self._hypervisor.migrate(order.domain, to, options, copied)
