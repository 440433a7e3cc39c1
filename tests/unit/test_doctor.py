"""What the doctor says of a host, and that it says what to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

from mbroker import control, doctor
from mbroker.cli import main
from mbroker.config import FleetSection, load
from mbroker.doctor import Finding, Verdict
from mbroker.hosting import MemberRow
from mbroker.hypervisor import DomainInfo, Port, State
from mchannel import keys

OFFLINE = "test:///default"  # libvirt's own mock: no daemon, and one domain, without a port
CONFIG = """
[broker]
name = "node1"
[hypervisor]
uri = "test:///default"
[fleet]
listen = "tcp://10.0.0.1:7700"
keys = "{keys}"
[fleet.hosts.node2]
address = "tcp://10.0.0.2:7700"
hypervisor = "test:///default"
"""


@attrs.define
class Host:
    folder: Path
    rows: tuple[MemberRow, ...] = ()

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def config(self) -> Path:
        return self.folder / "mbroker.toml"

    @property
    def fleet(self) -> FleetSection:
        found = load(self.config).config.fleet
        assert found is not None
        return found

    def ask(self, *_: object) -> tuple[MemberRow, ...]:
        return self.rows

    def examine(self, *more: str) -> tuple[int, list[dict[str, str]]]:
        done = CliRunner().invoke(main, ["doctor", "--config", str(self.config), "--output", "json", *more])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, json.loads(done.stdout)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host that is well."""
    made = Host(tmp_path, (row(),))
    made.config.write_text(CONFIG.format(keys=made.keys))
    keys.new(made.keys, "node1")
    keys.new(tmp_path / "other", "node2")
    keys.trust(made.keys, "node2", keys.show(tmp_path / "other"))
    monkeypatch.setattr(control, "ask", made.ask)
    return made


def row(**changes: Any) -> MemberRow:
    well = MemberRow("node2", "tcp://10.0.0.2:7700", present=True, hypervisor=OFFLINE, version=version("mchannel"))
    return attrs.evolve(well, **changes)


def only(findings: list[Finding], verdict: Verdict) -> Finding:
    (found,) = (each for each in findings if each.verdict is verdict)
    return found


def test_a_host_that_is_well_fails_nothing(host: Host) -> None:
    pytest.importorskip("libvirt")
    code, found = host.examine()
    assert code == 0
    assert {each["verdict"] for each in found} <= {"ok", "warn"}
    assert {each["check"] for each in found} == {
        "software",
        "config",
        "cgroup",
        "hypervisor",
        "domain",
        "keys",
        "fleet",
    }
    for each in found:
        assert bool(each["remedy"]) == (each["verdict"] != "ok"), each


def test_a_domain_without_the_port_is_shown_the_xml_that_it_lacks(host: Host) -> None:
    pytest.importorskip("libvirt")
    _, found = host.examine()
    (domain,) = (each for each in found if each["check"] == "domain")
    assert domain["verdict"] == "warn"
    assert "<channel type='unix'><target type='virtio' name='org.mchannel.0'/></channel>" in domain["remedy"]


def test_a_hypervisor_that_does_not_answer_is_a_failure_and_nothing_else_is_skipped(host: Host, tmp_path: Path) -> None:
    pytest.importorskip("libvirt")
    code, found = host.examine("--uri", f"qemu+unix:///system?socket={tmp_path}/none")
    (hypervisor,) = (each for each in found if each["check"] == "hypervisor")
    assert (code, hypervisor["verdict"]) == (1, "fail")
    assert hypervisor["remedy"]
    assert {"keys", "fleet"} <= {each["check"] for each in found}


def test_a_bad_configuration_is_a_failure_for_each_fault(host: Host) -> None:
    host.config.write_text('[broker]\nnmae = 1\n[fleet]\nlisten = "shm:///x"\n')
    code, found = host.examine()
    lines = [each["meaning"] for each in found if each["check"] == "config"]
    assert code == 1
    assert len(lines) == 2
    assert all(str(host.config) in line for line in lines)


def test_a_configuration_that_was_named_must_be_there(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    done = CliRunner().invoke(main, ["doctor", "--config", str(missing)])
    assert (done.exit_code, done.stdout) == (4, "")
    assert done.stderr == f"mbroker: {missing}: cannot be read: No such file or directory\n"


def test_before_there_is_a_configuration_its_absence_is_a_finding(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_CONFIG", host.config.with_name("missing.toml"))
    done = CliRunner().invoke(main, ["doctor", "--output", "json"])
    (found,) = (each for each in json.loads(done.stdout) if each["check"] == "config")
    assert (done.exit_code, found["verdict"]) == (1, "fail")
    assert "missing.toml: cannot be read" in found["meaning"]


def test_the_table_is_for_people(host: Host) -> None:
    pytest.importorskip("libvirt")
    done = CliRunner().invoke(main, ["doctor", "--config", str(host.config)])
    assert done.exit_code == 0
    assert "WHAT TO DO" in done.stdout


def _lose(host: Host) -> None:
    (host.keys / "identity.key").unlink()


def _expose(host: Host) -> None:
    (host.keys / "identity.key").chmod(0o644)


def _distrust(host: Host) -> None:
    keys.untrust(host.keys, "node2")


def _rename(host: Host) -> None:
    keys.new(host.keys, "node7", force=True)


@pytest.mark.parametrize(
    ("harm", "says", "remedy"),
    [
        (_lose, "no key", "mbroker keys new node1 --folder"),
        (_expose, "identity.key", "chmod"),
        (_distrust, "the key of node2 is not trusted", "mbroker keys trust node2 --folder"),
        (_rename, "is called node7, and this broker node1", "broker.name"),
    ],
)
def test_keys_that_will_not_do_are_a_failure(host: Host, harm: Callable[[Host], None], says: str, remedy: str) -> None:
    assert {each.verdict for each in doctor.key_files("node1", host.fleet)} == {Verdict.OK}
    harm(host)
    found = only(list(doctor.key_files("node1", host.fleet)), Verdict.FAIL)
    assert says in found.meaning
    assert remedy in found.remedy


@pytest.mark.parametrize(
    ("changes", "verdict", "says"),
    [
        ({}, Verdict.OK, "the broker of node2 answers"),
        ({"version": "", "present": False}, Verdict.FAIL, "does not answer at tcp://10.0.0.2:7700"),
        ({"version": "0.0.1"}, Verdict.WARN, "runs mchannel 0.0.1"),
        ({"ahead": 7.25}, Verdict.WARN, "7.2 s ahead"),
        ({"ahead": -7.25}, Verdict.WARN, "7.2 s behind"),
        ({"ahead": 0.4}, Verdict.OK, "the same time"),
    ],
)
def test_another_host_is_judged_by_what_its_broker_says(
    host: Host, changes: dict[str, Any], verdict: Verdict, says: str
) -> None:
    host.rows = (row(**changes),)
    (found,) = doctor.members(load(host.config).config)
    assert found.verdict is verdict
    assert says in found.meaning


def test_without_a_daemon_the_others_are_not_asked_and_that_is_said(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: object) -> None:
        raise control.Unreachable("no daemon answers at shm:///mbroker")

    monkeypatch.setattr(control, "ask", absent)
    (found,) = doctor.members(load(host.config).config)
    assert found.verdict is Verdict.WARN
    assert "start mbrokerd" in found.remedy


def domain(path: Path, state: State = State.RUNNING) -> tuple[DomainInfo, ...]:
    ports = (Port("org.mchannel.0", str(path)),)
    return (DomainInfo("aaaaaaaa-0000-4000-8000-000000000001", "web1", state, 1, 1 << 28, ports=ports),)


def test_a_socket_that_is_not_on_this_machine_is_a_failure(tmp_path: Path) -> None:
    socket = tmp_path / "socket"
    (found,) = doctor.ports(domain(socket), "org.mchannel.0")
    assert found.verdict is Verdict.FAIL
    socket.touch()
    (found,) = doctor.ports(domain(socket), "org.mchannel.0")
    assert found.verdict is Verdict.OK


def test_a_socket_that_this_user_may_not_open_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    socket = tmp_path / "socket"
    socket.touch()

    def denied(_path: str, _mode: int) -> bool:  # root may open all
        return False

    monkeypatch.setattr("os.access", denied)
    (found,) = doctor.ports(domain(socket), "org.mchannel.0")
    assert found.verdict is Verdict.FAIL
    assert "may not open" in found.meaning


def test_a_domain_that_is_off_is_no_finding(tmp_path: Path) -> None:
    assert not list(doctor.ports(domain(tmp_path / "socket", State.OFF), "org.mchannel.0"))


async def test_a_host_whose_hypervisor_is_not_given_can_be_no_destination(host: Host) -> None:
    text = host.config.read_text().replace('hypervisor = "test:///default"\n', "")
    host.config.write_text(text)
    (found,) = await doctor.destinations(host.fleet)
    assert found.verdict is Verdict.WARN
    assert "fleet.hosts.node2.hypervisor" in found.remedy


async def test_a_hypervisor_that_hangs_is_given_up(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(_: str) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(doctor, "connect", hang)
    monkeypatch.setattr(doctor, "_PATIENCE", 0.05)
    (found,) = await doctor.destinations(host.fleet)
    assert found.verdict is Verdict.FAIL
