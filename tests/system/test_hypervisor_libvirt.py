"""The cases of every hypervisor on two real libvirt hosts with a real guest, and what only these can show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mbroker.hypervisor import (
    HypervisorError,
    HypervisorUnreachable,
    Kind,
    MigrationFailed,
    MigrationOptions,
    State,
    Where,
    connect,
)
from tests.system.libvirt_guest import PORT, Guest
from tests.system.libvirt_hosts import Host
from tests.unit.hypervisor_cases import LifecycleCases, MigrationCases, Pair, Stage, read

Hosts = tuple[Host, Host]
pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(180)]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
async def pair(hosts: Hosts, guest: Guest) -> AsyncIterator[Pair]:
    guest.boot_id()  # has booted
    async with await connect(hosts[0].uri) as source, await connect(hosts[1].uri) as target:
        pair = Pair(source, target, guest.uuid)
        yield pair
        guest.host = hosts[0] if await pair.source.state(guest.uuid) else hosts[1]


@pytest.fixture
async def stage(hosts: Hosts, guest: Guest, tmp_path: Path) -> AsyncIterator[Stage]:
    guest.boot_id()
    async with await connect(hosts[0].uri) as host:
        yield Stage(host, guest.uuid, tmp_path)


class TestLifecycle(LifecycleCases):
    test_a_destroyed_domain_is_stopped = None  # type: ignore[assignment]  # others need the guest

    async def test_a_port_has_a_socket_on_the_host(self, stage: Stage, hosts: Hosts) -> None:
        port = (await stage.host.info(stage.domain)).port(PORT)
        assert hosts[0].path(port.path).is_socket()

    async def test_a_quota_is_set_and_lifted(self, stage: Stage) -> None:
        await stage.host.set_quota(stage.domain, 0.5)
        await stage.host.set_quota(stage.domain, None)
        with pytest.raises(ValueError, match="at least"):
            await stage.host.set_quota(stage.domain, 0.001)


class TestMigration(MigrationCases):
    @pytest.fixture
    def nowhere(self) -> str:
        return "qemu+unix:///system?socket=/nonexistent"

    @pytest.fixture
    def slowly(self) -> None:
        """A bandwidth of one MiB/s does it."""


async def test_a_migration_ends_at_the_source_when_the_destinations_daemon_dies(pair: Pair, hosts: Hosts) -> None:
    async with pair.target.events() as there:
        move = asyncio.create_task(pair.source.migrate(pair.domain, pair.target.uri, MigrationOptions(bandwidth=1)))
        await read(there, pair.domain, until=Kind.ARRIVING)
        hosts[1].kill_libvirtd()
        with pytest.raises(MigrationFailed) as caught:
            await move
        assert caught.value.where is Where.SOURCE
        hosts[1].start_libvirtd()
        await read(there, pair.domain, until=Kind.GONE)  # the incoming half that its daemon found on return
    assert await pair.states() == (State.RUNNING, None)


async def test_a_daemon_that_was_killed_is_found_again(pair: Pair, hosts: Hosts) -> None:
    descriptors = open_files()
    async with pair.source.events() as events:
        await read(events, pair.domain, until=Kind.PRESENT)
        hosts[0].kill_libvirtd()
        while pair.source.connected:  # noqa: ASYNC110 - a fact, not an event
            await asyncio.sleep(0.05)
        with pytest.raises(HypervisorUnreachable):
            await pair.source.domains()
        hosts[0].start_libvirtd()
        async with asyncio.timeout(30):
            assert (await anext(events)).kind is Kind.RESYNC
        assert await read(events, pair.domain, until=Kind.PRESENT) == [Kind.PRESENT]
        await pair.source.pause(pair.domain)
        await pair.source.resume(pair.domain)
        assert await read(events, pair.domain, until=Kind.RESUMED) == [Kind.PAUSED, Kind.RESUMED]
    assert open_files() <= descriptors + 2


async def test_a_device_is_plugged_in_and_out(pair: Pair) -> None:
    xml = """<shmem name='mchannel-test'><model type='ivshmem-plain'/><size unit='M'>1</size>
             <alias name='ua-mchannel-test'/><address type='pci' bus='0x06' slot='0x00'/></shmem>"""
    await pair.source.attach(pair.domain, xml)
    assert "ua-mchannel-test" in (await pair.source.info(pair.domain)).devices
    await pair.source.detach(pair.domain, "ua-mchannel-test")
    assert "ua-mchannel-test" not in (await pair.source.info(pair.domain)).devices
    with pytest.raises(HypervisorError, match="ua-mchannel-test"):
        await pair.source.detach(pair.domain, "ua-mchannel-test", timeout=1)


async def test_the_memory_that_moved_is_the_same_boot(pair: Pair, guest: Guest, hosts: Hosts) -> None:
    boot = guest.boot_id()
    await pair.source.migrate(pair.domain, pair.target.uri)
    guest.host = hosts[1]
    assert guest.boot_id() == boot
    assert await pair.states() == (None, State.RUNNING)
