"""Brokers of a fleet on the two hosts, each a process of its own that can be killed; see host_numbers."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from mchannel import keys
from tests.system.libvirt_guest import Guest
from tests.system.libvirt_hosts import Host, Inside

HERE = Path(__file__).parent
FLEET_PORT = 7700
GUEST, MVM = "guest", "mvm"
TCP = "tcp://169.254.42.1:7600"
"""Where a guest dials whichever host it is on; both hosts have this key and address towards their guests."""


@attrs.define(eq=False)
class BrokerProcess:
    """One broker, and what it said since the test began."""

    host: Host
    argv: list[str | Path]
    log: Path
    said: list[dict[str, Any]] = attrs.field(factory=list[dict[str, Any]])
    _process: Inside | None = None
    _lines: queue.SimpleQueue[dict[str, Any]] = attrs.field(factory=queue.SimpleQueue[dict[str, Any]])

    def start(self, **environment: str) -> None:
        """Start it, or start it again, with more in its environment."""
        with self.log.open("a") as log:
            self._process = self.host.enter(
                self.argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **environment},
            )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        self.wait("ready")

    def pause(self) -> None:
        """Let it hang until :meth:`go_on`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again, and the ``nsenter`` before it, which stops when it does."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it without a word."""
        if self._process is not None:
            self._process.kill()
            with self._process:
                self._process = None

    def tell(self, *words: str) -> None:
        """Give it a command."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()

    def wait(self, what: str, timeout: float = 60, *, after: float = 0.0, **fields: Any) -> dict[str, Any]:
        """Return the next thing of that kind that it says *after* that moment; raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                said = self._lines.get(timeout=left)
            except queue.Empty:
                break
            self.said.append(said)
            if said["what"] == what and said["at"] >= after and fields.items() <= said.items():
                return said
        raise TimeoutError(f"{self.host.name} did not say {what}; its log: {self.log.read_text()[-3000:]}")

    def listen(self, seconds: float) -> None:
        """Take in what it says for a while."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                self.said.append(self._lines.get(timeout=left))
            except queue.Empty:
                return

    def _read(self, process: Inside) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._lines.put(json.loads(line))


@attrs.define(eq=False)
class Talk:
    """What agents and brokers told each other, counted at the end."""

    brokers: tuple[BrokerProcess, ...]

    def end(self, at: BrokerProcess) -> dict[str, Any]:
        """Let the agent say what it heard; the broker at its host is *at*."""
        for broker in self.brokers:
            broker.listen(0.2)
        at.tell("stop")
        return at.wait("end")

    def heard(self) -> list[dict[str, Any]]:
        """Return all numbers of the agent that the brokers heard, in the order of their clocks."""
        numbers = [said for broker in self.brokers for said in broker.said if said["what"] == "number"]
        return sorted(numbers, key=lambda said: said["at"])


@contextmanager
def brokers(
    hosts: tuple[Host, Host], folder: Path, *, interval: float = 0.01, lane: str = ""
) -> Generator[tuple[BrokerProcess, ...]]:
    """Run a broker on each host, members of one fleet, which gives every domain a *lane* of that size, if any."""
    for host in hosts:
        keys.new(folder / host.name, host.name)
    for host in hosts:
        for other in hosts:
            if other is not host:
                keys.trust(folder / host.name, other.name, keys.show(folder / other.name))
    for name in (GUEST, MVM):
        keys.new(folder / name, name)
    keys.trust(folder / MVM, GUEST, keys.show(folder / GUEST))
    keys.trust(folder / GUEST, MVM, keys.show(folder / MVM))
    made: list[BrokerProcess] = []
    for host in hosts:
        argv: list[str | Path] = [sys.executable, "-u", HERE / "host_numbers.py", host.name]
        argv += ["--state", folder / host.name, "--keys", folder / host.name]
        argv += ["--listen", f"tcp://{host.address}:{FLEET_PORT}", "--interval", str(interval)]
        argv += ["--tcp", TCP, "--tcp-keys", folder / MVM]
        argv += ["--lane", lane] if lane else []
        for other in hosts:
            if other is not host:
                argv += ["--member", other.name, f"tcp://{other.address}:{FLEET_PORT}", other.peer_uri]
        made.append(BrokerProcess(host, argv, folder / f"{host.name}.log"))
    try:
        for broker in made:
            broker.start()
        yield tuple(made)
    finally:
        for broker in made:
            broker.kill()


@contextmanager
def talking(guest: Guest, address: str, interval: float = 0.01, folder: Path | None = None) -> Generator[Guest]:
    """Run an agent in *guest* that talks to whichever broker is there; *folder* has keys for tcp."""
    guest.put("/tmp/talk.py", (HERE / "guest_talk.py").read_text())
    if folder is not None:
        guest.run("sh", "-c", "ip address replace 169.254.42.9/24 dev eth0; mkdir -p -m 700 /tmp/keys/trusted")
        for file in ("identity.key", f"trusted/{MVM}.pub"):
            guest.put(f"/tmp/keys/{file}", (folder / GUEST / file).read_text())
        guest.run("sh", "-c", "chmod 700 /tmp/keys /tmp/keys/trusted; chmod 600 /tmp/keys/identity.key")
    pid = guest.start("python3", "/tmp/talk.py", address, str(interval))
    try:
        yield guest
    finally:
        print(guest.run("sh", "-c", 'cat /tmp/log; kill "$0" 2>/dev/null || true', pid))
