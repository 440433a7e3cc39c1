from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest

from mbroker.action import SetFrequency, SetPState
from mbroker.actuator import Actuator
from mbroker.actuators import originals
from mbroker.actuators.cpufreq import CpuFreq, Method, available_p_states
from mbroker.host import Domain, Host
from mchannel.errors import JournalError

TABLE = (2400000, 2200000, 2000000, 1800000, 1000000)
HOST = Host("h", p_states=(1000, 1800, 2000, 2200, 2400))


@attrs.define
class Machine:
    """A tree of cpufreq files that answers writes as the kernel does."""

    root: Path
    write_plainly: Callable[[Path, str], None] = originals.write_value
    writes: list[tuple[str, str]] = attrs.field(factory=list[tuple[str, str]])
    refused: set[str] = attrs.field(factory=set[str])

    def policy(self, number: int) -> Path:
        return self.root / f"sys/devices/system/cpu/cpufreq/policy{number}"

    def add(self, number: int, cpus: str, **files: str) -> None:
        folder = self.policy(number)
        folder.mkdir(parents=True)
        shown = {
            "related_cpus": cpus,
            "scaling_driver": "acpi-cpufreq",
            "scaling_available_governors": "performance userspace schedutil",
            "scaling_governor": "schedutil",
            "scaling_available_frequencies": " ".join(map(str, TABLE)),
            "cpuinfo_min_freq": "1000000",
            "cpuinfo_max_freq": "2400000",
            "scaling_min_freq": "1000000",
            "scaling_max_freq": "2400000",
            "scaling_cur_freq": "1000000",
            "scaling_setspeed": "<unsupported>",
        }
        for name, value in (shown | files).items():
            if value:
                (folder / name).write_text(value + "\n")

    def read(self, name: str, policy: int = 0) -> str:
        return (self.policy(policy) / name).read_text().strip()

    def settings(self) -> dict[str, str]:
        fixed = {"scaling_cur_freq"}
        return {
            str(file.relative_to(self.root)): file.read_text().strip()
            for file in self.root.glob("sys/**/*")
            if file.is_file() and file.name not in fixed
        }

    def write(self, file: Path, value: str) -> None:
        self.writes.append((file.name, value))
        folder = file.parent

        def number(name: str) -> int:
            return int((folder / name).read_text())

        if not file.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
        governors = (folder / "scaling_available_governors").read_text().split()
        userspace = (folder / "scaling_governor").read_text().strip() == "userspace"
        if (
            file.name in self.refused
            or (file.name == "scaling_governor" and value not in governors)
            or (file.name == "scaling_setspeed" and not userspace)
            or (file.name == "scaling_max_freq" and int(value) < number("scaling_min_freq"))
            or (file.name == "scaling_min_freq" and int(value) > number("scaling_max_freq"))
        ):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(file))
        if file.name in {"scaling_max_freq", "scaling_min_freq"}:
            limit = folder / "bios_limit"
            most = int(limit.read_text()) if limit.exists() else number("cpuinfo_max_freq")
            value = str(min(int(value), most))
        if file.name == "scaling_setspeed":
            above = [khz for khz in TABLE if khz >= int(value)] or [TABLE[0]]
            value = str(min(*above, number("scaling_max_freq")))
            self.write_plainly(folder / "scaling_cur_freq", value)
        if file.name == "scaling_governor":
            setspeed = (folder / "scaling_cur_freq").read_text() if value == "userspace" else "<unsupported>"
            self.write_plainly(folder / "scaling_setspeed", setspeed)
        self.write_plainly(file, value + "\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path / "root")
    reboot(machine, "first-boot")
    monkeypatch.setattr(originals, "write_value", machine.write)
    return machine


def reboot(machine: Machine, name: str) -> None:
    file = machine.root / "proc/sys/kernel/random/boot_id"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(name + "\n")


@pytest.fixture
def start(machine: Machine, tmp_path: Path) -> Generator[Callable[..., CpuFreq]]:
    with ExitStack() as started:

        def start(method: Method = "cap", host: Host = HOST) -> CpuFreq:
            actuator = CpuFreq(host=host, state=tmp_path, root=machine.root, method=method)
            started.callback(actuator.close)
            return actuator

        yield start


Start = Callable[..., CpuFreq]


def apply_and_be_killed(start: Start, action: SetPState) -> None:
    """In a process of its own: apply *action*, then die without restoring."""
    if (child := os.fork()) == 0:
        try:
            start().apply(action)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_it_is_an_actuator_of_physical_cpus(start: Start) -> None:
    actuator = start()
    assert isinstance(actuator, Actuator)
    assert actuator.handles == (SetPState,)


def test_a_p_state_caps_the_clock_of_the_cpus_asked_for_only(machine: Machine, start: Start) -> None:
    machine.add(0, "0")
    machine.add(1, "1")
    outcome = start().apply(SetPState((1,), 2))
    assert outcome.done
    assert "2000000 kHz" in outcome.actual
    assert machine.read("scaling_max_freq", 1) == "2000000"
    assert machine.read("scaling_max_freq", 0) == "2400000"


def test_restore_puts_every_setting_back_and_again_does_nothing(machine: Machine, start: Start) -> None:
    machine.add(0, "0 1", scaling_max_freq="2200000", scaling_min_freq="1800000")
    before = machine.settings()
    actuator = start()
    actuator.apply(SetPState((0,), 0))
    assert machine.settings() != before
    assert [outcome.done for outcome in actuator.restore()] == [True]
    assert machine.settings() == before
    assert actuator.restore() == []


def test_close_restores_and_then_refuses(machine: Machine, start: Start) -> None:
    machine.add(0, "0")
    before = machine.settings()
    actuator = start()
    actuator.apply(SetPState((0,), 0))
    actuator.close()
    actuator.close()
    assert machine.settings() == before
    outcome = actuator.apply(SetPState((0,), 0))
    assert not outcome.done
    assert "is closed" in outcome.error
    assert machine.settings() == before


def test_the_next_start_after_a_kill_restores_before_anything_else_and_logs_it(
    machine: Machine, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    machine.add(0, "0")
    before = machine.settings()
    apply_and_be_killed(start, SetPState((0,), 0))
    assert machine.settings() != before
    start()
    assert machine.settings() == before
    assert "0 was left changed by a killed broker; restored" in caplog.text


def test_a_changed_value_is_never_taken_for_the_original_after_a_kill(machine: Machine, start: Start) -> None:
    machine.add(0, "0")
    before = machine.settings()
    apply_and_be_killed(start, SetPState((0,), 0))
    machine.refused = {"scaling_max_freq"}  # so that the next start cannot restore
    second = start()
    machine.refused = set()
    second.apply(SetPState((0,), 1))
    second.close()
    assert machine.settings() == before


def test_originals_of_another_boot_are_dropped(machine: Machine, start: Start) -> None:
    machine.add(0, "0")
    apply_and_be_killed(start, SetPState((0,), 0))
    reboot(machine, "second-boot")
    machine.write_plainly(machine.policy(0) / "scaling_max_freq", "2200000")  # set at boot by the operator
    start().close()
    assert machine.read("scaling_max_freq") == "2200000"


def test_originals_of_a_driver_that_was_reloaded_are_dropped(machine: Machine, start: Start) -> None:
    machine.add(0, "0")
    apply_and_be_killed(start, SetPState((0,), 0))
    machine.policy(0).rename(machine.root / "gone")
    machine.add(0, "0", scaling_max_freq="2200000")
    start().close()
    assert machine.read("scaling_max_freq") == "2200000"


def test_a_second_actuator_is_kept_out(start: Start) -> None:
    first = start()
    with pytest.raises(JournalError, match="is open in another process"):
        start()
    first.close()


def test_nothing_is_written_when_the_originals_cannot_be_kept(
    machine: Machine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.add(0, "0")
    actuator = start()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    outcome = actuator.apply(SetPState((0,), 0))
    assert not outcome.done
    assert "No space left on device" in outcome.error
    assert machine.writes == []


def test_the_original_is_on_disk_before_the_first_write(
    machine: Machine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.add(0, "0")
    actuator = start()
    order: list[str] = []
    fsync, write = os.fsync, machine.write

    def synced(fd: int) -> None:
        order.append("sync")
        fsync(fd)

    def wrote(file: Path, value: str) -> None:
        order.append("write")
        write(file, value)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(originals, "write_value", wrote)
    actuator.apply(SetPState((0,), 0))
    assert order == ["sync", "sync", "write", "write"]  # the file, directory, then the machine


def test_cpus_that_share_a_clock_get_the_highest_level_among_them(machine: Machine, start: Start) -> None:
    machine.add(0, "0 1")
    actuator = start()
    actuator.apply(SetPState((0,), 3))
    actuator.apply(SetPState((1,), 1))
    assert machine.read("scaling_max_freq") == "2200000"
    actuator.apply(SetPState((0,), 0))
    assert machine.read("scaling_max_freq") == "1800000"


def test_a_domain_that_was_never_slowed_down_holds_the_clock_that_it_shares_at_the_top(
    machine: Machine, start: Start
) -> None:
    machine.add(0, "0 1")
    actuator = start(host=attrs.evolve(HOST, domains={"web1": Domain("web1", 4, (0,)), "db": Domain("db", 4, (1,))}))
    actuator.apply(SetPState((0,), 0))
    assert machine.read("scaling_max_freq") == "2400000"
    actuator.apply(SetPState((1,), 1))
    assert machine.read("scaling_max_freq") == "1800000"


def test_after_a_restore_every_domain_stands_at_the_top_again(machine: Machine, start: Start) -> None:
    machine.add(0, "0 1")
    actuator = start(host=attrs.evolve(HOST, domains={"web1": Domain("web1", 4, (0,)), "db": Domain("db", 4, (1,))}))
    actuator.apply(SetPState((0, 1), 0))
    assert machine.read("scaling_max_freq") == "1000000"
    actuator.restore()
    actuator.apply(SetPState((0,), 0))
    assert machine.read("scaling_max_freq") == "2400000"


def test_a_minimum_above_the_p_state_gives_way_and_comes_back(machine: Machine, start: Start) -> None:
    machine.add(0, "0", scaling_min_freq="2200000")
    actuator = start()
    assert actuator.apply(SetPState((0,), 0)).done
    assert machine.read("scaling_min_freq") == "1000000"
    assert actuator.apply(SetPState((0,), 4)).done
    assert machine.read("scaling_min_freq") == "2200000"


def test_the_limit_of_firmware_is_obeyed_and_said(machine: Machine, start: Start) -> None:
    machine.add(0, "0", bios_limit="2000000", scaling_max_freq="2000000")
    outcome = start().apply(SetPState((0,), 4))
    assert outcome.done
    assert "2000000 kHz" in outcome.actual
    assert ("scaling_max_freq", "2000000") in machine.writes


def test_the_limit_of_firmware_is_not_recorded_as_the_operators(machine: Machine, start: Start) -> None:
    machine.add(0, "0", bios_limit="2000000", scaling_max_freq="2000000")
    actuator = start()
    actuator.apply(SetPState((0,), 0))
    machine.write_plainly(machine.policy(0) / "bios_limit", "2400000")  # firmware lifts it meanwhile
    actuator.close()
    assert machine.read("scaling_max_freq") == "2400000"


def test_an_active_driver_is_told_to_prefer_speed_below_the_cap(machine: Machine, start: Start) -> None:
    machine.add(
        0,
        "0",
        scaling_driver="intel_pstate",
        scaling_available_governors="performance powersave",
        scaling_governor="powersave",
        scaling_available_frequencies="",
        energy_performance_preference="balance_power",
    )
    actuator = start()
    assert actuator.apply(SetPState((0,), 2)).done
    assert machine.read("energy_performance_preference") == "performance"
    actuator.close()
    assert machine.read("energy_performance_preference") == "balance_power"


def test_the_userspace_method_pins_the_clock_and_gives_the_governor_back(machine: Machine, start: Start) -> None:
    machine.add(0, "0")
    before = machine.settings()
    actuator = start(method="userspace")
    assert actuator.apply(SetPState((0,), 1)).done
    assert machine.read("scaling_cur_freq") == "1800000"
    actuator.close()
    assert machine.settings() == before


def test_a_clock_pinned_by_the_operator_is_pinned_again(machine: Machine, start: Start) -> None:
    machine.add(0, "0", scaling_governor="userspace", scaling_setspeed="2200000")
    before = machine.settings()
    actuator = start(method="userspace")
    actuator.apply(SetPState((0,), 0))
    actuator.close()
    assert machine.settings() == before


def test_a_driver_that_clamps_in_silence_is_found_out(machine: Machine, start: Start) -> None:
    machine.add(0, "0", scaling_max_freq="1800000")
    outcome = start(method="userspace").apply(SetPState((0,), 4))
    assert not outcome.done
    assert "scaling_setspeed 1800000 kHz" in outcome.error
    assert "instead of 2400000 kHz" in outcome.error


def test_the_userspace_method_on_an_active_driver_says_what_to_use(machine: Machine, start: Start) -> None:
    machine.add(0, "0", scaling_available_governors="performance powersave")
    outcome = start(method="userspace").apply(SetPState((0,), 0))
    assert not outcome.done
    assert "use the method cap" in outcome.error
    assert machine.writes == []


def test_a_refused_write_is_reported_with_its_file(machine: Machine, start: Start) -> None:
    machine.add(0, "0")
    machine.refused = {"scaling_max_freq"}
    outcome = start().apply(SetPState((0,), 0))
    assert not outcome.done
    assert "policy0/scaling_max_freq: Invalid argument" in outcome.error


def test_a_refused_restore_is_reported_and_tried_again(machine: Machine, start: Start) -> None:
    machine.add(0, "0")
    before = machine.settings()
    actuator = start()
    actuator.apply(SetPState((0,), 0))
    machine.refused = {"scaling_max_freq"}
    (outcome,) = actuator.restore()
    assert not outcome.done
    assert "scaling_max_freq: Invalid argument" in outcome.error
    machine.refused = set()
    assert [outcome.done for outcome in actuator.restore()] == [True]
    assert machine.settings() == before


def test_a_close_that_could_not_restore_leaves_it_to_the_next_start(machine: Machine, start: Start) -> None:
    machine.add(0, "0")
    before = machine.settings()
    actuator = start()
    actuator.apply(SetPState((0,), 0))
    machine.refused = {"scaling_max_freq"}
    actuator.close()
    machine.refused = set()
    changed = machine.settings()
    assert not actuator.apply(SetPState((0,), 1)).done
    assert machine.settings() == changed != before
    start()
    assert machine.settings() == before


def test_a_cpu_without_a_driver_is_reported_and_the_others_are_set(machine: Machine, start: Start) -> None:
    machine.add(0, "0")
    outcome = start().apply(SetPState((0, 7), 0))
    assert not outcome.done
    assert "no cpufreq driver covers CPU 7" in outcome.error
    assert machine.read("scaling_max_freq") == "1000000"


def test_a_clock_whose_cpus_are_offline_is_no_obstacle(machine: Machine, start: Start) -> None:
    machine.add(0, "0")
    machine.add(1, "")
    (machine.policy(1) / "related_cpus").mkdir()  # cannot be read, as under an offline CPU
    actuator = start()
    assert actuator.apply(SetPState((0,), 0)).done
    assert "no cpufreq driver covers CPU 1" in actuator.apply(SetPState((1,), 0)).error
    assert available_p_states(machine.root) == (1000, 1800, 2000, 2200, 2400)


@pytest.mark.parametrize(
    "action", [SetPState((0,), 5), SetPState((0,), -1), SetPState((), 0), SetFrequency("a", level=0)]
)
def test_an_action_that_means_nothing_here_is_refused(
    machine: Machine, start: Start, action: SetPState | SetFrequency
) -> None:
    machine.add(0, "0")
    outcome = start().apply(action)
    assert not outcome.done
    assert outcome.error
    assert machine.writes == []


def test_p_states_come_from_the_drivers_table(machine: Machine) -> None:
    machine.add(0, "0")
    machine.add(1, "1")
    assert available_p_states(machine.root) == (1000, 1800, 2000, 2200, 2400)


def test_a_driver_without_a_table_gives_even_steps_over_its_range(machine: Machine) -> None:
    machine.add(0, "0", scaling_available_frequencies="", cpuinfo_min_freq="800000", cpuinfo_max_freq="4000000")
    assert available_p_states(machine.root) == (800, 1600, 2400, 3200, 4000)


def test_a_machine_without_cpufreq_has_no_p_states(machine: Machine) -> None:
    assert available_p_states(machine.root) == ()
