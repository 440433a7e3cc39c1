"""mbrokerd on two hosts with Xen, and a guest that moves between them: ``./dev test-xen``."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast
from xml.etree import ElementTree as ET

import pytest

from mchannel import keys
from tests.system import guest_image, xen_image
from tests.system.brokers import FLEET_PORT, BrokerProcess
from tests.system.guest_image import HOUSE
from tests.system.libvirt_hosts import Host
from tests.system.xen_hosts import XenHost, hosts, missing

pytestmark = [pytest.mark.xen, pytest.mark.timeout(2400)]
DAEMON = "from mbroker.daemon import main; main()"
DOMAIN = (HOUSE / "examples/domain-xen.xml").read_text()
NAME = ET.fromstring(DOMAIN).findtext("name", "")
UUID = ET.fromstring(DOMAIN).findtext("uuid", "")
CONSOLE = f"/var/log/xen/console/guest-{NAME}.log"
KEYS, LOG = "/etc/mchannel/keys", "/var/log/mbrokerd.log"


@pytest.fixture(autouse=True, scope="module")
def wanted(request: pytest.FixtureRequest) -> None:
    """Run when asked for, by ``-m xen`` or with everything."""
    if "xen" not in request.config.option.markexpr and os.environ.get("MCHANNEL_VERIFY") != "1":
        pytest.skip("boots Xen twice, emulated: ./dev test-xen")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[XenHost, XenHost]]:
    """Two hosts that trust each other; the first has the guest."""
    if why := missing():
        pytest.skip(why)
    try:
        machine = xen_image.host(tmp_path_factory.mktemp("xen"))
    except guest_image.NoPackages as error:
        pytest.skip(f"Xen is made of Debian 12's packages: {error}")
    with hosts(machine, tmp_path_factory.mktemp("hosts")) as both:
        both[0].put("/tmp/domain.xml", DOMAIN)
        both[0].run("virsh", "create", "/tmp/domain.xml")
        folder = tmp_path_factory.mktemp("keys")
        for host in both:
            keys.new(folder / host.name, host.name)
        for host, other in (both, both[::-1]):
            host.put(f"{KEYS}/identity.key", (folder / host.name / "identity.key").read_text())
            host.put(f"{KEYS}/trusted/{other.name}.pub", keys.show(folder / other.name))
            host.put("/etc/mbroker/mbroker.toml", configuration(host, other))
        yield both


def configuration(host: XenHost, other: XenHost) -> str:
    """Return examples/fleet.toml for these hosts."""
    text = (HOUSE / "examples/fleet.toml").read_text()
    changes = {
        "qemu+tls://node2/system": f"xen+tcp://{other.name}/system",
        "qemu:///system": "xen:///system",
        "node1": host.name,
        "node2": other.name,
        "10.0.0.1": host.address,
        "10.0.0.2": other.address,
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.fixture
def daemons(pair: tuple[XenHost, XenHost]) -> Iterator[tuple[XenHost, XenHost]]:
    """An mbrokerd on each."""
    running: list[subprocess.Popen[str]] = []
    try:
        for host in pair:
            command = f"exec python3 -u -c '{DAEMON}' --config /etc/mbroker/mbroker.toml >{LOG} 2>&1"
            running.append(host.enter(["sh", "-c", command], stdin=subprocess.PIPE))
        for host, other in (pair, pair[::-1]):
            host.until(partial(host.says, f"fleet member {other.name} is here", LOG), LOG)
        yield pair
    finally:
        for process in running:
            process.kill()
            process.communicate()
        for host in pair:
            host.until(partial(free, host), LOG)


def free(host: XenHost) -> bool:
    """Whether nobody listens any more where brokers meet."""
    return f":{FLEET_PORT} " not in host.run("netstat", "-tln")


def has_agent(host: XenHost) -> bool:
    """Whether a live agent of the guest talks to the broker there."""
    return any(agent["state"] == "live" for agent in host.json("list"))


def test_the_daemon_attends_to_a_guest_and_moves_it(daemons: tuple[XenHost, XenHost]) -> None:
    first, second = daemons
    first.until(partial(first.says, "\nopen", CONSOLE), LOG)  # cheaper than to ask all the time
    first.until(lambda: has_agent(first), LOG)
    assert first.json("domains") == [
        {"name": NAME, "uuid": UUID, "state": "running", "port": True, "attended": True},
    ]
    found = first.json("doctor")
    assert "fail" not in {each["verdict"] for each in found}, found

    result = first.json("migrate", NAME, second.name)

    assert (result["moved"], result["host"], result["reason"]) == (True, second.name, "")
    second.until(lambda: has_agent(second), LOG)
    assert [row["attended"] for row in second.json("domains")] == [True]
    assert first.json("domains") == []
    assert "not all of its agents let go" not in first.run("cat", LOG)


def test_no_message_is_lost_and_none_comes_twice(pair: tuple[XenHost, XenHost], tmp_path: Path) -> None:
    """Brokers that count take over where the daemons were, and the guest moves back."""
    second, first = pair
    brokers: list[BrokerProcess] = []
    for host, other in (pair, pair[::-1]):
        argv: list[str | Path] = ["python3", "-u", "/tell.py", host.name, "--uri", "xen:///system"]
        argv += ["--state", "/tmp", "--keys", KEYS, "--interval", "0.05"]
        argv += ["--listen", f"tcp://{host.address}:{FLEET_PORT}", "--member", other.name]
        argv += [f"tcp://{other.address}:{FLEET_PORT}", f"xen+tcp://{other.name}/system"]
        brokers.append(BrokerProcess(cast("Host", host), argv, tmp_path / host.name))
    there, here = brokers
    try:
        for broker in brokers:
            broker.start()
        start = here.wait("number", timeout=120)["number"]
        here.listen(5)
        here.tell("migrate", NAME, second.name)
        assert here.wait("migrated", timeout=300)["moved"]
        there.wait("number", timeout=120)
        there.listen(5)
        here.listen(1)
        for broker in brokers:
            broker.tell("sent")
        sent = {broker: broker.wait("sent")["number"] for broker in brokers}
        there.tell("stop")
        end = there.wait("end", timeout=120)
    finally:
        for broker in brokers:
            broker.kill()
    heard = [said["number"] for broker in (here, there) for said in broker.said if said["what"] == "number"]
    assert heard == list(range(start, end["number"]))
    assert end["repeated"] == 0
    assert end[f"from_{first.name}"] == sent[here]
    assert end[f"from_{second.name}"] >= sent[there]
