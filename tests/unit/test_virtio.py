"""A virtio port between a guest and whichever host runs it, as the guest sees it."""

from __future__ import annotations

import errno
import gc
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

import mchannel
from mchannel.address import Address
from mchannel.channel import Channel, Listener
from mchannel.codec import RawCodec
from mchannel.errors import AddressError, ChannelBroken, ChannelTimeout
from mchannel.transport import Options, State
from mchannel.transports import virtio
from mchannel.transports.stream import BEGIN, Multiplexer
from tests.unit.virtio_world import Hypervisor, wakeups

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


def test_what_waits_in_several_buffers_is_taken_in_together(stack: ExitStack, world: Hypervisor) -> None:
    agent, broker = pair(stack, world, mvm(stack, world.path))
    for number in (1, 2, 3):
        broker.write(b"%d" % number)
        late = time.monotonic() + SOON
        while world.buffers < number:
            assert time.monotonic() < late
            time.sleep(0.001)
    assert agent.read_many(timeout=SOON) == [b"1", b"2", b"3"]


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


def greeted(transport: Any, world: Hypervisor) -> tuple[socket.socket, Multiplexer]:
    """Attach a host that said BEGIN and does nothing by itself."""
    host = socket.socket(socket.AF_UNIX)
    host.connect(os.fspath(world.path))
    mux = Multiplexer()
    mux.say(BEGIN)
    host.sendall(mux.take(1))
    while wakeups(transport, 0.05):
        pass
    return host, mux


def test_a_host_that_sends_more_than_was_agreed_breaks_the_transport(world: Hypervisor) -> None:
    transport: Any = virtio.VIRTIO.connect(Address.parse(f"virtio://{world.path.parent}/port"), LIMITS)
    host, mux = greeted(transport, world)
    with host:
        for _ in range(30):
            mux.put(transport.key, b"x" * 9000)
            host.sendall(mux.take(1 << 20))
            wakeups(transport, 0.01)
        while wakeups(transport, 0.05):
            pass
        with pytest.raises(ChannelBroken, match="more than was agreed"):
            list(iter(transport.recv, None))
        transport.close()
    is_let_go(world)


def test_a_writer_that_waits_for_room_is_woken_when_the_host_takes_more(world: Hypervisor) -> None:
    transport: Any = virtio.VIRTIO.connect(Address.parse(f"virtio://{world.path.parent}/port"), LIMITS)
    host, _ = greeted(transport, world)
    with host:
        news: list[bool] = []
        transport.on_news = lambda: news.append(True)
        while transport.send(b"x" * 9000):
            pass
        late = time.monotonic() + SOON
        while not news:
            assert time.monotonic() < late, "nothing woke"
            for ready in select.select([host, transport], [], [], SOON)[0]:
                host.recv(1 << 16) if ready is host else transport.pump()
        assert transport.send(b"there is room")
        transport.close()
    is_let_go(world)


def test_a_process_that_is_forked_off_does_not_share_the_port(
    world: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = virtio.VIRTIO.connect(address := Address.parse(f"virtio://{world.path.parent}/port"), LIMITS)
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: 1)
        with pytest.raises(AddressError, match="another process"):
            virtio.VIRTIO.connect(address, LIMITS)
    transport.close()


def test_what_one_turn_leaves_unread_wakes_again(
    stack: ExitStack, world: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, broker = pair(stack, world, mvm(stack, world.path))
    monkeypatch.setattr(virtio, "_READS", 1)
    for _ in range(3):
        broker.write(b"x" * 4096)
    time.sleep(0.2)  # all of it is in the guest, and nothing follows
    count = 0
    while count < 3:
        assert select.select([agent], [], [], SOON)[0], "nothing woke"
        with suppress(ChannelTimeout):
            while agent.read(timeout=0):
                count += 1


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
    gc.collect()  # what other tests left must not end meanwhile
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
