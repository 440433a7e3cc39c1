"""The test bed itself: real hosts, a real guest, and a port that speaks on whichever host the guest is."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.system.guest_image import HOUSE
from tests.system.libvirt_guest import PORT, Guest
from tests.system.libvirt_hosts import Host, sweep

Hosts = tuple[Host, Host]
pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]  # the first run downloads and builds

ECHO = f"""
import os
port = os.open("/dev/virtio-ports/{PORT}", os.O_RDWR)
while True:
    if chunk := os.read(port, 4096):
        os.write(port, chunk.upper())
"""


def test_a_guest_boots_and_its_console_speaks(guest: Guest) -> None:
    boot = guest.boot_id()
    assert f"boot {boot}" in guest.said()


def test_the_hosts_are_two(hosts: Hosts) -> None:
    for host in hosts:
        with closing(host.connect()) as connection:
            assert connection.getHostname() == host.name
        assert host.run("hostname").strip() == host.name


def test_a_live_migration_there_and_back_is_the_same_boot(guest: Guest, hosts: Hosts) -> None:
    boot = guest.boot_id()
    for host in (hosts[1], hosts[0]):
        guest.migrate(host)
        assert guest.boot_id() == boot
        with closing(host.connect()) as connection:
            assert [domain.name() for domain in connection.listAllDomains()] == [guest.name]


def test_bytes_of_the_port_reach_the_socket_on_either_host(guest: Guest, hosts: Hosts) -> None:
    guest.put("/tmp/echo.py", ECHO)
    echo = guest.start("python3", "/tmp/echo.py")
    try:
        for host in (hosts[1], hosts[0]):
            guest.migrate(host)
            with closing(guest.attach()) as port:
                port.settimeout(30)
                port.sendall(host.name.encode())
                assert port.recv(100) == host.name.upper().encode()
    finally:
        print(guest.run("sh", "-c", 'cat /tmp/log; kill "$0"', echo))


def test_a_guest_comes_back_from_a_file_on_the_other_host(guest: Guest, hosts: Hosts, tmp_path: Path) -> None:
    boot = guest.boot_id()
    guest.save(tmp_path / "saved")
    guest.restore(tmp_path / "saved", hosts[1])
    assert guest.boot_id() == boot


def test_a_guest_moves_by_post_copy(guest: Guest, hosts: Hosts) -> None:
    boot = guest.boot_id()
    guest.migrate(hosts[1], postcopy=True)
    assert guest.boot_id() == boot


def test_a_cut_cable_ends_a_migration_where_it_began(guest: Guest, hosts: Hosts) -> None:
    boot = guest.boot_id()
    hosts[0].cut()
    try:
        with pytest.raises(Exception, match=r"unable to connect|No route|timed out|Network is unreachable"):
            guest.migrate(hosts[1])
    finally:
        hosts[0].cut(off=False)
    assert guest.host == hosts[0]
    assert guest.boot_id() == boot


def test_a_guest_runs_on_while_libvirtd_dies_and_comes_back(guest: Guest, hosts: Hosts) -> None:
    boot = guest.boot_id()
    hosts[0].kill_libvirtd()
    hosts[0].start_libvirtd()
    assert guest.boot_id() == boot


def test_a_quota_reaches_the_guests_control_group(guest: Guest, hosts: Hosts) -> None:
    with closing(hosts[0].connect()) as connection:
        domain = connection.lookupByName(guest.name)
        domain.setSchedulerParameters({"vcpu_period": 10_000, "vcpu_quota": 5_000})
        assert domain.schedulerParameters()["vcpu_quota"] == 5_000
    quotas = hosts[0].run("sh", "-c", "cat $(find /sys/fs/cgroup/ -name cpu.cfs_quota_us -o -name cpu.max)")
    assert "5000" in quotas.split()


@pytest.mark.usefixtures("hosts")  # which says why where none can be made
def test_a_test_run_that_is_killed_leaves_nothing() -> None:
    code = (
        "import time\n"
        "from tests.system.libvirt_hosts import hosts\n"
        "with hosts() as pair:\n"
        "    for host in pair: print(host.pid, flush=True)\n"
        "    time.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=HOUSE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        inside = {Path(f"/proc/{run.stdout.readline().strip()}/ns/pid").readlink() for _ in range(2)}
        assert inside <= namespaces()
        run.kill()
    deadline = time.monotonic() + 20
    while inside & namespaces() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not inside & namespaces()
    sweep()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/mchannel-{run.pid}-*"))


def namespaces() -> set[Path]:
    """The pid namespaces in which any process of this machine is."""
    found = set[Path]()
    for link in Path("/proc").glob("[0-9]*/ns/pid"):
        with suppress(OSError):
            found.add(link.readlink())
    return found
