"""A world for two sessions: a clock, connections that misbehave, brokers that die or hand over, and the promises.

The world is driven step by step, by hypothesis or by hand; every promise of a session is asserted
when the step is taken that would break it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import mchannel.session
from mchannel.frame import OVERHEAD, Frame, Hello, Kind, Terms
from mchannel.handoff import Handoff
from mchannel.transport import Delivery, State

__all__ = ["World"]

MAX_MESSAGE, WINDOW = 200, 600
CAPACITY = 12
"""Frames that a connection takes before a send is put off."""


class _Connection:
    def __init__(self) -> None:
        self.to_broker: deque[bytes] = deque()
        self.to_agent: deque[bytes] = deque()
        self.broker: Any = None
        """Whose it is since HELLO came by it. Until then nothing else is heard."""


class _Written:
    """What one end wrote, each with its place in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.payloads: list[bytes] = []

    def next(self, sizes: Sequence[int]) -> list[bytes]:
        place = len(self.payloads)
        return [f"{self.name}:{place + each}:".encode().ljust(size, b".") for each, size in enumerate(sizes)]


class World:
    """One agent at a time, one broker at a time, and the network between them."""

    def __init__(self, module: ModuleType = mchannel.session, delivery: Delivery = Delivery.ALL) -> None:
        self.session: Any = module
        self.delivery = delivery
        self.now = 1000.0
        self.agents = self.brokers = 0
        self.connection: _Connection | None = None
        self.stale: list[_Connection] = []
        self.new_agent()

    # --- who is there -----------------------------------------------------------------------

    def new_agent(self) -> None:
        """The agent died, with all that it knew; another one starts."""
        self.agents += 1
        self.id = self.agents.to_bytes(16, "big")
        self.agent: Any = self.session.Session(
            self.session.Role.AGENT, self.id, Terms(MAX_MESSAGE, WINDOW, self.delivery), self.session.Timing()
        )
        self.broker: Any = None
        self.crashes = 0
        self.from_agent = _Written(f"agent{self.agents}")
        self.seen: list[int] = []
        """What brokers' readers got, by its place in ``from_agent``."""
        self.fresh = True
        """Whether the broker's next message may start anywhere that is not a gap."""
        self.from_brokers: list[_Written] = []
        self.heard: list[bytes] = []
        self.reconnect()
        for connection in self.stale:
            connection.to_agent.clear()  # its sockets died with it
        self.agent.hello(self.now)
        self.flush()

    def crash_broker(self) -> None:
        """The broker died, with all that it knew."""
        if self.broker is not None:
            self.broker = None
            self.crashes += 1
            self.fresh = True
        self._reach_another()

    def hand_over(self) -> None:
        """Another broker process goes on with a suspended session."""
        if self.broker is not None and self.broker.state is State.SUSPENDED:
            old, data = self.broker, self.broker.handoff().encode()
            self.broker = self.session.Session.take_up(Handoff.decode(data), self.session.Timing())
            assert old.state is State.CLOSED
            self._reach_another()

    def _reach_another(self) -> None:
        """What was on its way to one broker reaches no other."""
        self.disconnect()
        for connection in self.stale:
            connection.to_broker.clear()
        self.reconnect()

    # --- the network ------------------------------------------------------------------------

    def disconnect(self) -> None:
        """The connection is gone; what was on its way may still turn up."""
        if self.connection is not None:
            self.stale = [*self.stale[-3:], self.connection]
            self.connection = None

    def reconnect(self) -> None:
        """The agent is connected anew."""
        self.disconnect()
        self.connection = _Connection()
        self.flush()

    def flush(self) -> None:
        """Let both ends send what the connection takes."""
        if self.connection is not None:
            for end, wire in ((self.agent, self.connection.to_broker), (self.broker, self.connection.to_agent)):
                while end is not None and end.outgoing and len(wire) < CAPACITY:
                    wire.append(end.outgoing.popleft())
        for end in (self.agent, self.broker):
            if end is not None:
                size = sum(len(frame) for frame in end.outgoing)
                assert size <= 2 * (WINDOW + MAX_MESSAGE) + 4096, f"{size} bytes wait to be sent"

    def deliver(self, *, to_broker: bool, again: bool = False, stale: int | None = None) -> bool:
        """The next frame arrives; *again*: and will once more; *stale*: on an earlier connection."""
        connection = self.connection
        if stale is not None:
            connection = self.stale[stale % len(self.stale)] if self.stale else None
        if connection is None:
            return False
        wire = connection.to_broker if to_broker else connection.to_agent
        if not wire:
            return False
        frame = wire[0] if again else wire.popleft()
        if to_broker:
            self._arrive(frame, connection)
        else:
            self._take(self.agent, frame)
        self.flush()
        return True

    def lose(self, *, to_broker: bool) -> None:
        """The next frame is lost."""
        if self.connection is not None:
            wire = self.connection.to_broker if to_broker else self.connection.to_agent
            if wire:
                wire.popleft()
        self.flush()

    def _arrive(self, data: bytes, connection: _Connection) -> None:
        """Do as a gate does: find the session, or begin one, or ask who is there."""
        frame = Frame.decode(data, MAX_MESSAGE)
        if frame.kind is Kind.HELLO:
            if Hello.decode(frame.body).session != self.id:
                return  # of an agent that is dead
        elif self.broker is None or connection.broker is not self.broker:
            connection.to_agent.append(Frame(Kind.CALL, frame.epoch).encode())
            return
        if self.broker is None:
            terms = Terms(MAX_MESSAGE, WINDOW, Delivery.ALL)
            self.broker = self.session.Session(self.session.Role.BROKER, self.id, terms, self.session.Timing())
            self.brokers += 1
            self.from_brokers.append(_Written(f"broker{self.brokers}"))
        connection.broker = self.broker
        self._take(self.broker, data)

    def _take(self, end: Any, data: bytes) -> None:
        frame, epoch, state, base = Frame.decode(data, MAX_MESSAGE), end.epoch, end.state, end.writer.base
        end.receive(data, self.now)
        assert end.failure is None, f"an honest peer was thrown out: {end.failure}"
        if frame.epoch == epoch == end.epoch and state is State.OPEN:
            assert end.writer.base > frame.ack, f"{frame.ack} was acknowledged, and is kept"
        elif frame.epoch < epoch and frame.kind is not Kind.CALL:
            assert (end.state, end.writer.base) == (state, base), "a leftover of an earlier connection was heard"
        held = sum(len(payload) + OVERHEAD for _, payload, _ in end.reader.inbox)
        assert held <= WINDOW + MAX_MESSAGE + OVERHEAD, f"{held} bytes wait to be read"

    def tick(self, seconds: float) -> None:
        """Time passes, and both ends do what is due."""
        self.now += seconds
        for end in (self.agent, self.broker):
            if end is not None:
                end.tick(self.now)
                due = end.deadline()
                assert due is None or due > self.now, "it is due, and was not done"
        self.flush()

    # --- the applications -------------------------------------------------------------------

    def write(self, *, agent: bool, size: int) -> None:
        """One end writes; it is taken, or the window is full."""
        self.write_many(agent=agent, sizes=[size])

    def write_many(self, *, agent: bool, sizes: Sequence[int]) -> None:
        """One end writes several at once; those that the window has room for are taken."""
        if agent:
            end, written = self.agent, self.from_agent
        elif self.broker is not None:
            end, written = self.broker, self.from_brokers[-1]
        else:
            return
        payloads = written.next(sizes)
        taken: int = end.send(payloads[0]) if len(payloads) == 1 else end.send_many(payloads)
        written.payloads += payloads[:taken]
        if taken < len(payloads):
            assert self.delivery is Delivery.ALL or not end._agreed, "latest never waits"
            assert not end._agreed or end.writer.size + len(payloads[taken]) + OVERHEAD > WINDOW, "there was room"
        held = len(end.writer.unacked[-1]) + OVERHEAD if end.writer.held else 0
        assert end.writer.size - held <= WINDOW, "more is on its way than the window allows"
        self.flush()

    def read(self, *, agent: bool, limit: int = 1) -> None:
        """One end reads: the promises are checked."""
        end = self.agent if agent else self.broker
        if end is None:
            return
        for _, payload, redelivered in end.take(limit):
            if agent:
                self._heard(payload)
                assert not redelivered, "an agent's session remembers what it saw"
            else:
                self._seen(payload, redelivered=redelivered)
        self.flush()

    def done(self, *, agent: bool) -> None:
        """One end says that it took care of what it read."""
        end = self.agent if agent else self.broker
        if end is not None:
            end.done()

    def _seen(self, payload: bytes, *, redelivered: bool) -> None:
        name, place, _ = payload.split(b":")
        index = int(place)
        assert name.decode() == self.from_agent.name, "a message of an earlier session"
        assert self.from_agent.payloads[index] == payload, "it was never written"
        newest = max(self.seen, default=-1)
        if self.delivery is Delivery.ALL:
            if self.fresh:
                assert index <= newest + 1, f"lost {newest + 1} to {index - 1}"
            else:
                assert index == self.seen[-1] + 1, f"after {self.seen[-1]} came {index}"
        else:
            assert self.fresh or index > self.seen[-1], "the latest was displaced by an older one"
        assert index > newest or redelivered, f"{index} came again without a mark"
        assert self.crashes or not redelivered, f"{index} is marked, and nobody died"
        self.fresh = False
        self.seen.append(index)

    def _heard(self, payload: bytes) -> None:
        if self.delivery is Delivery.ALL:
            for written in self.from_brokers:  # of each broker a prefix, of the last one all
                own = [each for each in self.heard if each in set(written.payloads)]
                if payload in written.payloads:
                    assert written.payloads[len(own)] == payload, f"{payload!r} came after {own[-1:]!r}"
                    break
            else:
                raise AssertionError("it was never written")
        else:
            assert payload not in self.heard, "it came twice"
        self.heard.append(payload)

    def suspend(self, *, agent: bool) -> None:
        """One end quiesces."""
        end = self.agent if agent else self.broker
        if end is not None:
            end.suspend(self.now, 2.0)
            self.flush()

    def resume(self, *, agent: bool) -> None:
        """One end goes on."""
        if agent:
            self.agent.hello(self.now)
        elif self.broker is not None:
            self.broker.call(self.now)
        self.flush()

    def settle(self) -> None:
        """Deliver until nothing is on its way."""
        for _ in range(1000):
            if not (self.deliver(to_broker=True) or self.deliver(to_broker=False)):
                return
        raise AssertionError("the ends talk to each other without end")

    # --- the end ----------------------------------------------------------------------------

    def heal(self) -> None:
        """The network works from here on: within bounded time everything is delivered and acknowledged."""
        if self.connection is None:
            self.reconnect()
        for _ in range(400):
            self.tick(0.05)
            self.settle()
            self.read(agent=False, limit=3)
            self.read(agent=True, limit=3)
            if self.quiet:
                break
        assert self.quiet, (
            f"not at rest: agent {self.agent.state} flushed {self.agent.flushed}, "
            f"broker {self.broker and self.broker.state} {self.broker and self.broker.flushed}"
        )
        wanted = len(self.from_agent.payloads)
        if wanted and (self.delivery is Delivery.ALL or self.seen):
            assert max(self.seen, default=-1) == wanted - 1, "the last messages were lost"
        if self.delivery is Delivery.ALL:
            written = self.from_brokers[-1].payloads if self.from_brokers else []
            assert [each for each in self.heard if each in set(written)] == written, "the agent did not get all"

    @property
    def quiet(self) -> bool:
        """Whether both ends are open and neither waits for anything."""
        ends = (self.agent, self.broker)
        return all(end is not None and end.state is State.OPEN and end.flushed and not end.reader.inbox for end in ends)
