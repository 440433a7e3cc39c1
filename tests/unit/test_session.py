"""Rules of a session, one by one; what any interleaving of them does is tested beside."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mchannel.errors import MessageTooBig, ProtocolError
from mchannel.frame import (
    MAX_AUTHORS,
    MOST_TOGETHER,
    OVERHEAD,
    Flag,
    Frame,
    Hello,
    Kind,
    Terms,
    Welcome,
    messages,
)
from mchannel.handoff import Handoff
from mchannel.packing import pack
from mchannel.session import Role, Session, Timing
from mchannel.transport import Delivery, State

NAME = b"s" * 16
TERMS = Terms(1000, 1000, Delivery.ALL)
ROOM = TERMS.window + TERMS.max_message + OVERHEAD
NOW = 100.0


def hello(
    epoch: int,
    base: int = 1,
    received: int = 0,
    name: bytes = NAME,
    authors: tuple[tuple[bytes, int], ...] = (),
    terms: Terms = TERMS,
) -> bytes:
    body = Hello(name, "", terms, base, base - 1, received, authors).encode()
    return Frame(Kind.HELLO, epoch, body=body).encode()


def data(number: int, *payloads: bytes) -> bytes:
    if len(payloads) == 1:
        return Frame(Kind.DATA, 1, number, body=payloads[0]).encode()
    return Frame(Kind.DATA, 1, number, flags=Flag.MANY, body=pack(payloads)).encode()


@pytest.fixture
def broker() -> Session:
    """Return the broker side of a session that is open."""
    session = Session(Role.BROKER, NAME, TERMS, Timing())
    session.receive(hello(1), NOW)
    session.outgoing.clear()
    return session


def sent(session: Session) -> list[Frame]:
    frames = [Frame.decode(each, MOST_TOGETHER) for each in session.outgoing]
    session.outgoing.clear()
    return frames


def test_a_successor_leaves_room_for_what_an_agent_has_unread_of_a_broker_that_died() -> None:
    successor = Session(Role.BROKER, NAME, TERMS, Timing())
    successor.receive(hello(1, received=3), NOW)
    assert not successor.send(b"as long as the unread ones may be, nothing fits")
    successor = Session.take_up(Handoff.decode(successor.handoff().encode()), Timing())
    assert not successor.send(b"nor before the agent came to the next one")
    successor.receive(hello(2, received=3, authors=((successor.author, 3),)), NOW)
    assert not successor.send(b"nor after")
    successor.receive(Frame(Kind.DATA, 2, 1, 3, body=b"done with them").encode(), NOW)
    assert successor.send(b"x" * TERMS.max_message)


def test_what_another_broker_took_care_of_is_not_waited_for(broker: Session) -> None:
    broker.receive(hello(2, base=6), NOW)
    broker.receive(Frame(Kind.DATA, 2, 6, body=b"next").encode(), NOW)
    message = broker.next()
    assert message is not None
    assert message[:2] == (6, b"next")


def test_an_older_base_repeats_nothing(broker: Session) -> None:
    broker.receive(data(1, b"one", b"two", b"three"), NOW)
    broker.receive(hello(2, base=2), NOW)
    assert broker.newest == 3
    assert [payload for _, payload, _ in broker.take(9)] == [b"one", b"two", b"three"]


def test_a_hello_that_is_replayed_begins_nothing(broker: Session) -> None:
    broker.send(b"one")
    broker.receive(hello(1), NOW)
    assert [frame.kind for frame in sent(broker)] == [Kind.DATA]
    assert broker.failure is None


def test_another_session_on_the_same_connection_is_refused(broker: Session) -> None:
    broker.receive(hello(2, name=b"t" * 16), NOW)
    assert isinstance(broker.failure, ProtocolError)
    assert broker.epoch == 1


@pytest.mark.parametrize(
    "others",
    [Terms(999, 1000, Delivery.ALL), Terms(1000, 999, Delivery.ALL), Terms(1000, 1000, Delivery.LATEST)],
    ids=["max_message", "window", "delivery"],
)
def test_an_agent_cannot_change_terms_that_were_agreed(others: Terms, broker: Session) -> None:
    broker.receive(hello(2, terms=others), NOW)
    assert isinstance(broker.failure, ProtocolError)
    assert (broker.terms, broker.epoch) == (TERMS, 1)


def test_an_agent_that_could_bear_more_than_was_agreed_goes_on_as_agreed(broker: Session) -> None:
    broker.receive(hello(2, terms=Terms(2000, 2000, Delivery.ALL)), NOW)
    assert (broker.failure, broker.terms, broker.epoch) == (None, TERMS, 2)


@pytest.mark.parametrize("received", [0, 1, 2])
def test_an_agent_that_has_received_more_than_was_sent_is_refused(received: int, broker: Session) -> None:
    broker.send(b"one")
    broker.receive(hello(2, received=received, authors=((broker.author, received),)), NOW)
    assert isinstance(broker.failure, ProtocolError) == (received > 1)


def test_a_broker_that_suspended_its_agent_leaves_the_answer_to_a_successor_until_the_timeout(broker: Session) -> None:
    broker.suspend(NOW, 2.0)
    broker.receive(Frame(Kind.SUSPENDED, 1, 0).encode(), NOW)
    broker.outgoing.clear()
    broker.receive(hello(2), NOW + 1)
    assert not broker.outgoing
    broker.tick(NOW + 2)
    broker.receive(hello(3), NOW + 2)
    assert [frame.kind for frame in sent(broker)] == [Kind.WELCOME]


def test_what_waited_for_an_earlier_connection_is_not_sent_over_the_next(broker: Session) -> None:
    broker.send(b"one")
    broker.receive(hello(2), NOW)
    assert [(frame.kind, frame.epoch) for frame in sent(broker)] == [(Kind.WELCOME, 2), (Kind.DATA, 2)]


def fill(session: Session, size: int, *, together: bool) -> None:
    """Let *size* bytes wait to be read, headers included."""
    payloads, last = [bytes(76)] * 11, bytes(size - 11 * 100 - OVERHEAD)
    for frame in [data(1, *payloads)] if together else [data(number, each) for number, each in enumerate(payloads, 1)]:
        session.receive(frame, NOW)
    session.receive(data(12, last), NOW)


@pytest.mark.parametrize("together", [False, True])
def test_a_peer_may_fill_its_window_to_the_last_byte(together: bool, broker: Session) -> None:
    fill(broker, ROOM, together=together)
    assert broker.failure is None
    assert broker.newest == 12


@pytest.mark.parametrize("together", [False, True])
def test_a_byte_beyond_the_window_ends_the_session(together: bool, broker: Session) -> None:
    fill(broker, ROOM + 1, together=together)
    assert isinstance(broker.failure, ProtocolError)
    assert "window" in str(broker.failure)


def test_messages_that_were_read_leave_the_window(broker: Session) -> None:
    for number in range(1, 100):
        broker.receive(data(number, bytes(76)), NOW)
        assert broker.next() is not None
    assert broker.failure is None


def test_messages_written_together_share_a_frame(broker: Session) -> None:
    assert broker.send_many([b"one", b"", b"three"]) == 3
    (frame,) = sent(broker)
    assert (frame.kind, frame.number, messages(frame.flags, frame.body)) == (Kind.DATA, 1, (b"one", b"", b"three"))


def test_a_shared_frame_is_no_longer_than_the_longest_message(broker: Session) -> None:
    payloads = [bytes(size) for size in (1000, 400, 400, 100, 3)]
    writer = broker.writer
    for each in payloads:
        broker.send_many([each])
        writer.acknowledge(writer.last)
    sent(broker)
    assert broker.send_many(payloads[1:]) == 4
    frames = sent(broker)
    assert all(len(frame.body) <= TERMS.max_message for frame in frames)
    assert [each for frame in frames for each in messages(frame.flags, frame.body)] == payloads[1:]


def test_a_message_alone_travels_as_it_is(broker: Session) -> None:
    broker.send_many([b"alone"])
    (frame,) = sent(broker)
    assert (frame.flags, frame.body) == (0, b"alone")


def test_writing_together_takes_what_the_window_has_room_for(broker: Session) -> None:
    assert broker.send_many([bytes(300)] * 9) == 3
    assert broker.send_many([bytes(300)]) == 0


def test_writing_together_takes_nothing_when_one_is_too_long(broker: Session) -> None:
    with pytest.raises(MessageTooBig):
        broker.send_many([b"short", bytes(1001)])
    assert broker.flushed


def test_messages_that_came_before_are_left_out_of_a_shared_frame(broker: Session) -> None:
    broker.receive(data(1, b"one", b"two"), NOW)
    broker.receive(data(1, b"one", b"two", b"three"), NOW)
    assert [(number, payload) for number, payload, _ in broker.take(9)] == [(1, b"one"), (2, b"two"), (3, b"three")]


@pytest.mark.parametrize(
    "body",
    [b"", b"\x00", pack([]), pack([1]), pack([b"one", "two"]), pack([[b"one"]]), pack([b"one"]) + b"\x00"],
    ids=["empty", "no array", "none", "number", "text", "nested", "trailing"],
)
def test_a_malformed_shared_frame_ends_the_session(body: bytes, broker: Session) -> None:
    broker.receive(Frame(Kind.DATA, 1, 1, flags=Flag.MANY, body=body).encode(), NOW)
    assert isinstance(broker.failure, ProtocolError)
    assert not broker.reader.inbox


def test_a_shared_frame_is_bounded_whatever_was_agreed_for_messages() -> None:
    body = pack([b""] * (MOST_TOGETHER // 2 + 1))
    with pytest.raises(ProtocolError):
        messages(Flag.MANY, body)


# --- brokers that know nothing of each other -------------------------------------------------------


def _roam(choices: list[int]) -> None:
    """An agent goes from broker to broker without a handoff, and all of them write to it all the time."""
    agent = Session(Role.AGENT, NAME, TERMS, Timing())
    brokers = [Session(Role.BROKER, NAME, TERMS, Timing()) for _ in range(3)]
    written: list[list[bytes]] = [[], [], []]
    heard: list[list[bytes]] = [[], [], []]
    at, now = 0, 0.0
    agent.hello(now)
    for choice in choices:
        now += 0.1
        broker = brokers[at]
        match choice:
            case 0 | 1 | 2:
                at = choice
                agent.hello(now)
            case 3 | 4 | 5:
                payload = b"%d:%d" % (choice - 3, len(written[choice - 3]))
                if brokers[choice - 3].send(payload):
                    written[choice - 3].append(payload)
            case 6 if agent.outgoing:
                broker.receive(agent.outgoing.popleft(), now)
            case 7 if broker.outgoing:
                agent.receive(broker.outgoing.popleft(), now)
            case 8 if (message := agent.next()) is not None:
                heard[int(message[1][:1])].append(message[1])
            case 9:
                broker.outgoing.clear()  # the connection broke
                agent.hello(now)
            case _:
                pass
    for at in (0, 1, 2, 0, 1, 2):
        agent.hello(now)
        while agent.outgoing or brokers[at].outgoing:
            now += 0.1
            while agent.outgoing:
                brokers[at].receive(agent.outgoing.popleft(), now)
            while brokers[at].outgoing:
                agent.receive(brokers[at].outgoing.popleft(), now)
            while (message := agent.next()) is not None:
                heard[int(message[1][:1])].append(message[1])
            agent.done()
            agent.acknowledge()
    assert heard == written


@settings(max_examples=300)
@given(st.lists(st.integers(0, 9), max_size=120))
def test_an_agent_hears_each_broker_once_and_in_order_without_any_handoff(choices: list[int]) -> None:
    _roam(choices)


def test_what_a_broker_wrote_while_its_agent_was_elsewhere_is_not_taken_for_the_others() -> None:
    _roam([6, 7, 6, 3, 7, 8, 3, 3, 3, 1, 6, 7, 4, 4, 7, 7, 8, 8, 0])


def test_what_a_broker_wrote_whose_welcome_was_lost_is_not_taken_for_the_others() -> None:
    _roam([2, 6, 0, 6, 3, 5])


def test_a_hello_that_names_too_many_brokers_is_refused() -> None:
    authors = tuple((bytes([each] * 8), 0) for each in range(MAX_AUTHORS + 1))
    with pytest.raises(ProtocolError):
        Hello.decode(Hello(NAME, "", TERMS, 1, 0, 0, authors).encode())


def test_an_agent_remembers_few_brokers() -> None:
    agent, broker = Session(Role.AGENT, NAME, TERMS, Timing()), Session(Role.BROKER, NAME, TERMS, Timing())
    for number in range(20):
        agent.hello(float(number))
        broker = Session(Role.BROKER, NAME, TERMS, Timing())
        broker.receive(agent.outgoing.popleft(), float(number))
        agent.receive(broker.outgoing.popleft(), float(number))
    agent.hello(20.0)
    hello = Hello.decode(Frame.decode(agent.outgoing[0], 1000).body)
    assert len(hello.authors) == MAX_AUTHORS
    assert hello.authors[-1] == (broker.author, 0)


# ---- what an agent sends with HELLO


def pass_on(source: Session, target: Session, count: int = 99) -> None:
    while source.outgoing and count:
        target.receive(source.outgoing.popleft(), NOW)
        count -= 1


@pytest.fixture
def agent(broker: Session) -> Session:
    """Return the agent's side of the session, which both ends have opened in epoch 2."""
    session = Session(Role.AGENT, NAME, TERMS, Timing())
    session.epoch = 1
    session.hello(NOW)
    pass_on(session, broker)
    pass_on(broker, session)
    return session


def test_a_broker_has_what_was_not_acknowledged_before_it_answers_a_reconnection(
    agent: Session, broker: Session
) -> None:
    for payload in (b"one", b"two"):
        agent.send(payload)
    agent.hello(NOW)  # which forgets what was on its way
    pass_on(agent, broker)
    assert [payload for _, payload, _ in broker.take(9)] == [b"one", b"two"]
    pass_on(broker, agent)
    assert not agent.outgoing, "it was said already"
    agent.send(b"three")
    pass_on(agent, broker)
    assert [payload for _, payload, _ in broker.take(9)] == [b"three"]


def test_what_waited_for_a_broker_is_not_sent_before_the_next_hello(agent: Session) -> None:
    agent.send(b"one")
    agent.hello(NOW)
    assert [(frame.kind, frame.epoch) for frame in sent(agent)] == [(Kind.HELLO, 3), (Kind.DATA, 3)]


@pytest.mark.parametrize(("name", "received"), [(NAME, 1), (b"t" * 16, 0)], ids=["never sent", "another session"])
def test_a_broker_whose_answer_is_about_something_else_is_refused(name: bytes, received: int, agent: Session) -> None:
    agent.hello(NOW)
    agent.receive(Frame(Kind.WELCOME, 3, body=Welcome(name, TERMS, received, 1, agent.author).encode()).encode(), NOW)
    assert isinstance(agent.failure, ProtocolError)


def welcome(terms: Terms, epoch: int = 1) -> bytes:
    return Frame(Kind.WELCOME, epoch, body=Welcome(NAME, terms, None, 1, b"a" * 8).encode()).encode()


@pytest.mark.parametrize(
    "granted",
    [Terms(1001, 1000, Delivery.LATEST), Terms(1000, 1001, Delivery.LATEST), TERMS],
    ids=["message", "window", "all"],
)
def test_a_broker_cannot_grant_more_than_was_asked_for(granted: Terms) -> None:
    agent = Session(Role.AGENT, NAME, attrs.evolve(TERMS, delivery=Delivery.LATEST), Timing())
    agent.hello(NOW)
    agent.receive(welcome(granted), NOW)
    assert isinstance(agent.failure, ProtocolError)


def test_a_broker_may_grant_less_than_was_asked_for_but_once() -> None:
    agent, less = Session(Role.AGENT, NAME, TERMS, Timing()), Terms(999, 999, Delivery.LATEST)
    agent.hello(NOW)
    agent.receive(welcome(less), NOW)
    assert (agent.state, agent.terms) == (State.OPEN, less)
    agent.hello(NOW)
    agent.receive(welcome(attrs.evolve(less, window=998), epoch=2), NOW)
    assert isinstance(agent.failure, ProtocolError)


def states(session: Session, *later: float) -> list[State]:
    found: list[State] = []
    for seconds in later:
        session.tick(NOW + seconds)
        found.append(session.state)
    return found


def test_an_agent_is_lost_after_three_heartbeats_in_silence(broker: Session) -> None:
    assert states(broker, 2.9, 3.0) == [State.OPEN, State.LOST]


def test_a_broker_is_lost_three_heartbeats_after_a_ping_without_an_answer(agent: Session) -> None:
    agent.tick(NOW + 1)
    assert [frame.flags for frame in sent(agent)] == [Flag.PING]
    assert states(agent, 3.9, 4.0) == [State.OPEN, State.LOST]
    assert sent(agent)[0].kind is Kind.HELLO


def test_an_agent_whose_hello_is_on_its_way_says_no_other_because_a_broker_calls() -> None:
    agent = Session(Role.AGENT, NAME, TERMS, Timing())
    agent.hello(NOW)
    agent.receive(Frame(Kind.CALL, 1).encode(), NOW)
    assert [(frame.kind, frame.epoch) for frame in sent(agent)] == [(Kind.HELLO, 1)]


def test_an_agent_says_hello_to_a_broker_that_has_just_come() -> None:
    agent = Session(Role.AGENT, NAME, TERMS, Timing())
    agent.hello(NOW)
    agent.receive(Frame(Kind.CALL, 0).encode(), NOW)
    assert [(frame.kind, frame.epoch) for frame in sent(agent)] == [(Kind.HELLO, 2)]


def test_what_was_never_sent_is_not_redelivered_because_it_comes_with_a_hello(agent: Session) -> None:
    agent.send(b"old")
    agent.hello(NOW)
    agent.send(b"new")
    agent.hello(NOW)
    stranger = Session(Role.BROKER, NAME, TERMS, Timing())
    pass_on(agent, stranger)
    assert stranger.take(9) == [(1, b"old", True), (2, b"new", False)]


def test_what_is_written_after_a_call_is_with_the_broker_before_it_answers(agent: Session, broker: Session) -> None:
    agent.send(b"one")
    agent.receive(Frame(Kind.CALL, 0).encode(), NOW)
    agent.send(b"two")
    agent.send_many([b"three", b"four"])
    pass_on(agent, broker)
    assert [payload for _, payload, _ in broker.take(9)] == [b"one", b"two", b"three", b"four"]
    pass_on(broker, agent)
    assert not agent.outgoing, "it was said already"


def test_what_is_written_after_a_call_may_have_been_seen_by_a_broker_that_died(agent: Session) -> None:
    agent.receive(Frame(Kind.CALL, 0).encode(), NOW)
    agent.send(b"seen?")
    agent.hello(NOW)
    stranger = Session(Role.BROKER, NAME, TERMS, Timing())
    pass_on(agent, stranger)
    assert stranger.take(9) == [(1, b"seen?", True)]


def test_what_is_written_after_a_call_does_not_overtake_what_was_too_long_to_go_ahead() -> None:
    terms = Terms(MOST_TOGETHER + 1, 1 << 18, Delivery.ALL)
    agent, broker = Session(Role.AGENT, NAME, terms, Timing()), Session(Role.BROKER, NAME, terms, Timing())
    agent.hello(NOW)
    pass_on(agent, broker)
    pass_on(broker, agent)
    long = bytes(MOST_TOGETHER + 1)
    agent.send(long)
    agent.receive(Frame(Kind.CALL, 0).encode(), NOW)
    agent.send(b"two")
    assert [frame.kind for frame in sent(agent)] == [Kind.HELLO]
    agent.hello(NOW)
    pass_on(agent, broker)
    pass_on(broker, agent)
    pass_on(agent, broker)
    assert [payload for _, payload, _ in broker.take(9)] == [long, b"two"]


def test_what_is_written_while_nobody_calls_waits_for_an_answer(agent: Session) -> None:
    agent.hello(NOW)
    agent.send(b"new")
    assert [frame.kind for frame in sent(agent)] == [Kind.HELLO]


def test_what_got_lost_behind_a_hello_is_sent_again(agent: Session, broker: Session) -> None:
    agent.send(b"one")
    agent.hello(NOW)
    pass_on(agent, broker, 1)
    agent.outgoing.clear()
    pass_on(broker, agent)
    agent.send(b"two")
    pass_on(agent, broker)
    assert broker.take(9) == []
    pass_on(broker, agent)  # CALL
    pass_on(agent, broker)
    assert [payload for _, payload, _ in broker.take(9)] == [b"one", b"two"]


@pytest.mark.parametrize(
    ("size", "kinds"), [(MOST_TOGETHER, [Kind.HELLO, Kind.DATA]), (MOST_TOGETHER + 1, [Kind.HELLO])]
)
def test_no_more_goes_with_a_hello_than_one_short_frame(size: int, kinds: list[Kind]) -> None:
    terms = Terms(MOST_TOGETHER * 2, MOST_TOGETHER * 4, Delivery.ALL)
    session, broker = Session(Role.AGENT, NAME, terms, Timing()), Session(Role.BROKER, NAME, terms, Timing())
    session.hello(NOW)
    pass_on(session, broker)
    pass_on(broker, session)
    session.send(bytes(size))
    session.send(b"more")
    session.hello(NOW)
    assert [Frame.decode(each, terms.max_message).kind for each in session.outgoing] == kinds
    pass_on(session, broker)
    pass_on(broker, session)
    pass_on(session, broker)
    assert [len(payload) for _, payload, _ in broker.take(9)] == [size, 4]


def test_a_first_hello_goes_alone() -> None:
    session = Session(Role.AGENT, NAME, TERMS, Timing())
    session.send(b"not taken yet")
    session.hello(NOW)
    assert [frame.kind for frame in sent(session)] == [Kind.HELLO]
