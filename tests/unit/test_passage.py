"""What is done by libvirt to what a migration left behind, and how the end of an emulator is seen."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any, cast

import attrs
import pytest

libvirt = pytest.importorskip("libvirt")

from mbroker.hypervisor.domain import ARRIVAL  # noqa: E402 - they need libvirt
from mbroker.hypervisor.emulator import at_exit  # noqa: E402
from mbroker.hypervisor.errors import HypervisorError  # noqa: E402
from mbroker.hypervisor.passage import admit, discard, left  # noqa: E402

UUID = "6d636861-6e6e-4c00-8000-000000000001"


def refusal(code: int) -> Any:
    """Return libvirt's error of that code."""
    error = libvirt.libvirtError("refused")
    error.err = (code, libvirt.VIR_FROM_QEMU, "refused", libvirt.VIR_ERR_ERROR, "", "", "", 0, 0)
    return error


@attrs.define(eq=False)
class Domain:
    """As libvirt's handle of a domain that arrived with a ticket, whole and paused."""

    said: tuple[int, int] = (libvirt.VIR_DOMAIN_PAUSED, 1)
    ticket: str = "7"
    job: int = libvirt.VIR_DOMAIN_JOB_NONE
    refuses: Any = None
    """What it says when its metadata is to change."""
    done: list[str] = attrs.field(factory=list[str])

    def state(self) -> tuple[int, int]:
        return self.said

    def isPersistent(self) -> int:  # noqa: N802 - libvirt's
        return 1

    def name(self) -> str:
        return "web1"

    def metadata(self, *_: object) -> str:
        return "<arrival/>"

    def XMLDesc(self, _: int = 0) -> str:  # noqa: N802
        mark = f'<arrival xmlns="{ARRIVAL}" ticket="{self.ticket}" source="a"/>'
        return (
            f"<domain type='kvm'><name>web1</name><uuid>{UUID}</uuid><memory>1024</memory><vcpu>1</vcpu>"
            f"<metadata>{mark}</metadata><devices/></domain>"
        )

    def jobInfo(self) -> list[int]:  # noqa: N802
        return [self.job]

    def resume(self) -> None:
        self.done.append("resume")
        self.said = (libvirt.VIR_DOMAIN_RUNNING, 0)

    def setMetadata(self, *_: object) -> None:  # noqa: N802
        if self.refuses is not None:
            raise self.refuses
        self.done.append("clear")

    def undefineFlags(self, _: int) -> None:  # noqa: N802
        self.done.append("undefine")

    def destroy(self) -> None:
        self.done.append("destroy")


ARRIVED = (libvirt.VIR_DOMAIN_PAUSED, 1)
"""By a user, as far as libvirt knows."""


def test_a_domain_that_arrived_runs_and_loses_its_mark() -> None:
    domain = Domain(ARRIVED)
    admit(cast("Any", domain), "7")
    assert domain.done == ["resume", "clear"]


def test_a_mark_that_cannot_be_taken_away_is_no_success() -> None:
    domain = Domain(ARRIVED, refuses=refusal(libvirt.VIR_ERR_OPERATION_FAILED))
    with pytest.raises(libvirt.libvirtError):
        admit(cast("Any", domain), "7")


def test_a_domain_without_a_mark_is_admitted_all_the_same() -> None:
    domain = Domain((libvirt.VIR_DOMAIN_RUNNING, 0), refuses=refusal(libvirt.VIR_ERR_NO_DOMAIN_METADATA))
    admit(cast("Any", domain), "7")
    assert domain.done == []


def test_what_a_migration_still_holds_is_neither_admitted_nor_discarded() -> None:
    for act in (admit, discard):
        domain = Domain(ARRIVED, job=libvirt.VIR_DOMAIN_JOB_UNBOUNDED)
        with pytest.raises(HypervisorError, match="web1 is being migrated"):
            act(cast("Any", domain), "7")
        assert domain.done == []


def test_what_another_migration_left_is_neither_admitted_nor_discarded() -> None:
    for act in (admit, discard):
        domain = Domain(ARRIVED)
        with pytest.raises(HypervisorError, match="not left here by that migration"):
            act(cast("Any", domain), "8")
        assert domain.done == []


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ((libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED), True),
        ((libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN), False),
        ((libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SAVED), False),
        ((libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED), False),
        ((libvirt.VIR_DOMAIN_CRASHED, 0), False),
        ((libvirt.VIR_DOMAIN_SHUTOFF, 0), None),  # it does not know
        ((libvirt.VIR_DOMAIN_SHUTOFF, 2), None),  # destroyed, and perhaps never run again
        ((libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED), None),
    ],
)
def test_how_a_domain_ended_is_told_only_by_a_reason_that_is_sure(said: tuple[int, int], expected: bool | None) -> None:
    assert left(cast("Any", Domain(said))) is expected


# --- the process ---------------------------------------------------------------------------------


@pytest.fixture
def emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process with the UUID among its arguments, of which a file says that it is web1's."""
    monkeypatch.setattr("mbroker.hypervisor.emulator._PIDS", tmp_path)
    process = subprocess.Popen([sys.executable, "-c", "input()", "-uuid", UUID], stdin=subprocess.PIPE)
    (tmp_path / "web1.pid").write_text(f"{process.pid}\n")
    deadline = time.monotonic() + 10
    while UUID.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes() and time.monotonic() < deadline:
        time.sleep(0.01)
    yield process
    process.kill()
    process.communicate()


def test_the_end_of_an_emulator_is_seen(emulator: subprocess.Popen[bytes]) -> None:
    ended = Event()
    with at_exit("qemu:///system", "web1", UUID, ended.set):
        assert not ended.is_set()
        emulator.kill()
        assert ended.wait(10)


@pytest.mark.parametrize(
    ("uri", "uuid"), [("qemu:///system", UUID[:-1] + "2"), ("qemu+tls://b/system", UUID)], ids=["reused", "remote"]
)
def test_the_end_of_a_process_that_is_not_the_domains_emulator_means_nothing(
    emulator: subprocess.Popen[bytes], uri: str, uuid: str
) -> None:
    ended = Event()
    with at_exit(uri, "web1", uuid, ended.set):
        emulator.kill()
        emulator.wait()
        assert not ended.wait(0.2)
