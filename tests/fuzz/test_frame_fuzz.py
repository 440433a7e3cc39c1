"""Whatever bytes arrive, a peer can only end its own session."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mchannel.address import Address
from mchannel.codec import EventCodec
from mchannel.errors import CodecError, MChannelError, ProtocolError
from mchannel.event import Event
from mchannel.frame import HEADER, Flag, Frame, Hello, Kind, Terms, Welcome
from mchannel.framed import FramedGate
from mchannel.handoff import Handoff
from mchannel.packing import pack
from mchannel.session import Role, Session, Timing
from mchannel.transport import Delivery, Options, State
from mchannel.transports.memory import MEMORY
from tests.crash.points import WHOLE

EXAMPLES = settings(max_examples=50_000 if WHOLE else 300, database=None)
SESSION = b"s" * 16
_ADDRESS = Address.parse("memory:///fuzz")
TERMS = Terms(100, 1000, Delivery.ALL)

extremes = st.sampled_from([0, 1, 2, 3, 255, (1 << 31) - 1, (1 << 32) - 1, 1 << 62, (1 << 63) - 1, (1 << 64) - 1])
numbers = st.integers(0, 12) | extremes
scalars = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)
terms = st.tuples(numbers, numbers, st.sampled_from(["all", "latest", "none"]))
handshakes = st.builds(
    lambda *fields: pack(fields), st.just(1), st.just(SESSION), st.just("name"), terms, numbers, numbers, numbers
) | st.builds(lambda *fields: pack(fields), st.just(1), st.just(SESSION), terms, numbers | st.none(), numbers)
bodies = st.binary(max_size=150) | values.map(pack) | handshakes


def _frame(kind: int, flags: int, epoch: int, number: int, ack: int, body: bytes) -> bytes:
    return HEADER.pack(b"mC", kind, flags, epoch, number, ack) + body


def _decode_frame(data: bytes) -> Frame:
    return Frame.decode(data, 100)


frames = st.builds(
    _frame,
    st.integers(0, 10),
    st.integers(0, 2),
    st.integers(0, 3) | st.just((1 << 32) - 1),
    numbers,
    numbers,
    bodies,
)
anything = frames | st.binary(max_size=200)


@pytest.mark.parametrize(
    ("decode", "error"),
    [
        (_decode_frame, ProtocolError),
        (Hello.decode, ProtocolError),
        (Welcome.decode, ProtocolError),
        (Handoff.decode, ProtocolError),
        (EventCodec().decode, CodecError),
    ],
    ids=["frame", "hello", "welcome", "handoff", "event"],
)
def test_garbage_is_refused_by_the_one_error_that_is_documented(
    decode: Callable[[bytes], object], error: type[MChannelError]
) -> None:
    @EXAMPLES
    @given(anything | bodies | st.lists(values, max_size=8).map(pack))
    def check(data: bytes) -> None:
        with contextlib.suppress(error):
            decode(data)

    check()


@EXAMPLES
@given(
    st.text(max_size=20),
    st.text(max_size=20),
    scalars.filter(lambda value: value == value),  # noqa: PLR0124 - not a number equals nothing
    st.floats(allow_nan=False, allow_infinity=False),
    st.dictionaries(st.text(max_size=8), st.integers(-5, 5) | st.tuples(st.text(max_size=3)), max_size=4),
)
def test_an_event_arrives_as_it_was_sent(topic: str, source: str, value: object, at: float, detail: object) -> None:
    codec, event = EventCodec(), Event(topic, source, value, at, detail)  # type: ignore[arg-type]  # any scalar
    assert codec.decode(codec.encode(event)) == event


@EXAMPLES
@given(
    st.builds(
        Handoff,
        st.just(SESSION),
        st.text(max_size=10),
        st.integers(0, 99),
        st.just(TERMS),
        st.integers(0, 99),
        st.integers(1, 99),
        st.lists(st.binary(max_size=9), max_size=5).map(tuple),
        st.integers(0, 99),
        st.binary(min_size=8, max_size=8),
    )
)
def test_a_handoff_arrives_as_it_was_sent(handoff: Handoff) -> None:
    assert Handoff.decode(handoff.encode()) == handoff


@EXAMPLES
@given(st.sampled_from(Role), st.lists(anything, max_size=30), st.booleans())
def test_a_hostile_peer_ends_its_own_session_and_nothing_else(role: Role, hostile: list[bytes], opened: bool) -> None:
    session = Session(role, SESSION, TERMS, Timing())
    now = 100.0
    if role is Role.AGENT:
        session.hello(now)
        if opened:
            session.receive(Frame(Kind.WELCOME, 1, body=Welcome(SESSION, TERMS, None, 1).encode()).encode(), now)
    elif opened:
        session.receive(Frame(Kind.HELLO, 1, body=Hello(SESSION, "", TERMS, 1, 0, 0).encode()).encode(), now)
    for data in hostile:
        now += 0.3
        session.receive(data, now)
        session.tick(now)
        with contextlib.suppress(MChannelError):
            session.send(b"honest")
            session.next()
        assert sum(map(len, session.outgoing)) < 20_000
        if session.failure is not None:
            assert session.state is State.ENDED
            break


def test_a_peer_that_never_reads_fills_no_memory() -> None:
    session = Session(Role.BROKER, SESSION, TERMS, Timing())
    session.receive(Frame(Kind.HELLO, 1, body=Hello(SESSION, "", TERMS, 1, 0, 0).encode()).encode(), 1.0)
    for step in range(5000):
        session.receive(Frame(Kind.ACK, 1, flags=Flag.PING).encode(), 1.0 + step / 1000)
    assert len(session.outgoing) < 5


@pytest.mark.parametrize("size", [0, 1])
def test_a_flood_of_small_messages_ends_at_the_window(size: int) -> None:
    session = Session(Role.BROKER, SESSION, TERMS, Timing())
    session.receive(Frame(Kind.HELLO, 1, body=Hello(SESSION, "", TERMS, 1, 0, 0).encode()).encode(), 1.0)
    for number in range(1, 200):
        session.receive(Frame(Kind.DATA, 1, number, body=b"x" * size).encode(), 1.0)
    assert isinstance(session.failure, ProtocolError)
    assert len(session.reader.inbox) < 60


@EXAMPLES
@given(st.lists(anything, max_size=10))
def test_a_stranger_at_the_gate_is_shown_out_and_others_go_on(hostile: list[bytes]) -> None:
    options = Options(max_message=100)
    gate = MEMORY.bind(_ADDRESS, options)
    assert isinstance(gate, FramedGate)
    try:
        stranger = MEMORY.connect(_ADDRESS, options)
        for data in hostile:
            with contextlib.suppress(MChannelError):
                stranger.send(data)
            gate.port.pump()
        link = MEMORY.dial(_ADDRESS, Options(name="honest"))
        gate.port.pump()
        link.port.pump()
        assert link.state is State.OPEN
        link.close()
        stranger.close()
    finally:
        gate.close()
