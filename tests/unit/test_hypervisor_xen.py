"""What agents and readers of events hear of a suspend under Xen; libvirt's own mock stands for its driver."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import mchannel
from mbroker.config import load
from mbroker.hypervisor import (
    DomainInfo,
    HypervisorError,
    Kind,
    NoSuchDomain,
    NoSuchPort,
    State,
    is_xen,
)
from mbroker.hypervisor.domain import read_domain
from mchannel.address import Address
from mchannel.errors import AddressError
from mchannel.transports import xen
from mchannel.transports.xenguest import GuestWire
from tests.unit.xen_world import Guest, World

pytest.importorskip("libvirt")
from mbroker.hypervisor import xen_driver
from mbroker.hypervisor.xen_driver import XenHypervisor

MOCK = "test:///default"  # no daemon; one domain called test, whose number is 1
OFFER, CONTROL = (f"/local/domain/1/data/mchannel/mgmt/{node}" for node in ("offer", "control"))
XML = """
<domain type='xen' id='7'>
  <name>web1</name><uuid>6F1C2D3E-0000-4000-8000-000000000007</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>
</domain>"""


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Xen, with the mock's domain on it."""
    world = World()
    world.boot(1)
    machine = Guest(world, 0).machine
    for name in ("quiesce", "resume"):
        monkeypatch.setattr(xen, name, functools.partial(getattr(xen, name), machine=machine))
    monkeypatch.setattr(xen_driver, "_QUIET", 1.0)
    return world


@asynccontextmanager
async def agent(world: World) -> AsyncGenerator[GuestWire]:
    """Run an agent in the domain."""
    wire = GuestWire(Address.parse("xen:///mgmt"), mchannel.Options(), Guest(world, 1).machine)
    loop = asyncio.get_running_loop()
    loop.add_reader(wire.port.fileno(), wire.port.pump)
    try:
        yield wire
    finally:
        loop.remove_reader(wire.port.fileno())
        wire.close()


async def heard(do: Callable[[XenHypervisor], Awaitable[None]], last: Kind = Kind.RESUMED) -> list[Kind]:
    """Return which events come when *do* is done, after the first, which says that the domain is here."""
    async with await XenHypervisor.connect(MOCK) as host, host.events() as events, asyncio.timeout(20):
        await anext(events)
        await do(host)
        kinds = [(await anext(events)).kind]
        while kinds[-1] is not last:
            kinds.append((await anext(events)).kind)
        return kinds


async def fail(host: XenHypervisor) -> None:
    """Migrate, which the mock cannot."""
    with pytest.raises(HypervisorError):
        await host.migrate("test", "test:///default")


async def test_agents_let_go_before_a_domain_is_saved(world: World, tmp_path: Path) -> None:
    async with agent(world):
        assert OFFER in world.nodes
        kinds = await heard(lambda host: host.save("test", tmp_path / "saved"), Kind.SAVED)
        assert OFFER not in world.nodes
    assert world.nodes[CONTROL] == b"quiesce 600"
    assert kinds[0] is Kind.LEAVING
    assert kinds[-1] is Kind.SAVED


async def test_agents_of_a_domain_that_stays_go_on(world: World) -> None:
    async with agent(world):
        assert await heard(fail) == [Kind.LEAVING, Kind.RESUMED]
        assert world.nodes[CONTROL] == b"resume"
        assert OFFER in world.nodes


async def test_an_agent_that_does_not_answer_stops_no_migration(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.nodes[OFFER] = b"1 9 8"
    assert await heard(fail) == [Kind.LEAVING, Kind.RESUMED]
    assert "test: not all of its agents let go within 1 s; it is suspended all the same" in caplog.messages


async def test_a_migration_that_is_called_off_while_agents_let_go_lets_them_go_on(world: World) -> None:
    world.nodes[OFFER] = b"1 9 8"

    async def call_off(host: XenHypervisor) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(host.migrate("test", "test:///default"), 0.2)

    await heard(call_off)
    assert world.nodes[CONTROL] == b"resume"


async def test_without_xen_a_line_says_that_agents_are_not_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AddressError("no Xen here")

    monkeypatch.setattr(xen, "quiesce", refuse)
    monkeypatch.setattr(xen, "resume", refuse)
    await heard(fail)
    assert "test: its agents cannot be told of the suspend: no Xen here" in caplog.messages


async def test_a_domain_that_does_not_run_is_not_moved(world: World) -> None:
    async with await XenHypervisor.connect(MOCK) as host:
        await host.destroy("test")
        with pytest.raises(NoSuchDomain, match="test does not run"):
            await host.migrate("test", "test:///default")
    assert CONTROL not in world.nodes


def test_a_xen_domain_is_listened_to_by_its_uuid() -> None:
    info = read_domain(XML, State.RUNNING, persistent=True)
    assert (info.number, info.xen) == (7, True)
    assert info.address("org.mchannel.0") == "xen://6f1c2d3e-0000-4000-8000-000000000007/mgmt*"


def test_a_xen_domain_that_does_not_run_has_no_address() -> None:
    info = read_domain(XML.replace(" id='7'", ""), State.OFF, persistent=True)
    assert info.number is None
    with pytest.raises(NoSuchPort, match="web1 does not run"):
        info.address("org.mchannel.0")


def test_a_domain_of_kvm_is_listened_to_at_its_port() -> None:
    with pytest.raises(NoSuchPort, match="has no port"):
        DomainInfo("u", "web1", State.RUNNING, 1, 1).address("org.mchannel.0")


@pytest.mark.parametrize("address", ["xen:///mgmt", "xen:///mgmt*", "xen://5/mgmt*"])
def test_a_broker_can_be_told_to_listen_to_guests_without_libvirt(tmp_path: Path, address: str) -> None:
    (tmp_path / "mbroker.toml").write_text(f'[[listen]]\naddress = "{address}"\n')
    (place,) = load(tmp_path / "mbroker.toml").config.listen
    assert place.address == address


@pytest.mark.parametrize(
    ("uri", "answer"),
    [
        *(("xen:///system", True), ("xen+tls://node2/system", True), ("xen+unix:///system", True)),
        *(("qemu:///system", False), ("qemu+tcp://xen/system", False), ("xenapi://node", False), ("", False)),
    ],
)
def test_a_uri_tells_whether_it_leads_to_xen(uri: str, answer: bool) -> None:
    assert is_xen(uri) is answer
