"""What the doctor says of a host with Xen, by a picture of one in a folder."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mbroker import doctor, xen_doctor
from mbroker.findings import Finding, Verdict
from mbroker.hypervisor import DomainInfo, State
from tests.unit.xen_world import UUID, Guest, World

HOUSE = Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A domain 0 that is well."""
    version = "sys/hypervisor/version"
    said = {"proc/xen/capabilities": "control_d\n", f"{version}/major": "4\n", f"{version}/minor": "17\n"}
    for name, text in {**said, f"{version}/extra": ".7\n", "dev/xen/evtchn": "", "dev/xen/gntdev": ""}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "run/xenstored").mkdir(parents=True)
    monkeypatch.setattr(xen_doctor, "missing_libraries", lambda: iter(()))
    with socket.socket(socket.AF_UNIX) as xenstored:
        xenstored.bind(str(tmp_path / "run/xenstored/socket"))
        xenstored.listen()
        yield tmp_path


def only(findings: Iterator[Finding]) -> Finding:
    """Return the one that is not well."""
    (found,) = (each for each in findings if each.verdict is not Verdict.OK)
    return found


def test_a_domain_0_that_is_well_is_said_with_its_version(root: Path) -> None:
    (found,) = xen_doctor.domain_0(root)
    assert (found.verdict, found.meaning) == (Verdict.OK, "this is domain 0 of Xen 4.17.7")


def test_a_guest_or_a_host_without_xen_is_no_domain_0(root: Path) -> None:
    (root / "proc/xen/capabilities").write_text("")
    assert "not domain 0" in only(xen_doctor.domain_0(root)).meaning
    (root / "proc/xen/capabilities").unlink()
    assert only(xen_doctor.domain_0(root)).verdict is Verdict.FAIL


@pytest.mark.parametrize("device", ["evtchn", "gntdev"])
def test_a_device_that_is_missing_is_made_by_its_module(root: Path, device: str) -> None:
    (root / "dev/xen" / device).unlink()
    found = only(xen_doctor.domain_0(root))
    assert (found.meaning, found.remedy) == (f"/dev/xen/{device} is not here", f"as root: modprobe xen-{device}")


def test_the_unit_lets_the_daemon_open_what_the_doctor_looks_for() -> None:
    allowed = re.findall(
        r"^DeviceAllow=(\S+) rw$", (HOUSE / "mbroker/systemd/mbrokerd.service").read_text(), re.MULTILINE
    )
    assert {"/dev/xen/evtchn", "/dev/xen/gntdev"} <= {*allowed}


def test_a_device_that_only_root_may_open_is_a_failure(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def access(path: Path, _: int) -> bool:
        return path.name != "gntdev"

    monkeypatch.setattr("os.access", access)
    found = only(xen_doctor.domain_0(root))
    assert (found.verdict, found.meaning) == (Verdict.FAIL, "this user may not open /dev/xen/gntdev")
    assert "as root" in found.remedy


def test_a_xenstored_that_is_gone_is_a_warning_as_it_may_live_elsewhere(root: Path) -> None:
    (root / "run/xenstored/socket").unlink()
    found = only(xen_doctor.domain_0(root))
    assert (found.verdict, found.meaning) == (Verdict.WARN, "xenstored does not answer: No such file or directory")


def test_a_library_that_is_missing_is_named_with_its_package(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "xen:// needs libxenstore.so.4; as root: apt-get install libxenstore4"
    monkeypatch.setattr(xen_doctor, "missing_libraries", lambda: iter((line,)))
    found = only(xen_doctor.domain_0(root))
    assert f"{found.meaning}; {found.remedy}" == line


def test_what_the_agents_of_a_domain_offer_is_listed() -> None:
    world = World()
    world.boot(7)
    store = Guest(world, 0).machine.store()
    for name in ("mgmt-sla", "mgmt"):
        store.write(f"/local/domain/7/data/mchannel/{name}/offer", b"1 9 8")
    store.write("/local/domain/7/data/mchannel/gone/control", b"resume")
    domains = [DomainInfo(UUID, f"web{number}", State.RUNNING, 1, 1, number, xen=True) for number in (7, 8)]
    domains.append(DomainInfo(UUID, "off", State.OFF, 1, 1, xen=True))
    well, ill = xen_doctor.offers(domains, Guest(world, 0).machine)
    assert (well.verdict, well.meaning) == (Verdict.OK, "web7 offers mgmt, mgmt-sla")
    assert (ill.verdict, ill.meaning) == (Verdict.WARN, "no agent of web8 offers a channel")


def test_offers_are_not_asked_for_where_xen_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    ill = Finding("xen", Verdict.FAIL, "no Xen", "boot it")
    monkeypatch.setattr(xen_doctor, "domain_0", lambda: iter((ill,)))
    assert doctor.xen((DomainInfo(UUID, "web1", State.RUNNING, 1, 1, 7, xen=True),)) == [ill]
