"""Channels over shared memory: what is special about this wire (the conformance suite says the rest)."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest

import mchannel
import mchannel.transports.shm
from mchannel.channel import Channel
from mchannel.codec import EventCodec, RawCodec
from mchannel.errors import (
    AddressError,
    AuthenticationError,
    ChannelBroken,
    ChannelTimeout,
    CodecError,
    EndOfChannel,
    NotListening,
    ProtocolError,
)
from mchannel.event import Event
from mchannel.frame import Frame, Hello, Kind, Terms
from mchannel.transport import Delivery, Link, Options, State, find_scheme
from mchannel.transports.line import Line
from mchannel.transports.ring import Region
from mchannel.transports.shm import ShmGate
from mchannel.transports.shmlink import AgentLink, BrokerLink

RAW = RawCodec()
TERMS = Terms(1 << 20, 4 << 20, Delivery.ALL)


@pytest.fixture
def listener() -> Iterator[mchannel.Listener[bytes]]:
    with mchannel.listen("shm:///web1", RAW) as found:
        yield found


class Ends:
    """Opens both ends of channels in one thread, by hand, and closes them at last."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def dial(self, listener: mchannel.Listener[Any], options: Options) -> Link:
        link = find_scheme(listener.address).dial(listener.address, options)
        self._stack.callback(link.close)
        return link

    def keep(self, channel: Channel[bytes]) -> Channel[bytes]:
        self._stack.callback(channel.close, 0)
        return channel

    def pair(self, listener: mchannel.Listener[bytes], name: str = "") -> tuple[Channel[bytes], Channel[bytes]]:
        link = self.dial(listener, Options(name=name))
        broker = self.keep(listener.accept(timeout=5))
        link.tick(time.monotonic())
        return Channel(link, RAW), broker

    def close(self) -> None:
        with suppress(ChannelTimeout):
            self._stack.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    found = Ends()
    yield found
    found.close()


def descriptors() -> int:
    gc.collect()  # what other tests left must not end between two looks
    return len(list(Path("/proc/self/fd").iterdir()))


def raw(runtime: Path) -> socket.socket:
    wire = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    wire.settimeout(5)
    wire.connect(str(runtime / "web1.shm"))
    return wire


def hello(session: bytes = b"s" * 16, epoch: int = 1, terms: Terms = TERMS) -> bytes:
    return Frame(Kind.HELLO, epoch, body=Hello(session, "raw", terms, 1, 0, 0).encode()).encode()


def refusal(listener: mchannel.Listener[bytes], wire: socket.socket) -> str:
    """Return what the gate answered, which must be REFUSE."""
    with pytest.raises(ChannelTimeout):
        listener.accept(timeout=0.05)
    frame = Frame.decode(wire.recv(4096), 4096)
    assert frame.kind is Kind.REFUSE
    return frame.body.decode()


def works(agent: Channel[bytes], broker: Channel[bytes]) -> bool:
    agent.write(b"ping")
    broker.write(broker.read(timeout=2))
    return agent.read(timeout=2) == b"ping"


def in_child(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def test_nothing_is_left_in_dev_shm(ends: Ends, listener: mchannel.Listener[bytes]) -> None:
    before = set(Path("/dev/shm").iterdir())
    agent, broker = ends.pair(listener)
    assert works(agent, broker)
    assert set(Path("/dev/shm").iterdir()) == before


def test_the_peer_is_named_by_the_kernel_and_the_address_not_by_what_it_says(
    ends: Ends,
    listener: mchannel.Listener[bytes],
) -> None:
    _, broker = ends.pair(listener, name="root-of-all")
    peer = broker.peer
    assert (peer.identity, peer.uid, peer.pid, peer.name) == ("web1", os.geteuid(), os.getpid(), "root-of-all")


@pytest.mark.usefixtures("listener")
def test_the_socket_can_be_reached_by_its_owner_alone(runtime: Path) -> None:
    assert (runtime / "web1.shm").stat().st_mode & 0o777 == 0o600
    assert runtime.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("listener")
def test_a_second_listener_is_refused_while_the_first_lives() -> None:
    with pytest.raises(AddressError, match="already listening"):
        mchannel.listen("shm:///web1", RAW)


def test_a_listener_takes_over_the_name_of_a_killed_one(ends: Ends, runtime: Path) -> None:
    def work() -> None:
        with mchannel.listen("shm:///web1", RAW):
            time.sleep(30)

    pid = in_child(work)
    while not (runtime / "web1.shm").exists():
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with mchannel.listen("shm:///web1", RAW) as successor:
        assert works(*ends.pair(successor))


def test_opening_where_nobody_listens_says_so() -> None:
    with pytest.raises(NotListening, match="start a broker"):
        mchannel.open("shm:///nobody", timeout=0.1)


def test_an_agent_without_memory_is_refused(listener: mchannel.Listener[bytes], runtime: Path) -> None:
    with raw(runtime) as wire:
        wire.send(hello())
        assert "bring the memory" in refusal(listener, wire)


def test_memory_that_could_shrink_is_refused(listener: mchannel.Listener[bytes], runtime: Path) -> None:
    fd = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 1 << 20)
    with raw(runtime) as wire:
        socket.send_fds(wire, [hello()], [fd])
        assert "not sealed" in refusal(listener, wire)
    os.close(fd)


def test_a_descriptor_that_is_no_memory_is_refused(listener: mchannel.Listener[bytes], runtime: Path) -> None:
    with raw(runtime) as wire, Path("/dev/zero").open("rb") as zero:
        socket.send_fds(wire, [hello()], [zero.fileno()])
        assert "not a memfd" in refusal(listener, wire)


def test_memory_beyond_the_limit_is_refused(listener: mchannel.Listener[bytes], runtime: Path) -> None:
    with raw(runtime) as wire, Region.create(pool=1 << 28) as huge:
        socket.send_fds(wire, [hello()], [huge.fd])
        assert "larger than" in refusal(listener, wire)


def test_memory_without_a_header_is_refused(listener: mchannel.Listener[bytes], runtime: Path) -> None:
    fd = os.memfd_create("blank", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 1 << 20)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    with raw(runtime) as wire:
        socket.send_fds(wire, [hello()], [fd])
        assert "header" in refusal(listener, wire)
    os.close(fd)


@pytest.mark.parametrize("garbage", [b"x" * 100, b"mC" + bytes(3000), bytes(24)])
def test_a_stranger_that_sends_garbage_is_shown_out_and_others_go_on(
    ends: Ends, listener: mchannel.Listener[bytes], runtime: Path, garbage: bytes
) -> None:
    agent, broker = ends.pair(listener)
    with raw(runtime) as wire:
        wire.send(garbage)
        with pytest.raises(ChannelTimeout):
            listener.accept(timeout=0.05)
        assert not wire.recv(4096)[:1].startswith(b"x")
    assert works(agent, broker)


def test_the_session_of_another_agent_cannot_be_taken(
    ends: Ends, listener: mchannel.Listener[bytes], runtime: Path
) -> None:
    agent, broker = ends.pair(listener)
    with raw(runtime) as wire, Region.create() as own:
        socket.send_fds(wire, [hello(agent.session, epoch=9)], [own.fd])
        assert "another agent" in refusal(listener, wire)
    assert works(agent, broker)


def test_descriptors_of_a_stranger_are_closed(listener: mchannel.Listener[bytes], runtime: Path) -> None:
    before = descriptors()
    for _ in range(20):
        with raw(runtime) as wire, Path("/dev/null").open("rb") as null:
            socket.send_fds(wire, [b"junk" * 10], [null.fileno()])
            with pytest.raises(ChannelTimeout):
                listener.accept(timeout=0.01)
    assert descriptors() <= before + 1


def test_channels_that_were_closed_leave_no_descriptors(ends: Ends, listener: mchannel.Listener[bytes]) -> None:
    def once() -> None:
        agent, broker = ends.pair(listener)
        assert works(agent, broker)
        ends.close()

    once()
    before = descriptors()
    for _ in range(10):
        once()
    assert descriptors() <= before + 2


def test_an_agent_that_breaks_the_ring_ends_its_own_channel_only(
    ends: Ends, listener: mchannel.Listener[bytes]
) -> None:
    agent, broker = ends.pair(listener)
    region = Region.create()
    wire = raw(Path(os.environ["MCHANNEL_RUNTIME_DIR"]))
    socket.send_fds(wire, [hello(b"h" * 16)], [region.fd])
    victim = ends.keep(listener.accept(timeout=2))
    memoryview(region.memory)[128:136] = (1 << 40).to_bytes(8, "little")
    memoryview(region.memory)[640:648] = (1 << 40).to_bytes(8, "little")
    with pytest.raises(mchannel.ProtocolError, match="broke the rules"):
        victim.read(timeout=2)
    with pytest.raises(mchannel.ProtocolError):
        victim.read(timeout=2)
    assert works(agent, broker)
    wire.close()
    region.close()


def test_a_flood_of_bells_does_not_keep_the_broker_from_reading(ends: Ends, listener: mchannel.Listener[bytes]) -> None:
    wire = raw(Path(os.environ["MCHANNEL_RUNTIME_DIR"]))
    with Region.create() as region:
        socket.send_fds(wire, [hello(b"h" * 16)], [region.fd])
        victim = ends.keep(listener.accept(timeout=2))
        wire.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                wire.send(bytes(8))
        started = time.monotonic()
        with pytest.raises(ChannelTimeout):
            victim.read(timeout=0.2)
        assert time.monotonic() - started < 5
    wire.close()


def test_a_peer_that_rings_without_end_is_not_listened_to_any_more(
    ends: Ends, listener: mchannel.Listener[bytes], runtime: Path
) -> None:
    agent, broker = ends.pair(listener)
    with raw(runtime) as wire, Region.create() as region:
        socket.send_fds(wire, [hello(b"h" * 16)], [region.fd])
        victim = ends.keep(listener.accept(timeout=2))
        link = victim._link  # pyright: ignore[reportPrivateUsage]
        wire.setblocking(False)
        rung = 0
        while link.state is State.OPEN and rung < 30_000:
            with suppress(BlockingIOError):
                for _ in range(50):
                    rung += wire.send(bytes(8)) // 8
            link.tick(time.monotonic())
        with pytest.raises(ProtocolError, match="without being asked"):
            victim.read(timeout=0)
        with pytest.raises(BlockingIOError):  # noqa: PT012 - when its socket is full
            for _ in range(30_000):
                wire.send(bytes(8))
                link.tick(time.monotonic())
    assert works(agent, broker)


def test_a_peer_that_rings_whenever_it_is_asked_may_do_so_for_ever(
    ends: Ends, listener: mchannel.Listener[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mchannel.transports.line._BELLS", 2)
    agent, broker = ends.pair(listener)
    link = broker._link  # pyright: ignore[reportPrivateUsage]
    for _ in range(100):
        assert not link.arm_readable()
        agent.write(b"rings the bell")
        link.tick(time.monotonic())
        assert link.recv() == b"rings the bell"
        assert link.recv() is None
    assert works(agent, broker)


def test_the_dead_agents_successor_of_the_same_name_reads_what_it_left(
    ends: Ends, listener: mchannel.Listener[bytes]
) -> None:
    broker = ends.keep(doomed(listener))
    broker.write(b"for the agent, whoever it is")
    assert broker.read(timeout=2) == b"written before the kill"
    link = ends.dial(listener, Options(name="sla"))
    with pytest.raises(ChannelTimeout):
        listener.accept(timeout=0.05)  # it is no new channel
    link.tick(time.monotonic())
    second = Channel(link, RAW)
    assert second.read(timeout=2) == b"for the agent, whoever it is"
    assert works(second, broker)


def doomed(listener: mchannel.Listener[bytes]) -> Channel[bytes]:
    """An agent called sla in a process that is killed after one write."""

    def work() -> None:
        channel = mchannel.open("shm:///web1", RAW, name="sla")
        channel.write(b"written before the kill")
        os.kill(os.getpid(), signal.SIGKILL)

    pid = in_child(work)
    broker = listener.accept(timeout=5)
    os.waitpid(pid, 0)
    return broker


def test_what_a_killed_agent_wrote_can_be_read_until_patience_ends(ends: Ends) -> None:
    with mchannel.listen("shm:///web1", RAW, patience=0.2) as listener:
        broker = ends.keep(doomed(listener))
        assert broker.read(timeout=2) == b"written before the kill"
        with pytest.raises(ChannelBroken, match=r"gone for 0\.2 s"):
            broker.read(timeout=2)


def test_the_newest_message_waits_for_room_when_only_the_latest_counts(
    ends: Ends, listener: mchannel.Listener[bytes]
) -> None:
    link = ends.dial(listener, Options(delivery=Delivery.LATEST, window=1 << 16, max_message=1 << 12))
    broker = ends.keep(listener.accept(timeout=2))
    link.tick(time.monotonic())
    agent = Channel(link, RAW)
    for number in range(10_000):
        agent.write(b"%d" % number + bytes(1000), timeout=0)
    seen = int(broker.read(timeout=2).rstrip(b"\0"))
    link.tick(time.monotonic())
    assert seen < int(broker.read(timeout=2).rstrip(b"\0")) == 9999


def test_an_agent_refused_is_told_why(ends: Ends, listener: mchannel.Listener[bytes]) -> None:
    link = ends.dial(listener, Options(window=1 << 28))
    with pytest.raises(ChannelTimeout):
        listener.accept(timeout=0.1)
    link.tick(time.monotonic())
    with pytest.raises(AuthenticationError, match="larger than"):
        link.recv()


def test_a_frame_of_another_connection_is_ignored(listener: mchannel.Listener[bytes], runtime: Path) -> None:
    with raw(runtime) as wire, Region.create() as own:
        socket.send_fds(wire, [hello(b"h" * 16, epoch=5)], [own.fd])
        broker = listener.accept(timeout=2)
        wire.send(Frame(Kind.BYE, 4).encode())
        with pytest.raises(ChannelTimeout):
            broker.read(timeout=0.05)
        wire.send(Frame(Kind.BYE, 5).encode())
        with pytest.raises(EndOfChannel):
            broker.read(timeout=2)


def test_a_connection_that_was_overtaken_cannot_come_back(listener: mchannel.Listener[bytes], runtime: Path) -> None:
    with raw(runtime) as first, raw(runtime) as late, Region.create() as own:
        socket.send_fds(first, [hello(b"h" * 16, epoch=5)], [own.fd])
        broker = listener.accept(timeout=2)
        socket.send_fds(late, [hello(b"h" * 16, epoch=5)], [own.fd])
        assert "another agent" in refusal(listener, late)
        assert broker.state is State.OPEN
        broker.close()


def test_what_a_dead_agent_left_is_not_for_another_user() -> None:
    gate = ShmGate(mchannel.Address.parse("shm:///web2"), Options())
    link = AgentLink(gate.address, Options(name="sla"))
    gate.pump()
    dead = gate.accept()
    assert isinstance(dead, BrokerLink)
    link.leave()
    assert gate.heir(dead.peer) is dead
    assert gate.heir(attrs.evolve(dead.peer, uid=12345)) is None
    assert gate.heir(attrs.evolve(dead.peer, name="other")) is None
    gate.close()


@pytest.mark.parametrize("who", ["agent", "broker"])
def test_both_ends_go_on_after_either_suspends_and_resumes(
    ends: Ends, listener: mchannel.Listener[bytes], who: str
) -> None:
    agent, broker = ends.pair(listener)
    first, second = (agent, broker) if who == "agent" else (broker, agent)
    with suppress(ChannelTimeout):
        first.suspend(timeout=0.01)  # one thread: the other end answers below
    with suppress(ChannelTimeout):
        second.read(timeout=0)
    with suppress(ChannelTimeout):
        first.read(timeout=0)
    first.resume()
    with suppress(ChannelTimeout):
        second.read(timeout=0)
    assert (agent.state, broker.state) == (State.OPEN, State.OPEN)
    assert works(agent, broker)


def test_a_small_window_holds_back_short_messages_too(ends: Ends, listener: mchannel.Listener[bytes]) -> None:
    link = ends.dial(listener, Options(window=20_000, max_message=1000))
    ends.keep(listener.accept(timeout=2))
    link.tick(time.monotonic())
    taken = 0
    while link.send(bytes(500)):
        taken += 1
    assert 10 < taken * 500 <= 20_000


def test_a_broker_that_is_full_says_so(
    ends: Ends, listener: mchannel.Listener[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mchannel.transports.shm, "_MAX_LINKS", 1)
    ends.pair(listener)
    second = ends.dial(listener, Options())
    with pytest.raises(ChannelTimeout):
        listener.accept(timeout=0.05)
    second.tick(time.monotonic())
    with pytest.raises(AuthenticationError, match="1 channels already"):
        second.recv()


def test_a_goodbye_counts_although_the_peer_left_something_unread(
    ends: Ends, listener: mchannel.Listener[bytes]
) -> None:
    agent, broker = ends.pair(listener)
    with suppress(ChannelTimeout):
        broker.suspend(timeout=0.01)  # the agent never looks at it
    with suppress(ChannelTimeout):
        agent.close(timeout=0)
    with pytest.raises(EndOfChannel):
        broker.read(timeout=2)


def test_agents_that_die_one_after_the_other_do_not_use_up_the_descriptors(
    listener: mchannel.Listener[bytes],
) -> None:
    channels: list[Channel[bytes]] = []
    for number in range(50):
        link = AgentLink(listener.address, Options(name=f"agent{number}"))
        channels.append(listener.accept(timeout=2))
        link.leave()
        with suppress(ChannelTimeout, ChannelBroken):
            channels[-1].read(timeout=0)
    lost = [channel.state for channel in channels].count(State.LOST)
    assert 0 < lost <= 33
    for channel in channels:
        channel.close(0)


def test_a_suspension_does_not_eat_what_was_not_read(ends: Ends, listener: mchannel.Listener[bytes]) -> None:
    agent, broker = ends.pair(listener)
    agent.write(b"unread")
    with suppress(ChannelTimeout):
        agent.close(timeout=0)
    with suppress(ChannelBroken):
        broker.suspend(timeout=1)
    assert broker.read(timeout=2) == b"unread"


def test_strangers_beyond_the_limit_and_those_that_say_nothing_are_shown_out(
    listener: mchannel.Listener[bytes], runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Line] = []
    close = Line.close

    def note(line: Line) -> None:
        closed.append(line)
        close(line)

    monkeypatch.setattr(mchannel.transports.shm, "_MAX_STRANGERS", 2)
    monkeypatch.setattr(Line, "close", note)
    with raw(runtime) as first, raw(runtime) as second, raw(runtime) as third:
        with pytest.raises(ChannelTimeout):
            listener.accept(timeout=0.05)
        assert first.recv(1) == b""
        assert len(closed) == 1
        later = time.monotonic() + 60
        monkeypatch.setattr(time, "monotonic", lambda: later)
        with pytest.raises(ChannelTimeout):
            listener.accept(timeout=0)
        assert second.recv(1) == third.recv(1) == b""
        assert len(closed) == 3


def knock(agent: Link) -> None:
    """Let *agent* find out that its broker is gone, and say HELLO to the next one."""
    late = time.monotonic() + 5
    while agent.state is not State.OPENING and time.monotonic() < late:
        agent.tick(time.monotonic())


def test_the_rest_of_a_batch_says_for_each_message_whether_a_predecessor_saw_it(ends: Ends) -> None:
    with mchannel.listen("shm:///web1") as first:
        agent = ends.dial(first, Options())
        broker = first.accept(timeout=5)
        agent.tick(time.monotonic())
        agent.send_many([b"seen but no event", EventCodec().encode(Event("never seen"))])
        with pytest.raises(CodecError):
            broker.read(timeout=5)
    with mchannel.listen("shm:///web1") as second:
        knock(agent)
        broker = second.accept(timeout=5)
        with pytest.raises(CodecError):
            broker.read_many(timeout=5)
        found = broker.receive(timeout=5)
        assert (found.value, found.redelivered) == (Event("never seen"), False)


def test_the_rest_of_a_batch_keeps_its_numbers_when_the_channel_is_let_go(ends: Ends) -> None:
    with mchannel.listen("shm:///web1") as listener:
        agent = ends.dial(listener, Options())
        broker = listener.accept(timeout=5)
        agent.tick(time.monotonic())
        agent.send_many([b"no event", b"nor this", EventCodec().encode(Event("after both"))])
        with pytest.raises(CodecError):
            broker.read_many(timeout=5)
    with pytest.raises(CodecError):
        broker.read_many(timeout=0)
    found = broker.receive(timeout=0)
    assert (found.value, found.redelivered) == (Event("after both"), False)
