"""The fake and libvirt's own test driver keep the same rules."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from mbroker.hypervisor import (
    Arrival,
    Hypervisor,
    HypervisorError,
    HypervisorUnreachable,
    MigrationFailed,
    MigrationOptions,
    State,
    Where,
    connect,
)
from mbroker.hypervisor.domain import ARRIVAL
from mbroker.hypervisor.fake import Fault, Step, Trouble, World
from tests.unit.hypervisor_cases import LifecycleCases, MigrationCases, Pair, Stage

NODE = """
<node>
  <domain type='test'>
    <name>test</name>
    <uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
    <memory unit='KiB'>2097152</memory>
    <vcpu>2</vcpu>
    <os><type>hvm</type></os>
  </domain>
</node>
"""


class TestFake(LifecycleCases):
    @pytest.fixture
    def stage(self, tmp_path: Path) -> Stage:
        world = World()
        host = world.host("a")
        return Stage(host, world.boot(host, "web1"), tmp_path)


class TestLibvirt(LifecycleCases):
    """The driver inside this process, which knows neither migration nor channels nor quotas."""

    async def test_a_destination_that_accepts_and_says_nothing_is_given_up(self, stage: Stage) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            destination = f"qemu+tcp://127.0.0.1:{silent.getsockname()[1]}/system"
            with pytest.raises(MigrationFailed, match="longer than") as caught:
                async with asyncio.timeout(10):  # libvirt itself would wait for ever
                    await stage.host.migrate(stage.domain, destination, MigrationOptions(timeout=0.2))
        assert caught.value.where is Where.SOURCE
        assert await stage.host.state(stage.domain) is State.RUNNING

    async def test_a_domain_that_waits_for_its_source_is_not_resumed_by_hand(self, stage: Stage) -> None:
        libvirt = pytest.importorskip("libvirt")
        handle = cast("Any", stage.host)._link.connection.lookupByUUIDString(stage.domain)
        mark = "<arrival ticket='7' source='node1'/>"
        element, live = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE
        handle.setMetadata(element, mark, "arrival", ARRIVAL, live)
        assert await stage.host.state(stage.domain) is State.RUNNING
        await stage.host.pause(stage.domain)
        info = await stage.host.info(stage.domain)
        assert (info.state, info.arrival) == (State.MOVING, Arrival("7", "node1"))
        with pytest.raises(HypervisorError, match="is half of a migration; its other half may run"):
            await stage.host.resume(stage.domain)
        for refused in (stage.host.admit, stage.host.discard):
            with pytest.raises(HypervisorError, match="was not left here by that migration"):
                await refused(stage.domain, "8")
        assert await stage.host.state(stage.domain) is State.MOVING

    async def test_what_the_driver_cannot_do_is_one_line(self, stage: Stage) -> None:
        for refused in (
            stage.host.set_quota(stage.domain, 0.5),
            stage.host.detach(stage.domain, "ua-ring", timeout=0.1),
            stage.host.migrate(stage.domain, stage.host.uri),
        ):
            with pytest.raises(HypervisorError) as caught:
                await refused
            assert "\n" not in str(caught.value)

    @pytest.fixture
    async def stage(self, tmp_path: Path) -> AsyncIterator[Stage]:
        pytest.importorskip("libvirt", reason="needs pip install 'mchannel[libvirt]'")
        node = tmp_path / "node.xml"  # a file of its own is a world of its own
        node.write_text(NODE)
        async with await connect(f"test://{node}") as host:
            yield Stage(host, (await host.info("test")).uuid, tmp_path)


class TestFakeMigration(MigrationCases):
    @pytest.fixture
    def world(self) -> World:
        return World()

    @pytest.fixture
    def pair(self, world: World) -> Pair:
        source, target = world.host("a"), world.host("b")
        return Pair(source, target, world.boot(source, "web1"))

    @pytest.fixture
    def nowhere(self) -> str:
        return "fake://nowhere"

    @pytest.fixture
    def slowly(self, world: World) -> None:
        world.plan(Fault(Step.COPY, Trouble.HANG))

    @pytest.fixture(autouse=True)
    def once(self, world: World) -> object:
        yield
        world.check()


def test_both_are_hypervisors() -> None:
    host: Hypervisor = World().host("a")
    assert host.uri == "fake://a"


async def test_a_uri_where_nobody_answers_is_one_line() -> None:
    pytest.importorskip("libvirt")
    with pytest.raises(HypervisorUnreachable, match="does not answer") as caught:
        await connect("qemu+unix:///system?socket=/nonexistent")
    assert "\n" not in str(caught.value)


async def test_without_the_binding_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("mbroker.hypervisor.libvirt_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "mbroker.hypervisor.passage", raising=False)
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(HypervisorError, match=r"pip install 'mchannel\[libvirt\]'"):
        await connect("qemu:///system")
