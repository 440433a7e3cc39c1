"""Two hosts on one machine: a libvirtd each, in namespaces of their own, joined by a cable.

Nothing is named outside those namespaces but a control group for each host, which carries the process id of the test
run; a run that was killed leaves at most these, and the next one removes them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

HOSTS = {"mvm-a": "10.77.0.1", "mvm-b": "10.77.0.2"}
CGROUP = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpu", "cpuacct", "cpuset")  # what version 1 needs
TOOLS = {
    "libvirtd": "libvirt-daemon",
    "qemu-system-x86_64": "qemu-system-x86",
    "ip": "iproute2",
    "unshare": "util-linux",
    "busybox": "busybox-static",
}


class NoHosts(Exception):
    """Hosts cannot be made here; the message says what is missing."""


class Inside(subprocess.Popen[str]):
    """A process inside a host; signals go to itself, not to the ``nsenter`` before it."""

    def send_signal(self, sig: int) -> None:
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in _children(self.pid):
                os.kill(child, sig)


@attrs.frozen
class Host:
    """One management VM: what a broker on it would call this host."""

    name: str
    address: str
    """Where the other host reaches it; known only inside the hosts."""
    pid: int
    """The first process of its namespaces."""

    @property
    def uri(self) -> str:
        """Its libvirtd, for a process outside. A process on the host says ``qemu:///system``."""
        return f"qemu+unix:///system?socket={self.path('/run/libvirt/libvirt-sock')}"

    @property
    def peer_uri(self) -> str:
        """Its libvirtd, for a process on the other host."""
        return f"qemu+tcp://{self.address}/system"

    def path(self, inside: str | Path) -> Path:
        """Return what the host calls *inside*, as it is called here."""
        return Path(f"/proc/{self.pid}/root", str(inside).lstrip("/"))

    def enter(self, argv: Sequence[str | Path], **popen: Any) -> Inside:
        """Start a process on the host; it dies with the one that is returned, and with the host."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        here = popen.pop("cwd", "/")
        command = [*enter, f"--wd={self.path(here)}", "/run/enter", *map(str, argv)]
        popen.setdefault("text", True)
        return Inside(command, **popen)

    def run(self, *argv: str | Path, timeout: float = 60) -> str:
        """Return what a command on the host prints; raises CalledProcessError."""
        with self.enter(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            out, err = process.communicate(timeout=timeout)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, list(argv), out, err)
        return out

    def connect(self) -> Any:
        """Return a new connection to its libvirtd; close it."""
        import libvirt

        return libvirt.open(self.uri)

    def cut(self, *, off: bool = True) -> None:
        """Pull the cable between the hosts, or plug it in again."""
        self.run("ip", "link", "set", "eth0", "down" if off else "up")

    def start_libvirtd(self) -> None:
        """Start its libvirtd and wait until it serves; guests run on in between."""
        self.run("libvirtd", "--listen", "--daemon")
        deadline = time.monotonic() + 30
        while True:
            try:
                self.connect().close()
                break
            except Exception:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def kill_libvirtd(self) -> None:
        """End its libvirtd as a crash would."""
        self.run("sh", "-c", "kill -9 $(cat /run/libvirtd.pid)")


def check() -> None:
    """Raise NoHosts where two hosts cannot be made."""
    if os.geteuid():
        raise NoHosts("two hosts need root, for namespaces and control groups")
    if missing := sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)}):
        raise NoHosts(f"needs apt-get install {' '.join(missing)}")
    try:
        import libvirt
    except ImportError:
        raise NoHosts("needs pip install 'mchannel[libvirt]'") from None
    libvirt.registerErrorHandler(_silent, None)


def _silent(_context: object, _error: object) -> None:
    """Errors are raised; libvirt would print them too."""


@contextmanager
def hosts() -> Generator[tuple[Host, Host]]:
    """Make two hosts, and take away all of them at the end; raises NoHosts."""
    check()
    sweep()
    with ExitStack() as stack:
        stack.callback(sweep, os.getpid())
        a, b = pair = [stack.enter_context(_host(name, address)) for name, address in HOSTS.items()]
        cable = ["ip", "link", "add", "eth0", "netns", str(a.pid), "type", "veth", "peer", "name", "eth0"]
        subprocess.run([*cable, "netns", str(b.pid)], check=True)
        for host in pair:
            host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
            host.run("ip", "link", "set", "eth0", "up")
        for host in pair:
            host.start_libvirtd()
        yield a, b


@contextmanager
def _host(name: str, address: str) -> Generator[Host]:
    number = int(address.rpartition(".")[2])
    groups = [path / f"mchannel-{os.getpid()}-{name}" for path in _hierarchies()]
    for group in groups:
        group.mkdir()
        for file in ("cpuset.cpus", "cpuset.mems"):
            if (group / file).exists() and not (group / file).read_text().strip():  # version 1 asks for them
                (group / file).write_text((group.parent / file).read_text())
    unshare = "unshare --fork --kill-child --pid --mount-proc --mount --net --uts --ipc --cgroup"
    join = f'for group in {" ".join(map(str, groups))}; do echo $$ >$group/cgroup.procs; done; exec {unshare} "$@"'
    script = [str(Path(__file__).with_name("libvirt_host.sh")), name, address, f"6d636861-6e6e-4c00-8000-{number:012}"]
    script.append("\n".join(f"{address} {name}" for name, address in HOSTS.items()))
    version1 = " ".join(group.parent.name for group in groups) if groups[0].parent != CGROUP else ""
    with subprocess.Popen(
        ["sh", "-c", join, "sh", "bash", *script],
        env={**os.environ, "MCHANNEL_CGROUPS": version1},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            if process.stdout.readline() != "ready\n":
                raise NoHosts(f"no namespaces here: {process.stderr.read().strip()}")
            yield Host(name, address, *_children(process.pid))
        finally:
            process.stdin.close()
            process.wait(30)


def _hierarchies() -> list[Path]:
    return [CGROUP] if (CGROUP / "cgroup.controllers").exists() else [CGROUP / name for name in CONTROLLERS]


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def sweep(owner: int | None = None) -> None:
    """Remove the control groups of *owner*, or of every run that has died."""
    for group in (group for path in _hierarchies() for group in path.glob("mchannel-*-mvm-?")):
        pid = int(group.name.split("-")[1])
        if pid == owner:
            _remove(group)
        elif not Path(f"/proc/{pid}").exists():
            with suppress(OSError):  # it is of a run in another container, which lives
                _remove(group)


def _remove(group: Path) -> None:
    deadline = time.monotonic() + 10
    for folder, _, _ in os.walk(group, topdown=False):
        while True:  # the kernel may still be ending the processes in it
            try:
                Path(folder).rmdir()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
