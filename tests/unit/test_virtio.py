"""A virtio port between a guest and whichever host runs it."""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

import mchannel
from mchannel.address import Address
from mchannel.channel import Channel, Listener
from mchannel.codec import RawCodec
from mchannel.errors import AddressError, ChannelBroken, ChannelTimeout
from mchannel.frame import Frame, Kind
from mchannel.transport import Options, State, Transport
from mchannel.transports import domain, virtio
from mchannel.transports.domain import DomainSocket
from mchannel.transports.stream import BEGIN, EVERYBODY, READY, Demultiplexer, Key, Multiplexer
from tests.unit.virtio_world import Hypervisor

UUID = "aaaaaaaa-0000-4000-8000-000000000001"
SOON = 10.0
SLOW = 60.0
"""A heartbeat so slow that nothing in these tests can be due to it."""
LIMITS = Options(max_message=10_000, window=100_000)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hypervisor]:
    with Hypervisor(tmp_path / "socket") as made:
        monkeypatch.setattr(virtio, "_open", made.open)
        yield made


@pytest.fixture
def stack(world: Hypervisor) -> Iterator[ExitStack]:
    """What a test opens; the port must be closed after that."""
    with ExitStack() as found:
        found.callback(is_let_go, world)
        yield found


def is_let_go(world: Hypervisor) -> None:
    """Wait until the guest has closed the port, which may take a second when there is something to be sent."""
    late = time.monotonic() + SOON
    while world.is_open:
        assert time.monotonic() < late, "the port stayed open"
        time.sleep(0.01)


def meanwhile(stack: ExitStack, function: Callable[[], object]) -> None:
    """Run *function* in a thread until the end of the test."""
    stack.enter_context(ThreadPoolExecutor(1)).submit(function)


def mvm(stack: ExitStack, path: Path) -> Listener[bytes]:
    found = mchannel.listen(f"virtio://{path}?domain={UUID}", RawCodec(), heartbeat=SLOW)
    stack.callback(found.close)
    return found


def guest(stack: ExitStack, world: Hypervisor, query: str = "", heartbeat: float = SLOW) -> Channel[bytes]:
    """Open the port; the MVM must be listening, in a thread."""
    found = mchannel.open(f"virtio://{world.path.parent}/port{query}", RawCodec(), timeout=SOON, heartbeat=heartbeat)
    stack.callback(lambda: close(found))
    return found


def close(channel: Channel[bytes]) -> None:
    with suppress(ChannelTimeout, ChannelBroken):
        channel.close(timeout=0)


def pair(
    stack: ExitStack, world: Hypervisor, listener: Listener[bytes], query: str = ""
) -> tuple[Channel[bytes], Channel[bytes]]:
    with ThreadPoolExecutor(1) as threads:
        coming = threads.submit(guest, stack, world, query)
        broker = listener.accept(timeout=SOON)
        agent = coming.result()
    stack.callback(lambda: close(broker))
    return agent, broker


def wakeups(port: Transport | DomainSocket, seconds: float) -> int:
    """Return how often a select loop turns in that time."""
    late, count = time.monotonic() + seconds, 0
    poll = select.poll()
    poll.register(port.port, select.POLLIN)
    while (left := late - time.monotonic()) > 0:
        if poll.poll(left * 1000):
            count += 1
            port.port.pump()
    return count


# --- the guest --------------------------------------------------------------------------------


def test_a_select_loop_sleeps_while_no_host_is_attached(world: Hypervisor) -> None:
    level = select.poll()
    level.register(world, select.POLLIN)
    assert all(level.poll(0) for _ in range(100)), "the port is readable all the time, as a real one"
    transport = virtio.VIRTIO.connect(Address.parse(f"virtio://{world.path.parent}/port"), LIMITS)
    assert wakeups(transport, 0.5) <= 2
    assert transport.send(b"lost, as on a cable that is not plugged in")
    assert wakeups(transport, 0.5) <= 1
    transport.close()


def test_an_agent_opens_at_once_when_a_host_attaches(stack: ExitStack, world: Hypervisor) -> None:
    with ThreadPoolExecutor(1) as threads:
        coming = threads.submit(guest, stack, world)
        time.sleep(0.1)  # it says HELLO to nobody
        assert not coming.done()
        broker = mvm(stack, world.path).accept(timeout=SOON)
        agent = coming.result(SOON)
    agent.write(b"hello")
    assert broker.read(timeout=SOON) == b"hello"
    broker.close(timeout=0)


def test_an_agent_that_never_saw_its_host_go_finds_the_next_without_waiting_for_a_heartbeat(
    stack: ExitStack, world: Hypervisor
) -> None:
    agent, broker = pair(stack, world, first := mvm(stack, world.path))
    agent.write(b"before")
    assert broker.read(timeout=SOON) == b"before"
    broker.done()
    world.arrive(world.path.with_name("other"))
    agent.write(b"on the way")
    first.close()
    second = mvm(stack, world.path)
    meanwhile(stack, lambda: agent.flush(SOON))
    successor = second.accept(timeout=SOON)
    found = successor.receive(timeout=SOON)
    assert (found.value, found.redelivered) == (b"on the way", True)
    successor.done()
    close(successor)


def test_an_agent_with_nothing_to_say_is_found_by_the_next_host_at_once(stack: ExitStack, world: Hypervisor) -> None:
    agent, _ = pair(stack, world, first := mvm(stack, world.path))
    handed = first.hand_over()
    world.arrive(world.path.with_name("other"))
    second = mvm(stack, world.path)
    for each in handed:
        second.adopt(each)
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(agent.read, SOON)
        successor = second.accept(timeout=SOON)
        successor.write(b"welcome")
        assert reading.result() == b"welcome"
    close(successor)


def test_with_a_handoff_nothing_is_lost_and_nothing_comes_twice(stack: ExitStack, world: Hypervisor) -> None:
    agent, broker = pair(stack, world, first := mvm(stack, world.path))
    numbers = [str(number).encode() for number in range(100)]
    agent.write_many(numbers)
    assert [broker.read(timeout=SOON) for _ in range(40)] == numbers[:40]
    broker.write(b"news")
    handed = first.hand_over()
    world.arrive(world.path.with_name("other"))
    second = mvm(stack, world.path)
    for each in handed:
        second.adopt(each)

    def read() -> bytes:
        found = agent.read(timeout=SOON)
        agent.flush(timeout=SOON)
        return found

    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read)
        successor = second.accept(timeout=SOON)
        found = [successor.receive(timeout=SOON) for _ in range(60)]
        successor.done()
        assert reading.result() == b"news"
    assert [each.value for each in found] == numbers[40:]
    assert not any(each.redelivered for each in found)
    close(successor)


def test_channels_of_a_process_share_the_port_and_the_last_lets_go_of_it(stack: ExitStack, world: Hypervisor) -> None:
    listener = mvm(stack, world.path)
    pairs = [pair(stack, world, listener, query) for query in ("?stream=sla", "?stream=metrics", "")]
    assert world.opened == 1
    for number, (agent, _) in enumerate(pairs):
        agent.write(str(number).encode())
    assert [broker.read(timeout=SOON) for _, broker in pairs] == [b"0", b"1", b"2"]
    for agent, broker in pairs:
        broker.done()
        assert world.is_open
        agent.close(timeout=SOON)
    assert not world.is_open
    again, _ = pair(stack, world, listener)
    assert world.opened == 2
    close(again)


def test_the_broker_knows_the_domain_from_its_own_address_and_the_stream_from_its_label(
    stack: ExitStack, world: Hypervisor
) -> None:
    listener = mvm(stack, world.path)
    _, broker = pair(stack, world, listener, "?stream=sla")
    assert broker.peer.identity == UUID
    assert broker.peer.address == f"virtio://{world.path}?domain={UUID}&stream=sla"


def test_a_message_is_not_held_up_by_megabytes_of_another_channel(stack: ExitStack, world: Hypervisor) -> None:
    listener = mvm(stack, world.path)
    bulky, bulk = pair(stack, world, listener)
    small, other = pair(stack, world, listener, "?stream=sla")
    for _ in range(3):
        bulky.write(b"x" * (1 << 20))
    small.write(b"urgent")
    assert other.read(timeout=SOON) == b"urgent"
    with pytest.raises(ChannelTimeout):
        bulk.read(timeout=0)  # not even the first of them has come
    for _ in range(3):
        assert bulk.read(timeout=SOON) == b"x" * (1 << 20)  # though nobody calls its writer any more


def test_what_was_written_leaves_though_its_channel_is_closed(stack: ExitStack, world: Hypervisor) -> None:
    listener = mvm(stack, world.path)
    agent, broker = pair(stack, world, listener)
    agent.write_many([b"x" * 100_000] * 10)
    with pytest.raises(ChannelTimeout):
        agent.close(timeout=0)
    for _ in range(10):
        assert broker.read(timeout=SOON) == b"x" * 100_000
    assert list(broker) == []
    is_let_go(world)


def test_a_closed_port_is_let_go_of_though_the_host_takes_nothing(world: Hypervisor) -> None:
    transport = virtio.VIRTIO.connect(address := Address.parse(f"virtio://{world.path.parent}/port"), LIMITS)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(os.fspath(world.path))
        mux = Multiplexer()
        mux.say(BEGIN)
        deaf.sendall(mux.take(1))
        while wakeups(transport, 0.05):
            pass
        while transport.send(b"x" * 9000):
            pass
        transport.close()
        assert world.is_open
        again = virtio.VIRTIO.connect(address, LIMITS)  # the same descriptor: the kernel would not open another
        again.close()
        is_let_go(world)


def test_what_one_turn_leaves_unread_wakes_again(
    stack: ExitStack, world: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, broker = pair(stack, world, mvm(stack, world.path))
    monkeypatch.setattr(virtio, "_READS", 1)
    for _ in range(3):
        broker.write(b"x" * 4096)
    time.sleep(0.2)  # all of it is in the guest, and nothing follows
    count = 0
    while select.select([agent], [], [], 0.3)[0]:
        with suppress(ChannelTimeout):
            while agent.read(timeout=0):
                count += 1
    assert count == 3


def test_an_agent_that_only_writes_notices_that_its_port_was_unplugged(
    stack: ExitStack, world: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, _ = pair(stack, world, mvm(stack, world.path))
    with pytest.raises(ChannelTimeout):
        agent.read(timeout=0.001)  # the last time that it looks by itself

    def gone(_: int) -> bytes:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    with monkeypatch.context() as patch:
        patch.setattr(world, "read", gone)
        for _ in range(5):
            agent.write(b"on")
            time.sleep(0.02)
    agent.write(b"and on")
    assert world.opened >= 2


def test_an_unplugged_port_breaks_the_transport_and_is_opened_again(
    stack: ExitStack, world: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, broker = pair(stack, world, listener := mvm(stack, world.path))

    def gone(_: int) -> bytes:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    with monkeypatch.context() as patch:
        patch.setattr(world, "read", gone)
        with pytest.raises(ChannelTimeout):
            agent.read(timeout=0.1)
    assert agent.state is not State.ENDED
    agent.write(b"plugged in again")
    with ThreadPoolExecutor(1) as threads:
        flushing = threads.submit(agent.flush, SOON)
        found: list[bytes] = []
        late = time.monotonic() + SOON
        while not found:
            assert time.monotonic() < late
            with suppress(ChannelTimeout):
                listener.accept(timeout=0)
            with suppress(ChannelTimeout):
                found.append(broker.read(timeout=0.05))
        broker.done()
        flushing.result()
    assert found == [b"plugged in again"]
    assert world.opened >= 2


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOENT, "<channel type='unix'><target type='virtio' name='port'/></channel>"),
        (errno.EBUSY, "another process has"),
        (errno.EACCES, "run as root"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_port_that_cannot_be_opened_says_what_to_do(
    number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(virtio, "_open", refuse)
    with pytest.raises(AddressError) as caught:
        mchannel.open(f"virtio://{tmp_path}/port")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_guest_without_the_port_is_told_what_its_domain_needs() -> None:
    with pytest.raises(AddressError, match=r"<target type='virtio' name='org\.mchannel\.none'/>"):
        mchannel.open("virtio:///org.mchannel.none")


def test_a_file_that_is_no_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "port").touch()
    before = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(AddressError, match="no character device"):
        mchannel.open(f"virtio://{tmp_path}/port")
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_without_udev_a_port_is_found_by_its_name_in_sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vport2p3").mkdir()
    (tmp_path / "vport2p3" / "name").write_text("org.mchannel.0\n")
    opened: list[Path] = []

    def refuse(path: Path) -> None:
        opened.append(path)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(virtio, "_CLASS", tmp_path)
    monkeypatch.setattr(virtio, "_open", refuse)
    with pytest.raises(AddressError):
        mchannel.open("virtio:///org.mchannel.0")
    assert opened == [Path("/dev/vport2p3")]


@pytest.mark.parametrize(
    "address",
    ["virtio://host/port", "virtio:///", "virtio:///a b", "virtio:///port?stream=a/b", "virtio:///port?strem=sla"],
)
def test_an_address_that_names_no_port_is_refused(address: str) -> None:
    with pytest.raises(AddressError):
        mchannel.open(address)


# --- the MVM ----------------------------------------------------------------------------------


class Raw:
    """A hypervisor whose guest sends what it likes."""

    def __init__(self, path: Path, name: str = UUID, options: Options = LIMITS) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(os.fspath(path))
        self.listener.listen(1)
        self.acceptor = domain.listen(Address.parse(f"virtio://{path}?domain={name}"), options)
        self.wire, _ = self.listener.accept()
        self.wire.settimeout(SOON)
        self.mux = Multiplexer()
        self.demux = Demultiplexer(1 << 20, 64)

    def say(self, key: Key, frame: bytes) -> None:
        self.mux.put(key, frame)
        self.wire.sendall(self.mux.take(1 << 62))
        self.pump()

    def pump(self, seconds: float = 0.0) -> None:
        late = time.monotonic() + seconds
        while select.select([self.acceptor.port], [], [], max(0.0, late - time.monotonic()))[0]:
            self.acceptor.port.pump()

    def heard(self) -> list[tuple[Key, bytes]]:
        self.pump()
        self.wire.setblocking(False)
        found: list[tuple[Key, bytes]] = []
        with suppress(BlockingIOError):
            while data := self.wire.recv(1 << 16):
                found += self.demux.feed(data)
                self.pump()
        self.wire.settimeout(SOON)
        return found

    def accepted(self) -> Transport:
        found = self.acceptor.accept()
        assert found is not None
        return found

    def close(self) -> None:
        self.acceptor.close()
        self.wire.close()
        self.listener.close()


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[Raw]:
    found = Raw(tmp_path / "raw")
    yield found
    found.close()


KEY = Key(b"abcd", "sla")


def test_a_connection_begins_with_a_word_to_everybody_and_a_guest_that_begins_is_answered(raw: Raw) -> None:
    assert raw.heard() == [(EVERYBODY, BEGIN)]
    raw.say(EVERYBODY, BEGIN)
    assert raw.heard() == [(EVERYBODY, READY)]


def test_answers_to_a_guest_that_begins_all_the_time_fill_no_memory(raw: Raw) -> None:
    mux = Multiplexer()
    for _ in range(1000):
        mux.say(BEGIN)
    raw.wire.sendall(mux.take(1 << 62))
    assert len(raw.heard()) < 20


def test_a_guest_that_begins_anew_ends_the_streams_of_before(raw: Raw) -> None:
    raw.say(KEY, b"of a process that died")
    before = raw.accepted()
    raw.say(EVERYBODY, BEGIN)
    raw.say(KEY, b"of another")
    assert before.recv() == b"of a process that died"
    with pytest.raises(ChannelBroken):
        before.recv()
    assert raw.accepted().recv() == b"of another"


def test_a_stream_that_its_agent_ends_breaks_after_what_it_carried(raw: Raw) -> None:
    raw.say(KEY, b"last words")
    raw.say(KEY, b"")
    stream = raw.accepted()
    assert stream.recv() == b"last words"
    with pytest.raises(ChannelBroken):
        stream.recv()
    with pytest.raises(ChannelBroken):
        stream.send(b"")


def test_what_was_read_before_the_domain_left_is_delivered(raw: Raw) -> None:
    raw.say(KEY, b"first")
    stream = raw.accepted()
    raw.mux.put(KEY, b"x" * 9000)
    raw.wire.sendall(raw.mux.take(1 << 62))
    raw.wire.close()
    raw.pump()
    assert [stream.recv(), stream.recv()] == [b"first", b"x" * 9000]
    with pytest.raises(ChannelBroken):
        stream.recv()


def test_a_domain_that_comes_back_is_connected_to_again(raw: Raw) -> None:
    raw.wire.close()
    raw.pump(0.2)
    raw.wire, _ = raw.listener.accept()
    raw.demux.begin()
    assert raw.heard() == [(EVERYBODY, BEGIN)]
    raw.say(KEY, b"back")
    assert raw.accepted().recv() == b"back"


def test_what_a_guest_goes_on_with_before_it_hears_the_new_host_is_not_answered(raw: Raw) -> None:
    raw.say(KEY, Frame(Kind.DATA, 7, number=3, body=b"for the host before").encode())
    assert raw.acceptor.accept() is None
    raw.say(KEY, Frame(Kind.HELLO, 8).encode())
    assert raw.accepted().recv() == Frame(Kind.HELLO, 8).encode()


def test_a_guest_that_goes_on_as_if_it_had_not_heard_the_new_host_is_met(raw: Raw) -> None:
    frame = Frame(Kind.DATA, 7, number=3).encode()
    raw.say(KEY, frame)
    time.sleep(0.6)
    raw.say(KEY, frame)
    assert raw.accepted().recv() == frame


def test_a_guest_that_stays_silent_is_connected_to_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain, "_SILENCE", 0.05)
    silent = Raw(tmp_path / "silent")
    silent.pump(0.2)
    silent.listener.settimeout(SOON)
    with silent.listener.accept()[0]:
        silent.close()


def test_a_guest_that_spoke_keeps_its_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain, "_SILENCE", 0.05)
    speaking = Raw(tmp_path / "speaking")
    speaking.say(KEY, b"here")
    speaking.pump(0.2)
    speaking.listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        speaking.listener.accept()
    speaking.close()


def test_a_guest_that_spoke_is_not_waited_for_as_long_as_one_that_was_silent_for_long(
    raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw.acceptor._silence = SLOW  # pyright: ignore[reportPrivateUsage] - after many silences
    monkeypatch.setattr(domain, "_SILENCE", 0.05)
    raw.say(KEY, b"here")
    raw.wire.close()
    raw.listener.setblocking(False)
    late = time.monotonic() + SOON
    with ExitStack() as connections:
        for _ in range(2):  # the first stays silent
            while not select.select([raw.listener], [], [], 0)[0]:
                assert time.monotonic() < late
                raw.pump(0.01)
            connections.enter_context(raw.listener.accept()[0])


def test_what_waited_for_a_domain_that_left_is_not_sent_to_it_when_it_is_back(raw: Raw) -> None:
    raw.say(KEY, b"hello")
    stream = raw.accepted()
    while stream.send(bytes(9000)):
        pass
    raw.wire.close()
    raw.pump(0.2)
    raw.wire, _ = raw.listener.accept()
    raw.demux.begin()
    assert raw.heard() == [(EVERYBODY, BEGIN)]
    assert raw.demux.garbage == 0


def test_a_domain_that_is_not_there_is_tried_ever_more_rarely(tmp_path: Path) -> None:
    acceptor = domain.listen(Address.parse(f"virtio://{tmp_path}/none?domain={UUID}"), LIMITS)
    assert 2 <= wakeups(acceptor, 1.0) <= 8
    acceptor.close()
    acceptor.close()


def test_a_hypervisor_that_hangs_up_at_once_is_tried_ever_more_rarely(raw: Raw) -> None:
    raw.wire.close()
    raw.listener.setblocking(False)
    late, count = time.monotonic() + 1, 0
    while time.monotonic() < late:
        with suppress(BlockingIOError):
            raw.listener.accept()[0].close()
            count += 1
        raw.pump(0.01)
    assert 2 <= count <= 8


def test_a_socket_that_cannot_be_used_is_complained_about_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wrong:
        wrong.bind(os.fspath(tmp_path / "wrong"))
        acceptor = domain.listen(Address.parse(f"virtio://{tmp_path}/wrong?domain={UUID}"), LIMITS)
        wakeups(acceptor, 0.3)
        acceptor.close()
    assert [each.levelno for each in caplog.records] == [logging.WARNING]
    assert "cannot connect to the domain's socket" in caplog.text


@pytest.mark.parametrize("noise", [b"\0", b"\xc1\xc1noise", b"\xf6\1", b"mC\1\0" * 5])
def test_a_guest_that_sends_garbage_is_held_back_with_one_line_and_others_are_not(
    noise: bytes, raw: Raw, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Raw(tmp_path / "other", "bbbbbbbb-0000-4000-8000-000000000002")
    raw.wire.setblocking(False)
    sent = 0
    late = time.monotonic() + 0.5
    while time.monotonic() < late:
        with suppress(BlockingIOError):
            sent += raw.wire.send(noise * (4000 // len(noise)))
        raw.pump(0.001)
    assert sent < 1 << 20
    assert len(caplog.records) == 1
    assert UUID in caplog.text
    other.say(KEY, b"untouched")
    assert other.accepted().recv() == b"untouched"
    other.close()


def test_a_guest_that_was_held_back_is_heard_again(raw: Raw) -> None:
    raw.wire.sendall(b"\xc1" + b"x" * 100_000)
    raw.pump()
    raw.mux.put(KEY, b"sorry")
    raw.wire.sendall(raw.mux.take(1))
    raw.pump()
    assert raw.acceptor.accept() is None
    raw.pump(1.2)
    assert raw.accepted().recv() == b"sorry"


def test_a_guest_that_hangs_up_while_it_is_held_back_wakes_nobody_in_vain(raw: Raw) -> None:
    raw.wire.sendall(b"\xc1" + b"x" * 100_000)
    raw.pump()
    raw.wire.close()
    assert wakeups(raw.acceptor, 0.5) <= 1


@pytest.mark.parametrize(
    ("key", "frames"),
    [
        (EVERYBODY, [BEGIN]),
        (EVERYBODY, [Frame(Kind.DATA, 1, 1).encode()]),
        (KEY, [b""]),
        (KEY, [Frame(Kind.CALL, 1).encode()]),
        (KEY, [Frame(Kind.HELLO, epoch).encode() for epoch in range(1, 500)]),
    ],
    ids=["BEGIN", "messages to everybody", "end", "CALL", "HELLO of ever new epochs"],
)
def test_a_flood_of_control_frames_is_held_back_with_one_line(
    key: Key, frames: list[bytes], raw: Raw, caplog: pytest.LogCaptureFixture
) -> None:
    mux = Multiplexer(1 << 40)
    for frame in frames * (50_000 // len(frames)):
        mux.put(key, frame)
    flood = mux.take(1 << 62)
    raw.wire.setblocking(False)
    late = time.monotonic() + 0.5
    while time.monotonic() < late and flood:
        with suppress(BlockingIOError):
            flood = flood[raw.wire.send(flood[:4096]) :]
        raw.pump(0.001)
    assert flood, "all of it was taken"
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "the guest begins, calls and ends more often than any agent"
    ]


def test_messages_are_not_counted_as_control_frames(raw: Raw, caplog: pytest.LogCaptureFixture) -> None:
    raw.say(KEY, Frame(Kind.HELLO, 1).encode())
    stream = raw.accepted()
    heard = 0
    for number in range(1, 2500):
        raw.say(KEY, Frame(Kind.DATA, 1, number).encode())
        while stream.recv() is not None:
            heard += 1
    assert heard == 2500
    assert not caplog.records


def test_a_stream_that_nobody_reads_is_ended_when_it_floods(raw: Raw, caplog: pytest.LogCaptureFixture) -> None:
    raw.say(KEY, b"")
    for _ in range(30):
        raw.mux.put(KEY, b"x" * 9000)
        raw.wire.sendall(raw.mux.take(1 << 62))
        raw.pump()
        if caplog.records:
            break
    assert "floods" in caplog.text
    assert raw.acceptor.waiting <= 2 * (LIMITS.window + LIMITS.max_message)
    with pytest.raises(ChannelBroken):
        raw.accepted().recv()


def test_a_guest_has_a_limited_number_of_streams(raw: Raw, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(65):
        raw.say(Key(number.to_bytes(4, "little"), "x"), b"hello")
    assert "more than 64 streams" in caplog.text
    found = [raw.acceptor.accept() for _ in range(65)]
    assert found.count(None) == 1


def test_one_stream_too_many_takes_the_place_of_the_one_that_was_quiet_longest(raw: Raw) -> None:
    raw.say(KEY, b"hello")
    quiet = raw.accepted()
    for number in range(64):
        raw.say(Key(number.to_bytes(4, "little"), "x"), b"hello")
    with pytest.raises(ChannelBroken, match="more than 64 streams"):
        quiet.send(b"are you still there?")


def test_a_guest_that_does_not_read_is_sent_no_more_than_a_little(raw: Raw) -> None:
    raw.say(KEY, b"hello")
    stream = raw.accepted()
    news: list[None] = []
    stream.on_news = lambda: news.append(None)
    taken = 0
    while stream.send(bytes(9000)):
        taken += 9000
    assert taken < 1 << 20
    assert wakeups(raw.acceptor, 0.2) <= 1
    assert not news
    while raw.heard():
        pass
    assert news, "it was not told that there is room"
    assert stream.send(b"room again")


def test_what_was_taken_before_a_close_still_leaves(raw: Raw) -> None:
    raw.say(KEY, b"hello")
    stream = raw.accepted()
    sent = 0
    while stream.send(bytes(9000)):
        sent += 1
    raw.acceptor.close()
    found: list[tuple[Key, bytes]] = []
    while data := raw.wire.recv(1 << 16):
        found += raw.demux.feed(data)
    assert found == [(EVERYBODY, BEGIN), *[(KEY, bytes(9000))] * sent]


def test_a_stream_that_the_broker_closed_is_a_new_one_when_it_speaks_again(raw: Raw) -> None:
    raw.say(KEY, b"one")
    raw.accepted().close()
    raw.say(KEY, b"two")
    assert raw.accepted().recv() == b"two"


def test_a_frame_of_one_domain_never_comes_from_another(raw: Raw) -> None:
    """Whatever a guest sends, the peer is the domain of the address."""
    hello = Frame(Kind.HELLO, 1, body=b"bbbbbbbb-0000-4000-8000-000000000002").encode()
    raw.say(Key(b"bbbb", "domain.bbbbbbbb"), hello)
    assert raw.accepted().peer.identity == UUID


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("virtio:///org.mchannel.0?domain=" + UUID, "the whole path"),
        ("virtio://host/run/web1.sock?domain=" + UUID, "the whole path"),
        ("virtio:///run/web1.sock", "virsh domuuid"),
        ("virtio:///run/web1.sock?domain=web1", "virsh domuuid"),
        ("virtio:///run/web1.sock?domian=" + UUID, "no option"),
        ("virtio:///run/" + "x" * 110 + f"?domain={UUID}", "at most 107 bytes"),
    ],
)
def test_an_address_that_names_no_domain_is_refused(address: str, words: str) -> None:
    with pytest.raises(AddressError, match=words):
        mchannel.listen(address)
