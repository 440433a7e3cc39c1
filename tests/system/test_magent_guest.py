"""``magent run`` from the guest bundle, in a guest that moves: SLA reports, metrics and commands go on."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic, sleep

import attrs
import pytest

import mchannel
from mchannel import Channel, Event, Listener
from mchannel.errors import ChannelTimeout
from tests.system.libvirt_guest import Guest
from tests.system.libvirt_hosts import Host

Hosts = tuple[Host, Host]
pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(300)]

LOG = "/tmp/access.log"
CONFIG = f"""
[agent]
source = "web1"

[metrics]
interval = 1.0

[[sla]]
log = "{LOG}"
format = "$msec $status $request_time"
service = "shop"
"""
TICKS = 100  # a second, in /proc/PID/stat
LOOP = "import time\nwhile True: time.sleep(0.01)"


@attrs.frozen
class Magent:
    """The daemon in its guest."""

    guest: Guest
    pid: str

    def request(self, seconds: float) -> None:
        """Let the guest's web server log a request."""
        self.guest.run("sh", "-c", f'echo "$(date +%s).000 200 {seconds}" >>{LOG}')

    def listen(self) -> Listener[Event]:
        """Listen as the broker of the host on which the guest is."""
        return mchannel.listen(f"virtio://{self.guest.host.path(self.guest.listens())}?domain={self.guest.uuid}")


@attrs.frozen
class Meter:
    """CPU time of a process in a guest since the meter was made."""

    guest: Guest
    pid: str
    start: tuple[float, float] = attrs.Factory(lambda self: self.now(), takes_self=True)

    def now(self) -> tuple[float, float]:
        """Return seconds of CPU, and seconds since boot."""
        stat, uptime = self.guest.run("cat", f"/proc/{self.pid}/stat", "/proc/uptime").splitlines()
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS, float(uptime.split()[0])

    def share(self) -> float:
        """Return the share of a CPU that it used."""
        used, now = self.now()
        return (used - self.start[0]) / (now - self.start[1])


def accept(listener: Listener[Event]) -> dict[str, Channel[Event]]:
    channels = [listener.accept(timeout=60) for _ in range(3)]
    return {channel.peer.name: channel for channel in channels}


def until(channel: Channel[Event], topic: str, timeout: float = 30) -> Event:
    late = monotonic() + timeout
    while (event := channel.read(timeout=max(0.0, late - monotonic()))).topic != topic:
        pass
    return event


def ping(channel: Channel[Event], number: int) -> None:
    channel.write(Event("command.ping", value=number), timeout=30)
    assert until(channel, "command.pong").value == number


@pytest.fixture
def magent(guest: Guest) -> Iterator[Magent]:
    """A guest with its daemon, which looks for its broker."""
    guest.put("/tmp/magent.toml", CONFIG)
    guest.run("sh", "-c", f": >{LOG}")
    pid = guest.start("python3", "/opt/magent", "run", "--config", "/tmp/magent.toml", log="/tmp/magent.log")
    yield Magent(guest, pid)
    print(guest.run("sh", "-c", 'kill "$0" 2>/dev/null; sleep 2; cat /tmp/magent.log', pid))


def test_the_streams_of_a_guest_go_on_on_another_host(magent: Magent, hosts: Hosts) -> None:
    boot = magent.guest.boot_id()
    epochs: list[int] = []
    violations = 0

    def listen_to(channel: Channel[Event]) -> None:
        nonlocal violations
        seen = violations
        while violations == seen:
            event = channel.read(timeout=60)
            assert (event.topic, event.detail["service"]) == ("sla.epoch", "shop")
            number, hard = event.detail["epoch"], event.detail["hard"]
            assert isinstance(number, int)
            assert isinstance(hard, int)
            epochs.append(number)
            violations += hard

    for number, host in enumerate((hosts[1], hosts[0])):
        with magent.listen() as listener:
            channels = accept(listener)
            assert channels.keys() == {"sla", "metrics", "commands"}
            magent.request(0.009)
            listen_to(channels["sla"])
            assert 0 < float(until(channels["metrics"], "metrics.memory").value or 0) < 1
            ping(channels["commands"], number)
            channels["commands"].write(Event("command.describe"))
            assert until(channels["commands"], "command.description").detail["boot_id"] == boot
            magent.guest.migrate(host)
    with magent.listen() as listener:
        channels = accept(listener)
        magent.request(0.009)
        listen_to(channels["sla"])
        ping(channels["commands"], 2)
    assert sorted(set(epochs)) == list(range(min(epochs), max(epochs) + 1)), "no report is missing"
    assert magent.guest.boot_id() == boot


def test_an_agent_without_a_host_rests(magent: Magent) -> None:
    with magent.listen() as listener:
        accept(listener)
    sleep(5)
    meter = Meter(magent.guest, magent.pid)
    sleep(20)
    share = meter.share()
    print(f"CPU without a host: {share:.2%}")
    assert share < 0.5, "it spins"


def test_an_agent_that_is_asked_a_hundred_times_a_second_answers_all(magent: Magent) -> None:
    loop = magent.guest.start("python3", "-c", LOOP)
    with magent.listen() as listener:
        commands = accept(listener)["commands"]
        sent = heard = 0

        def exchange(seconds: float) -> None:
            nonlocal sent, heard
            start, first = monotonic(), sent
            while (passed := monotonic() - start) < seconds:
                while sent - first < passed * 100:
                    commands.write(Event("command.ping", value=sent), timeout=30)
                    sent += 1
                heard += pongs(commands, 0.005)

        exchange(3)
        meters = [Meter(magent.guest, pid) for pid in (magent.pid, loop)]
        exchange(20)
        agent, empty = (meter.share() for meter in meters)
        print(f"CPU at 100 messages a second each way: {agent:.2%}; of a loop that only sleeps as often: {empty:.2%}")
        late = monotonic() + 60
        while heard < sent and monotonic() < late:
            heard += pongs(commands, 1)
    magent.guest.run("kill", loop)
    assert heard == sent


def pongs(channel: Channel[Event], timeout: float) -> int:
    try:
        return sum(event.topic == "command.pong" for event in channel.read_many(timeout=timeout))
    except ChannelTimeout:
        return 0
