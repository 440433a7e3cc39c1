"""Channels of a fleet live through every way in which a domain changes its host."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from mbroker.fleet.lanes import ALIAS
from tests.system.brokers import BrokerProcess, Talk, brokers, talking
from tests.system.libvirt_guest import PORT, Guest
from tests.system.libvirt_hosts import Host

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
Pair = tuple[BrokerProcess, BrokerProcess]


@pytest.fixture
def pair(hosts: tuple[Host, Host], tmp_path: Path) -> Iterator[Pair]:
    """A broker on each host."""
    with brokers(hosts, tmp_path) as (first, second):
        yield first, second


@pytest.fixture
def agent(guest: Guest, pair: Pair) -> Iterator[Guest]:
    """An agent in the guest, which has talked to the broker of the first host."""
    with talking(guest, f"virtio:///{PORT}"):
        pair[0].wait("number", number=20)
        yield guest


def exactly_once(pair: Pair, at: BrokerProcess) -> dict[str, Any]:
    """See that both directions lost and repeated nothing, and return what the agent said at its end."""
    talk = Talk(pair)
    end = talk.end(at)
    assert end["repeated"] == 0
    for broker in pair:  # which says before what it heard
        broker.tell("sent")
        assert end.get(f"from_{broker.host.name}", 0) == broker.wait("sent")["number"]
    heard = [said["number"] for said in talk.heard()]
    assert heard == list(range(end["number"]))
    assert not any(said["redelivered"] for said in talk.heard())
    return end


def nothing_lost(pair: Pair, at: BrokerProcess) -> None:
    """See that the agent's numbers all came, and that those which came twice said so."""
    talk = Talk(pair)
    end = talk.end(at)
    seen: set[int] = set()
    for said in talk.heard():
        assert said["number"] not in seen or said["redelivered"], said
        seen.add(said["number"])
    assert seen == set(range(end["number"]))


def test_a_migration_that_we_start(agent: Guest, pair: Pair, hosts: tuple[Host, Host]) -> None:
    boot = agent.boot_id()
    for broker, to in ((pair[0], hosts[1]), (pair[1], hosts[0])):
        broker.tell("migrate", agent.name, to.name)
        result = broker.wait("migrated", timeout=120)
        assert (result["moved"], result["host"], result["reason"]) == (True, to.name, "")
        agent.host = to
        time.sleep(0.5)
    exactly_once(pair, pair[0])
    assert agent.boot_id() == boot


def test_a_migration_of_a_domain_that_shares_memory_with_its_broker(
    guest: Guest, hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    boot = guest.boot_id()
    with brokers(hosts, tmp_path, lane="1MiB") as pair, talking(guest, f"ivshmem:///{PORT}"):
        for broker, to in zip(pair, reversed(hosts), strict=True):
            broker.tell("share")
            broker.wait("shares")
            broker.listen(0.5)
            broker.tell("migrate", guest.name, to.name)
            result = broker.wait("migrated", timeout=120)
            assert (result["moved"], result["host"], result["reason"]) == (True, to.name, "")
            guest.host = to
        pair[0].tell("share")
        pair[0].wait("shares")
        exactly_once((pair[0], pair[1]), pair[0])
    assert guest.boot_id() == boot
    guest.unplug(ALIAS)  # a broker that was killed leaves it there, and nobody else could move the guest


def _virsh(guest: Guest, to: Host, _: Path) -> None:
    guest.migrate(to)


def _postcopy(guest: Guest, to: Host, _: Path) -> None:
    guest.migrate(to, postcopy=True)


def _file(guest: Guest, to: Host, folder: Path) -> None:
    guest.save(folder / "saved")
    guest.restore(folder / "saved", to)


@pytest.mark.parametrize("move", [_virsh, _postcopy, _file])
def test_a_move_that_somebody_else_starts(
    agent: Guest, pair: Pair, hosts: tuple[Host, Host], tmp_path: Path, move: Callable[[Guest, Host, Path], None]
) -> None:
    for broker, to in ((pair[1], hosts[1]), (pair[0], hosts[0])):
        move(agent, to, tmp_path)
        broker.wait("number", after=time.monotonic())
    exactly_once(pair, pair[0])


def test_a_save_and_restore_on_the_same_host(
    agent: Guest, pair: Pair, hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    _file(agent, hosts[0], tmp_path)
    pair[0].listen(2)
    exactly_once(pair, pair[0])


def test_a_migration_that_aborts_before_the_switch_over(agent: Guest, pair: Pair, hosts: tuple[Host, Host]) -> None:
    hosts[0].cut()
    try:
        with pytest.raises(libvirt.libvirtError):
            agent.migrate(hosts[1])
    finally:
        hosts[0].cut(off=False)
    pair[0].listen(1)
    exactly_once(pair, pair[0])


def test_a_migration_to_a_host_that_cannot_be_reached(agent: Guest, pair: Pair, hosts: tuple[Host, Host]) -> None:
    hosts[0].cut()
    try:
        pair[0].tell("migrate", agent.name, hosts[1].name)
        result = pair[0].wait("migrated", timeout=120)
    finally:
        hosts[0].cut(off=False)
    assert (result["moved"], result["host"], result["step"]) == (False, hosts[0].name, "expect")
    exactly_once(pair, pair[0])


def test_the_source_broker_killed_while_the_domain_moves(agent: Guest, pair: Pair, hosts: tuple[Host, Host]) -> None:
    pair[0].listen(0.5)
    pair[0].kill()
    agent.migrate(hosts[1])
    pair[1].wait("number", after=time.monotonic())
    pair[1].listen(1)
    nothing_lost(pair, pair[1])


def test_the_destination_broker_starting_late(agent: Guest, pair: Pair, hosts: tuple[Host, Host]) -> None:
    pair[1].kill()
    agent.migrate(hosts[1])
    pair[0].listen(2)
    pair[1].start()
    pair[1].wait("number", after=time.monotonic())
    exactly_once(pair, pair[1])
