"""Links over wires that move frames: a session at either end of a :class:`~mchannel.transport.Transport`."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence

import attrs

from mchannel.address import Address
from mchannel.errors import AddressError, AuthenticationError, ChannelBroken, ChannelError, MChannelError, ProtocolError
from mchannel.frame import Frame, Hello, Kind, Terms
from mchannel.handoff import Handoff
from mchannel.packing import Limits, pack, unpack
from mchannel.port import StandingPort, Wait, waiter
from mchannel.reader import Received
from mchannel.session import Role, Session, Timing
from mchannel.transport import Acceptor, Delivery, Gate, Link, Options, Peer, Port, State, Transport

__all__ = ["Framed"]

_BURST = 256
"""Frames taken in at once from one peer, so that a flood cannot starve the others."""
_BLOCKED_RETRY = 0.005
"""Seconds until a transport that could not take a frame is tried again."""
_TURN = 0.01
"""Seconds between two looks at what is due; and so long the first wait for a message is, which is a quick one."""
_LONG_TURN = 0.02
"""The same for a writer that waits at the port meanwhile, where it sees what arrives."""
_LATEST_TURN = 0.001
"""The same for ``latest``: a reader that fell behind waits for an answer."""
_PORTIONS = 64
"""Portions taken in before the latest is read; a writer faster than its reader must not keep it for ever."""
_MAX_STRANGERS = 256
"""Peers that may be connected without having said HELLO."""
_MAX_LINKS = 4096
_MAX_ADOPTED = _MAX_LINKS
"""Sessions that were handed over and whose agents did not come yet: as many as a broker can have had."""
_CALL_INTERVAL = 0.1
_LATEST = Delivery.LATEST  # an enum is slow to find its members


def _terms(options: Options) -> Terms:
    return Terms(options.max_message, options.window, options.delivery)


def _timing(options: Options) -> Timing:
    return Timing(heartbeat=options.heartbeat, retry=options.heartbeat / 2, patience=options.patience)


def _snapshot(identity: str, handoff: Handoff) -> bytes:
    return pack((identity, handoff.encode()))


class FramedLink:
    """A session, and the transport that it has at present."""

    def __init__(self, session: Session, peer: Peer, port: Port, transport: Transport | None) -> None:
        self.peer = peer
        self.port = port
        self.on_news: Callable[[], None] | None = None
        self.number = 0
        self.redelivered = False
        self.moved = False
        """Whether another broker took over."""
        self._session = session
        self._transport: Transport | None = None
        self._taken: Sequence[Received] = ()
        self._blocked = False
        self._heard = 0
        """Frames taken in."""
        self._turn = 0.0
        self._waited = False
        """Whether the port was waited at, and so pumped, since this end looked around."""
        self._wait: Wait | None = None
        if transport is not None:
            self.attach(transport)

    @property
    def state(self) -> State:
        """Where the link stands."""
        return self._session.state

    @property
    def session(self) -> bytes:
        """The name of the exchange."""
        return self._session.session

    @property
    def epoch(self) -> int:
        """Which connection of the session this is; the agent counts them."""
        return self._session.epoch

    @property
    def flushed(self) -> bool:
        """Whether the peer has acknowledged everything that was sent."""
        return self._session.flushed

    def attach(self, transport: Transport) -> None:
        """Go on over *transport*; the one before is let go."""
        before, self._transport = self._transport, transport
        transport.on_news = self._news
        if before is not None and before is not transport:
            before.on_news = None
            before.close()

    def send(self, payload: bytes) -> bool:
        """Take one message; False when the window is full."""
        session = self._session
        taken = session.send(payload)
        if session.outgoing:
            self._flush()
        if (now := time.monotonic()) >= self._turn:  # who only writes must see too that the peer went away
            self._look_around(now, pumped=self._waited)
        if not taken:
            self._pull()  # there may be an acknowledgement
            taken = session.send(payload)
            self._flush()
        return taken

    def recv(self) -> bytes | None:
        """Acknowledge the previous message and return the next, or None."""
        session = self._session
        if session.terms.delivery is _LATEST:
            self._catch_up()
        message = session.next()
        if message is None and (not self._pull() or (message := session.next()) is None):
            return None
        if session.outgoing:
            self._flush()
        self.number, payload, self.redelivered = message
        return payload

    def send_many(self, payloads: Sequence[bytes]) -> int:
        """Take as many messages as there is room for; return how many."""
        session = self._session
        taken = session.send_many(payloads)
        self._flush()
        if (now := time.monotonic()) >= self._turn or taken < len(payloads):
            self._look_around(now)
        if taken < len(payloads):
            taken += session.send_many(payloads[taken:])
            self._flush()
        return taken

    def recv_many(self, limit: int) -> list[bytes]:
        """Acknowledge the messages before and return up to *limit*; they are acknowledged together."""
        if self._session.terms.delivery is _LATEST:
            self._catch_up()
        self._pull()
        taken = self._taken = self._session.take(limit)
        self._flush()
        if taken:
            self.number, self.redelivered = taken[-1][0], taken[0][2]
        return [payload for _, payload, _ in taken]

    @property
    def stamps(self) -> Sequence[tuple[int, bool]]:
        """Number of each message that :meth:`recv_many` returned last, and whether it is redelivered."""
        return [(number, redelivered) for number, _, redelivered in self._taken]

    def done(self) -> None:
        """Acknowledge the message returned last."""
        self._session.done()
        self._session.acknowledge()
        self._flush()

    def arm_readable(self) -> bool:
        """Nothing to ask for: the port wakes whenever something arrives."""
        return False

    def arm_writable(self) -> bool:
        """Nothing to ask for: room comes with acknowledgements, which arrive."""
        return False

    def wait_readable(self, timeout: float | None) -> None:
        """Sleep until there may be news."""
        wait = self._wait
        if wait is None:
            wait = self._wait = waiter(self.port)
        self._waited = True
        now = time.monotonic()
        if now < self._turn:  # what is due can wait for so long
            if timeout is not None and timeout <= _TURN:
                wait(timeout)
                return
            if wait(_TURN):
                return
            self._session.acknowledge()  # nothing is said soon that could carry it along
            now += _TURN
        heard = self._heard
        self._look_around(now)
        if self._heard != heard:
            return  # it came before we slept, and would not wake us
        due = self.deadline()
        if due is not None and (timeout is None or due - now < timeout):
            timeout = max(due - now, 0)
        wait(timeout)

    wait_writable = wait_readable  # room comes with an acknowledgement, which is news too

    def deadline(self) -> float | None:
        """Return when :meth:`tick` is due next."""
        due = self._session.deadline()
        if self._blocked:
            soon = time.monotonic() + _BLOCKED_RETRY
            return soon if due is None else min(due, soon)
        return due

    def tick(self, now: float) -> None:
        """Do what is due at *now*."""
        self._pull()
        self._session.tick(now)
        self._flush()

    def suspend(self, timeout: float) -> None:
        """Start to quiesce."""
        self._session.suspend(time.monotonic(), timeout)
        self._flush()

    def snapshot(self) -> bytes:
        """Return the suspended session for another broker to adopt."""
        if self._session.state is not State.SUSPENDED or self._session.role is not Role.BROKER:
            raise ChannelError("only the broker side of a suspended channel can be handed over; call suspend() first")
        return self.hand_over()

    def hand_over(self) -> bytes:
        """Return the session for another broker to adopt, when the agent cannot speak meanwhile."""
        self.moved = True
        handoff = self._session.handoff()
        self._let_go()
        return _snapshot(self.peer.identity, handoff)

    def resume(self) -> None:
        """Take up a suspended link again."""
        self._session.resume(time.monotonic())
        self._flush()

    def close(self) -> None:
        """Say goodbye and let go."""
        self._session.close()
        self._flush()
        self._drop()

    def leave(self) -> None:
        """Let go without goodbye: the agent will look for a successor of this broker."""
        self._session.leave()
        self._flush()
        self._let_go()

    @property
    def failure(self) -> MChannelError | None:
        """What ended the link, when it was not this end's own wish."""
        return self._session.failure

    def receive(self, frame: bytes) -> None:
        """Take in one frame that the gate has looked at already, and what follows it."""
        self._session.receive(frame, time.monotonic())
        self._news()

    def _news(self) -> None:
        if not self._pull() and self.on_news is not None:
            self.on_news()

    def _look_around(self, now: float, *, pumped: bool = False) -> None:
        long = _LONG_TURN if pumped else _TURN
        self._turn = now + (_LATEST_TURN if self._session.terms.delivery is _LATEST else long)
        self._waited = False
        if not pumped:
            self.port.pump()
        self.tick(now)

    def _catch_up(self) -> None:
        """Take in what has arrived, so that the newest of it is read."""
        for _ in range(_PORTIONS):
            before = self._session.newest
            self.port.pump()
            self._pull()
            if self._session.newest == before:
                break
        self.tick(time.monotonic())

    def _pull(self) -> bool:
        """Take in what the transport has; False when that was nothing."""
        transport, session = self._transport, self._session
        if transport is None:
            return False
        count = 0
        try:
            now = time.monotonic()
            while count < _BURST and (frame := transport.recv()) is not None:
                count += 1
                session.receive(frame, now)
        except ChannelBroken:
            self._drop()
        except (AuthenticationError, ProtocolError) as error:
            session.fail(error)
            self._drop()
        self._heard += count
        if session.outgoing:
            self._flush()
        if count and self.on_news is not None:
            self.on_news()  # whoever took it in may not be who waits for it
        return count > 0

    def _flush(self) -> None:
        transport, outgoing = self._transport, self._session.outgoing
        if transport is None:
            return
        self._blocked = False
        try:
            while outgoing:
                frame = outgoing.popleft()  # first: a send may take in frames, and those begin a new epoch
                if not transport.send(frame):
                    outgoing.appendleft(frame)
                    self._blocked = True
                    return
        except ChannelBroken:
            self._take_leftovers(transport)
            self._drop()
        except (AuthenticationError, ProtocolError) as error:
            self._session.fail(error)
            self._drop()

    def _take_leftovers(self, transport: Transport) -> None:
        """Take in what arrived before the transport broke: there may be acknowledgements in it."""
        now = time.monotonic()
        with contextlib.suppress(ChannelBroken):
            while (frame := transport.recv()) is not None:
                self._session.receive(frame, now)

    def _let_go(self) -> None:
        self._drop()
        if self.on_news is not None:
            self.on_news()  # whoever waits for a message or for room waits in vain

    def _drop(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.on_news = None
            transport.close()


class DialledLink(FramedLink):
    """The agent's side: it dials, and dials again when the transport is gone."""

    def __init__(self, session: Session, dial: Callable[[], Transport]) -> None:
        self._dial = dial
        self._standing = StandingPort()
        transport = dial()
        self._standing.use(transport.port)
        super().__init__(session, transport.peer, self._standing, transport)
        session.hello(time.monotonic())
        self._flush()

    def tick(self, now: float) -> None:
        """Do what is due, and dial again when there is no transport."""
        if self._transport is None and self.state not in (State.ENDED, State.CLOSED):
            with contextlib.suppress(AddressError, ChannelBroken):
                transport = self._dial()
                self._standing.use(transport.port)
                self.attach(transport)
        super().tick(now)

    def close(self) -> None:
        """Say goodbye and let go."""
        super().close()
        self._standing.close()

    def _drop(self) -> None:
        self._standing.use(None)
        self._turn = 0.0  # to dial again is due
        super()._drop()


@attrs.define(eq=False)
class _Stranger:
    """A peer that is connected and has not said HELLO."""

    transport: Transport
    called: float = float("-inf")


class FramedGate:
    """The broker's side: finds the session that a new transport belongs to."""

    def __init__(self, acceptor: Acceptor, options: Options) -> None:
        self.address = acceptor.address
        self.port = acceptor.port
        self.on_news: Callable[[], None] | None = None
        self._acceptor = acceptor
        self._options = options
        self._strangers: OrderedDict[int, _Stranger] = OrderedDict()
        self._links: dict[tuple[str, bytes], FramedLink] = {}
        self._adopted: OrderedDict[tuple[str, bytes], tuple[Handoff, bool]] = OrderedDict()
        self._ready: list[FramedLink] = []
        acceptor.on_news = self._news

    def accept(self) -> Link | None:
        """Return the link to an agent that was not there before, or None."""
        while (transport := self._acceptor.accept()) is not None:
            self._meet(transport)
        return self._ready.pop(0) if self._ready else None

    def adopt(self, snapshot: bytes, *, overtaken: bool = False) -> None:
        """Expect the agent of a session that another broker handed over.

        When there are too many, the one that is waited for longest is given up. Raises ProtocolError.
        """
        try:
            match unpack(snapshot, Limits(binary=1 << 30)):
                case (str() as identity, bytes() as data):
                    handoff = Handoff.decode(data)
                    self._adopted[identity, handoff.session] = handoff, overtaken
                    self._adopted.move_to_end((identity, handoff.session))
                    if len(self._adopted) > _MAX_ADOPTED:
                        self._adopted.popitem(last=False)
                case _:
                    raise ValueError("malformed")
        except ValueError as error:
            raise ProtocolError(f"not a channel that was handed over: {error}") from None

    def hand_over(self) -> tuple[bytes, ...]:
        """Close, and return every session: those that agents have, and those that they did not come for yet."""
        here = [link.hand_over() for link in self._links.values() if link.state not in (State.ENDED, State.CLOSED)]
        away = [_snapshot(identity, handoff) for (identity, _), (handoff, _) in self._adopted.items()]
        self.close()
        return (*here, *away)

    def deadline(self) -> float | None:
        """Return None: a gate has nothing to do by the clock."""
        return None

    def tick(self, now: float) -> None:
        """Nothing is due, ever."""

    def close(self) -> None:
        """Stop listening. Agents are not told goodbye: they look for a successor."""
        for link in self._links.values():
            link.leave()
        for stranger in self._strangers.values():
            stranger.transport.close()
        self._links.clear()
        self._strangers.clear()
        self._acceptor.close()

    def _news(self) -> None:
        while (transport := self._acceptor.accept()) is not None:
            self._meet(transport)

    def _meet(self, transport: Transport) -> None:
        stranger = _Stranger(transport)
        self._strangers[id(stranger)] = stranger
        if len(self._strangers) > _MAX_STRANGERS:
            _, oldest = self._strangers.popitem(last=False)
            oldest.transport.close()
        transport.on_news = lambda: self._greet(stranger)
        self._greet(stranger)

    def _greet(self, stranger: _Stranger) -> None:
        transport = stranger.transport
        try:
            while id(stranger) in self._strangers and (data := transport.recv()) is not None:
                frame = Frame.decode(data, self._options.max_message)
                if frame.kind is Kind.HELLO:
                    self._admit(stranger, Hello.decode(frame.body), data, frame.epoch)
                elif (now := time.monotonic()) - stranger.called > _CALL_INTERVAL:
                    stranger.called = now
                    transport.send(Frame(Kind.CALL, frame.epoch).encode())
        except (ProtocolError, ChannelBroken):
            self._strangers.pop(id(stranger), None)
            transport.close()

    def _admit(self, stranger: _Stranger, hello: Hello, data: bytes, epoch: int) -> None:
        key = (stranger.transport.peer.identity, hello.session)
        adopted = self._adopted.get(key)
        link = self._links.get(key) if adopted is None else None
        if link is not None and isinstance(link.failure, ChannelBroken):
            link = None  # it was given up, but here it is
        known = adopted[0].epoch if adopted is not None else link.epoch if link is not None else 0
        if link is not None and link.moved:
            return  # the successor will answer
        if link is not None and link.state in (State.ENDED, State.CLOSED):
            self._refuse(stranger, epoch, "this channel is over; open a new one")
            return
        if epoch <= known:
            return  # said before, and late or repeated: an agent that goes on has counted further
        if link is None:
            self._forget_ended()
            if len(self._links) >= _MAX_LINKS:
                self._refuse(stranger, epoch, f"this broker has {_MAX_LINKS} channels already")
                return
            link = self._links[key] = self._new(key, hello, stranger.transport.peer)
            self._ready.append(link)
        del self._strangers[id(stranger)]
        link.attach(stranger.transport)
        link.receive(data)
        if self.on_news is not None:
            self.on_news()

    def _new(self, key: tuple[str, bytes], hello: Hello, peer: Peer) -> FramedLink:
        adopted = self._adopted.pop(key, None)
        if adopted is None:
            session = Session(
                Role.BROKER, hello.session, _terms(self._options), _timing(self._options), name=hello.name
            )
        else:
            handoff, overtaken = adopted
            session = Session.take_up(handoff, _timing(self._options), overtaken=overtaken)
        return FramedLink(session, attrs.evolve(peer, name=hello.name), self.port, None)

    def _refuse(self, stranger: _Stranger, epoch: int, why: str) -> None:
        stranger.transport.send(Frame(Kind.REFUSE, epoch, body=why.encode()).encode())

    def _forget_ended(self) -> None:
        if len(self._links) >= _MAX_LINKS // 2:
            for key, link in list(self._links.items()):
                if link.state in (State.ENDED, State.CLOSED):
                    del self._links[key]


@attrs.frozen
class Framed:
    """Makes a scheme of a wire: how to dial it, and how to listen on it.

    A transport of your own is registered as ``Framed(dial, bind)`` under the entry point group
    ``mchannel.transports``.
    """

    connect: Callable[[Address, Options], Transport]
    """Reaches for the peer; may raise AddressError, never waits."""
    listen: Callable[[Address, Options], Acceptor]

    def dial(self, address: Address, options: Options) -> Link:
        """Start to connect to *address*."""
        session = Session(Role.AGENT, uuid.uuid4().bytes, _terms(options), _timing(options), name=options.name)
        return DialledLink(session, lambda: self.connect(address, options))

    def bind(self, address: Address, options: Options) -> Gate:
        """Listen at *address*."""
        return FramedGate(self.listen(address, options), options)
