"""A guest that attacks its host through the real port is told of once, and its neighbour on the same host is served."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import libvirt_guest
from tests.system.brokers import HERE, BrokerProcess, brokers, talking
from tests.system.guest_image import Image
from tests.system.libvirt_guest import PORT, Guest
from tests.system.libvirt_hosts import Host

pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(300)]
SECONDS = 5


@pytest.fixture(scope="module")
def neighbour(hosts: tuple[Host, Host], image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A second guest on the first host."""
    made = libvirt_guest.start(hosts[0], image, tmp_path_factory.mktemp("neighbour"), number=2)
    yield made
    made.destroy()


@pytest.fixture
def broker(hosts: tuple[Host, Host], tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker on the first host."""
    with brokers(hosts, tmp_path) as (first, _):
        yield first


def test_a_neighbour_of_a_guest_that_sends_garbage_is_served(
    guest: Guest, neighbour: Guest, broker: BrokerProcess
) -> None:
    guest.put("/tmp/attack.py", (HERE / "guest_attack.py").read_text())
    with talking(neighbour, f"virtio:///{PORT}"):
        broker.wait("number", number=20)
        before = len(numbers(broker))
        attacker = guest.start("python3", "/tmp/attack.py", str(SECONDS), log="/tmp/attack.log")
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            broker.wait("number")
        served = numbers(broker)
        guest.run("sh", "-c", 'while kill -0 "$0" 2>/dev/null; do sleep 0.1; done', attacker)
    sent = int(guest.run("cat", "/tmp/attack.log"))
    print(f"{sent} bytes sent, {len(served) - before} messages of the neighbour in {SECONDS} s")
    assert sent > 1 << 20
    assert served == list(range(len(served)))
    assert len(served) - before > 10 * SECONDS
    lines = [line for line in broker.log.read_text().splitlines() if guest.uuid in line]
    assert len(lines) == 1, lines
    assert "the guest sends what are no frames" in lines[0]
    assert broker.log.read_text().count("Traceback") == 0


def numbers(broker: BrokerProcess) -> list[int]:
    return [said["number"] for said in broker.said if said["what"] == "number"]
