"""Which way an agent takes to its broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from mchannel.agents import discover
from mchannel.agents.discover import Nothing, Way, find


def put(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def port(root: Path) -> None:
    put(root / "dev/virtio-ports/org.mchannel.0")


def device(root: Path, kind: str = "0x1110") -> None:
    put(root / "sys/bus/pci/devices/0000:00:05.0/vendor", "0x1af4\n")
    put(root / "sys/bus/pci/devices/0000:00:05.0/device", f"{kind}\n")


def xen(root: Path) -> None:
    put(root / "dev/xen/gntalloc")


def everything_is_installed(**_: str) -> list[str]:
    return ["a transport"]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discover, "entry_points", everything_is_installed)


def test_the_virtio_port_goes_before_everything(tmp_path: Path) -> None:
    port(tmp_path)
    device(tmp_path)
    xen(tmp_path)
    assert find("shm:///web1", root=tmp_path) == Way("virtio:///org.mchannel.0")


def test_a_virtio_port_without_udev_is_found_by_its_name(tmp_path: Path) -> None:
    put(tmp_path / "sys/class/virtio-ports/vport1p1/name", "org.qemu.guest_agent.0\n")
    assert isinstance(find(root=tmp_path), Nothing)
    put(tmp_path / "sys/class/virtio-ports/vport1p2/name", "org.mchannel.0\n")
    assert find(root=tmp_path) == Way("virtio:///org.mchannel.0")


def test_ivshmem_goes_before_xen_and_what_was_missing_is_told(tmp_path: Path) -> None:
    device(tmp_path)
    xen(tmp_path)
    assert str(find(root=tmp_path)) == (
        "reaches its broker by ivshmem:///org.mchannel.0 (no virtio port org.mchannel.0)"
    )


def test_another_device_of_the_same_vendor_is_no_ivshmem(tmp_path: Path) -> None:
    device(tmp_path, "0x1003")
    xen(tmp_path)
    assert find(root=tmp_path) == Way("xen:///mgmt", "no virtio port org.mchannel.0, no ivshmem device")


def test_a_device_whose_transport_is_not_installed_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_xen(*, name: str, **_: str) -> list[str]:
        return [name] if name == "xen" else []

    monkeypatch.setattr(discover, "entry_points", only_xen)
    device(tmp_path)
    xen(tmp_path)
    found = find(root=tmp_path)
    assert found == Way("xen:///mgmt", "no virtio port org.mchannel.0, no transport ivshmem is installed")


def test_the_configured_address_comes_last(tmp_path: Path) -> None:
    found = find("tcp://10.0.0.7:7600", root=tmp_path)
    assert isinstance(found, Way)
    assert found.base == "tcp://10.0.0.7:7600"
    assert found.why == "no virtio port org.mchannel.0, no ivshmem device, no Xen that lets a guest share pages"


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
