"""What a gate over frames keeps of sessions that were handed over to it."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest

from mchannel.address import Address
from mchannel.errors import ProtocolError
from mchannel.frame import Terms
from mchannel.framed import FramedGate
from mchannel.handoff import Handoff
from mchannel.packing import pack
from mchannel.port import StandingPort
from mchannel.transport import Delivery, Options, Port, Transport


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
