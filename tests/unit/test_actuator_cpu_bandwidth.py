from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest

from mbroker.action import SetFrequency, SetPState
from mbroker.actuator import Actuator
from mbroker.actuators import originals
from mbroker.actuators.cpu_bandwidth import CpuBandwidth
from mbroker.cgroup import Cgroup, Hierarchy
from mbroker.host import Domain, Host

HOST = Host("h", domains={"web1": Domain("web1", 4, cpus=(0,)), "db": Domain("db", 4, cpus=(0, 1))})
GROUPS = {"web1": "machine/web1", "db": "machine/db", "stopped": "machine/stopped"}


@attrs.define
class Fake:
    """Cgroup files below a directory; a period that would leave the parent's quota is refused."""

    root: Path
    version: int

    def folder(self, domain: str) -> Path:
        return self.root / "cg" / GROUPS[domain]

    def shown(self, domain: str) -> tuple[str, ...]:
        names = ("cpu.max",) if self.version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        return tuple((self.folder(domain) / name).read_text().strip() for name in names)

    def make(self, domain: str) -> None:
        folder = self.folder(domain)
        folder.mkdir(parents=True)
        if self.version == 2:
            (folder / "cpu.max").write_text("max 100000\n")
        else:
            (folder / "cpu.cfs_quota_us").write_text("-1\n")
            (folder / "cpu.cfs_period_us").write_text("100000\n")


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def fake(request: pytest.FixtureRequest, tmp_path: Path) -> Fake:
    fake = Fake(tmp_path / "root", request.param)
    kind = "cgroup cgroup rw,cpu,cpuacct" if fake.version == 1 else "cgroup2 cgroup2 rw"
    for name, text in {
        "proc/self/mountinfo": f"41 31 0:38 / /cg rw,relatime - {kind}\n",
        "proc/sys/kernel/random/boot_id": "boot\n",
        "cg/cgroup.controllers": "cpu\n",
    }.items():
        (fake.root / name).parent.mkdir(parents=True, exist_ok=True)
        (fake.root / name).write_text(text)
    fake.make("web1")
    fake.make("db")
    return fake


Start = Callable[..., CpuBandwidth]


@pytest.fixture
def start(fake: Fake, tmp_path: Path) -> Generator[Start]:
    with ExitStack() as started:

        def start(cpus: dict[str, float] | None = None) -> CpuBandwidth:
            actuator = CpuBandwidth(host=HOST, state=tmp_path, cgroups=GROUPS, cpus=cpus or {}, root=fake.root)
            started.callback(actuator.close)
            return actuator

        yield start


def quota(fake: Fake, quota_us: int) -> tuple[str, ...]:
    return (f"{quota_us} 10000",) if fake.version == 2 else (str(quota_us), "10000")


def test_it_is_an_actuator_of_domains(start: Start) -> None:
    actuator = start()
    assert isinstance(actuator, Actuator)
    assert actuator.handles == (SetFrequency,)


@pytest.mark.parametrize(("level", "quota_us"), [(0, 4167), (1, 7500), (2, 8333), (3, 9167), (4, 10000)])
def test_a_level_is_its_share_of_the_fastest_clock(fake: Fake, start: Start, level: int, quota_us: int) -> None:
    outcome = start().apply(SetFrequency("web1", level=level))
    assert outcome.done
    assert str(quota_us) in outcome.actual
    assert fake.shown("web1") == quota(fake, quota_us)


def test_a_domain_on_two_cpus_gets_twice_the_quota(fake: Fake, start: Start) -> None:
    start().apply(SetFrequency("db", level=0))
    assert fake.shown("db") == quota(fake, 8333)


def test_a_configured_number_of_cpus_counts_before_the_hosts(fake: Fake, start: Start) -> None:
    start({"web1": 0.5}).apply(SetFrequency("web1", level=4))
    assert fake.shown("web1") == quota(fake, 5000)


def test_a_quota_is_never_below_what_the_kernel_takes(fake: Fake, start: Start) -> None:
    assert start({"web1": 0.01}).apply(SetFrequency("web1", level=0)).done
    assert fake.shown("web1") == quota(fake, 1000)


def test_restore_gives_the_domain_what_it_had(fake: Fake, start: Start) -> None:
    before = fake.shown("web1")
    actuator = start()
    actuator.apply(SetFrequency("web1", level=0))
    actuator.apply(SetFrequency("web1", level=1))
    (outcome,) = actuator.restore()
    assert outcome.done
    assert outcome.action == SetFrequency("web1", level=4)
    assert fake.shown("web1") == before
    assert actuator.restore() == []


def test_the_next_start_after_a_kill_restores(fake: Fake, start: Start) -> None:
    before = fake.shown("web1")
    if (child := os.fork()) == 0:
        try:
            start().apply(SetFrequency("web1", level=0))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert fake.shown("web1") == quota(fake, 4167)
    start()
    assert fake.shown("web1") == before


def test_leaving_the_process_restores(fake: Fake, tmp_path: Path) -> None:
    before = fake.shown("web1")
    program = (
        "import sys; from mbroker.actuators.cpu_bandwidth import CpuBandwidth\n"
        "from mbroker.action import SetFrequency; from mbroker.host import Host\n"
        "a = CpuBandwidth(host=Host('h'), state=sys.argv[1], root=sys.argv[2], cgroups={'web1': 'machine/web1'})\n"
        "print(a.apply(SetFrequency('web1', level=0)).done); sys.exit(3)"
    )
    command = [sys.executable, "-c", program, str(tmp_path), str(fake.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "True\n"), done.stderr
    assert fake.shown("web1") == before


def test_a_forked_child_that_exits_restores_nothing(fake: Fake, start: Start) -> None:
    actuator = start()
    actuator.apply(SetFrequency("web1", level=0))
    if (child := os.fork()) == 0:
        try:
            actuator.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert fake.shown("web1") == quota(fake, 4167)


def test_a_domain_that_stopped_meanwhile_has_nothing_to_restore(fake: Fake, start: Start) -> None:
    actuator = start()
    actuator.apply(SetFrequency("web1", level=0))
    fake.folder("web1").rename(fake.root / "gone")
    (outcome,) = actuator.restore()
    assert outcome.done
    assert "gone" in outcome.actual


def test_a_domain_that_was_started_anew_keeps_its_own_quota(fake: Fake, start: Start) -> None:
    actuator = start()
    actuator.apply(SetFrequency("web1", level=0))
    fake.folder("web1").rename(fake.root / "gone")
    fake.make("web1")
    for file in fake.folder("web1").iterdir():
        file.write_text("7777\n")
    actuator.restore()
    assert set(fake.shown("web1")) == {"7777"}


def test_settings_that_must_change_in_a_certain_order_do(
    fake: Fake, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = originals.write_value

    def within_the_parent(file: Path, value: str) -> None:
        if file.name == "cpu.cfs_period_us":
            quota_us = int((file.parent / "cpu.cfs_quota_us").read_text())
            if quota_us > 2 * int(value):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        write(file, value)

    if fake.version == 1:
        (fake.folder("web1") / "cpu.cfs_quota_us").write_text("150000\n")
    before = fake.shown("web1")
    monkeypatch.setattr(originals, "write_value", within_the_parent)
    actuator = start()
    assert actuator.apply(SetFrequency("web1", level=0)).done
    actuator.close()
    assert fake.shown("web1") == before


def test_a_domain_without_a_group_is_reported(start: Start) -> None:
    outcome = start().apply(SetFrequency("nobody", level=0))
    assert not outcome.done
    assert outcome.error == "no cgroup is configured for nobody; add it to cgroups"


def test_a_domain_that_does_not_run_is_reported(start: Start) -> None:
    outcome = start().apply(SetFrequency("stopped", level=0))
    assert not outcome.done
    assert "No such file or directory; is stopped running?" in outcome.error


@pytest.mark.parametrize(
    "action",
    [SetFrequency("web1", step=1), SetFrequency("web1", level=9), SetFrequency("web1", level=-1), SetPState((0,), 0)],
)
def test_an_action_that_means_nothing_here_is_refused(
    fake: Fake, start: Start, action: SetFrequency | SetPState
) -> None:
    before = fake.shown("web1")
    outcome = start().apply(action)
    assert not outcome.done
    assert outcome.error
    assert fake.shown("web1") == before


def test_a_quota_that_the_kernel_refuses_is_reported(fake: Fake, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fake.shown("web1")

    def refuse(file: Path, value: str) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), f"{file} {value}")

    monkeypatch.setattr(originals, "write_value", refuse)
    outcome = start().apply(SetFrequency("web1", level=0))
    assert not outcome.done
    assert "Invalid argument" in outcome.error
    assert fake.shown("web1") == before


@pytest.fixture
def group() -> Generator[Cgroup]:
    """A control group of the machine that runs the tests."""
    try:
        group = Hierarchy.detect().group(f"mchannel-test-{os.getpid()}")
        group.create()
    except OSError as error:
        pytest.skip(f"no control group of our own on this machine: {error}")
    yield group
    for _ in range(100):  # the kernel lets go of a killed process a moment later
        try:
            return group.remove()
        except OSError:
            time.sleep(0.02)
    group.remove()


def test_the_kernel_slows_a_busy_process_down_and_lets_it_go_again(group: Cgroup, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            group.add(busy.pid)
            actuator = CpuBandwidth(
                host=Host("h", p_states=(100, 2400)), state=tmp_path, cgroups={"d": str(group.path)}
            )
            before = {file: file.read_text() for file in group.quota_settings(0, 0)}
            assert actuator.apply(SetFrequency("d", level=0)).done
            time.sleep(0.2)
            start, used = time.monotonic(), group.usage()
            time.sleep(0.5)
            used, passed = group.usage() - used, time.monotonic() - start
            assert 0 < used < 0.3 * passed  # 1 ms in every 10 ms, and the machine's own grain
            actuator.close()
            assert {file: file.read_text() for file in before} == before
        finally:
            busy.kill()


@pytest.mark.parametrize("cpus", [{"web1": 0}, {"web1": -1.0}, {"web1": float("inf")}, {"web1": "two"}, [1]])
def test_cpus_that_are_no_positive_number_are_refused(start: Start, cpus: object) -> None:
    with pytest.raises((TypeError, ValueError), match="cpus"):
        start(cpus)
