"""What both ends of a ring agreed on stays as it is."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

import mchannel
from mchannel.errors import EndOfChannel, ProtocolError
from mchannel.frame import Frame, Hello, Kind, Terms, Welcome
from mchannel.transport import Delivery, Link, Options, State
from mchannel.transports.line import close_all
from mchannel.transports.ring import Region
from mchannel.transports.shmlink import AgentLink
from tests.unit.test_shm import RAW, TERMS, hello, knock, raw, refusal


@pytest.mark.parametrize(
    "terms",
    [Terms(1000, TERMS.window, Delivery.ALL), attrs.evolve(TERMS, delivery=Delivery.LATEST)],
    ids=["max_message", "delivery"],
)
def test_an_agent_cannot_change_terms_that_were_agreed(terms: Terms, runtime: Path) -> None:
    with (
        mchannel.listen("shm:///web1", RAW) as listener,
        raw(runtime) as first,
        raw(runtime) as again,
        Region.create() as own,
    ):
        socket.send_fds(first, [hello(b"h" * 16, epoch=5)], [own.fd])
        broker = listener.accept(timeout=2)
        socket.send_fds(again, [hello(b"h" * 16, epoch=6, terms=terms)], [own.fd])
        assert "other terms" in refusal(listener, again)
        assert broker.state is State.OPEN
        first.send(Frame(Kind.BYE, 5).encode())
        with pytest.raises(EndOfChannel):  # it hears the first connection still
            broker.read(timeout=2)


class Pretender:
    """A broker by hand, at the address of the real one."""

    def __init__(self, runtime: Path) -> None:
        runtime.mkdir(mode=0o700, exist_ok=True)
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.door.settimeout(5)
        self.door.bind(str(runtime / "web1.shm"))
        self.door.listen()

    def welcome(self, agent: Link, terms: Terms) -> socket.socket:
        """Answer the agent's next HELLO with *terms*."""
        agent.tick(time.monotonic())
        wire, _ = self.door.accept()
        data, descriptors, _, _ = socket.recv_fds(wire, 4096, 1)
        close_all(descriptors)
        greeting = Frame.decode(data, 4096)
        answer = Welcome(Hello.decode(greeting.body).session, terms, None, 1)
        wire.send(Frame(Kind.WELCOME, greeting.epoch, body=answer.encode()).encode())
        agent.tick(time.monotonic())
        return wire


@pytest.fixture
def pretender(runtime: Path) -> Iterator[Pretender]:
    found = Pretender(runtime)
    yield found
    found.door.close()


@pytest.mark.parametrize(
    "terms",
    [attrs.evolve(TERMS, max_message=TERMS.max_message + 1), attrs.evolve(TERMS, window=TERMS.window + 1)],
    ids=["max_message", "window"],
)
def test_a_broker_cannot_widen_what_the_agent_offered(pretender: Pretender, terms: Terms) -> None:
    agent = AgentLink(mchannel.Address.parse("shm:///web1"), Options())
    with pretender.welcome(agent, terms), pytest.raises(ProtocolError, match="changed terms"):
        agent.recv()
    agent.close()


def test_a_successor_of_the_broker_cannot_narrow_what_was_agreed(pretender: Pretender) -> None:
    agent = AgentLink(mchannel.Address.parse("shm:///web1"), Options())
    pretender.welcome(agent, TERMS).close()
    assert agent.recv() is None
    knock(agent)
    narrower = attrs.evolve(TERMS, max_message=1)
    with pretender.welcome(agent, narrower), pytest.raises(ProtocolError, match="changed terms"):
        agent.recv()
    agent.close()
