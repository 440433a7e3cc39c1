"""Shared memory for domains: when it is plugged in, when it is taken out, and what is left behind."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import cast

import attrs
import pytest

from mbroker.fleet.lanes import ALIAS, LaneError, Lanes, lane_size
from mbroker.fleet.parked import ParkedFile
from mbroker.fleet.residents import PORT, Residents
from mbroker.hypervisor import HypervisorError, StillAttached
from mbroker.hypervisor.fake import FakeHypervisor, World
from mchannel.address import runtime_dir
from mchannel.transports.ivshmem import LaneGate
from tests.unit.fleet_world import run


@attrs.define
class Gate:
    """As :class:`~mchannel.transports.ivshmem.LaneGate`, with a guest that leaves when it is *polite*."""

    polite: bool = True
    agents: bool = True
    """Whether there are some that can use memory."""
    full: bool = False
    """Whether this process can open no more files."""
    on_wanted: Callable[[], None] | None = None
    plugged: bool = False
    memory: Path | None = None
    content: bytes = b""
    mode: int = 0
    calls: list[str] = attrs.field(factory=list[str])

    def plug(self, memory: Path) -> None:
        if self.full:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self.calls.append("plug")
        self.plugged, self.memory, self.content = True, memory, memory.read_bytes()
        self.mode = memory.stat().st_mode & 0o777

    def when_wanted(self, on_wanted: Callable[[], None]) -> None:
        self.on_wanted = on_wanted
        if self.agents:
            on_wanted()

    def quiesce(self, on_vacant: Callable[[], None]) -> None:
        self.calls.append("quiesce")
        if self.polite:
            on_vacant()

    def unplug(self) -> None:
        self.calls.append("unplug")
        self.plugged = False


@attrs.define
class Site:
    """A host with one domain, whose channels this broker attends to."""

    host: FakeHypervisor
    domain: str
    gate: Gate
    lanes: Lanes

    async def devices(self) -> frozenset[str]:
        return (await self.host.info(self.domain)).devices


async def site(
    folder: Path, *, lane: str | None = None, default: int = 0, polite: bool = True, agents: bool = True
) -> Site:
    host = World(now=asyncio.get_running_loop().time).host("a")
    domain = host.world.boot(host, "web1")
    half = host.halves[domain]
    half.info = attrs.evolve(half.info, metadata={} if lane is None else {"lane": lane})
    found = Site(host, domain, Gate(polite, agents), Lanes(host, default=default, folder=folder))
    attend(found, folder)
    return found


async def welcome(*_: object) -> None:
    """Serve nobody, until cancelled."""
    await asyncio.Event().wait()


def left(folder: Path) -> list[Path]:
    return [each for each in folder.iterdir() if each != runtime_dir()]


def attend(site: Site, folder: Path) -> None:
    """Let the broker attend to the domain as it is now."""
    info = site.host.halves[site.domain].described
    site.lanes.attend(info, cast("LaneGate", site.gate), folder)


def test_a_domain_that_asks_for_memory_gets_it_when_it_is_attended_to(tmp_path: Path) -> None:
    async def main() -> None:
        here = await site(tmp_path, lane="1MiB")
        await asyncio.sleep(1)
        assert ALIAS in await here.devices()
        assert here.gate.content == bytes(1 << 20)
        assert here.gate.mode == 0o600
        assert not left(tmp_path)

    run(main())


@pytest.mark.parametrize(
    ("lane", "default", "given"), [(None, 0, False), (None, 1 << 20, True), ("off", 1 << 20, False)]
)
def test_what_the_domain_says_goes_before_what_the_host_gives(
    tmp_path: Path, lane: str | None, default: int, given: bool
) -> None:
    async def main() -> None:
        here = await site(tmp_path, lane=lane, default=default)
        await asyncio.sleep(1)
        assert (ALIAS in await here.devices()) is given

    run(main())


@pytest.mark.parametrize("polite", [True, False])
def test_memory_is_taken_out_after_the_guest_left_it_or_did_not_in_time(tmp_path: Path, polite: bool) -> None:
    async def main() -> None:
        here = await site(tmp_path, lane="1MiB", polite=polite)
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
        await here.lanes.unplug(here.domain)
        assert here.gate.calls == ["plug", "quiesce", "unplug"]
        assert ALIAS not in await here.devices()
        assert (asyncio.get_running_loop().time() - began < 1) is polite
        await here.lanes.plug(here.domain)  # the migration failed
        assert here.gate.plugged

    run(main())


def test_a_device_that_stays_is_an_error_and_its_memory_is_given_up(tmp_path: Path) -> None:
    async def main() -> None:
        here = await site(tmp_path, lane="1MiB")
        await asyncio.sleep(1)
        here.host.world.stubborn.add(ALIAS)
        with pytest.raises(StillAttached):
            await here.lanes.unplug(here.domain)
        assert not here.gate.plugged

    run(main())


def test_memory_that_cannot_be_used_is_taken_out_again(tmp_path: Path) -> None:
    async def main() -> None:
        here = await site(tmp_path, agents=False)
        here.gate.full = True
        with pytest.raises(LaneError, match="Too many open files"):
            await here.lanes.turn_on(here.domain, 1 << 20)
        assert ALIAS not in await here.devices()
        assert here.host.calls["attach"] == 1

    run(main())


def test_memory_that_is_just_being_plugged_in_when_the_domain_is_to_move_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach_now = FakeHypervisor.attach

    async def attach_slowly(self: FakeHypervisor, domain: str, xml: str) -> None:
        await asyncio.sleep(1)
        await attach_now(self, domain, xml)

    async def attach(self: FakeHypervisor, domain: str, xml: str) -> None:
        """As libvirt's driver: who is cancelled stops waiting, and it is done all the same."""
        tasks.append(task := asyncio.ensure_future(attach_slowly(self, domain, xml)))
        await asyncio.shield(task)

    tasks: list[asyncio.Future[None]] = []
    monkeypatch.setattr(FakeHypervisor, "attach", attach)

    async def main() -> None:
        here = await site(tmp_path, lane="1MiB")
        await asyncio.sleep(0.5)
        await here.lanes.unplug(here.domain)
        await asyncio.sleep(5)
        assert ALIAS not in await here.devices()
        assert here.host.calls["attach"] == 1

    run(main())


def test_what_a_broker_left_plugged_in_is_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        here = await site(tmp_path)
        await here.host.attach(here.domain, f"<shmem><alias name='{ALIAS}'/></shmem>")
        attend(here, tmp_path)
        await asyncio.sleep(0.9)
        assert ALIAS in await here.devices()  # an agent may have it mapped, and has yet to hear of this broker
        await asyncio.sleep(0.2)
        assert ALIAS not in await here.devices()
        await here.lanes.turn_on(here.domain, 1 << 20)
        assert here.host.calls["attach"] == 2
        assert ALIAS in await here.devices()

    run(main())


def test_memory_is_plugged_in_when_an_agent_is_there_that_can_use_it(tmp_path: Path) -> None:
    async def main() -> None:
        here = await site(tmp_path, lane="1MiB", agents=False)
        await asyncio.sleep(100)
        assert not await here.devices()
        assert here.gate.on_wanted is not None
        here.gate.on_wanted()
        await asyncio.sleep(1)
        assert ALIAS in await here.devices()

    run(main())


@pytest.mark.parametrize("polite", [True, False])
def test_a_broker_that_ends_takes_its_memory_out(tmp_path: Path, polite: bool) -> None:
    async def main() -> None:
        here = await site(tmp_path, lane="1MiB", polite=polite)
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
        await here.lanes.leave()
        assert asyncio.get_running_loop().time() - began <= 2
        assert here.gate.calls == ["plug", "quiesce", "unplug"]
        assert not await here.devices()
        await here.lanes.plug(here.domain)  # as a migration does that was called off
        assert not here.gate.plugged

    run(main())


def test_a_broker_that_ends_does_not_wait_for_devices_that_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        here = await site(tmp_path, lane="1MiB")
        other = here.host.world.boot(here.host, "web2")
        gate = Gate(polite=False)
        (socket := tmp_path / "web2").touch()
        here.lanes.attend(here.host.halves[other].described, cast("LaneGate", gate), socket)
        await here.lanes.turn_on(other, 1 << 20)
        await asyncio.sleep(1)
        here.host.world.stubborn.add(ALIAS)
        began = asyncio.get_running_loop().time()
        await here.lanes.leave()
        assert asyncio.get_running_loop().time() - began <= 2
        assert not here.gate.plugged
        assert not gate.plugged

    run(main())
    assert "web1: its guest may have the shared memory still" in caplog.text


def test_residents_that_end_take_the_memory_out_of_their_domains(tmp_path: Path) -> None:
    async def main() -> None:
        host = World(now=asyncio.get_running_loop().time).host("a")
        domain = host.world.boot(host, "web1")
        half = host.halves[domain]
        socket = attrs.evolve(half.info.port(PORT), path=str(tmp_path))
        half.info = attrs.evolve(half.info, ports=(socket,))
        lanes = Lanes(host, folder=tmp_path)
        with closing(ParkedFile(tmp_path / "parked")) as parked:
            running = asyncio.create_task(Residents(welcome, host, parked, lanes=lanes).run())
            await asyncio.sleep(1)
            await lanes.turn_on(domain)
            assert ALIAS in half.info.devices
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
        assert ALIAS not in half.info.devices

    run(main())


def test_memory_that_a_killed_broker_left_is_removed(tmp_path: Path) -> None:
    old, other = tmp_path / "mchannel-lane-x-y", tmp_path / "other"
    old.touch()
    other.touch()
    Lanes(World().host("a"), folder=tmp_path)
    assert left(tmp_path) == [other]


def test_memory_that_another_broker_is_about_to_plug_in_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    attach = FakeHypervisor.attach

    async def while_another_begins(host: FakeHypervisor, domain: str, xml: str) -> None:
        Lanes(host, folder=tmp_path)
        seen.append(len(left(tmp_path)))
        await attach(host, domain, xml)

    async def main() -> None:
        monkeypatch.setattr(FakeHypervisor, "attach", while_another_begins)
        here = await site(tmp_path)
        await here.lanes.turn_on(here.domain)
        assert seen == [1]
        assert (here.gate.plugged, left(tmp_path)) == (True, [])

    run(main())


def test_what_another_broker_has_plugged_in_stays_and_that_one_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        here = await site(tmp_path)
        await here.lanes.turn_on(here.domain)
        other = Site(here.host, here.domain, Gate(), Lanes(here.host, folder=tmp_path))
        attend(other, tmp_path)
        await asyncio.sleep(30)
        for change in (other.lanes.turn_on, other.lanes.turn_off):
            with pytest.raises(LaneError) as refused:
                await change(here.domain)
            says = f"another broker attends to {tmp_path}: process {os.getpid()}; stop one of them"
            assert str(refused.value) == says
        assert ALIAS in await here.devices()
        assert here.gate.calls == ["plug"]
        here.lanes.part(here.domain)
        await other.lanes.turn_on(here.domain)
        assert other.gate.plugged

    run(main())


def test_what_a_broker_had_that_was_killed_is_the_next_ones(tmp_path: Path) -> None:
    async def main() -> None:
        here = await site(tmp_path)
        await here.lanes.turn_on(here.domain)
        (mine,) = (runtime_dir() / "lanes").iterdir()
        mine.unlink()
        mine.write_text("1")  # as it looks when nobody has it
        other = Site(here.host, here.domain, Gate(), Lanes(here.host, folder=tmp_path))
        attend(other, tmp_path)
        await other.lanes.turn_on(here.domain)
        assert other.gate.plugged
        assert mine.read_text() == str(os.getpid())

    run(main())


def test_a_hypervisor_that_refuses_leaves_no_file_and_is_asked_again(tmp_path: Path) -> None:
    async def main() -> None:
        here = await site(tmp_path, lane="1MiB")
        here.host.disconnect()
        await asyncio.sleep(0.3)
        assert not here.gate.plugged
        with pytest.raises(HypervisorError):
            await here.lanes.plug(here.domain)
        assert not left(tmp_path)
        here.host.reconnect()
        await asyncio.sleep(3)
        assert here.gate.plugged

    run(main())


def test_a_domain_that_nobody_attends_to_has_no_lane(tmp_path: Path) -> None:
    async def main() -> None:
        here = await site(tmp_path)
        here.lanes.part(here.domain)
        await here.lanes.unplug(here.domain)
        with pytest.raises(LaneError, match="mbroker domains"):
            await here.lanes.turn_on(here.domain)

    run(main())


@pytest.mark.parametrize("text", ["", "4", "3MiB", "0MiB", "512MiB", "-1MiB", "4 MiB"])
def test_a_size_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="power of two"):
        lane_size(text)


def test_a_size_is_understood() -> None:
    assert (lane_size("off"), lane_size("1MiB"), lane_size("256MiB")) == (0, 1 << 20, 256 << 20)
