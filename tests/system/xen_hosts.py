"""Two hosts with Xen, each emulated by a QEMU of its own, with a wire between them."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs

from tests.system.xen_image import Machine
from tests.system.xen_serve import PORT

QEMU = "qemu-system-x86_64"
XEN = "console=com1 com1=115200,8n1 dom0_mem=900M,max:900M dom0_max_vcpus=1 loglvl=warning guest_loglvl=warning"
SOON = 600.0
REACH = Path(__file__).with_name("xen_reach.py")
SAY = "import sys; from mbroker.cli import main; sys.argv[0] = 'mbroker'; main()"


@attrs.frozen
class XenHost:
    """One of them, as a test reaches it."""

    name: str
    address: str
    """Where the other host reaches it."""
    door: int
    """Port on this machine behind which domain 0 runs commands."""
    console: Path

    def enter(self, argv: Sequence[str | Path], **how: Any) -> subprocess.Popen[str]:
        """Start a command in domain 0; it ends with the process that this returns."""
        return subprocess.Popen([sys.executable, REACH, str(self.door), *map(str, argv)], text=True, **how)

    def run(self, *argv: str, given: str = "", code: int | None = 0) -> str:
        """Return what a command prints; it must end with *code*, unless that is None."""
        done = subprocess.run(
            [sys.executable, REACH, str(self.door), *argv],
            check=False,
            input=given,
            capture_output=True,
            text=True,
            timeout=SOON,
        )
        assert code is None or done.returncode == code, (argv, done.stdout, done.stderr, self.said())
        return done.stdout

    def put(self, path: str, text: str) -> None:
        """Write a file that only root reads."""
        self.run("sh", "-c", 'umask 077; mkdir -p "${0%/*}"; cat >"$0"', path, given=text)

    def mbroker(self, *words: str, code: int | None = 0) -> str:
        """Return what an operator would see."""
        return self.run("python3", "-c", SAY, *words, code=code)

    def json(self, *words: str) -> Any:
        """Return what a program would."""
        return json.loads(self.mbroker(*words, "--output", "json"))

    def says(self, text: str, path: str) -> bool:
        """Whether *text* stands in a file there; not as long as there is none."""
        return text in self.run("cat", path, code=None)

    def said(self) -> str:
        """Return the end of its console."""
        return self.console.read_text(errors="replace")[-2000:]

    def until(self, condition: Callable[[], bool], log: str = "") -> None:
        """Wait until *condition* holds; show *log*, a file there, when it does not in time."""
        deadline = time.monotonic() + SOON
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: {self.run('tail', log, code=None) if log else self.said()}")
            time.sleep(1)

    def ready(self) -> bool:
        """Whether its libvirtd answers."""
        return "Domain-0" in self.run("virsh", "list", code=None)


def missing() -> str:
    """Return why there can be no hosts, or nothing."""
    if shutil.which(QEMU) is None:
        return "needs apt-get install qemu-system-x86"
    if sys.version_info[:2] != (3, 11):
        return "domain 0 is Debian 12's, and takes the broker's libraries from a .venv of Python 3.11"
    return ""


@contextmanager
def hosts(machine: Machine, folder: Path) -> Generator[tuple[XenHost, XenHost]]:
    """Run both, and wait until their libvirtd answer."""
    with ExitStack() as running:
        found: list[XenHost] = []
        for number in (1, 2):
            host = XenHost(f"xen{number}", f"10.9.0.{number}", _free(), folder / f"console{number}")
            process = subprocess.Popen(
                _command(machine, host, number, folder / "wire"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            running.callback(process.wait)
            running.callback(process.kill)
            found.append(host)
            time.sleep(1)  # the second is plugged into the wire of the first
        for host in found:
            host.until(host.ready)
        yield found[0], found[1]


def _command(machine: Machine, host: XenHost, number: int, wire: Path) -> list[str]:
    """Return the command that runs a host."""
    linux = f"{machine.kernel} console=hvc0 quiet panic=5 host={number},{machine.initrd}"
    command = [QEMU, "-accel", "tcg", "-cpu", "qemu64,+npt", "-m", "1700", "-nographic", "-nodefaults", "-no-reboot"]
    command += ["-serial", f"file:{host.console}", "-kernel", str(machine.hypervisor), "-append", XEN, "-initrd", linux]
    server = "on" if number == 1 else "off"
    command += ["-netdev", f"stream,id=wire,server={server},addr.type=unix,addr.path={wire}"]
    command += ["-device", f"virtio-net-pci,netdev=wire,mac=52:54:00:6d:63:0{number}"]
    command += ["-netdev", f"user,id=test,restrict=on,hostfwd=tcp:127.0.0.1:{host.door}-:{PORT}"]
    return [*command, "-device", "virtio-net-pci,netdev=test"]


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port: int = door.getsockname()[1]
        return port
