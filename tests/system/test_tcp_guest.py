"""A guest that reaches its host's broker by tcp://, with Debian's ZeroMQ in it and keys of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mchannel import keys
from tests.system import guest_image, libvirt_guest
from tests.system.libvirt_hosts import Host

pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(600)]  # the first run downloads and builds

MVM = "169.254.42.1"  # on every host, the same
BROKER = f"""
import sys, mchannel
with mchannel.listen("tcp://{MVM}:7600", keys=sys.argv[1]) as listener:
    print("listening", flush=True)
    with listener.accept(timeout=60) as channel:
        print(channel.peer.identity, channel.read(timeout=60).topic, flush=True)
"""
AGENT = f"""
import mchannel
with mchannel.open("tcp://{MVM}:7600?server=mvm", keys="/tmp/keys", timeout=60) as channel:
    channel.write(mchannel.Event("hello"))
"""


def test_a_guest_talks_by_tcp_to_the_broker_of_its_host(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    mvm, web = tmp_path / "mvm", tmp_path / "web"
    keys.new(mvm, "mvm")
    keys.new(web, "web2")
    keys.trust(mvm, "web2", keys.show(web))
    keys.trust(web, "mvm", keys.show(mvm), server=True)
    image = guest_image.image(tmp_path, [*guest_image.PYTHON, *guest_image.ZMQ])
    guest = libvirt_guest.start(hosts[0], image, tmp_path, number=2)
    broker = hosts[0].enter([sys.executable, "-c", BROKER, mvm], stdout=subprocess.PIPE)
    try:
        assert broker.stdout is not None
        assert broker.stdout.readline() == "listening\n"
        guest.run("ip", "address", "add", "169.254.42.2/24", "dev", "eth0")
        for path in web.rglob("*"):
            if path.is_file():
                guest.put(f"/tmp/keys/{path.relative_to(web)}", path.read_text())
        guest.run("python3", "-c", AGENT, timeout=90)
        assert broker.stdout.readline() == "web2 hello\n"
    finally:
        broker.kill()
        broker.communicate()
        guest.destroy()
