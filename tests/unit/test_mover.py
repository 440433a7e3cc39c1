"""What a mover refuses and remembers, and how the steps of one migration are taken back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest

from mbroker.fleet.message import Expected, Whereabouts
from mbroker.fleet.migration import MigrationError, Order, Result, migrate
from mbroker.fleet.mover import Migration, Mover
from tests.unit.fleet_world import Network, fleet, run

ORDER = Order("6d636861-6e6e-4c00-8000-000000000001", "web1", "a", "b")
OTHER = "6d636861-6e6e-4c00-8000-000000000002"


@attrs.define(eq=False)
class Hosts:
    """Two hosts that do as they are told, note it, and say of the domain what the test wants."""

    at_a: Whereabouts = attrs.field(factory=lambda: Whereabouts(ORDER.domain, here=True, running=True))
    at_b: Whereabouts = attrs.field(factory=lambda: Whereabouts(ORDER.domain, here=False, running=False))
    told: list[str] = attrs.field(factory=list[str])
    moving: asyncio.Event = attrs.field(factory=asyncio.Event)
    may_move: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def here(self, domain: str) -> Whereabouts:
        return self.at_a

    async def there(self, host: str, domain: str) -> Whereabouts:
        return self.at_b

    async def expect(self, order: Order) -> Expected:
        return Expected(willing=True)

    async def unplug(self, domain: str) -> None:
        self.told.append(f"unplug {domain}")

    async def plug(self, domain: str) -> None:
        self.told.append(f"plug {domain}")

    async def move(self, order: Order, on_copied: Callable[[float], None]) -> None:
        self.moving.set()
        await self.may_move.wait()
        self.told.append(f"move {order.domain}")


def test_a_cancelled_migration_takes_back_what_it_did() -> None:
    async def main() -> list[str]:
        hosts = Hosts()
        task = asyncio.create_task(migrate(hosts, ORDER))
        await hosts.moving.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return hosts.told

    assert run(main()) == [f"unplug {ORDER.domain}", f"plug {ORDER.domain}"]


def _moved(here: Whereabouts, there: Whereabouts, kind: type[Hosts] = Hosts) -> Result:
    """Return how a migration ended after which the destination says *there*."""

    async def main() -> Result:
        hosts = kind()
        task = asyncio.create_task(migrate(hosts, ORDER))
        await hosts.moving.wait()
        hosts.at_a, hosts.at_b = here, there
        hosts.may_move.set()
        return await task

    return run(main())


class Severed(Hosts):
    """Hosts whose move fails at its very end."""

    async def move(self, order: Order, on_copied: Callable[[float], None]) -> None:
        await super().move(order, on_copied)
        raise MigrationError("the connection broke")


GONE = Whereabouts(ORDER.domain, here=False, running=False)
RUNS = Whereabouts(ORDER.domain, here=True, running=True, attended=True)


def test_the_destination_is_believed_when_it_runs_the_domain() -> None:
    result = _moved(GONE, RUNS)
    assert (result.moved, result.host, result.reason) == (True, "b", "")


@pytest.mark.parametrize(
    ("there", "host", "says"),
    [
        (RUNS, None, "web1 RUNS TWICE, ON a AND ON b: at once, stop the one whose work is to be lost"),
        (GONE, "a", "the connection broke"),
        (attrs.evolve(RUNS, domain=OTHER), "a", "the connection broke"),
    ],
)
def test_the_source_counts_only_when_the_destination_does_not_run_the_domain_too(
    there: Whereabouts, host: str | None, says: str
) -> None:
    result = _moved(RUNS, there, Severed)
    assert (result.moved, result.host, result.step) == (False, host, "move")
    assert says in result.reason


class Passing(Severed):
    """Hosts of which the source answers just before the domain leaves it, and the destination just after."""

    async def here(self, domain: str) -> Whereabouts:
        found = self.at_a
        if self.may_move.is_set():
            self.at_a = GONE
        return found


def test_a_domain_that_leaves_between_two_answers_does_not_run_twice() -> None:
    result = _moved(RUNS, RUNS, Passing)
    assert (result.moved, result.host, result.reason) == (True, "b", "the connection broke")


def test_an_answer_about_another_domain_confirms_nothing() -> None:
    result = _moved(GONE, attrs.evolve(RUNS, domain=OTHER))
    assert (result.moved, result.host, result.step) == (False, None, "confirm")
    assert "answered about another domain" in result.reason


@pytest.mark.parametrize(
    ("here", "says"),
    [
        (GONE, "web1 does not run on a; start it first"),
        (attrs.evolve(RUNS, running=False, moving=True), "web1 is on its way already, or a half of it is here"),
        (attrs.evolve(RUNS, running=False), "web1 is here, but paused; let it run first by: virsh resume web1"),
    ],
)
def test_a_domain_that_does_not_run_is_not_moved_and_that_is_said(here: Whereabouts, says: str) -> None:
    result = run(migrate(Hosts(here), ORDER))
    assert (result.moved, result.step) == (False, "check")
    assert result.reason.startswith(says)


@asynccontextmanager
async def mover(folder: Path, domains: int) -> AsyncGenerator[tuple[Mover, Network, list[str]]]:
    world, network = fleet(folder, "a", "b")
    found = [world.boot(world.host("a"), f"web{number}") for number in range(domains)]
    await asyncio.sleep(1)
    made = network.brokers["a"].mover
    assert made is not None
    try:
        yield made, network, found
    finally:
        for broker in network.brokers.values():
            broker.kill()


async def ended(migration: Migration) -> None:
    while migration.result is None:  # noqa: ASYNC110 - it is looked at from outside, as the command does
        await asyncio.sleep(0.05)


def test_a_migration_under_way_is_remembered_however_many_ended_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mbroker.fleet.mover._REMEMBERED", 2)

    async def main() -> None:
        async with mover(tmp_path, 2) as (made, network, (slow, quick)):
            network.deaf.add("b")
            first = await made.start(slow, "b", live=True, timeout=60)
            others: list[int] = []
            for _ in range(5):
                others.append(await made.start(quick, "a", live=True, timeout=60))  # ends at once: it is there
                await ended(made.migration(others[-1]))
            assert made.migration(first).result is None
            with pytest.raises(MigrationError, match="it ended long ago, or this broker was started since"):
                made.migration(others[0])
            assert made.migration(others[-1]).result is not None
            with pytest.raises(MigrationError, match="web0 is being moved already, to b: expect"):
                await made.start(slow, "b", live=True, timeout=60)

    run(main())


def test_numbers_of_before_a_restart_mean_nothing_after_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with mover(tmp_path, 1) as (made, network, (domain,)):
            number = await made.start(domain, "a", live=True, timeout=60)
            network.brokers["a"].kill()
            network.brokers["a"].start()
            await asyncio.sleep(1)
            again = network.brokers["a"].mover
            assert again is not None
            await again.start(domain, "a", live=True, timeout=60)
            with pytest.raises(MigrationError, match="this broker was started since"):
                again.migration(number)

    run(main())


def test_a_member_whose_hypervisor_is_not_given_is_refused_with_the_key_to_set(tmp_path: Path) -> None:
    async def main() -> None:
        async with mover(tmp_path, 1) as (made, _, (domain,)):
            members = made._fleet.members  # pyright: ignore[reportPrivateUsage]
            members["b"] = attrs.evolve(members["b"], hypervisor="")  # type: ignore[index]
            with pytest.raises(MigrationError, match=r"^\[fleet.hosts.b\] hypervisor is missing in the configuration"):
                await made.start(domain, "b", live=True, timeout=60)

    run(main())
