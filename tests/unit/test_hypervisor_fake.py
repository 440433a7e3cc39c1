"""The fake: every step of a migration with everything that can go wrong, and a world that sees what must not be."""

from __future__ import annotations

import asyncio
from pathlib import Path

import attrs
import pytest

from mbroker.hypervisor import (
    Arrival,
    HypervisorError,
    HypervisorUnreachable,
    Kind,
    MigrationFailed,
    MigrationOptions,
    State,
    StillAttached,
    Where,
)
from mbroker.hypervisor.fake import FakeHypervisor, Fault, Step, Trouble, World
from tests.unit.hypervisor_cases import nothing_more, read

QUICK = MigrationOptions(timeout=0.02)


@attrs.define
class Scene:
    world: World
    a: FakeHypervisor
    b: FakeHypervisor
    web: str


@pytest.fixture
def scene() -> Scene:
    world = World()
    a, b = world.host("a"), world.host("b")
    return Scene(world, a, b, world.boot(a, "web1"))


@pytest.mark.parametrize("postcopy", [False, True])
@pytest.mark.parametrize("trouble", Trouble)
@pytest.mark.parametrize("step", Step)
async def test_a_fault_never_lets_a_domain_run_twice_nor_claims_a_wrong_place(
    scene: Scene, step: Step, trouble: Trouble, *, postcopy: bool
) -> None:
    if step is (Step.ADMIT if postcopy else Step.FETCH):
        pytest.skip("no step of this migration")
    scene.world.plan(Fault(step, trouble))
    limit = QUICK if trouble is Trouble.HANG else MigrationOptions()
    options = attrs.evolve(limit, postcopy_after=0.0 if postcopy else None)
    where: Where | None = None
    try:
        await scene.a.migrate(scene.web, scene.b.uri, options)
    except MigrationFailed as error:
        where = error.where
    running = scene.world.running(scene.web)
    scene.world.check()
    assert len(running) <= 1
    if trouble is Trouble.LIE:
        assert where is (Where.SOURCE if running == [scene.b] else None)
    elif where is Where.SOURCE:
        assert running == [scene.a]
    elif where is Where.DESTINATION:
        assert running == [scene.b]
    else:
        assert where is Where.UNKNOWN
    killed = trouble in {Trouble.KILL_SOURCE, Trouble.KILL_DESTINATION}
    torn = postcopy and (step is Step.FETCH or (step is Step.FINISH and trouble is Trouble.CUT))
    late = step is Step.CONFIRM or (step is Step.ADMIT and trouble is not Trouble.CUT)
    held = late and not postcopy and trouble is not Trouble.LIE
    if not killed and not torn:
        assert len(running) == (0 if held else 1)


@pytest.mark.parametrize("step", [Step.CONNECT, Step.PREPARE, Step.COPY, Step.SWITCH])
@pytest.mark.parametrize("trouble", [Trouble.ERROR, Trouble.CUT, Trouble.KILL_DESTINATION, Trouble.HANG])
async def test_a_migration_that_fails_before_the_switch_tells_the_source_nothing(
    scene: Scene, step: Step, trouble: Trouble
) -> None:
    scene.world.plan(Fault(step, trouble))
    async with scene.a.events() as here:
        with pytest.raises(MigrationFailed) as caught:
            await scene.a.migrate(scene.web, scene.b.uri, QUICK)
        assert [event.kind for event in await nothing_more(here, patience=0.01)] == [Kind.PRESENT]
    assert caught.value.where is Where.SOURCE


async def test_a_migration_that_fails_at_the_switch_comes_back(scene: Scene) -> None:
    scene.world.plan(Fault(Step.FINISH, Trouble.ERROR))
    async with scene.a.events() as here, scene.b.events() as there:
        with pytest.raises(MigrationFailed) as caught:
            await scene.a.migrate(scene.web, scene.b.uri)
        assert await read(here, scene.web, until=Kind.ARRIVED) == [Kind.PRESENT, Kind.LEAVING, Kind.ARRIVED]
        assert await read(there, scene.web, until=Kind.STOPPED) == [Kind.ARRIVING, Kind.STOPPED]
    assert caught.value.where is Where.SOURCE


TICKET = MigrationOptions(ticket="7")


async def test_a_destination_whose_answer_is_lost_keeps_a_twin_that_does_not_run(scene: Scene) -> None:
    scene.world.plan(Fault(Step.FINISH, Trouble.CUT))
    with pytest.raises(MigrationFailed) as caught:
        await scene.a.migrate(scene.web, scene.b.uri, TICKET)
    assert caught.value.where is Where.SOURCE
    assert await scene.b.state(scene.web) is State.MOVING
    assert (await scene.b.info(scene.web)).arrival == Arrival("7", scene.a.uri)
    with pytest.raises(HypervisorError, match="half of a migration"):
        await scene.b.resume(scene.web)
    with pytest.raises(HypervisorError, match="not left here by that migration"):
        await scene.b.discard(scene.web, "6")
    await scene.b.discard(scene.web, "7")
    assert await scene.b.state(scene.web) is None
    scene.world.check()


async def test_the_world_sees_a_twin_that_is_admitted_beside_its_source(scene: Scene) -> None:
    scene.world.plan(Fault(Step.FINISH, Trouble.CUT))
    with pytest.raises(MigrationFailed):
        await scene.a.migrate(scene.web, scene.b.uri, TICKET)
    await scene.b.admit(scene.web, "7")
    with pytest.raises(AssertionError, match="web1 runs at fake://b and at fake://a"):
        scene.world.check()


async def test_a_source_that_does_not_let_go_keeps_the_destination_from_running(scene: Scene) -> None:
    scene.world.plan(Fault(Step.CONFIRM, Trouble.ERROR))
    with pytest.raises(MigrationFailed) as caught:
        await scene.a.migrate(scene.web, scene.b.uri, TICKET)
    assert caught.value.where is Where.UNKNOWN
    assert await scene.a.state(scene.web) is State.MOVING
    assert await scene.b.state(scene.web) is State.MOVING
    await scene.a.discard(scene.web, "")
    await scene.b.admit(scene.web, "7")
    assert scene.world.running(scene.web) == [scene.b]
    scene.world.check()


@pytest.mark.parametrize(
    ("step", "left"),
    [
        (Step.COPY, (State.RUNNING, None)),
        (Step.FINISH, (State.MOVING, None)),
        (Step.CONFIRM, (State.MOVING, State.MOVING)),
        (Step.ADMIT, (None, State.MOVING)),
    ],
)
async def test_who_migrates_may_die_at_every_step(
    scene: Scene, step: Step, left: tuple[State | None, State | None]
) -> None:
    scene.world.plan(Fault(step, Trouble.HANG))
    move = asyncio.create_task(scene.a.migrate(scene.web, scene.b.uri, TICKET))
    await asyncio.sleep(0.01)
    scene.a.orphan()
    move.cancel()
    with pytest.raises(asyncio.CancelledError):
        await move
    assert (await scene.a.state(scene.web), await scene.b.state(scene.web)) == left


async def test_a_domain_that_a_migration_holds_is_not_admitted(scene: Scene) -> None:
    scene.world.plan(Fault(Step.FINISH, Trouble.HANG))
    move = asyncio.create_task(scene.a.migrate(scene.web, scene.b.uri, TICKET))
    await asyncio.sleep(0.01)
    for host, ticket, says in ((scene.a, "", "is being migrated"), (scene.b, "7", "not left here")):
        with pytest.raises(HypervisorError, match=says):
            await host.admit(scene.web, ticket)
        with pytest.raises(HypervisorError, match=says):
            await host.discard(scene.web, ticket)
    move.cancel()
    with pytest.raises(asyncio.CancelledError):
        await move
    assert scene.world.running(scene.web) == [scene.b]  # it was too late to call it off


async def test_after_the_switch_to_postcopy_a_cancelled_migration_goes_on_to_its_end(scene: Scene) -> None:
    scene.world.plan(Fault(Step.FETCH, Trouble.HANG))
    move = asyncio.create_task(scene.a.migrate(scene.web, scene.b.uri, MigrationOptions(postcopy_after=0)))
    await asyncio.sleep(0.01)
    move.cancel()
    with pytest.raises(asyncio.CancelledError):
        await move
    assert scene.world.running(scene.web) == [scene.b]
    assert await scene.a.state(scene.web) is None


async def test_the_world_sees_a_domain_that_runs_on_two_hosts(scene: Scene) -> None:
    await scene.a.pause(scene.web)
    await scene.a.save(scene.web, Path("/saved"))
    await scene.b.restore(Path("/saved"))
    scene.world.check()
    await scene.a.restore(Path("/saved"))
    with pytest.raises(AssertionError, match="web1 runs at fake://a and at fake://b"):
        scene.world.check()


async def test_the_world_sees_a_domain_that_runs_again_from_older_memory(scene: Scene) -> None:
    await scene.a.save(scene.web, Path("/saved"))
    await scene.b.restore(Path("/saved"))
    await scene.b.destroy(scene.web)
    await scene.a.restore(Path("/saved"))
    with pytest.raises(AssertionError, match="overtaken"):
        scene.world.check()


async def test_a_paused_domain_arrives_paused(scene: Scene) -> None:
    await scene.a.pause(scene.web)
    await scene.a.migrate(scene.web, scene.b.uri)
    assert await scene.b.state(scene.web) is State.PAUSED
    await scene.b.resume(scene.web)
    scene.world.check()


async def test_a_test_can_act_between_two_steps(scene: Scene) -> None:
    steps: list[Step] = []

    async def watch(step: Step, domain: str) -> None:
        assert domain == scene.web
        steps.append(step)

    scene.world.at_step = watch
    await scene.a.migrate(scene.web, scene.b.uri)
    assert steps == [step for step in Step if step is not Step.FETCH]


async def test_a_daemon_that_was_away_tells_what_is_so_afterwards(scene: Scene) -> None:
    other = scene.world.boot(scene.a, "web2")
    async with scene.a.events() as events:
        assert {(await anext(events)).domain for _ in range(2)} == {scene.web, other}
        await scene.a.migrate(scene.web, scene.b.uri)
        await read(events, scene.web, until=Kind.LEFT)
        scene.a.disconnect()
        with pytest.raises(HypervisorUnreachable):
            await scene.a.domains()
        scene.a.forget(other)
        new = scene.world.boot(scene.a, "web3")
        scene.a.reconnect()
        after = await nothing_more(events, patience=0.01)
    assert [(event.kind, event.domain) for event in after] == [
        (Kind.RESYNC, ""),
        (Kind.GONE, other),
        (Kind.PRESENT, new),
    ]


async def test_a_daemon_that_hangs_answers_nothing_until_it_does(scene: Scene) -> None:
    scene.a.hang()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await scene.a.state(scene.web)
    scene.a.answer()
    assert await scene.a.state(scene.web) is State.RUNNING


async def test_a_host_that_was_killed_comes_back_without_its_domains(scene: Scene) -> None:
    scene.a.kill()
    with pytest.raises(HypervisorUnreachable):
        await scene.a.state(scene.web)
    scene.a.revive()
    assert await scene.a.state(scene.web) is State.OFF


async def test_a_device_is_gone_only_when_the_guest_lets_go(scene: Scene) -> None:
    await scene.a.attach(scene.web, "<shmem name='m'><alias name='ua-ring'/></shmem>")
    scene.world.stubborn.add("ua-ring")
    with pytest.raises(StillAttached, match=r"did not let go of ua-ring in 0\.01 s"):
        await scene.a.detach(scene.web, "ua-ring", timeout=0.01)
    assert "ua-ring" in (await scene.a.info(scene.web)).devices
    scene.world.stubborn.clear()
    await scene.a.detach(scene.web, "ua-ring")
    assert not (await scene.a.info(scene.web)).devices


async def test_a_quota_slows_a_domain_down() -> None:
    clock = [0.0]
    world = World(now=lambda: clock[0])
    host = world.host("a")
    web = world.boot(host, "web1")
    await host.set_quota(web, 0.5)
    clock[0] = 10.0
    assert (await host.statistics())[web].cpu_seconds == 5.0
    with pytest.raises(ValueError, match=r"at least 0\.1"):
        await host.set_quota(web, 0.01)


async def test_a_thousand_migrations_at_once_leave_each_domain_running_once() -> None:
    world = World()
    hosts = [world.host(name) for name in "abcd"]
    domains = [world.boot(hosts[0], f"web{number}") for number in range(250)]

    async def tour(domain: str) -> None:
        for source, target in zip(hosts, [*hosts[1:], hosts[0]], strict=True):
            await source.migrate(domain, target.uri)

    async with asyncio.TaskGroup() as tasks:
        for domain in domains:
            tasks.create_task(tour(domain))
    world.check()
    assert all(world.running(domain) == [hosts[0]] for domain in domains)
