"""What holds of every hypervisor, real or not: inherit the cases and give them a ``stage``."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import attrs
import pytest

from mbroker.hypervisor import (
    DomainEvent,
    EventStream,
    Hypervisor,
    HypervisorError,
    Kind,
    MigrationFailed,
    MigrationOptions,
    NoSuchDomain,
    NoSuchPort,
    Progress,
    State,
    Where,
)

NOBODY = "11111111-0000-4000-8000-00000000dead"


async def read(events: EventStream, domain: str, *, until: Kind, timeout: float = 60) -> list[Kind]:
    """Return the kinds of what happens to *domain* up to the first *until*."""
    kinds: list[Kind] = []
    async with asyncio.timeout(timeout):
        async for event in events:
            if event.domain == domain:
                kinds.append(event.kind)
                if event.kind is until:
                    return kinds
    raise AssertionError(f"the stream ended after {kinds}")


async def nothing_more(events: EventStream, *, patience: float = 0.05) -> list[DomainEvent]:
    """Return what still comes within *patience* seconds."""
    more: list[DomainEvent] = []
    while True:
        try:
            async with asyncio.timeout(patience):
                more.append(await anext(events))
        except TimeoutError:
            return more


@attrs.frozen
class Stage:
    """A host with one domain that runs."""

    host: Hypervisor
    domain: str
    folder: Path
    """Where the host can save."""


@attrs.frozen
class Pair:
    """Two hosts and a domain that runs on the first; *here* and *there* are their URIs."""

    source: Hypervisor
    target: Hypervisor
    domain: str

    async def states(self) -> tuple[State | None, State | None]:
        return await self.source.state(self.domain), await self.target.state(self.domain)


class LifecycleCases:
    async def test_a_present_domain_is_listed_and_described(self, stage: Stage) -> None:
        info = next(each for each in await stage.host.domains() if each.uuid == stage.domain)
        assert info.state is State.RUNNING
        assert info.vcpus >= 1
        assert info.memory >= 1 << 20

    async def test_a_domain_is_found_by_uuid_in_either_case_and_by_name(self, stage: Stage) -> None:
        info = await stage.host.info(stage.domain)
        assert await stage.host.info(stage.domain.upper()) == info
        assert await stage.host.info(info.name) == info

    async def test_an_unknown_domain_is_said_to_be_none(self, stage: Stage) -> None:
        assert await stage.host.state(NOBODY) is None
        for unknown in (NOBODY, "no-such-name"):
            with pytest.raises(NoSuchDomain) as caught:
                await stage.host.info(unknown)
            assert "\n" not in str(caught.value)

    async def test_a_missing_port_is_refused_with_the_xml_that_it_takes(self, stage: Stage) -> None:
        info = await stage.host.info(stage.domain)
        with pytest.raises(NoSuchPort, match=re.escape("<target type='virtio' name='org.example.0'/>")):
            info.port("org.example.0")

    async def test_a_running_domain_has_used_cpu_time(self, stage: Stage) -> None:
        before = (await stage.host.statistics())[stage.domain]
        await asyncio.sleep(0.05)
        after = (await stage.host.statistics())[stage.domain]
        assert after.cpu_seconds >= before.cpu_seconds >= 0
        assert len(after.vcpu_seconds) == (await stage.host.info(stage.domain)).vcpus

    async def test_a_stream_begins_with_the_present_domains(self, stage: Stage) -> None:
        async with stage.host.events() as events:
            first = await anext(events)
        assert (first.kind, first.domain, first.state) == (Kind.PRESENT, stage.domain, State.RUNNING)

    async def test_pause_and_resume_are_told_to_every_stream(self, stage: Stage) -> None:
        async with stage.host.events() as one, stage.host.events() as other:
            await stage.host.pause(stage.domain)
            assert await stage.host.state(stage.domain) is State.PAUSED
            await stage.host.resume(stage.domain)
            assert await stage.host.state(stage.domain) is State.RUNNING
            for events in (one, other):
                assert await read(events, stage.domain, until=Kind.RESUMED) == [
                    Kind.PRESENT,
                    Kind.PAUSED,
                    Kind.RESUMED,
                ]

    async def test_a_saved_domain_comes_back(self, stage: Stage) -> None:
        async with stage.host.events() as events:
            await stage.host.save(stage.domain, stage.folder / "memory")
            assert await stage.host.state(stage.domain) in {None, State.OFF}
            await read(events, stage.domain, until=Kind.SAVED)
            await stage.host.restore(stage.folder / "memory")
            assert await stage.host.state(stage.domain) is State.RUNNING
            assert Kind.RESTORED in await read(events, stage.domain, until=Kind.RESTORED)

    async def test_a_file_without_a_domain_is_refused(self, stage: Stage) -> None:
        with pytest.raises(HypervisorError):
            await stage.host.restore(stage.folder / "nothing")

    async def test_a_destroyed_domain_is_stopped(self, stage: Stage) -> None:
        async with stage.host.events() as events:
            await stage.host.destroy(stage.domain)
            assert await read(events, stage.domain, until=Kind.STOPPED) == [Kind.PRESENT, Kind.STOPPED]
        assert await stage.host.state(stage.domain) in {None, State.OFF}
        async with stage.host.events() as events:
            assert await nothing_more(events) == []

    async def test_closing_ends_the_streams_and_refuses_calls(self, stage: Stage) -> None:
        events = stage.host.events()
        await stage.host.close()
        await stage.host.close()
        assert [event.kind async for event in events] == [Kind.PRESENT]
        with pytest.raises(HypervisorError):
            await stage.host.domains()
        assert not stage.host.connected


class MigrationCases:
    """*pair* has its domain on the source; hosts that are real take seconds for each."""

    async def test_a_live_migration_is_told_on_each_side_in_order(self, pair: Pair) -> None:
        seen: list[Progress] = []
        async with pair.source.events() as here, pair.target.events() as there:
            await pair.source.migrate(pair.domain, pair.target.uri, progress=seen.append)
            assert await read(here, pair.domain, until=Kind.LEFT) == [Kind.PRESENT, Kind.LEAVING, Kind.LEFT]
            assert await read(there, pair.domain, until=Kind.RESUMED) == [Kind.ARRIVING, Kind.PAUSED, Kind.RESUMED]
        assert await pair.states() == (None, State.RUNNING)
        assert all(0 <= each.fraction <= 1 for each in seen)

    async def test_a_migration_to_the_same_host_fails_and_changes_nothing(self, pair: Pair) -> None:
        with pytest.raises(MigrationFailed) as caught:
            await pair.source.migrate(pair.domain, pair.source.uri)
        assert caught.value.where is Where.SOURCE
        assert "\n" not in str(caught.value)
        assert await pair.source.state(pair.domain) is State.RUNNING

    async def test_a_migration_of_a_domain_that_is_not_here_is_refused(self, pair: Pair) -> None:
        with pytest.raises(NoSuchDomain):
            await pair.source.migrate(NOBODY, pair.target.uri)

    async def test_an_unreachable_destination_leaves_the_domain_and_no_event(self, pair: Pair, nowhere: str) -> None:
        async with pair.source.events() as here:
            with pytest.raises(MigrationFailed) as caught:
                await pair.source.migrate(pair.domain, nowhere)
            assert caught.value.where is Where.SOURCE
            assert [event.kind for event in await nothing_more(here)] == [Kind.PRESENT]
        assert await pair.source.state(pair.domain) is State.RUNNING

    async def test_a_cancelled_migration_is_aborted_and_tells_the_source_nothing(
        self, pair: Pair, slowly: None
    ) -> None:
        slow = MigrationOptions(bandwidth=1)
        async with pair.source.events() as here, pair.target.events() as there:
            move = asyncio.create_task(pair.source.migrate(pair.domain, pair.target.uri, slow))
            await read(there, pair.domain, until=Kind.ARRIVING)
            move.cancel()
            with pytest.raises(asyncio.CancelledError):
                await move
            assert await pair.states() == (State.RUNNING, None)
            assert await read(there, pair.domain, until=Kind.STOPPED) == [Kind.STOPPED]
            assert [event.kind for event in await nothing_more(here)] == [Kind.PRESENT]

    async def test_a_migration_that_takes_too_long_is_aborted(self, pair: Pair, slowly: None) -> None:
        with pytest.raises(MigrationFailed, match="longer than 1 s") as caught:
            await pair.source.migrate(pair.domain, pair.target.uri, MigrationOptions(timeout=1, bandwidth=1))
        assert caught.value.where is Where.SOURCE
        assert await pair.states() == (State.RUNNING, None)

    async def test_postcopy_runs_there_before_the_source_lets_go(self, pair: Pair) -> None:
        options = MigrationOptions(postcopy_after=0.5, bandwidth=2)
        async with pair.source.events() as here, pair.target.events() as there:
            await pair.source.migrate(pair.domain, pair.target.uri, options)
            left = await read(here, pair.domain, until=Kind.LEFT)
            arrived = await read(there, pair.domain, until=Kind.ARRIVED)
        assert left == [Kind.PRESENT, Kind.LEAVING, Kind.POSTCOPY, Kind.LEFT]
        assert arrived == [Kind.ARRIVING, Kind.POSTCOPY, Kind.ARRIVED]
        assert await pair.states() == (None, State.RUNNING)

    async def test_a_migration_that_is_called_off_after_the_switch_to_postcopy_ends_there(self, pair: Pair) -> None:
        options = MigrationOptions(postcopy_after=0.5, bandwidth=2)
        async with pair.source.events() as here:
            move = asyncio.create_task(pair.source.migrate(pair.domain, pair.target.uri, options))
            await read(here, pair.domain, until=Kind.POSTCOPY)
            move.cancel()
            with pytest.raises(asyncio.CancelledError):
                await move
        assert await pair.states() == (None, State.RUNNING)
