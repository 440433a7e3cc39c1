"""Which way an agent takes to its broker."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

from mchannel.agents import discover
from mchannel.agents.discover import Nothing, Way, check_address, find
from mchannel.errors import AddressError


def put(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def port(root: Path) -> None:
    put(root / "dev/virtio-ports/org.mchannel.0")


def xen(root: Path) -> None:
    put(root / "dev/xen/gntalloc")


@attrs.frozen
class Installed:
    """A transport that loads, unless something that it needs is *broken*."""

    broken: str = ""

    def load(self) -> None:
        if self.broken:
            raise ImportError(self.broken)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Installed]:
    """The transports of this guest, by their schemes."""
    there = {scheme: Installed() for scheme in ("virtio", "ivshmem", "xen")}

    def entry_points(*, group: str, name: str) -> list[Installed]:
        assert group == "mchannel.transports"
        return [there[name]] if name in there else []

    monkeypatch.setattr(discover, "entry_points", entry_points)
    return there


def test_the_virtio_port_goes_before_everything_and_may_be_joined_by_memory(tmp_path: Path) -> None:
    port(tmp_path)
    xen(tmp_path)
    found = find("shm:///web1", root=tmp_path)
    assert found == Way("ivshmem:///org.mchannel.0")
    assert str(found) == (
        "reaches its broker by ivshmem:///org.mchannel.0, and by shared memory while its host plugs some in"
    )


def test_it_is_the_plain_port_where_the_ring_does_not_load_and_the_line_says_why(
    tmp_path: Path, installed: dict[str, Installed]
) -> None:
    port(tmp_path)
    installed["ivshmem"] = Installed("No module named '_cffi_backend'")
    assert str(find(root=tmp_path)) == (
        "reaches its broker by virtio:///org.mchannel.0"
        " (the transport ivshmem cannot be loaded: No module named '_cffi_backend')"
    )
    del installed["ivshmem"]
    assert find(root=tmp_path) == Way("virtio:///org.mchannel.0", "no transport ivshmem is installed")


def test_a_virtio_port_without_udev_is_found_by_its_name(tmp_path: Path) -> None:
    put(tmp_path / "sys/class/virtio-ports/vport1p1/name", "org.qemu.guest_agent.0\n")
    assert isinstance(find(root=tmp_path), Nothing)
    put(tmp_path / "sys/class/virtio-ports/vport1p2/name", "org.mchannel.0\n")
    assert find(root=tmp_path) == Way("ivshmem:///org.mchannel.0")


def test_xen_comes_next_and_what_was_missing_is_told_once(tmp_path: Path) -> None:
    xen(tmp_path)
    assert str(find(root=tmp_path)) == "reaches its broker by xen:///mgmt (no virtio port org.mchannel.0)"


def test_a_port_whose_transports_are_not_installed_is_passed_over(
    tmp_path: Path, installed: dict[str, Installed]
) -> None:
    del installed["virtio"], installed["ivshmem"]
    port(tmp_path)
    xen(tmp_path)
    why = "no transport ivshmem is installed, no transport virtio is installed"
    assert find(root=tmp_path) == Way("xen:///mgmt", why)


def test_the_configured_address_comes_last(tmp_path: Path) -> None:
    found = find("tcp://10.0.0.7:7600", root=tmp_path)
    assert isinstance(found, Way)
    assert found.base == "tcp://10.0.0.7:7600"
    assert found.why == "no virtio port org.mchannel.0, no Xen that lets a guest share pages"


def test_nothing_is_one_line_with_what_to_add(tmp_path: Path) -> None:
    line = str(find(root=tmp_path))
    assert "add to the domain's devices: <channel type='unix'><target type='virtio' name='org.mchannel.0'/>" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("base", "address"),
    [
        ("virtio:///org.mchannel.0", "virtio:///org.mchannel.0?stream=sla"),
        ("ivshmem:///org.mchannel.0", "ivshmem:///org.mchannel.0?stream=sla"),
        ("xen:///mgmt", "xen:///mgmt-sla"),
        ("shm:///web1", "shm:///web1"),
        ("tcp://10.0.0.7:7600?server=mvm1", "tcp://10.0.0.7:7600?server=mvm1"),
    ],
)
def test_each_stream_has_an_address_of_its_own_where_the_wire_is_shared(base: str, address: str) -> None:
    assert Way(base).address("sla") == address


@pytest.mark.parametrize(
    "address",
    [
        "shm:///web1",
        "ipc:///run/broker.sock",
        "memory:///web1",
        "xen:///mgmt",
        "virtio:///org.mchannel.0",
        "ivshmem:///org.mchannel.0?stream=sla",
        "tcp://10.0.0.7:7600?server=mvm1",
        "tcp://[fd00::7]:7600",
    ],
)
def test_an_address_where_a_broker_may_come_to_listen_is_accepted(address: str) -> None:
    check_address(address)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("", "'' is not an address"),
        ("web1", "'web1' is not an address"),
        ("shn:///web1", "no transport is called 'shn'"),
        ("shm:///", "a name has 1 to 64"),
        ("shm://web1", "a local address has three slashes"),
        ("shm:///web1?server=mvm1", "shm knows no option 'server'"),
        ("memory:///", "a name has 1 to 64"),
        ("xen://5/mgmt", "a local address has three slashes"),
        ("xen:///a.b", "a name has 1 to 64"),
        ("virtio:///?stream=sla", "a name has 1 to 64"),
        ("ivshmem:///org.mchannel.0?steam=sla", "ivshmem knows no option 'steam'"),
        ("tcp:///web1", "is no network address"),
        ("tcp://10.0.0.7", "is no network address"),
        ("tcp://10.0.0.7:76000", "Port out of range"),
        ("tcp://10.0.0.7:0", "say which host and port"),
        ("tcp://*:7600", "say which host and port"),
        ("tcp://10.0.0.777:7600", "is no IP address"),
        ("tcp://10.0.0.7:7600?sever=mvm1", "tcp knows no option 'sever'"),
    ],
)
def test_an_address_where_nobody_can_ever_listen_is_refused(address: str, reason: str) -> None:
    with pytest.raises(AddressError, match=re.escape(reason)):
        check_address(address)
