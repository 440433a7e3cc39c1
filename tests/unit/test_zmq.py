from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs
import pytest
import zmq

from mchannel import keys
from mchannel.address import Address
from mchannel.aio import open_async
from mchannel.errors import AddressError, AuthenticationError, ChannelBroken, KeyFileError, MChannelError
from mchannel.transport import Acceptor, Options, Port, Transport
from mchannel.transports import zmq as wire
from mchannel.transports.zmq import IPC, TCP

T = TypeVar("T")


def until(found: Callable[[], T | None], *ports: Port, seconds: float = 10) -> T:
    """Pump the ports that are readable, and only those, until there is a result."""
    poll = select.poll()
    by_fd = {port.fileno(): port for port in ports}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    late = time.monotonic() + seconds
    while (result := found()) is None:
        assert time.monotonic() < late, "nothing came"
        for fd, _ in poll.poll(50):
            by_fd[fd].pump()
    return result


def settle(*ports: Port, seconds: float = 0.2) -> None:
    late = time.monotonic() + seconds
    until(lambda: time.monotonic() > late or None, *ports)


def failure(transport: Transport, *ports: Port) -> MChannelError:
    """Pump until the transport raises, and return what."""

    def raised() -> MChannelError | None:
        try:
            while transport.recv() is not None:
                pass
        except MChannelError as error:
            return error
        return None

    return until(raised, *ports)


@attrs.define
class Ends:
    """An acceptor, and a way to dial it."""

    acceptor: Acceptor
    options: Options
    stack: ExitStack

    def dial(self) -> Transport:
        connect = (IPC if self.acceptor.address.scheme == "ipc" else TCP).connect
        return self.stack.enter_context(closing(connect(self.acceptor.address, self.options)))

    def pair(self) -> tuple[Transport, Transport]:
        """Return both ends of a new connection."""
        agent = self.dial()
        until(lambda: agent.send(b"first") or None, agent.port, self.acceptor.port)
        broker = until(self.acceptor.accept, self.acceptor.port, agent.port)
        assert broker.recv() == b"first"
        return agent, broker


@attrs.define
class Folders:
    """Keys of a broker and of an agent that know each other."""

    broker: Path
    agent: Path


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders(tmp_path / "broker", tmp_path / "agent")
    keys.new(made.broker, "mvm1")
    keys.new(made.agent, "unused")
    keys.trust(made.broker, "web1", keys.show(made.agent))
    keys.trust(made.agent, "mvm1", keys.show(made.broker), server=True)
    return made


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MCHANNEL_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(params=["ipc", "curve", "insecure"])
def ends(request: pytest.FixtureRequest, folders: Folders, stack: ExitStack) -> Ends:
    match request.param:
        case "ipc":
            acceptor = IPC.listen(Address.parse("ipc:///web1"), Options())
            options = Options()
        case "curve":
            acceptor = TCP.listen(Address.parse("tcp://127.0.0.1:0"), Options(keys=folders.broker))
            options = Options(keys=folders.agent)
        case _:
            acceptor = TCP.listen(Address.parse("tcp://127.0.0.1:0"), Options(insecure=True))
            options = Options(insecure=True)
    return Ends(stack.enter_context(closing(acceptor)), options, stack)


@pytest.fixture
def ipc(stack: ExitStack) -> Ends:
    acceptor = IPC.listen(Address.parse("ipc:///web1"), Options())
    return Ends(stack.enter_context(closing(acceptor)), Options(), stack)


@pytest.fixture
def curve(folders: Folders, stack: ExitStack) -> Ends:
    acceptor = TCP.listen(Address.parse("tcp://127.0.0.1:0"), Options(keys=folders.broker))
    return Ends(stack.enter_context(closing(acceptor)), Options(keys=folders.agent), stack)


# --- a pipe of whole frames ------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 64, 1 << 20])
def test_frames_go_both_ways_whole(ends: Ends, size: int) -> None:
    agent, broker = ends.pair()
    frame = os.urandom(size)
    assert agent.send(frame)
    assert broker.send(frame[::-1])
    assert until(broker.recv, broker.port, agent.port) == frame
    assert until(agent.recv, broker.port, agent.port) == frame[::-1]


def test_a_burst_longer_than_a_pump_arrives_in_order_without_another_send(ends: Ends) -> None:
    agent, broker = ends.pair()
    for source, sink in ((agent, broker), (broker, agent)):
        sent = [str(i).encode() for i in range(700)]
        for frame in sent:
            assert source.send(frame)
        assert [until(sink.recv, sink.port) for _ in sent] == sent


def test_large_frames_that_fill_a_pump_arrive_without_another_send(ends: Ends) -> None:
    agent, broker = ends.pair()
    for source, sink in ((agent, broker), (broker, agent)):
        for _ in range(9):
            assert source.send(bytes(1 << 20))
        time.sleep(0.3)
        assert sum(len(until(sink.recv, sink.port)) for _ in range(9)) == 9 << 20


def test_a_pump_takes_in_a_bounded_portion(ends: Ends) -> None:
    agent, broker = ends.pair()
    for _ in range(900):
        agent.send(b"x")
    time.sleep(0.2)

    def portion() -> int | None:
        broker.port.pump()
        taken = 0
        while broker.recv() is not None:
            taken += 1
        return taken or None

    assert until(portion) < 900


def test_a_send_that_swallows_the_wake_up_leaves_the_port_readable(ends: Ends) -> None:
    agent, broker = ends.pair()
    settle(agent.port, broker.port)
    for source, sink in ((broker, agent), (agent, broker)):
        assert source.send(b"wake")
        time.sleep(0.1)  # the edge is there now, and the next send takes it in
        assert sink.send(b"crossing")
        assert until(sink.recv, sink.port) == b"wake"
        assert until(source.recv, source.port) == b"crossing"
        settle(agent.port, broker.port)


def test_an_idle_port_is_quiet(ends: Ends) -> None:
    agent, broker = ends.pair()
    settle(agent.port, broker.port, seconds=0.5)
    poll = select.poll()
    poll.register(agent.port.fileno(), select.POLLIN)
    poll.register(broker.port.fileno(), select.POLLIN)
    assert poll.poll(50) == []


def test_news_is_told_to_whom_it_concerns(ends: Ends) -> None:
    agent, broker = ends.pair()
    _, other = ends.pair()
    told: list[str] = []
    agent.on_news = lambda: told.append("agent")
    broker.on_news = lambda: told.append("broker")
    other.on_news = lambda: told.append("other")
    agent.send(b"x")
    broker.send(b"y")
    until(lambda: {"agent", "broker"} <= set(told) or None, agent.port, broker.port)
    assert "other" not in told


def test_each_agent_has_its_own_transport(ends: Ends) -> None:
    pairs = [ends.pair() for _ in range(3)]
    for i, (_, broker) in enumerate(pairs):
        broker.send(str(i).encode())
    for i, (agent, _) in enumerate(pairs):
        assert until(agent.recv, agent.port) == str(i).encode()


def test_frames_that_were_taken_are_sent_after_close(ends: Ends) -> None:
    agent, broker = ends.pair()
    for _ in range(50):
        assert agent.send(b"last words")
    agent.close()
    agent.close()
    assert [until(broker.recv, broker.port) for _ in range(50)] == [b"last words"] * 50


def test_a_brokers_full_pipe_says_no_and_tells_when_there_is_room(ends: Ends) -> None:
    agent, broker = ends.pair()
    sent = 0
    while broker.send(b"x" * 10_000):
        sent += 1
        assert sent < 100_000
    told: list[bool] = []
    broker.on_news = lambda: told.append(True)
    for _ in range(sent):
        until(agent.recv, agent.port)
    until(lambda: told or None, broker.port)
    assert broker.send(b"again")


def test_an_agents_pipe_takes_all_that_the_window_allows(ends: Ends) -> None:
    agent, broker = ends.pair()
    assert all(agent.send(b"%d" % number) for number in range(5000))  # the session above it counts the bytes
    assert [until(broker.recv, broker.port) for _ in range(5000)] == [b"%d" % number for number in range(5000)]


def test_a_pipe_that_waits_for_room_does_not_spin(ends: Ends) -> None:
    _, broker = ends.pair()
    for _ in range(100_000):
        if not broker.send(b"x" * 10_000):
            break
    settle(broker.port, seconds=0.1)

    def retry() -> None:
        broker.send(b"x")

    broker.on_news = retry
    retry()
    poll = select.poll()
    poll.register(broker.port.fileno(), select.POLLIN)
    woken = 0
    while poll.poll(100) and woken < 50:
        broker.port.pump()
        woken += 1
    assert woken < 50


# --- ends that come and go -------------------------------------------------------------------


def test_a_broker_that_stops_ends_the_transport_after_all_was_read(ends: Ends) -> None:
    agent, broker = ends.pair()
    broker.send(b"last")
    ends.acceptor.close()
    ends.acceptor.close()
    assert until(agent.recv, agent.port) == b"last"
    assert isinstance(failure(agent, agent.port), ChannelBroken)
    with pytest.raises(ChannelBroken):
        agent.send(b"x")
    with pytest.raises(ChannelBroken):
        broker.send(b"x")


def test_what_was_meant_for_a_lost_broker_is_not_its_successors(stack: ExitStack) -> None:
    address = Address.parse("ipc:///web1")
    first = Ends(stack.enter_context(closing(IPC.listen(address, Options()))), Options(), stack)
    agent, _ = first.pair()
    first.acceptor.close()
    time.sleep(0.2)
    for _ in range(10):
        agent.send(b"too late")
    failure(agent, agent.port)
    agent.close()
    successor = stack.enter_context(closing(IPC.listen(address, Options())))
    settle(successor.port, seconds=0.7)
    assert successor.accept() is None


def test_a_send_to_an_agent_that_went_is_broken(ends: Ends) -> None:
    agent, broker = ends.pair()
    agent.close()
    with pytest.raises(ChannelBroken):
        until(lambda: None if broker.send(b"x") else False, broker.port)
    with pytest.raises(ChannelBroken):
        broker.recv()


def test_an_agent_that_the_broker_let_go_is_met_anew_when_it_speaks(ends: Ends) -> None:
    agent, broker = ends.pair()
    broker.close()
    broker.close()
    agent.send(b"again")
    again = until(ends.acceptor.accept, ends.acceptor.port)
    assert again.recv() == b"again"
    assert again.peer == broker.peer


def test_an_agent_that_comes_back_is_a_new_transport(ends: Ends) -> None:
    agent, first = ends.pair()
    agent.close()
    _, second = ends.pair()
    assert second is not first
    assert second.peer.identity == first.peer.identity


def test_one_closed_transport_leaves_the_others(ends: Ends) -> None:
    agent, broker = ends.pair()
    _, other = ends.pair()
    other.close()
    agent.send(b"still here")
    assert until(broker.recv, broker.port) == b"still here"


@pytest.mark.parametrize("insecure", [True, False])
def test_a_port_is_free_once_its_broker_is_closed(folders: Folders, insecure: bool) -> None:
    options = Options(insecure=True) if insecure else Options(keys=folders.broker)
    address = Address.parse("tcp://127.0.0.1:0")
    for _ in range(60):
        with closing(TCP.listen(address, options)) as acceptor:
            address = acceptor.address


def test_an_agent_may_come_before_its_broker(stack: ExitStack) -> None:
    address = Address.parse("ipc:///late")
    agent = stack.enter_context(closing(IPC.connect(address, Options())))
    told: list[bool] = []
    agent.on_news = lambda: told.append(True)
    assert not agent.send(b"hello")
    settle(agent.port)
    acceptor = stack.enter_context(closing(IPC.listen(address, Options())))
    until(lambda: told or None, agent.port)
    assert agent.send(b"hello")
    assert until(acceptor.accept, acceptor.port).recv() == b"hello"


_BROKER = """
import sys, time
from mchannel.address import Address
from mchannel.transport import Options
from mchannel.transports.zmq import IPC
acceptor = IPC.listen(Address.parse(sys.argv[1]), Options())
print("ready", flush=True)
time.sleep(60)
"""


def test_a_killed_brokers_place_is_taken_over(runtime: Path, stack: ExitStack) -> None:
    address = Address.parse("ipc:///web1")
    with subprocess.Popen([sys.executable, "-c", _BROKER, str(address)], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            agent = stack.enter_context(closing(IPC.connect(address, Options())))
            until(lambda: agent.send(b"to the first") or None, agent.port)
        finally:
            child.send_signal(signal.SIGKILL)
    assert isinstance(failure(agent, agent.port), ChannelBroken)
    assert (runtime / "web1.ipc").exists()
    acceptor = stack.enter_context(closing(IPC.listen(address, Options())))
    Ends(acceptor, Options(), stack).pair()


_LAST_WORDS = """
import os, sys, time, select
from mchannel.address import Address
from mchannel.transport import Options
from mchannel.transports.zmq import IPC
def speak(word):
    pipe = IPC.connect(Address.parse("ipc:///web1"), Options())
    while not pipe.send(word):
        select.select([pipe], [], [], 1)
        pipe.port.pump()
    pipe.close()
speak(b"parent")
if os.fork() == 0:
    speak(b"child")
else:
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_process_and_its_forked_child_speak_up_to_their_exit(ipc: Ends) -> None:
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", _LAST_WORDS], check=True, timeout=30, capture_output=True
    )
    assert child.stderr == b""
    words = {until(ipc.acceptor.accept, ipc.acceptor.port).recv() for _ in range(2)}
    assert words == {b"parent", b"child"}


# --- ipc -------------------------------------------------------------------------------------


def test_a_local_peer_is_known_by_its_endpoint_and_process(ipc: Ends) -> None:
    agent, broker = ipc.pair()
    assert agent.peer.identity == broker.peer.identity == "web1"
    assert (broker.peer.uid, broker.peer.pid) == (os.geteuid(), os.getpid())


def test_folder_and_socket_file_are_closed_to_others(runtime: Path, stack: ExitStack) -> None:
    old = os.umask(0)
    try:
        stack.enter_context(closing(IPC.listen(Address.parse("ipc:///web1"), Options())))
    finally:
        os.umask(old)
    assert runtime.stat().st_mode & 0o777 == 0o700
    assert (runtime / "web1.ipc").stat().st_mode & 0o777 == 0o600


def test_a_folder_that_others_can_write_is_refused(runtime: Path) -> None:
    runtime.mkdir()
    runtime.chmod(0o770)
    with pytest.raises(AddressError, match="chmod 700"):
        IPC.listen(Address.parse("ipc:///web1"), Options())


def test_a_live_broker_keeps_its_place(ipc: Ends) -> None:
    agent, broker = ipc.pair()
    with pytest.raises(AddressError, match="already listening"):
        IPC.listen(ipc.acceptor.address, Options())
    agent.send(b"still here")
    assert until(broker.recv, broker.port) == b"still here"


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    with pytest.raises(AddressError, match="no socket"):
        IPC.listen(Address.parse(f"ipc://{precious}"), Options())
    assert precious.read_text() == "data"


def test_a_stopped_broker_leaves_no_file(ipc: Ends, runtime: Path) -> None:
    ipc.acceptor.close()
    assert list(runtime.iterdir()) == []


def test_a_stopped_broker_leaves_its_successors_file(ipc: Ends, runtime: Path, stack: ExitStack) -> None:
    (runtime / "web1.ipc").rename(runtime / "old")
    stack.enter_context(closing(IPC.listen(ipc.acceptor.address, Options())))
    ipc.acceptor.close()
    assert (runtime / "web1.ipc").is_socket()


def test_an_absolute_path_works(tmp_path: Path, stack: ExitStack) -> None:
    acceptor = stack.enter_context(closing(IPC.listen(Address.parse(f"ipc://{tmp_path}/web1"), Options())))
    Ends(acceptor, Options(), stack).pair()


@pytest.mark.parametrize("use", [IPC.connect, IPC.listen])
def test_a_path_that_is_too_long_is_refused(use: Callable[[Address, Options], object], tmp_path: Path) -> None:
    with pytest.raises(AddressError, match="107"):
        use(Address.parse(f"ipc://{tmp_path}/{'x' * 100}"), Options())


# --- tcp -------------------------------------------------------------------------------------


def test_a_port_of_zero_becomes_a_real_one(curve: Ends) -> None:
    assert curve.acceptor.address.port


def test_both_ends_are_known_by_the_names_their_keys_are_trusted_under(curve: Ends) -> None:
    agent, broker = curve.pair()
    assert (agent.peer.identity, broker.peer.identity) == ("mvm1", "web1")
    assert broker.peer.address == "tcp://127.0.0.1"


def test_an_unknown_key_is_refused_and_logged_once(
    curve: Ends, folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    keys.untrust(folders.broker, "web1")
    for _ in range(3):
        error = failure(agent := curve.dial(), agent.port, curve.acceptor.port)
        assert isinstance(error, AuthenticationError)
        assert "mbroker keys trust" in str(error)
    assert curve.acceptor.accept() is None
    key = keys.own(folders.agent)
    assert caplog.text.count(key.public.fingerprint) == 1
    assert "127.0.0.1" in caplog.text
    assert key.secret.decode() not in caplog.text


async def test_a_refusal_ends_a_channel_that_opens(curve: Ends, folders: Folders) -> None:
    keys.untrust(folders.broker, "web1")
    loop = asyncio.get_running_loop()
    loop.add_reader(curve.acceptor.port.fileno(), curve.acceptor.port.pump)
    try:
        with pytest.raises(AuthenticationError):
            await open_async(str(curve.acceptor.address), keys=folders.agent, timeout=10)
    finally:
        loop.remove_reader(curve.acceptor.port.fileno())


def test_trust_given_while_listening_holds_from_the_next_handshake(curve: Ends, folders: Folders) -> None:
    keys.new(folders.agent, "other", force=True)
    failure(agent := curve.dial(), agent.port, curve.acceptor.port)
    keys.trust(folders.broker, "web2", keys.show(folders.agent))
    _, broker = curve.pair()
    assert broker.peer.identity == "web2"


def test_trust_taken_away_while_listening_holds_from_the_next_handshake(curve: Ends, folders: Folders) -> None:
    curve.pair()
    keys.untrust(folders.broker, "web1")
    error = failure(agent := curve.dial(), agent.port, curve.acceptor.port)
    assert isinstance(error, AuthenticationError)


def test_a_broker_with_another_key_is_an_error_not_silence(curve: Ends, folders: Folders) -> None:
    keys.untrust(folders.agent, "mvm1")
    keys.trust(folders.agent, "mvm1", zmq.curve_keypair()[0].decode(), server=True)
    error = failure(agent := curve.dial(), agent.port, curve.acceptor.port)
    assert isinstance(error, AuthenticationError)


def test_a_broker_that_is_slow_is_not_taken_for_a_wrong_one(
    folders: Folders, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_HANDSHAKE", 50)
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    address = Address.parse(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
    agent = stack.enter_context(closing(TCP.connect(address, Options(keys=folders.agent))))
    settle(agent.port, seconds=1.5)
    assert agent.recv() is None


def test_a_broker_that_dies_while_it_greets_is_not_taken_for_a_wrong_one(folders: Folders, stack: ExitStack) -> None:
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    address = Address.parse(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
    agent = stack.enter_context(closing(TCP.connect(address, Options(keys=folders.agent))))
    listener.settimeout(10)
    listener.accept()[0].close()
    dying, _ = listener.accept()
    listener.close()
    dying.close()
    settle(agent.port, seconds=0.5)
    assert agent.recv() is None


@pytest.mark.parametrize("agent_is_plain", [True, False])
def test_an_end_without_encryption_is_refused(agent_is_plain: bool, folders: Folders, stack: ExitStack) -> None:
    plain = Options(insecure=True)
    acceptor = TCP.listen(Address.parse("tcp://127.0.0.1:0"), Options(keys=folders.broker) if agent_is_plain else plain)
    stack.enter_context(closing(acceptor))
    ends = Ends(acceptor, plain if agent_is_plain else Options(keys=folders.agent), stack)
    error = failure(agent := ends.dial(), agent.port, acceptor.port)
    assert isinstance(error, AuthenticationError)
    assert str(error).endswith("encryption; leave out insecure" if agent_is_plain else "encryption; it needs keys")
    assert acceptor.accept() is None


def test_a_broker_that_cannot_ask_whom_it_trusts_lets_nobody_in(curve: Ends) -> None:
    (asked,) = cast("Any", curve.acceptor)._door.watched
    asked.close(0)
    agent = curve.dial()
    assert isinstance(failure(agent, agent.port), AuthenticationError)


def test_an_end_without_its_own_key_cannot_start(tmp_path: Path) -> None:
    for use in (TCP.connect, TCP.listen):
        with pytest.raises(KeyFileError, match="mbroker keys new"):
            use(Address.parse("tcp://127.0.0.1:1"), Options(keys=tmp_path / "none"))


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("tcp://10.0.0.7:1?server=b", "b"),
        ("tcp://a:1", "a"),
        ("tcp://a:1?server=b", "b"),
        ("tcp://10.0.0.7:1", "c"),
    ],
)
def test_the_server_key_is_named_or_the_hosts_or_the_only_one(address: str, expected: str, tmp_path: Path) -> None:
    keys.new(tmp_path / "k", "me")
    for name in "abc":
        keys.trust(tmp_path / "k", name, zmq.curve_keypair()[0].decode(), server=name == "c")
    with closing(TCP.connect(Address.parse(address), Options(keys=tmp_path / "k"))) as agent:
        assert agent.peer.identity == expected


def test_a_server_key_that_is_not_known_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "k"
    keys.new(folder, "me")
    keys.trust(folder, "agent", zmq.curve_keypair()[0].decode())
    with pytest.raises(KeyFileError, match=r"0 server keys.*server=NAME"):
        TCP.connect(Address.parse("tcp://10.0.0.7:1"), Options(keys=folder))
    with pytest.raises(KeyFileError, match="no key called x"):
        TCP.connect(Address.parse("tcp://10.0.0.7:1?server=x"), Options(keys=folder))
    for name in "ab":
        keys.trust(folder, name, zmq.curve_keypair()[0].decode(), server=True)
    with pytest.raises(KeyFileError, match="2 server keys"):
        TCP.connect(Address.parse("tcp://10.0.0.7:1"), Options(keys=folder))


@pytest.mark.parametrize("use", [TCP.connect, TCP.listen])
@pytest.mark.parametrize("host", ["10.0.0.7", "0.0.0.0", "*", "example.org", "[::]"])
def test_without_encryption_only_loopback_is_allowed(use: Callable[[Address, Options], object], host: str) -> None:
    with pytest.raises(AddressError, match="mbroker keys new"):
        use(Address.parse(f"tcp://{host}:0"), Options(insecure=True))


@pytest.mark.parametrize("host", ["localhost", "127.3.2.1", "[::1]"])
def test_loopback_has_several_names(host: str, stack: ExitStack) -> None:
    options = Options(insecure=True)
    acceptor = stack.enter_context(closing(TCP.listen(Address.parse(f"tcp://{host}:0"), options)))
    Ends(acceptor, options, stack).pair()


@pytest.mark.parametrize("use", [TCP.connect, TCP.listen])
@pytest.mark.parametrize("text", ["tcp://h", "tcp:///x", "tcp://h:1/x", "tcp://h:1?sever=x", "tcp://a;b:1"])
def test_a_malformed_network_address_is_refused(use: Callable[[Address, Options], object], text: str) -> None:
    with pytest.raises(AddressError, match=r"write|option"):
        use(Address.parse(text), Options())


def test_a_port_in_use_is_an_address_error(curve: Ends, folders: Folders) -> None:
    with pytest.raises(AddressError, match="in use"):
        TCP.listen(curve.acceptor.address, Options(keys=folders.broker))


def test_a_libzmq_with_known_holes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 2))
    for use in (TCP.connect, TCP.listen):
        with pytest.raises(AddressError, match=r"4\.3\.3"):
            use(Address.parse("tcp://127.0.0.1:0"), Options(insecure=True))
