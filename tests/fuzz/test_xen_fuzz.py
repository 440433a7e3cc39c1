"""A guest on Xen that writes what it likes, into xenstore and into the pages that it granted."""

from __future__ import annotations

from contextlib import suppress
from typing import TypeAlias

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mchannel.errors import ProtocolError
from mchannel.transports.region import Lanes
from mchannel.transports.ring import RingEnd, Side
from mchannel.transports.xenoffer import Offer
from tests.crash.points import WHOLE
from tests.unit.test_ringwire import CAPACITY, make, memory

EXAMPLES = settings(max_examples=20_000 if WHOLE else 200, database=None)
Step: TypeAlias = tuple[bytes, list[tuple[int, bytes]]]

numbers = st.one_of(st.integers(-2, 300), st.integers(0, 1 << 40)).map(lambda number: b"%d" % number)
nearly = st.lists(st.one_of(numbers, st.binary(max_size=3)), max_size=300).map(b" ".join)


@EXAMPLES
@given(st.one_of(st.binary(max_size=4096), nearly, nearly.map(lambda rest: b"1 " + rest)))
@example(b"1 2 +8")
@example(b"1 2 8_0")
def test_an_offer_is_what_it_says_or_is_refused(value: bytes) -> None:
    try:
        offer = Offer.decode(value)
    except ProtocolError:
        return
    assert 0 < offer.port < 1 << 17
    assert 0 < len(offer.references) <= 256
    assert len(set(offer.references)) == len(offer.references)
    assert all(0 <= reference < 1 << 32 for reference in offer.references)
    assert Offer.decode(offer.encode()) == offer


pokes = st.lists(st.tuples(st.integers(0, 2 * CAPACITY), st.binary(min_size=1, max_size=16)), max_size=12)
steps = st.lists(st.tuples(st.binary(max_size=64), pokes), max_size=8)


@EXAMPLES
@given(steps)
def test_a_guest_that_scribbles_over_its_pages_reaches_nothing_but_the_end(steps: list[Step]) -> None:
    pair = make(memory())
    pair.agent.wire.close()
    with RingEnd(Lanes(pair.memory), Side.A, futex=False) as guest:
        for record, scribbles in steps:
            with suppress(ProtocolError):
                guest.write(record)
            for at, what in scribbles:
                pair.memory[at : at + len(what)] = what
            pair.broker.wire.hear()
            for _ in range(10):  # a guest that goes on ringing is heard again, in portions
                pair.broker.port.pump()
            with suppress(ProtocolError):
                pair.broker.wire.send(record)
    pair.close()
    assert pair.broker.error is None or isinstance(pair.broker.error, ProtocolError)
