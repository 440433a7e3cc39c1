"""Peers that do not keep to the rules: they hurt themselves, and nobody else."""

from __future__ import annotations

import os
import random
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TypeAlias

import attrs
import pytest
import zmq

from mchannel import keys
from mchannel.address import Address
from mchannel.errors import ChannelBroken
from mchannel.transport import Acceptor, Options, Transport
from mchannel.transports.zmq import IPC, TCP, _Accepted  # pyright: ignore[reportPrivateUsage]

Raw: TypeAlias = zmq.Socket[bytes]
LIMITS = Options(max_message=10_000, window=100_000)


@attrs.define
class Scene:
    """A broker, an honest agent that is connected to it, and what a hostile one needs."""

    acceptor: Acceptor
    agent: Transport
    broker: Transport
    strangers: list[Transport]
    stack: ExitStack
    context: zmq.Context[Raw]
    endpoint: str
    sockopts: dict[int, bytes]
    """What a raw socket needs to get in."""

    def raw(self) -> Raw:
        """Return a raw socket that is connected to the broker."""
        made = self.stack.enter_context(self.context.socket(zmq.DEALER))
        made.linger = 0
        for option, value in self.sockopts.items():
            made.set(option, value)
        made.sndhwm = 100_000
        made.connect(self.endpoint)
        return made

    def pump(self, seconds: float = 0.0) -> None:
        late = time.monotonic() + seconds
        while True:
            for port in (self.acceptor.port, self.agent.port):
                if select.select([port], [], [], 0)[0]:
                    port.pump()
            while (stranger := self.acceptor.accept()) is not None:
                self.strangers.append(stranger)
            if time.monotonic() >= late:
                return
            select.select([self.acceptor.port, self.agent.port], [], [], 0.02)

    def assert_well(self) -> None:
        """The honest agent and the broker still hear each other, frame for frame."""
        sent = [os.urandom(8) for _ in range(20)]
        for source, sink in ((self.agent, self.broker), (self.broker, self.agent)):
            for frame in sent:
                assert source.send(frame)
            heard: list[bytes] = []
            late = time.monotonic() + 10
            while len(heard) < len(sent):
                assert time.monotonic() < late, "the honest agent is not heard"
                self.pump(0.01)
                while (frame_in := sink.recv()) is not None:
                    heard.append(frame_in)
            assert heard == sent

    def accepted(self, seconds: float = 10) -> Transport:
        """Return the transport to the hostile peer."""
        late = time.monotonic() + seconds
        while not self.strangers:
            assert time.monotonic() < late, "nobody came"
            self.pump(0.02)
        return self.strangers[-1]


def _broken(transport: Transport) -> bool:
    try:
        while transport.recv() is not None:
            pass
    except ChannelBroken:
        return True
    return False


@pytest.fixture(params=["ipc", "curve"])
def scene(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setenv("MCHANNEL_RUNTIME_DIR", str(tmp_path / "run"))
    with ExitStack() as stack:
        sockopts: dict[int, bytes] = {}
        context: zmq.Context[Raw] = stack.enter_context(zmq.Context())
        if request.param == "ipc":
            acceptor = stack.enter_context(closing(IPC.listen(Address.parse("ipc:///web1"), LIMITS)))
            agent = stack.enter_context(closing(IPC.connect(acceptor.address, LIMITS)))
            endpoint = f"ipc://{tmp_path}/run/web1.ipc"
        else:
            ours, theirs = keys.new(tmp_path / "broker", "mvm1"), keys.new(tmp_path / "agent", "web1")
            rogue = keys.new(tmp_path / "rogue", "rogue")
            for name in ("agent", "rogue"):
                keys.trust(tmp_path / "broker", name, keys.show(tmp_path / name))
            keys.trust(tmp_path / "agent", "mvm1", ours.public.text, server=True)
            assert theirs != rogue
            options = attrs.evolve(LIMITS, keys=tmp_path / "broker")
            acceptor = stack.enter_context(closing(TCP.listen(Address.parse("tcp://127.0.0.1:0"), options)))
            options = attrs.evolve(LIMITS, keys=tmp_path / "agent")
            agent = stack.enter_context(closing(TCP.connect(acceptor.address, options)))
            endpoint = f"tcp://127.0.0.1:{acceptor.address.port}"
            sockopts = {
                zmq.CURVE_SERVERKEY: ours.public.text.encode(),
                zmq.CURVE_PUBLICKEY: rogue.public.text.encode(),
                zmq.CURVE_SECRETKEY: rogue.secret,
            }

        scene = Scene(acceptor, agent, agent, [], stack, context, endpoint, sockopts)
        late = time.monotonic() + 10
        while not agent.send(b"hello"):
            assert time.monotonic() < late
            scene.pump(0.02)
        scene.broker = scene.accepted()
        assert scene.broker.recv() == b"hello"
        scene.strangers.clear()
        yield scene


def _plain(scene: Scene) -> socket.socket:
    """Return a plain socket that is connected to the broker's."""
    if scene.endpoint.startswith("ipc"):
        made = socket.socket(socket.AF_UNIX)
        made.connect(scene.endpoint.removeprefix("ipc://"))
    else:
        made = socket.create_connection(("127.0.0.1", scene.acceptor.address.port or 0))
    return scene.stack.enter_context(made)


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01"


@pytest.mark.parametrize("start", [b"", b"\xff", GREETING, GREETING + b"NULL".ljust(20, b"\0") + bytes(32)])
def test_garbage_is_no_peer(scene: Scene, start: bytes) -> None:
    dice = random.Random(len(start))
    for _ in range(50):
        plain = _plain(scene)
        with suppress(OSError):
            plain.sendall(start + dice.randbytes(dice.randrange(200)))
        if dice.random() < 0.5:
            plain.close()
    scene.pump(0.2)
    assert scene.strangers == []
    scene.assert_well()


def test_a_peer_from_before_handshakes_is_no_peer(scene: Scene) -> None:
    _plain(scene).sendall(b"\x01\x00\x06\x00hello")
    scene.pump(0.3)
    assert scene.strangers == []
    scene.assert_well()


def test_a_greeting_that_stops_half_way_holds_nobody_up(scene: Scene) -> None:
    for length in range(0, 64, 7):
        _plain(scene).sendall((GREETING + b"CURVE".ljust(20, b"\0") + bytes(32))[:length])
    scene.assert_well()


def test_a_frame_that_is_too_big_never_gets_in(scene: Scene) -> None:
    scene.raw().send(bytes(LIMITS.max_message + 5000))
    scene.pump(0.3)
    assert scene.strangers == []
    scene.assert_well()


def test_a_flood_drops_the_one_who_sends_it(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    rogue = scene.raw()
    rogue.send(b"first")
    transport = scene.accepted()
    for _ in range(200):
        rogue.send(bytes(9_000), zmq.NOBLOCK)
    late = time.monotonic() + 10
    while "floods" not in caplog.text:
        assert time.monotonic() < late
        scene.pump(0.02)
    assert _broken(transport)
    assert caplog.text.count("floods") == 1
    scene.assert_well()


def test_a_multipart_message_drops_its_sender_and_speaks_for_nobody_else(scene: Scene) -> None:
    rogue = scene.raw()
    rogue.send(b"first")
    transport = scene.accepted()
    assert isinstance(scene.broker, _Accepted)
    route = scene.broker.route
    rogue.send_multipart([b"part", route, b"forged", b"more"])
    late = time.monotonic() + 10
    while not _broken(transport):
        assert time.monotonic() < late
        scene.pump(0.02)
    assert scene.broker.recv() is None
    scene.assert_well()


@pytest.mark.parametrize("route", [b"x", b"\0" * 5 + b"x", b"route"])
def test_a_peer_that_chooses_its_own_route_is_ignored(scene: Scene, route: bytes) -> None:
    rogue = scene.raw()
    rogue.disconnect(scene.endpoint)
    with suppress(zmq.ZMQError):  # libzmq itself refuses those that start with zero
        rogue.setsockopt(zmq.ROUTING_ID, route)
        rogue.connect(scene.endpoint)
        rogue.send(b"hello")
    scene.pump(0.3)
    assert scene.strangers == []
    scene.assert_well()


def test_many_who_come_and_go_leave_room_for_the_others(scene: Scene) -> None:
    for _ in range(60):
        with scene.raw() as raw:
            raw.linger = 500
            raw.send(b"hello")
    scene.pump(0.3)
    for stranger in scene.strangers:
        stranger.close()
    scene.assert_well()


def test_those_who_knock_beyond_the_backlog_are_not_remembered(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mchannel.transports.zmq._BACKLOG", 3)
    for _ in range(10):
        scene.raw().send(b"hello")
    late = time.monotonic() + 1
    while time.monotonic() < late:
        if select.select([scene.acceptor.port], [], [], 0.02)[0]:
            scene.acceptor.port.pump()
    waiting = 0
    while scene.acceptor.accept() is not None:
        waiting += 1
    assert waiting == 3
    scene.assert_well()


def test_a_broker_that_floods_breaks_the_agents_transport(tmp_path: Path) -> None:
    with zmq.Context[Raw]() as context, context.socket(zmq.ROUTER) as broker:
        broker.linger = 0
        broker.set(zmq.SNDHWM, 100_000)
        broker.bind(f"ipc://{tmp_path}/b")
        with closing(IPC.connect(Address.parse(f"ipc://{tmp_path}/b"), LIMITS)) as agent:
            late = time.monotonic() + 10
            while not agent.send(b"hello"):
                assert time.monotonic() < late
                select.select([agent.port], [], [], 0.05)
                agent.port.pump()
            route = broker.recv()
            for _ in range(1000):
                broker.send_multipart([route, bytes(9_000)])
            for _ in range(100):
                select.select([agent.port], [], [], 0.05)
                agent.port.pump()
            with pytest.raises(ChannelBroken, match="more than was agreed"):
                list(iter(agent.recv, None))
