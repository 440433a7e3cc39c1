"""Guests that send anything at all: their host stays well, bounded, and deaf to what was never said."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mchannel.address import Address
from mchannel.frame import Frame, Hello, Kind, Terms
from mchannel.transport import Delivery, Options
from mchannel.transports import domain
from mchannel.transports.stream import BEGIN, EVERYBODY, Key, Multiplexer
from mchannel.transports.virtio import VIRTIO
from tests.crash.points import WHOLE

LIMITS = Options(max_message=10_000, window=100_000)
UUID = "aaaaaaaa-0000-4000-8000-000000000001"
EXAMPLES = settings(max_examples=20_000 if WHOLE else 200, database=None)
KEYS = st.sampled_from([EVERYBODY, Key(b"abcd"), Key(b"abcd", "sla"), Key(b"\xc1\xf6\0\1", "x")])
HELLO = Frame(Kind.HELLO, 1, body=Hello(bytes(16), "", Terms(100, 1000, Delivery.ALL), 1, 0, 0).encode()).encode()
FRAMES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b"", BEGIN, HELLO, b"x" * 9000, Frame(Kind.DATA, 1, 1, 0, 0, b"x").encode()]),
)


@st.composite
def wires(draw: st.DrawFn) -> bytes:
    """Draw what a guest sends: frames, some of them damaged, and noise."""
    wire = b""
    mux = Multiplexer()
    for key, frame in draw(st.lists(st.tuples(KEYS, FRAMES), max_size=8)):
        mux.put(key, frame)
        sent = bytearray(mux.take(1 << 62))
        if draw(st.integers(0, 3)) == 0:
            place = draw(st.integers(0, len(sent) - 1))
            sent[place : place + draw(st.integers(0, 50))] = draw(st.binary(max_size=20))
        wire += sent
    return wire


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as found:
        yield Path(found)


@EXAMPLES
@given(wires(), st.booleans())
def test_a_domain_socket_and_its_gate_survive_whatever_a_guest_sends(folder: Path, wire: bytes, hangs_up: bool) -> None:
    path = folder / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        try:
            listener.listen(1)
            gate = VIRTIO.bind(Address.parse(f"virtio://{path}?domain={UUID}"), LIMITS)
            guest, _ = listener.accept()
            with guest:
                guest.sendall(wire)
                if hangs_up:
                    guest.shutdown(socket.SHUT_RDWR)
                for _ in range(20):
                    gate.port.pump()
                while (link := gate.accept()) is not None:
                    assert link.peer.identity == UUID
                assert isinstance(gate.port, domain.DomainSocket)
                assert 0 <= gate.port.waiting <= 2 * (LIMITS.window + LIMITS.max_message)
            gate.close()
        finally:
            path.unlink()
