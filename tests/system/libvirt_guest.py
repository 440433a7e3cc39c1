"""A guest on one of the two hosts: the domain of ``examples/domain.xml`` with the guest image."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import attrs

from tests.system.guest_image import HOUSE, Image
from tests.system.libvirt_hosts import Host

PORT = "org.mchannel.0"
TEST_PORT = "org.mchannel.test"
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
PAUSE_MS = 20_000
"""How long a guest may pause at the end of a live migration.

QEMU 7.2's emulator forgets some of what a guest writes after it has looked once more for changed pages: every
thirtieth guest crashed soon after a migration. With so long a pause it looks only just before it stops the guest.
Hardware virtualisation has no such fault.
"""
ET.register_namespace("qemu", QEMU)


def domain_xml(name: str, uuid: str, image: Image, console: Path, *, mac: str) -> str:
    """Return the example domain as this machine can run it, with a port for the test's own words."""
    root = ET.parse(HOUSE / "examples/domain.xml").getroot()
    root.set("type", "qemu")  # emulated: no hardware virtualisation is needed
    for path, text in (("name", name), ("uuid", uuid), ("os/kernel", image.kernel), ("os/initrd", image.initrd)):
        _find(root, path).text = str(text)
    _find(root, "devices/serial/source").set("path", str(console))
    _find(root, "devices/interface/mac").set("address", mac)
    port = ET.SubElement(_find(root, "devices"), "channel", type="unix")
    ET.SubElement(port, "target", type="virtio", name=TEST_PORT)
    more = ET.SubElement(root, f"{{{QEMU}}}commandline")
    for argument in ("-global", f"migration.x-downtime-limit={PAUSE_MS}"):
        ET.SubElement(more, f"{{{QEMU}}}arg", value=argument)
    return ET.tostring(root, encoding="unicode")


def _find(root: ET.Element, path: str) -> ET.Element:
    found = root.find(path)
    assert found is not None, f"examples/domain.xml has no {path}"
    return found


@attrs.define
class Guest:
    """A domain, wherever it runs. What it prints stays in one file through every move."""

    name: str
    uuid: str
    console: Path
    host: Host
    """Where it runs, as far as the test moved it."""
    _number: int = 0

    def run(self, *argv: str, given: str = "", timeout: float = 60) -> str:
        """Return what a command in the guest prints; raises AssertionError when it fails, TimeoutError.

        Goes on through a move of the guest; the command is run once.
        """
        self._number += 1
        request = json.dumps({"number": self._number, "argv": argv, "input": given}).encode() + b"\n"
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                for answer in self._ask(request, deadline):
                    if answer["number"] == self._number:
                        assert answer["status"] == 0, answer
                        return str(answer["out"])
            except OSError:  # it is on its way
                time.sleep(0.05)
        raise TimeoutError(f"{self.name} did not answer {argv}; its console says: {self.said()[-2000:]}")

    def _ask(self, request: bytes, deadline: float) -> Iterator[Any]:
        with closing(self.attach(TEST_PORT)) as port, port.makefile("rb") as lines:
            while time.monotonic() < deadline:
                port.settimeout(min(5.0, max(0.1, deadline - time.monotonic())))
                port.sendall(b"\n" + request)  # the newline ends what an earlier host left unfinished
                for line in lines:
                    try:
                        yield json.loads(line)
                    except ValueError:  # its beginning went to another host
                        continue
                return

    def put(self, path: str, text: str) -> None:
        """Write a file in the guest that only root may read, and the folders above it."""
        self.run("sh", "-c", 'umask 077; mkdir -p "${0%/*}"; cat >"$0"', path, given=text)

    def start(self, *argv: str, log: str = "/tmp/log") -> str:
        """Start a program in the guest that goes on alone, and return its process id."""
        return self.run("sh", "-c", '"$@" >"$0" 2>&1 </dev/null & echo $!', log, *argv).strip()

    def said(self) -> str:
        """Return what it printed on its console since the test bed was made."""
        return self.console.read_text(errors="replace")

    def boot_id(self) -> str:
        """Return what changes with every boot, and with nothing else."""
        return self.run("cat", "/proc/sys/kernel/random/boot_id").strip()

    def listens(self, port: str = PORT) -> str:
        """Return the socket of a port, as its host calls it; raises OSError while the domain is not on it."""
        with self._domain() as domain:
            root = ET.fromstring(domain.XMLDesc())
        for channel in root.iter("channel"):
            source = channel.find("source")
            if _find(channel, "target").get("name") == port and source is not None:
                return str(source.get("path"))
        raise FileNotFoundError(f"{self.name} has no port {port}")

    def attach(self, port: str = PORT) -> socket.socket:
        """Connect to a port of the guest, as a broker on its host would; raises OSError."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(self.host.path(self.listens(port))))
        except BaseException:
            connection.close()
            raise
        return connection

    def migrate(self, to: Host, *, live: bool = True, postcopy: bool = False, flags: int = 0) -> None:
        """Move to another host and wait for it; raises libvirt.libvirtError, then it is where it was."""
        import libvirt

        flags |= live * libvirt.VIR_MIGRATE_LIVE | postcopy * libvirt.VIR_MIGRATE_POSTCOPY
        slow = {libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: 1}  # MiB/s, so that it cannot be over before the switch
        with self._domain() as domain, closing(to.connect()) as there, ThreadPoolExecutor(1) as pool:
            moving = pool.submit(domain.migrate3, there, slow if postcopy else {}, flags)
            switched = not postcopy
            while not switched and not moving.done():
                with suppress(libvirt.libvirtError):  # it is not that far yet, or it was told already
                    domain.migrateStartPostCopy()
                with suppress(libvirt.libvirtError):
                    switched = domain.state() == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY]
                time.sleep(0.01)
            moving.result()
        self.host = to
        assert switched, "the migration was over before post-copy began"

    def save(self, path: Path) -> None:
        """Put it into a file and stop it."""
        with self._domain() as domain:
            domain.save(str(path))

    def restore(self, path: Path, host: Host) -> None:
        """Let it go on from a file, on either host."""
        with closing(host.connect()) as connection:
            connection.restore(str(path))
        self.host = host

    def unplug(self, alias: str) -> None:
        """Take the device out, and wait until the guest has let go of it."""
        with self._domain() as domain:
            domain.detachDeviceAlias(alias)
            until = time.monotonic() + 60
            while f"'{alias}'" in domain.XMLDesc():
                assert time.monotonic() < until, f"the guest keeps {alias}"
                time.sleep(0.1)

    def destroy(self) -> None:
        """Pull its plug, wherever it is."""
        with self._domain() as domain:
            domain.destroy()

    @contextmanager
    def _domain(self) -> Generator[Any]:
        import libvirt

        with closing(self.host.connect()) as connection:
            try:
                domain = connection.lookupByUUIDString(self.uuid)
            except libvirt.libvirtError as error:
                raise FileNotFoundError(str(error)) from error
            yield domain


def start(host: Host, image: Image, folder: Path, *, number: int = 1) -> Guest:
    """Start guest *number* on *host* and return it at once; its files stand in *folder*."""
    name = f"web{number}"
    console = folder / f"{name}.console"
    uuid = f"6d636861-6e6e-4c00-9000-{number:012}"
    xml = domain_xml(name, uuid, image, console, mac=f"52:54:00:6d:63:{number:02x}")
    with closing(host.connect()) as connection:
        connection.createXML(xml)
    return Guest(name, uuid, console, host)
