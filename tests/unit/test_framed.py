"""Links over frames: what a gate keeps of sessions that were handed over to it, and how an agent connects anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import attrs
import pytest

from mchannel.address import Address
from mchannel.errors import ChannelBroken, ProtocolError
from mchannel.frame import Frame, Kind, Terms
from mchannel.framed import DialledLink, FramedGate
from mchannel.handoff import Handoff
from mchannel.packing import pack
from mchannel.port import StandingPort
from mchannel.session import Role, Session, Timing
from mchannel.transport import Delivery, Options, Peer, Port, State, Transport


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
    terms = Terms(4096, 65536, Delivery.ALL)
    handoff = Handoff(number.to_bytes(16), "agent", epoch, terms, 0, 1, (), 0, bytes(8))
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


@attrs.define(eq=False)
class Wire:
    """A transport of a test's own, which breaks when it is told to."""

    sent: list[Frame] = attrs.field(factory=list[Frame])
    inbox: list[bytes] = attrs.field(factory=list[bytes])
    peer: Peer = attrs.field(factory=lambda: Peer("nobody", "memory:///nobody"))
    port: Port = attrs.field(factory=StandingPort)
    on_news: Callable[[], None] | None = None
    broken: bool = False

    def send(self, frame: bytes) -> bool:
        if self.broken:
            raise ChannelBroken("gone")
        self.sent.append(Frame.decode(frame, 1 << 20))
        return True

    def recv(self) -> bytes | None:
        if self.broken:
            raise ChannelBroken("gone")
        return self.inbox.pop(0) if self.inbox else None

    def close(self) -> None:
        self.broken = True


@pytest.fixture
def wires() -> list[Wire]:
    """Return the wires that :func:`dialled` has dialled."""
    return []


@pytest.fixture
def dialled(wires: list[Wire]) -> Iterator[DialledLink]:
    """Return an agent's link that is open."""
    terms = Terms(4096, 65536, Delivery.ALL)

    def dial() -> Wire:
        wires.append(Wire())
        return wires[-1]

    link = DialledLink(Session(Role.AGENT, bytes(16), terms, Timing()), dial)
    broker = Session(Role.BROKER, bytes(16), terms, Timing())
    broker.receive(wires[0].sent.pop().encode(), 0.0)
    wires[0].inbox += broker.outgoing
    assert link.recv() is None
    assert link.state is State.OPEN
    yield link
    link.close()
    for wire in wires:
        assert isinstance(wire.port, StandingPort)
        wire.port.close()


def test_a_new_connection_begins_with_hello_and_what_the_old_one_may_have_lost(
    dialled: DialledLink, wires: list[Wire]
) -> None:
    assert dialled.send(b"lost")
    wires[0].broken = True
    for _ in range(2):
        dialled.tick(time.monotonic())
    assert [(frame.kind, frame.body) for frame in wires[1].sent][1:] == [(Kind.DATA, b"lost")]
    assert (wires[1].sent[0].kind, wires[1].sent[0].epoch) == (Kind.HELLO, 2)


def test_a_suspended_agent_stays_quiet_over_a_new_connection(dialled: DialledLink, wires: list[Wire]) -> None:
    dialled.suspend(60)
    wires[0].broken = True
    for _ in range(2):
        dialled.tick(time.monotonic())
    assert len(wires) == 2
    assert wires[1].sent == []
