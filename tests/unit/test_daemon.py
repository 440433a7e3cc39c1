"""The daemon as a process, driven as an operator and an agent would."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import attrs
import pytest

import mchannel
from mbroker import control
from mbroker.control import ask_agents, ask_status
from mbroker.registry import AgentState
from mchannel import Event, Peer
from tests.unit.processes import is_running

CONFIG = """
[broker]
name = "node1"
state = "{folder}/state"
[host]
p_states = [1000, 1800, 2400]
[[listen]]
address = "shm:///web1"
[policies.none]
[policies.utilization]
isolation = "process"
deadline = 0.9
[actuators.cpufreq.options]
root = "{folder}"
[domains.web1]
cpus = [0]
"""
BUSY = Event(
    "sla.epoch",
    value=0.0,
    detail={"epoch": 1, "seconds": 0.5, "requests": 9, "hard": 0, "soft": 0, "utilization": 0.05},
)


@attrs.define
class Daemon:
    folder: Path
    manager: socket.socket
    process: subprocess.Popen[str] | None = None

    @property
    def config(self) -> Path:
        return self.folder / "mbroker.toml"

    @property
    def limit_file(self) -> Path:
        return self.folder / "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq"

    @property
    def limit(self) -> str:
        """What the machine's clock is limited to, in kHz."""
        return self.limit_file.read_text().strip()

    def start(self, *, ready: bool = True, **environment: str) -> None:
        pytest.importorskip("mchannel._ring")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mbroker.daemon", "--config", str(self.config)],
            env={**os.environ, "NOTIFY_SOCKET": str(self.folder / "notify"), **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        if ready:
            self.expect("READY=1")

    def fail(self) -> tuple[int, str]:
        """Start in vain; return the exit code and the log."""
        self.start(ready=False)
        assert self.process
        _, log = self.process.communicate(timeout=30)
        return self.process.returncode, log

    def expect(self, word: str) -> None:
        """Wait until the service manager is told *word*."""
        for _ in range(1000):
            if word in self.manager.recv(4096).decode():
                return
        raise AssertionError(f"the daemon never said {word}")

    def send(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def reload(self, *changes: tuple[str, str]) -> None:
        """Change the configuration's text, and wait until it was taken over or refused."""
        text = self.config.read_text()
        for old, new in changes:
            text = text.replace(old, new)
        self.config.write_text(text)
        self.send(signal.SIGHUP)
        self.expect("RELOADING=1")
        self.expect("READY=1")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """End the daemon; return its exit code and its log."""
        assert self.process
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=30)
        return self.process.returncode, log

    def cli(self, *arguments: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "mbroker.cli", *arguments, "--output", "json"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Generator[Daemon]:
    """Lend a daemon that can be started in a folder of its own, with a cpufreq driver of plain files."""
    folder = Path(tempfile.mkdtemp(prefix="mbrokerd-"))
    monkeypatch.setenv("MCHANNEL_RUNTIME_DIR", str(folder / "run"))
    monkeypatch.delenv("MBROKER_CONTROL", raising=False)
    monkeypatch.setattr("mbroker.control._PATIENCE", 30.0)
    driver = folder / "sys/devices/system/cpu/cpufreq/policy0"
    driver.mkdir(parents=True)
    (folder / "proc/sys/kernel/random").mkdir(parents=True)
    shutil.copy("/proc/sys/kernel/random/boot_id", folder / "proc/sys/kernel/random/boot_id")
    for name, value in {
        "related_cpus": "0",
        "affected_cpus": "0",
        "scaling_driver": "acpi-cpufreq",
        "scaling_governor": "schedutil",
        "scaling_available_frequencies": "2400000 1800000 1000000",
        "cpuinfo_min_freq": "1000000",
        "cpuinfo_max_freq": "2400000",
        "scaling_min_freq": "1000000",
        "scaling_max_freq": "2400000",
        "scaling_cur_freq": "2400000",
    }.items():
        (driver / name).write_text(f"{value}\n")
    (folder / "mbroker.toml").write_text(CONFIG.format(folder=folder))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        manager.settimeout(30)
        lent = Daemon(folder, manager)
        yield lent
        if lent.process and lent.process.poll() is None:
            lent.process.kill()
        if lent.process:
            lent.process.communicate()
    shutil.rmtree(folder)


def idle(agent: mchannel.Channel[Event], daemon: Daemon) -> None:
    """Say that the domain has little to do until the clock is as slow as it can be.

    On a machine that is busy a policy in a process of its own may miss its deadline, which costs a decision.
    """

    def slowed() -> bool:
        agent.write(BUSY)
        agent.flush(timeout=20)
        return daemon.limit == "1000000"

    until(slowed)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_an_event_of_an_agent_changes_the_clock_and_the_end_restores_it(daemon: Daemon) -> None:
    daemon.start()
    with mchannel.open("shm:///web1", name="sla") as agent:
        idle(agent, daemon)
        code, log = daemon.stop()
        assert (code, daemon.limit) == (0, "2400000"), log
        agent.write(BUSY)  # nobody said goodbye: the agent waits for the next broker
        daemon.start()
        agent.flush(timeout=20)


def test_the_command_shows_status_and_agents(daemon: Daemon) -> None:
    daemon.start()
    with mchannel.open("shm:///web1", name="sla") as agent:
        agent.write(BUSY)
        agent.flush(timeout=20)
        status, agents = daemon.cli("status"), daemon.cli("list")
    assert (status["broker"], status["listening"], status["problem"]) == ("node1", ["shm:///web1"], "")
    assert {policy["name"]: policy["trusted"] for policy in status["policies"]} == {"none": True, "utilization": False}
    policies = {each["name"]: each["hosted"] for each in daemon.cli("policy", "list", "--control", "shm:///mbroker")}
    assert (policies["none"], policies["utilization"]) == ({"none": "trusted"}, {"utilization": "isolated"})
    assert [(each["name"], each["domain"], each["state"]) for each in agents] == [("sla", "web1", "live")]
    assert agents[0]["identity"] == f"{status['host_id']}/web1/sla"


def test_a_killed_daemon_knows_its_agents_again_and_puts_the_clock_back(daemon: Daemon) -> None:
    daemon.start()
    with mchannel.open("shm:///web1", name="sla") as agent:
        idle(agent, daemon)
        daemon.stop(signal.SIGKILL)
        assert daemon.limit == "1000000"
        daemon.start()
        assert daemon.limit == "2400000"
        agent.write(BUSY)
        agent.flush(timeout=20)
        until(lambda: ask_agents("shm:///mbroker")[0].state is AgentState.LIVE)
    (known,) = ask_agents("shm:///mbroker")
    assert (known.name, known.established, known.terminated >= 1) == ("sla", 2, True)


def test_an_isolated_policy_dies_with_a_killed_daemon(daemon: Daemon) -> None:
    daemon.start()
    assert daemon.process
    pid = daemon.process.pid
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert "mbroker.isolated" in Path(f"/proc/{child}/cmdline").read_text()
    daemon.stop(signal.SIGKILL)
    until(lambda: not is_running(child))


def test_a_reload_takes_over_the_new_and_leaves_the_rest_as_it_is(daemon: Daemon) -> None:
    daemon.start()
    with mchannel.open("shm:///web1", name="sla") as agent:
        idle(agent, daemon)
        (daemon.folder / "mbroker.d").mkdir()
        (daemon.folder / "mbroker.d/more.toml").write_text('[[listen]]\naddress = "shm:///db"\n[policies.basic]\n')
        daemon.send(signal.SIGHUP)
        daemon.expect("RELOADING=1")
        daemon.expect("READY=1")
        status = ask_status("shm:///mbroker")
        assert set(status.listening) == {"shm:///web1", "shm:///db"}
        assert {policy.name for policy in status.policies} == {"none", "utilization", "basic"}
        assert (status.domains[0].level, daemon.limit) == (0, "1000000"), "the level in force is not forgotten"
        agent.write(BUSY)
        agent.flush(timeout=20)
        with mchannel.open("shm:///db", timeout=20):
            pass


def test_a_reload_can_close_an_address(daemon: Daemon) -> None:
    daemon.start()
    daemon.config.write_text(CONFIG.format(folder=daemon.folder).replace("shm:///web1", "shm:///other"))
    daemon.send(signal.SIGHUP)
    daemon.expect("RELOADING=1")
    daemon.expect("READY=1")
    assert ask_status("shm:///mbroker").listening == ("shm:///other",)
    until(lambda: not (daemon.folder / "run/web1.shm").exists())


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("[broker]", "[brokr]", "unknown key"),
        ("[policies.none]", "[policies.basik]", "no policy is called"),
        ("[actuators.cpufreq.options]", "[actuators.cpufreq.options]\nmethod = 'x'", "method"),
        ('"shm:///web1"', '"shm:///web1"\n[[listen]]\naddress = "nowire:///x"', "no transport is called"),
        ('name = "node1"', 'control = "ipc:///other"', "needs a restart"),
    ],
)
def test_a_bad_configuration_at_a_reload_changes_nothing(daemon: Daemon, old: str, new: str, reason: str) -> None:
    daemon.start()
    with mchannel.open("shm:///web1", name="sla") as agent:
        daemon.config.write_text(CONFIG.format(folder=daemon.folder).replace(old, new))
        daemon.send(signal.SIGHUP)
        daemon.expect("RELOADING=1")
        daemon.expect("READY=1")
        idle(agent, daemon)
        status = ask_status("shm:///mbroker")
        assert reason in status.problem
        assert [policy.name for policy in status.policies] == ["none", "utilization"]
        assert status.listening == ("shm:///web1",)
    _, log = daemon.stop()
    assert sum("kept the configuration" in line for line in log.splitlines()) == 1
    assert "Traceback" not in log


def test_a_failed_reload_closes_the_addresses_and_ends_the_policies_that_it_began(daemon: Daemon) -> None:
    daemon.start()
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children")
    before = children.read_text()
    daemon.reload(
        ('"shm:///web1"', '"shm:///web1"\n[[listen]]\naddress = "shm:///db"'),
        ("[policies.none]", "[policies.basic]\nisolation = 'process'\n[policies.none]"),
        ("[actuators.cpufreq.options]", "[actuators.cpufreq.options]\nmethod = 'x'"),
    )
    status = ask_status("shm:///mbroker")
    assert "method" in status.problem
    assert status.listening == ("shm:///web1",)
    assert not (daemon.folder / "run/db.shm").exists()
    until(lambda: children.read_text() == before)


def test_a_reload_with_a_bad_actuator_never_touches_the_clock(daemon: Daemon) -> None:
    daemon.start()
    with mchannel.open("shm:///web1", name="sla") as agent:
        idle(agent, daemon)
        written = daemon.limit_file.stat().st_mtime_ns
        daemon.reload(("[actuators.cpufreq.options]", "[actuators.dryrun.options]\nx = 1\n[actuators.cpufreq.options]"))
        status = ask_status("shm:///mbroker")
        assert f"{daemon.config}: actuators.dryrun.options.x: actuator dryrun has no option" in status.problem
        assert (status.actuators, status.domains[0].level) == (("cpufreq",), 0)
        assert daemon.limit_file.stat().st_mtime_ns == written


def test_a_reload_that_a_journal_refuses_brings_back_what_was_with_the_clock_at_its_top(daemon: Daemon) -> None:
    (daemon.folder / "proc/self").mkdir()
    (daemon.folder / "proc/self/mountinfo").write_text("41 31 0:38 / /cg rw - cgroup cgroup rw,cpu,cpuacct\n")
    daemon.start()
    (daemon.folder / "state/cpu_bandwidth.originals").write_text("damaged")
    with mchannel.open("shm:///web1", name="sla") as agent:
        idle(agent, daemon)
        more = f"[actuators.cpu_bandwidth.options]\nroot = '{daemon.folder}'\n[actuators.cpufreq.options]"
        daemon.reload(("[actuators.cpufreq.options]", more))
        status = ask_status("shm:///mbroker")
        assert f"{daemon.config}: actuators.cpu_bandwidth: " in status.problem
        assert (status.actuators, status.domains[0].level, daemon.limit) == (("cpufreq",), 2, "2400000")
        idle(agent, daemon)


def test_a_reload_that_cannot_let_go_of_its_actuators_keeps_them(daemon: Daemon) -> None:
    daemon.start()
    with mchannel.open("shm:///web1", name="sla") as agent:
        idle(agent, daemon)
        (daemon.folder / "state").rename(daemon.folder / "away")
        daemon.reload(("[actuators.cpufreq.options]", "[actuators.dryrun]\n[actuators.cpufreq.options]"))
        status = ask_status("shm:///mbroker")
        assert "could not restore" in status.problem
        assert (status.actuators, status.listening) == (("cpufreq",), ("shm:///web1",))
        assert (status.domains[0].level, daemon.limit) == (2, "2400000")
        (daemon.folder / "away").rename(daemon.folder / "state")
        idle(agent, daemon)
    code, log = daemon.stop()
    assert (code, daemon.limit) == (0, "2400000"), log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("[broker]", "[brokr]", "brokr: unknown key; did you mean broker?"),
        ("[domains.web1]", "[actuators.cpufrek]\n[domains.web1]", "actuators.cpufrek: no actuator is called 'cpufrek'"),
        ('root = "', 'root = "/nowhere', "actuators.cpufreq.options.root: actuator cpufreq refuses its options: "),
        ('state = "', 'state = "/proc/none', "broker.state: /proc/none"),
        ("shm:///web1", "shm:///no/such/folder/web1", "listen.0.address: "),
    ],
)
def test_a_bad_configuration_at_the_start_is_one_line_with_file_and_key(
    daemon: Daemon, old: str, new: str, line: str
) -> None:
    daemon.config.write_text(daemon.config.read_text().replace(old, new))
    code, log = daemon.fail()
    assert code == 2
    assert log.startswith(f"mbrokerd: {daemon.config}: {line}")
    assert log.count("\n") == 1


def test_a_missing_configuration_is_exit_code_4(daemon: Daemon) -> None:
    daemon.config.unlink()
    assert daemon.fail() == (4, f"mbrokerd: {daemon.config}: cannot be read: No such file or directory\n")


def test_a_second_daemon_on_the_same_state_does_not_start(daemon: Daemon) -> None:
    daemon.start()
    second = subprocess.run(
        [sys.executable, "-m", "mbroker.daemon", "--config", str(daemon.config)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 2
    assert "open in another process" in second.stderr
    assert "Traceback" not in second.stderr


def test_the_service_manager_is_told_ready_alive_and_stopping(daemon: Daemon) -> None:
    daemon.start(WATCHDOG_USEC="300000")
    daemon.expect("WATCHDOG=1")
    daemon.expect("WATCHDOG=1")
    daemon.send(signal.SIGTERM)
    daemon.expect("STOPPING=1")


def test_a_service_manager_that_does_not_listen_holds_nothing_up(daemon: Daemon) -> None:
    daemon.start(WATCHDOG_USEC="3000")
    time.sleep(0.5)  # its queue is full by then
    assert ask_status("shm:///mbroker").broker == "node1"


def test_silence_of_an_agent_is_told_to_the_policies(daemon: Daemon) -> None:
    daemon.start()
    with mchannel.open("shm:///web1", name="sla") as agent:
        agent.write(BUSY)
        agent.flush(timeout=20)
        until(lambda: ask_status("shm:///mbroker").events >= 3)


@pytest.mark.parametrize(
    ("uid", "may"), [(0, True), (os.geteuid(), True), (os.geteuid() + 12345, False), (None, False)]
)
def test_only_root_and_the_daemons_own_user_may_ask(uid: int | None, may: bool) -> None:
    assert control.may_ask(Peer("x", "shm:///mbroker", uid)) is may
