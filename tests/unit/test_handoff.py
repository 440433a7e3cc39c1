"""What one broker hands to another, as bytes."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from mchannel.errors import ProtocolError
from mchannel.frame import Terms
from mchannel.handoff import Handoff
from mchannel.transport import Delivery

GOOD = Handoff(bytes(16), "agent", 1, Terms(4096, 65536, Delivery.ALL), 0, 1, (b"one", b"two"), 0, bytes(8))


@pytest.mark.parametrize(
    "changes", [{}, {"epoch": (1 << 32) - 1}, {"foreign": 65536}, {"base": 1 << 40, "received": 1 << 40}]
)
def test_a_handoff_survives_the_way_as_bytes(changes: dict[str, Any]) -> None:
    found = attrs.evolve(GOOD, **changes)
    assert Handoff.decode(found.encode()) == found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": 1 << 32}, "out of range"),
        ({"base": 0}, "out of range"),
        ({"foreign": 65537}, "out of range"),
        ({"epoch": -1}, "a number was expected"),
        ({"received": 1 << 63}, "a number was expected"),
        ({"author": bytes(7)}, "nobody wrote it"),
        ({"session": bytes(15)}, "malformed"),
    ],
)
def test_a_handoff_that_no_broker_can_have_made_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        Handoff.decode(attrs.evolve(GOOD, **changes).encode())
