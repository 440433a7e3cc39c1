"""The broker at work: channels in front of it, actuators behind it, in one event loop.

Between the arrival of a message and its effect there is no queue and no other task: read, decide,
apply, and only then read the next, which acknowledges the last. Effect first, then mark.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

import attrs

from mbroker.action import Action, Notify, SetFrequency, SetPState, Severity
from mbroker.actuator import Actuator, Outcome
from mbroker.broker import Broker, attributed
from mbroker.control import Absent
from mbroker.host import Domain
from mbroker.registry import EPOCH, AgentState, Registry, RegistryFull
from mbroker.usage import UsageMeter
from mchannel.aio import AsyncChannel, AsyncListener
from mchannel.errors import (
    AuthenticationError,
    ChannelBroken,
    ChannelClosed,
    ChannelError,
    ChannelTimeout,
    CodecError,
    EndOfChannel,
)
from mchannel.event import Event
from mchannel.samples import OFFLOADED, SAMPLES, SERIES
from mchannel.transport import State
from mchannel.transports.complaints import Complaints

__all__ = ["Node", "Traffic", "serve"]

_TURN = 32  # messages of one agent before the others get theirs
_ANSWER = 1.0  # seconds for a publisher to take what it is told
_LINES = 8  # in the log about the agents of one domain in a minute, each another one
_LEVELS = {Severity.INFO: logging.INFO, Severity.WARNING: logging.WARNING, Severity.CRITICAL: logging.CRITICAL}
_STATES = {State.OPEN: AgentState.LIVE, State.SUSPENDED: AgentState.SUSPENDED, State.LOST: AgentState.LOST}

_log = logging.getLogger(__name__)


@attrs.define
class Traffic:
    """What went wrong at the edges since the start."""

    malformed: int = 0
    """Messages that were no events."""
    refused: int = 0
    """Events about what only the host may speak of."""
    failed: int = 0
    """Actions that an actuator could not carry out."""


class Node:
    """One broker with its agents and actuators. Everything happens in the event loop that calls it."""

    def __init__(
        self,
        broker: Broker,
        registry: Registry,
        actuators: Iterable[Actuator] = (),
        *,
        usage: UsageMeter | None = None,
        clock: Callable[[], float] = time.monotonic,
        unix: Callable[[], float] = time.time,
    ) -> None:
        """Put *broker* to work; *clock* never goes back, *unix* tells the time of day."""
        self.broker = broker
        self.registry = registry
        self.actuators = tuple(actuators)
        self.usage = usage or UsageMeter({})
        self.traffic = Traffic()
        self.measured: Callable[[Event], Awaitable[Event | None]] | None = None
        """Takes samples of metrics and returns what to answer; policies never see them."""
        self._clock = clock
        self._unix = unix
        self._channels: dict[str, AsyncChannel[Event]] = {}
        self._complaints: dict[str, Complaints] = {}

    def take(self, event: Event) -> list[Outcome]:
        """Let the policies decide about *event* and carry out what they ask for."""
        if event.source not in self.broker.host.domains:
            self._meet(event.source)
        actions = self.broker.handle(event, self._clock())
        outcomes = [outcome for action in actions for outcome in self._carry_out(action)]
        self._take_back(actions, outcomes)
        return outcomes

    async def welcome(self, listener: AsyncListener[Event], domain: str | None) -> None:
        """Attend to every agent that comes; *domain* as in :meth:`attend`. Returns when cancelled."""
        async with asyncio.TaskGroup() as agents:
            async for channel in listener:
                agents.create_task(self.attend(channel, domain))

    async def attend(self, channel: AsyncChannel[Event], domain: str | None) -> None:
        """Serve one agent until its channel ends. Its events are those of *domain*, or of the peer's identity.

        Nothing that the agent does raises here. After a cancellation the agent counts as lost.
        """
        owner = domain or channel.peer.identity
        try:
            agent = self.registry.connect(owner, channel.peer.name, channel.session, self._unix())
        except RegistryFull as full:
            self._complain(owner, f"{owner}: {full}")
            channel.abort()
            return
        self._channels[agent.identity] = channel
        after = AgentState.LOST
        try:
            await self._converse(channel, agent.identity, owner)
        except EndOfChannel:
            after = AgentState.GONE
        except RegistryFull as forgotten:
            self._complain(owner, f"{agent.identity}: {forgotten}")
        except (ChannelBroken, ChannelClosed):
            self._complain(owner, f"{agent.identity}: lost the channel to its agent; it may come back")
        except ChannelError as error:
            after = AgentState.GONE
            self._complain(owner, f"{agent.identity}: {error}; its channel was closed")
        except Absent as error:  # what it sent is sent again, and measured then
            self._complain(owner, f"{agent.identity}: {error}; its channel was closed, and may come back")
        except Exception:
            _log.exception("%s: its channel was closed by an error of this broker", agent.identity)
        finally:
            channel.abort()
            if self._channels.get(agent.identity) is channel:
                del self._channels[agent.identity]
                self.registry.moved(agent.identity, after, self._unix())

    async def beat(self) -> None:
        """Measure at the end of every epoch, and notice silence in the middle; returns when cancelled."""
        while True:
            now = self._unix()
            half = math.floor(now / (EPOCH / 2)) + 1
            await asyncio.sleep(max(half * (EPOCH / 2) - now, 0.001))
            try:
                self.tick(end_of_epoch=half % 2 == 0)
            except Exception as error:  # one bad reading must not end the broker
                name = self.broker.host.name
                self._complain(name, f"{name}: what is due in every epoch was not done: {error!r}")

    def tick(self, *, end_of_epoch: bool) -> None:
        """Do what is due at the end, or in the middle, of an epoch."""
        at = self._unix()
        if end_of_epoch:
            end = round(at / EPOCH) * EPOCH
            for event in self.usage.sample(self.broker.host, self._clock(), end):
                self.take(event)
            return
        for identity, channel in self._channels.items():
            if state := _STATES.get(channel.state):  # one that has nothing to say is live, too
                self.registry.moved(identity, state, at)
        for event in self.registry.silence(at):
            self.take(event)

    async def _converse(self, channel: AsyncChannel[Event], identity: str, domain: str) -> None:
        taken = 0
        while True:
            taken += 1
            if taken % _TURN == 0:
                await asyncio.sleep(0)
            try:
                event = attributed(await channel.read(), domain)
                if event.topic in (SAMPLES, SERIES, OFFLOADED):
                    self.registry.heard(identity, self._unix())
                    await self._measure(channel, event)
                    continue
            except CodecError as error:
                self.traffic.malformed += 1
                self._complain(domain, f"{identity}: sent what is no event: {error}")
                continue
            except AuthenticationError as error:
                self.traffic.refused += 1
                self._complain(domain, f"{identity}: refused: {error}")
                continue
            self.registry.heard(identity, self._unix())
            self.take(event)

    async def _measure(self, channel: AsyncChannel[Event], event: Event) -> None:
        """Wait until what a publisher says was matched, and pass the answer on to it if it listens."""
        answer = await self.measured(event) if self.measured else None
        if answer is not None:
            with suppress(ChannelTimeout):
                await channel.write(answer, timeout=_ANSWER)

    def _complain(self, domain: str, text: str) -> None:
        """Log what an agent did wrong, so rarely that no domain can fill the disk."""
        self._complaints.setdefault(domain, Complaints(_LINES, log=_log)).make(text)

    def _meet(self, domain: str) -> None:
        """Put a domain that is not configured into the picture, on no physical CPU: it cannot hold one up."""
        host = self.broker.host
        stranger = Domain(domain, host.top, ())
        self.broker.observe(attrs.evolve(host, domains={**host.domains, domain: stranger}))

    def _carry_out(self, action: Action) -> list[Outcome]:
        if isinstance(action, Notify):
            _log.log(_LEVELS[action.severity], "%s: %s", action.domain, action.text)
            return []
        return [self._apply(actuator, action) for actuator in self.actuators if isinstance(action, actuator.handles)]

    def _apply(self, actuator: Actuator, action: Action) -> Outcome:
        try:
            outcome = actuator.apply(action)
        except Exception as error:  # an actuator that breaks its promise must not take the broker along
            outcome = Outcome(action, done=False, error=f"{type(actuator).__name__} raised {error!r}")
        if not outcome.done:
            self.traffic.failed += 1
            subject = action.domain if isinstance(action, SetFrequency | Notify) else f"CPUs {action.cpus}"
            _log.warning("%s: %s", subject, outcome.error)
        return outcome

    def _take_back(self, actions: list[Action], outcomes: list[Outcome]) -> None:
        """Correct the picture: a p-state that was refused undoes the changes of speed it was derived from.

        An actuator that carried out such a change is told to go back.
        """
        failed = [outcome.action for outcome in outcomes if not outcome.done]
        done = [outcome.action for outcome in outcomes if outcome.done]
        of_cpu = any(isinstance(action, SetPState) for action in failed)
        for action in reversed(actions):
            if isinstance(action, SetFrequency) and (of_cpu or action in failed):
                self.broker.failed(action)
                if action in done:
                    self._carry_out(SetFrequency(action.domain, level=self.broker.host.level(action.domain)))


async def serve(node: Node, listeners: Iterable[tuple[AsyncListener[Event], str | None]]) -> None:
    """Serve agents at each listener, with the domain that its address stands for, until cancelled.

    Restoring the actuators is the caller's, with their ``close()``.
    """
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(node.beat())
        for listener, domain in listeners:
            tasks.create_task(node.welcome(listener, domain))
