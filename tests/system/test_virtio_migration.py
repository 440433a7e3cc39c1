"""An agent in a guest and a broker on its host talk on while the guest moves, without noticing more than a pause."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep

import attrs
import pytest

import mchannel
from mchannel import Channel, Event, Listener
from mchannel.errors import ChannelTimeout, EndOfChannel
from tests.system.libvirt_guest import PORT, Guest
from tests.system.libvirt_hosts import Host

Hosts = tuple[Host, Host]
pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(600)]  # the first run downloads and builds

AGENT = Path(__file__).with_name("guest_numbers.py").read_text()


@attrs.define
class Exchange:
    """What a broker told an agent and heard from it, over all hosts."""

    sent: int = 0
    heard: list[int] = attrs.field(factory=list[int])
    redelivered: int = 0
    end: Event | None = None

    def go(self, channel: Channel[Event], until: Callable[[], bool]) -> None:
        """Tell numbers and take note of those that come."""
        while not until():
            self.tell(channel)
            self.hear(channel, timeout=0.02)

    def tell(self, channel: Channel[Event]) -> None:
        channel.write(Event("number", value=self.sent), timeout=30)
        self.sent += 1

    def hear(self, channel: Channel[Event], timeout: float) -> None:
        try:
            message = channel.receive(timeout)
        except ChannelTimeout:
            return
        if message.value.topic == "end":
            self.end = message.value
            return
        self.heard.append(int(str(message.value.value)))
        self.redelivered += message.redelivered

    def stop(self, channel: Channel[Event]) -> None:
        """Let the agent say what it heard, and end the channel."""
        channel.write(Event("stop", value=self.sent), timeout=30)
        try:
            while True:
                self.hear(channel, timeout=30)
        except EndOfChannel:
            channel.close()

    @property
    def said(self) -> int:
        """How many numbers the agent told."""
        assert self.end is not None
        return int(str(self.end.value))

    @property
    def exact(self) -> bool:
        """Whether every number arrived once and in order, on either side."""
        assert self.end is not None
        assert self.said > 20
        return self.heard == list(range(self.said)) and dict(self.end.detail) == {"lost": 0, "repeated": 0}

    @property
    def lost(self) -> int:
        return len(set(range(self.said)) - set(self.heard))

    @property
    def repeated(self) -> int:
        return len(self.heard) - len(set(self.heard))


def seconds(duration: float) -> Callable[[], bool]:
    late = monotonic() + duration
    return lambda: monotonic() > late


def listen(guest: Guest) -> Listener[Event]:
    return mchannel.listen(f"virtio://{guest.host.path(guest.listens())}?domain={guest.uuid}")


@pytest.fixture
def agent(guest: Guest) -> Iterator[Guest]:
    """A guest whose agent looks for its broker."""
    guest.put("/tmp/numbers.py", AGENT)
    pid = guest.start("python3", "/tmp/numbers.py", f"virtio:///{PORT}")
    yield guest
    print(guest.run("sh", "-c", 'cat /tmp/log; kill "$0" 2>/dev/null || true', pid))


def live(guest: Guest, to: Host, _folder: Path) -> None:
    guest.migrate(to)


def postcopy(guest: Guest, to: Host, _folder: Path) -> None:
    guest.migrate(to, postcopy=True)


def file(guest: Guest, to: Host, folder: Path) -> None:
    guest.save(folder / "saved")
    guest.restore(folder / "saved", to)


@pytest.fixture(params=[live, postcopy, file])
def move(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Guest, Host], None]:
    """One way to get from host to host."""
    return lambda guest, to: request.param(guest, to, tmp_path)


def test_a_handoff_loses_nothing_and_repeats_nothing(
    agent: Guest, hosts: Hosts, move: Callable[[Guest, Host], None]
) -> None:
    boot, exchange = agent.boot_id(), Exchange()
    listener = listen(agent)
    channel = listener.accept(timeout=60)
    for host in (hosts[1], hosts[0]):
        exchange.go(channel, until=seconds(1))
        channel.suspend(timeout=10)
        exchange.tell(channel)  # which waits for the next host
        handoff = channel.handoff()
        listener.close()
        move(agent, host)
        listener = listen(agent)
        listener.adopt(handoff)
        channel = listener.accept(timeout=30)
    exchange.go(channel, until=seconds(1))
    exchange.stop(channel)
    listener.close()
    assert exchange.exact
    assert exchange.redelivered == 0
    assert agent.boot_id() == boot


def test_without_a_handoff_nothing_is_lost_and_what_is_repeated_says_so(
    agent: Guest, hosts: Hosts, move: Callable[[Guest, Host], None]
) -> None:
    exchange = Exchange()
    with ThreadPoolExecutor(1) as pool, listen(agent) as listener:
        channel = listener.accept(timeout=60)
        exchange.go(channel, until=seconds(1))
        moved = pool.submit(move, agent, hosts[1])
        while not moved.done():
            exchange.hear(channel, timeout=0.02)
        moved.result()
    with listen(agent) as listener, listener.accept(timeout=30) as channel:
        exchange.sent = 0  # this broker knows nothing of what the first one said
        exchange.go(channel, until=seconds(1))
        exchange.stop(channel)
    assert exchange.lost == 0
    assert exchange.repeated <= exchange.redelivered


def test_a_migration_that_fails_leaves_the_channel_where_it_was(agent: Guest, hosts: Hosts) -> None:
    exchange = Exchange()
    with ThreadPoolExecutor(1) as pool, listen(agent) as listener, listener.accept(timeout=60) as channel:
        exchange.go(channel, until=seconds(1))
        hosts[0].cut()
        try:
            moved = pool.submit(agent.migrate, hosts[1])
            exchange.go(channel, until=moved.done)
        finally:
            hosts[0].cut(off=False)
        assert moved.exception() is not None
        exchange.go(channel, until=seconds(1))
        exchange.stop(channel)
    assert exchange.exact


def test_an_agent_waits_for_a_host_that_comes_late(agent: Guest, hosts: Hosts) -> None:
    with listen(agent) as listener:
        listener.accept(timeout=60)
    agent.migrate(hosts[1])
    sleep(3)
    exchange = Exchange()
    with listen(agent) as listener, listener.accept(timeout=30) as channel:
        exchange.go(channel, until=seconds(1))
        exchange.stop(channel)
    assert exchange.lost == 0
