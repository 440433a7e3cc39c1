"""Whom a gate over frames lets in, and what it keeps of sessions that were handed over to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import attrs
import pytest

from mchannel.address import Address
from mchannel.errors import ChannelBroken, EndOfChannel, ProtocolError
from mchannel.frame import Frame, Hello, Kind, Terms
from mchannel.framed import DialledLink, FramedGate
from mchannel.handoff import Handoff
from mchannel.packing import pack
from mchannel.port import StandingPort
from mchannel.session import Role, Session, Timing
from mchannel.transport import Delivery, Gate, Link, Options, Port, State, Transport
from mchannel.transports.memory import MEMORY

WHERE = Address.parse("memory:///gate")
TERMS = Terms(4096, 65536, Delivery.ALL)
NAME = b"s" * 16


@attrs.define(eq=False)
class Nobody:
    """Accepts no one."""

    address: Address = attrs.field(factory=lambda: Address.parse("memory:///nobody"))
    port: Port = attrs.field(factory=StandingPort)
    on_news: Callable[[], None] | None = None

    def accept(self) -> Transport | None:
        return None

    def close(self) -> None:
        assert isinstance(self.port, StandingPort)
        self.port.close()


def handed_over(number: int, epoch: int = 1) -> bytes:
    handoff = Handoff(number.to_bytes(16), "agent", epoch, TERMS, 0, 1, (), 0, bytes(8))
    return pack(("web1", handoff.encode()))


def test_what_was_adopted_and_not_come_for_is_handed_over_again() -> None:
    gate = FramedGate(Nobody(), Options())
    snapshots = tuple(handed_over(number) for number in range(3))
    for snapshot in snapshots:
        gate.adopt(snapshot)
    assert gate.hand_over() == snapshots


def test_of_too_many_adopted_sessions_the_one_waited_for_longest_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mchannel.framed._MAX_ADOPTED", 2)
    gate = FramedGate(Nobody(), Options())
    for number in (1, 2):
        gate.adopt(handed_over(number))
    gate.adopt(handed_over(1, epoch=7))  # again, and so it is the newest
    gate.adopt(handed_over(3))
    assert gate.hand_over() == (handed_over(1, epoch=7), handed_over(3))


@pytest.mark.parametrize("snapshot", [b"", b"\xc1", pack("web1"), pack(("web1", b"no session")), handed_over(1)[:-1]])
def test_what_is_no_session_is_not_adopted(snapshot: bytes) -> None:
    gate = FramedGate(Nobody(), Options())
    with pytest.raises(ProtocolError):
        gate.adopt(snapshot)
    assert gate.hand_over() == ()


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Return a gate that raw peers can knock at."""
    found = MEMORY.bind(WHERE, Options(patience=60))
    yield found
    found.close()


def knock() -> Transport:
    return MEMORY.connect(WHERE, Options())


def hello(epoch: int, session: bytes = NAME) -> bytes:
    return Frame(Kind.HELLO, epoch, body=Hello(session, "", TERMS, 1, 0, 0).encode()).encode()


def data(epoch: int, number: int, payload: bytes) -> bytes:
    return Frame(Kind.DATA, epoch, number, body=payload).encode()


def let_in(gate: Gate, wire: Transport, greeting: bytes) -> Link | None:
    wire.send(greeting)
    gate.port.pump()
    return gate.accept()


def kinds(wire: Transport) -> list[Kind]:
    found: list[Kind] = []
    while (frame := wire.recv()) is not None:
        found.append(Frame.decode(frame, 4096).kind)
    return found


@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
def test_a_hello_that_is_late_or_repeated_takes_no_transport_away(epoch: int, gate: Gate) -> None:
    agent, other = knock(), knock()
    link = let_in(gate, agent, hello(3))
    assert link is not None
    assert kinds(agent) == [Kind.WELCOME]
    assert let_in(gate, other, hello(epoch)) is None
    assert kinds(other) == []
    link.send(b"to the agent")
    assert kinds(agent) == [Kind.DATA]
    agent.send(data(3, 1, b"from the agent"))
    assert link.recv() == b"from the agent"


def test_an_agent_that_connects_anew_takes_its_link_along(gate: Gate) -> None:
    before, after = knock(), knock()
    link = let_in(gate, before, hello(1))
    assert link is not None
    assert let_in(gate, after, hello(2)) is None
    assert kinds(after) == [Kind.WELCOME]
    with pytest.raises(ChannelBroken):
        kinds(before)
    after.send(data(2, 1, b"over the new one"))
    assert link.recv() == b"over the new one"


def test_an_agent_that_lost_its_connection_dials_again_as_soon_as_it_waits(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    for turn in ("_TURN", "_LONG_TURN"):
        monkeypatch.setattr(f"mchannel.framed.{turn}", 3600)
    dialled: list[Transport] = []

    def dial() -> Transport:
        dialled.append(knock())
        return dialled[-1]

    agent = DialledLink(Session(Role.AGENT, NAME, TERMS, Timing()), dial)
    agent.wait_readable(0)
    gate.port.pump()
    dialled[0].close()
    assert agent.recv() is None
    agent.wait_readable(0)
    assert len(dialled) == 2
    agent.close()


def test_an_agent_that_was_set_back_is_let_in_once_it_has_counted_further(gate: Gate) -> None:
    before, after = knock(), knock()
    link = let_in(gate, before, hello(3))
    assert link is not None
    for epoch in (1, 2, 3):
        let_in(gate, after, hello(epoch))
    assert kinds(after) == []
    let_in(gate, after, hello(4))
    assert kinds(after) == [Kind.WELCOME]
    after.send(data(4, 1, b"here again"))
    assert link.recv() == b"here again"


def test_an_agent_that_was_restarted_counts_from_one_again(gate: Gate) -> None:
    assert let_in(gate, knock(), hello(7)) is not None
    again = knock()
    assert let_in(gate, again, hello(1, b"t" * 16)) is not None
    assert kinds(again) == [Kind.WELCOME]


def test_a_hello_from_before_the_handoff_does_not_come_for_the_session(gate: Gate) -> None:
    handoff = Handoff(NAME, "agent", 5, TERMS, 0, 1, (), 0, bytes(8))
    gate.adopt(pack((knock().peer.identity, handoff.encode())))
    assert let_in(gate, knock(), hello(5)) is None
    agent = knock()
    assert let_in(gate, agent, hello(6)) is not None
    assert kinds(agent) == [Kind.WELCOME]


def test_an_agent_that_comes_back_after_it_was_given_up_begins_anew(gate: Gate) -> None:
    link = let_in(gate, knock(), hello(4))
    assert link is not None
    now = time.monotonic()
    link.tick(now + 10)
    assert link.state is State.LOST
    link.tick(now + 80)
    with pytest.raises(ChannelBroken):
        link.recv()
    agent = knock()
    again = let_in(gate, agent, hello(5))
    assert again is not None
    assert again is not link
    assert kinds(agent) == [Kind.WELCOME]


def test_an_agent_that_said_goodbye_is_told_to_open_a_new_channel(gate: Gate) -> None:
    agent = knock()
    link = let_in(gate, agent, hello(1))
    assert link is not None
    agent.send(Frame(Kind.BYE, 1, 0).encode())
    with pytest.raises(EndOfChannel):
        link.recv()
    again = knock()
    assert let_in(gate, again, hello(2)) is None
    assert kinds(again) == [Kind.REFUSE]


@pytest.mark.parametrize(("interval", "calls"), [(3600, 1), (-1, 5)])
def test_who_speaks_without_a_hello_is_called_once_in_a_while(
    interval: float, calls: int, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mchannel.framed._CALL_INTERVAL", interval)
    wire = knock()
    for number in range(1, 6):
        let_in(gate, wire, data(1, number, b""))
    assert kinds(wire) == [Kind.CALL] * calls


def test_of_too_many_who_say_nothing_the_first_has_to_go(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mchannel.framed._MAX_STRANGERS", 2)
    wires = [knock() for _ in range(3)]
    gate.port.pump()
    with pytest.raises(ChannelBroken):
        wires[0].recv()
    for number, wire in enumerate(wires[1:]):
        assert let_in(gate, wire, hello(1, bytes([number]) * 16)) is not None
