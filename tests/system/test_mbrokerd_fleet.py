"""The daemon and the command on two hosts: what an operator types, and what comes back."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest

from mbroker.fleet.lanes import ALIAS
from tests.system.brokers import talking
from tests.system.guest_image import HOUSE
from tests.system.libvirt_guest import PORT, Guest
from tests.system.libvirt_hosts import Host, Inside

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
BIN = Path(sys.executable).parent
SOON = 40.0
PLAIN = "<domain type='qemu'><name>plain</name><memory unit='MiB'>16</memory><os><type>hvm</type></os></domain>"


def configuration(host: Host, other: Host, folder: Path) -> str:
    """Return examples/fleet.toml for these hosts."""
    text = (HOUSE / "examples/fleet.toml").read_text()
    changes = {
        "qemu+tls://node2/system": other.peer_uri,
        "node1": host.name,
        "node2": other.name,
        "10.0.0.1": host.address,
        "10.0.0.2": other.address,
        "/var/lib/mbroker": str(folder / "state"),
        '# keys = "/etc/mchannel/keys"': f'keys = "{folder / "keys"}"',
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


@attrs.define(eq=False)
class Node:
    """A host, its mbrokerd, and a shell on it."""

    host: Host
    folder: Path
    _daemon: Inside | None = None

    @property
    def config(self) -> Path:
        return self.folder / "mbroker.toml"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start(self) -> None:
        """Start the daemon, and wait until it answers."""
        with (self.folder / "log").open("a") as log:
            self._daemon = self.host.enter([BIN / "mbrokerd", "--config", self.config], stdout=log, stderr=log)
        self.until(lambda: self.ask("status", code=None) != "")

    def stop(self) -> None:
        """Stop it as the service manager would."""
        if self._daemon is not None:
            self._daemon.terminate()
            with self._daemon:
                self._daemon = None

    def kill(self) -> None:
        """End it without a word."""
        if self._daemon is not None:
            self._daemon.kill()
            with self._daemon:
                self._daemon = None

    def ask(self, *words: str | Path, code: int | None = 0, says: str | None = None) -> str:
        """Return what ``mbroker`` prints; it must end with *code*, and, failing, with one line that has *says*."""
        command = [BIN / "mbroker", *words]
        with self.host.enter(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            out, err = process.communicate(timeout=120)
        if code is not None:
            assert process.returncode == code, (words, out, err)
        if says is not None:
            assert says in err
            assert err.startswith("mbroker: ")
            assert err.count("\n") == 1
        return out

    def json(self, *words: str) -> Any:
        return json.loads(self.ask(*words, "--output", "json"))

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SOON
        while not condition():
            assert time.monotonic() < deadline, f"{self.host.name}: {self.log[-3000:]}"
            time.sleep(0.2)

    def attends(self, name: str) -> bool:
        """Whether the daemon says so now."""
        out = self.ask("domains", "--output", "json", code=None)
        return bool(out) and any(row["name"] == name and row["attended"] for row in json.loads(out))

    def sees(self, other: Host) -> bool:
        return any(row["name"] == other.name and row["present"] for row in self.json("fleet"))

    def live_agents(self) -> int:
        return sum(agent["state"] == "live" for agent in self.json("list"))


@pytest.fixture(scope="module")
def nodes(hosts: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    """A daemon on each host, set up by the commands that an operator would use."""
    folders = [tmp_path_factory.mktemp(host.name) for host in hosts]
    pair = Node(hosts[0], folders[0]), Node(hosts[1], folders[1])
    for node, other in (pair, pair[::-1]):
        node.config.write_text(configuration(node.host, other.host, node.folder))
        node.ask("keys", "new", node.host.name, "--folder", node.folder / "keys")
    for node, other in (pair, pair[::-1]):
        public = node.folder / f"{other.host.name}.pub"
        public.write_text(other.ask("keys", "show", "--folder", other.folder / "keys"))
        node.ask("keys", "trust", other.host.name, public, "--folder", node.folder / "keys")
        node.ask("check-config", node.config)
    try:
        for node in pair:
            node.start()
        for node, other in (pair, pair[::-1]):
            node.until(partial(node.sees, other.host))
        yield pair
    finally:
        for node in pair:
            node.stop()


@pytest.fixture
def agent(guest: Guest, nodes: tuple[Node, Node]) -> Iterator[Guest]:
    """A guest on the first host whose agent talks to the daemon there."""
    nodes[0].until(lambda: nodes[0].attends(guest.name))
    with talking(guest, f"virtio:///{PORT}", interval=0.1):
        nodes[0].until(lambda: nodes[0].live_agents() == 1)
        yield guest


def test_the_command_moves_a_domain_and_its_agent_goes_on_there(agent: Guest, nodes: tuple[Node, Node]) -> None:
    first, second = nodes
    boot = agent.boot_id()
    result = first.json("migrate", agent.name, second.host.name)
    assert (result["moved"], result["host"], result["step"], result["reason"]) == (True, second.host.name, "", "")
    agent.host = second.host
    second.until(lambda: second.live_agents() == 1)
    assert second.attends(agent.name)
    assert not first.attends(agent.name)

    terminal, bar = pty.openpty()
    command: list[str | Path] = [BIN / "mbroker", "migrate", agent.name, first.host.name]
    with second.host.enter(command, stdout=subprocess.PIPE, stderr=bar, env={**os.environ, "TERM": "xterm"}) as moving:
        os.close(bar)
        shown = _until_hung_up(terminal)
        out, _ = moving.communicate(timeout=120)
    assert moving.returncode == 0, shown
    agent.host = first.host
    assert f"{agent.name} to {first.host.name}: move" in shown
    assert "100%" in shown
    assert out.startswith(f"{agent.name} runs on {first.host.name}, after ")
    first.until(lambda: first.live_agents() == 1)
    assert agent.boot_id() == boot


def _until_hung_up(terminal: int) -> str:
    shown = b""
    with open(terminal, "rb", buffering=0) as screen:
        try:
            while data := screen.read(4096):
                shown += data
        except OSError:  # how a terminal says that nobody writes any more
            pass
    return shown.decode(errors="replace")


def test_the_doctor_finds_both_hosts_well(agent: Guest, nodes: tuple[Node, Node]) -> None:
    for node, other in (nodes, nodes[::-1]):
        found = node.json("doctor", "--config", str(node.config))
        assert {each["verdict"] for each in found} == {"ok"}, found
        said = [each["meaning"] for each in found]
        assert any(f"the broker of {other.host.name} answers" in each for each in said)
        assert any(f"the hypervisor of {other.host.name} answers" in each for each in said)
    assert f"{agent.name} has the port {PORT}" in str(nodes[0].json("doctor", "--config", str(nodes[0].config)))


def test_what_cannot_be_moved_is_one_line_and_an_exit_code(agent: Guest, nodes: tuple[Node, Node]) -> None:
    first, second = nodes
    first.ask(
        "migrate", agent.name, "mars", code=4, says=f"mars is no host of this fleet; known are {second.host.name}"
    )
    first.ask("migrate", agent.name, first.host.name, code=1, says=f"{agent.name} is on {first.host.name} already")
    first.ask("migrate", "nobody", second.host.name, code=4, says="nobody")
    second.ask("migrate", agent.name, first.host.name, code=4, says=agent.name)
    first.ask("domains", "--control", "shm:///elsewhere", code=3, says="no daemon answers at shm:///elsewhere")
    first.ask("migrate", agent.name, code=2)
    assert first.attends(agent.name)


def test_a_domain_without_the_port_is_listed_so_and_not_moved(nodes: tuple[Node, Node]) -> None:
    import libvirt

    first, second = nodes
    with closing(first.host.connect()) as connection:
        domain = connection.createXML(PLAIN, libvirt.VIR_DOMAIN_START_PAUSED)
        try:
            first.until(lambda: "plain has no port" in first.log)
            row = next(row for row in first.json("domains") if row["name"] == "plain")
            assert (row["state"], row["port"], row["attended"]) == ("paused", False, False)
            xml = f"<channel type='unix'><target type='virtio' name='{PORT}'/></channel>"
            first.ask("migrate", "plain", second.host.name, code=1, says=xml)
        finally:
            domain.destroy()


def test_a_libvirtd_that_starts_again_finds_its_domains_attended(agent: Guest, nodes: tuple[Node, Node]) -> None:
    first, second = nodes
    first.host.kill_libvirtd()
    try:
        first.until(lambda: "the connection to libvirt is lost" in first.log)
        first.ask("domains", code=3, says="is its libvirtd running?")
        first.ask("migrate", agent.name, second.host.name, code=3, says="is its libvirtd running?")
        first.until(lambda: first.live_agents() == 1)  # its channel needs no libvirt
    finally:
        first.host.start_libvirtd()
    first.until(lambda: first.attends(agent.name))
    assert first.live_agents() == 1


def test_a_libvirtd_that_comes_after_the_daemon_is_found(agent: Guest, nodes: tuple[Node, Node]) -> None:
    first, _ = nodes
    first.stop()
    first.host.kill_libvirtd()
    try:
        first.start()
        first.ask("domains", code=3, says="does not answer")
    finally:
        first.host.start_libvirtd()
    first.until(lambda: first.attends(agent.name))
    first.until(lambda: first.live_agents() == 1)  # it was not told goodbye


def test_shared_memory_goes_when_the_daemon_ends_or_else_when_it_starts_again(
    guest: Guest, nodes: tuple[Node, Node]
) -> None:
    first, _ = nodes

    def shares() -> bool:
        return ALIAS in first.host.run("virsh", "dumpxml", guest.name)

    first.until(lambda: first.attends(guest.name))
    with talking(guest, f"ivshmem:///{PORT}", interval=0.1):
        first.until(lambda: first.live_agents() == 1)
        first.ask("lane", guest.name, "on")
        assert shares()
        first.stop()
        first.until(lambda: not shares())  # a guest takes its time
        first.start()
        first.until(lambda: first.live_agents() == 1)
        first.ask("lane", guest.name, "on")
        first.kill()
        assert shares()
        first.start()
        first.until(lambda: not shares())
        first.until(lambda: first.live_agents() == 1)


@pytest.fixture(scope="module", autouse=True)
def no_tracebacks(nodes: tuple[Node, Node]) -> Iterator[None]:
    """Whatever happens to it, a daemon says it in lines."""
    yield
    for node in nodes:
        assert "Traceback" not in node.log
