"""How ``mbroker`` talks to ``mbrokerd``: questions and answers as events over a channel of this host.

A question's topic says what is wanted (``control.status``), the answer's value is JSON, in as many parts as it
takes; all carry the question's number, so that nobody takes an answer that was meant for another. The daemon
answers root and its own user, and nobody else: who asks is known from the kernel.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from inspect import isawaitable
from typing import Any

import attrs

import mchannel
from mbroker.alert_rows import AlertsStatus
from mbroker.broker import PolicyReport
from mbroker.registry import Agent
from mbroker.values import Invalid, build, plain
from mchannel.address import Address
from mchannel.aio import AsyncChannel, AsyncListener, listen_async
from mchannel.codec import EventCodec
from mchannel.errors import (
    AddressError,
    AuthenticationError,
    ChannelError,
    ChannelTimeout,
    CodecError,
    MChannelError,
    MessageTooBig,
    NotListening,
)
from mchannel.event import Event
from mchannel.packing import Limits
from mchannel.transport import Peer

__all__ = [
    "Absent",
    "ControlError",
    "DomainStatus",
    "NoSuchThing",
    "Refused",
    "Status",
    "Unreachable",
    "answer",
    "ask",
    "ask_agents",
    "ask_status",
    "listen",
    "may_ask",
    "page",
]

_CODEC = EventCodec(Limits(text=1 << 20))
_PART = 1 << 18  # characters in one part of an answer,
_PARTS = 256  # and parts in one answer
_PAGE = 500  # agents in one answer
_AT_ONCE = 8  # people who ask
_PATIENCE = 3.0  # seconds

_log = logging.getLogger(__name__)

Answers = Mapping[str, Callable[[str], Any] | Callable[[str], Awaitable[Any]]]
"""For each topic, what makes the answer out of the question's value.

What it raises as :exc:`Refused` is the answer too; anything else is a bug, and said to be one.
"""


class Unreachable(MChannelError):
    """No daemon answers at the control address, or not to this user."""


class ControlError(MChannelError):
    """The daemon could not do what it was asked, or answered what this command does not understand."""


class Refused(MChannelError):
    """The daemon does not do what it was asked; the message, which travels to whoever asked, says why."""


class NoSuchThing(Refused):
    """The daemon knows nothing of that name."""


class Absent(Refused, Unreachable):
    """What the daemon itself depends on does not answer."""


_TOPICS: Mapping[type[Refused], str] = {
    NoSuchThing: "control.unknown",
    Absent: "control.absent",
    Refused: "control.error",
}


@attrs.frozen
class DomainStatus:
    """A domain as the broker sees it."""

    name: str
    level: int
    mhz: int
    cpus: tuple[int, ...]


@attrs.frozen
class Status:
    """How the daemon is doing."""

    broker: str
    """Name of the host."""
    host_id: str
    version: str
    pid: int
    since: float
    """Unix seconds of its start."""
    config: str
    p_states: tuple[int, ...]
    domains: tuple[DomainStatus, ...]
    policies: tuple[PolicyReport, ...]
    actuators: tuple[str, ...]
    listening: tuple[str, ...]
    agents: int
    events: int
    actions: int
    over_budget: int
    malformed: int
    refused: int
    failed: int
    problem: str
    """What the operator should look into; empty when there is nothing."""
    alerts: AlertsStatus | None = None
    """How its alerts are doing; None when it has none."""


def listen(address: str) -> AsyncListener[Event]:
    """Listen for questions at *address*."""
    return listen_async(address, _CODEC, name="mbrokerd", patience=_PATIENCE)


async def answer(listener: AsyncListener[Event], answers: Answers) -> None:
    """Answer everybody who may ask, until cancelled."""
    asking = 0

    async def attend(channel: AsyncChannel[Event]) -> None:
        nonlocal asking
        try:
            while True:
                question = await channel.read(timeout=_PATIENCE)
                for part in _parts(await _reply(question, answers)):
                    await channel.write(part, timeout=_PATIENCE)
                channel.done()
        except (ChannelError, CodecError):
            pass  # whoever asked is gone, or was too slow
        except Exception:
            _log.exception("a question of %s was not answered", channel.peer.address)
        finally:
            asking -= 1
            channel.abort()

    async with asyncio.TaskGroup() as tasks:
        async for channel in listener:
            if not may_ask(channel.peer) or asking >= _AT_ONCE:
                _log.warning("refused a question of user %s at the control address", channel.peer.uid)
                channel.abort()
                continue
            asking += 1
            tasks.create_task(attend(channel))


def may_ask(peer: Peer) -> bool:
    """Tell whether *peer* is root or the daemon's own user."""
    return peer.uid is not None and peer.uid in {0, os.geteuid()}


def page(agents: tuple[Agent, ...], after: str) -> list[Any]:
    """Return the agents whose identities follow *after*, as many as one answer holds."""
    return [plain(agent) for agent in agents if agent.identity > after][:_PAGE]


def ask_status(address: str) -> Status:
    """Return how the daemon at *address* is doing.

    Raises :exc:`Unreachable`, :exc:`ControlError`, and :exc:`~mchannel.errors.AddressError` for no local address.
    """
    with _asking(address) as channel:
        status: Status = _understood(Status, _ask(channel, "control.status"))
        return status


def ask_agents(address: str) -> tuple[Agent, ...]:
    """Return all agents that the daemon at *address* knows; raises as :func:`ask_status`."""
    found: list[Agent] = []
    with _asking(address) as channel:
        while True:
            after = found[-1].identity if found else ""
            some: tuple[Agent, ...] = _understood(tuple[Agent, ...], _ask(channel, "control.agents", after))
            if not some:
                return tuple(found)
            found += some


def ask(address: str, kind: Any, topic: str, value: str = "") -> Any:
    """Return the answer to one question, as *kind*; raises as :func:`ask_status`, and what the daemon refused with."""
    with _asking(address) as channel:
        return _understood(kind, _ask(channel, topic, value))


async def _reply(question: Event, answers: Answers) -> Event:
    number = {"question": question.detail.get("question")}
    make = answers.get(question.topic)
    if make is None:
        return Event("control.error", value=f"this daemon does not know {question.topic[:100]}", detail=number)
    try:
        made = make(str(question.value or ""))
        found = await made if isawaitable(made) else made
        return Event("control.answer", value=json.dumps(found), detail=number)
    except Refused as error:
        return Event(_TOPICS.get(type(error), "control.error"), value=str(error), detail=number)
    except Exception as error:  # the answer to one question must not end the daemon
        _log.exception("cannot answer %s", question.topic)
        return Event("control.error", value=f"the daemon failed to answer: {type(error).__name__}", detail=number)


def _parts(reply: Event) -> Iterator[Event]:
    """Yield *reply* in parts that events can hold; each but the last says that there is more."""
    text = str(reply.value)
    for at in range(0, max(len(text), 1), _PART):
        more = {"more": True} if at + _PART < len(text) else {}
        yield attrs.evolve(reply, value=text[at : at + _PART], detail={**reply.detail, **more})


@contextmanager
def _asking(address: str) -> Generator[mchannel.Channel[Event]]:
    """Open a channel to the daemon for a few questions: without a name, as nobody is to take it up again."""
    if Address.parse(address).host:
        raise AddressError(f"{address} is on a network: the daemon answers its own host only, at shm:///NAME")
    try:
        channel = mchannel.open(address, _CODEC, timeout=_PATIENCE)
    except (NotListening, ChannelError):
        raise Unreachable(f"no daemon answers at {address}: is mbrokerd running, and are you its user?") from None
    except AuthenticationError as error:
        raise Unreachable(f"no daemon answers at {address}: {error}") from None
    try:
        yield channel
    finally:
        with suppress(MChannelError):
            channel.close(timeout=0.2)


def _ask(channel: mchannel.Channel[Event], topic: str, value: str = "") -> object:
    question = Event(topic, value=value, detail={"question": secrets.randbits(48)})
    try:
        channel.write(question, timeout=_PATIENCE)
    except (MessageTooBig, CodecError) as error:
        raise ControlError(f"that is too long to ask: {error}") from None
    except ChannelError:
        pass  # reading tells why
    text = ""
    for _ in range(_PARTS):
        reply = _part(channel, question.detail["question"])
        text += str(reply.value)
        if "more" not in reply.detail:
            return _taken(reply.topic, text)
    raise ControlError(f"the daemon's answer is longer than {_PARTS * _PART >> 20} MiB; ask for less")


def _part(channel: mchannel.Channel[Event], number: object) -> Event:
    """Return the next part of the answer to the question of that *number*."""
    end = time.monotonic() + _PATIENCE
    try:
        reply = channel.read(timeout=_PATIENCE)
        while reply.detail.get("question") != number:  # the answer to somebody who is gone
            reply = channel.read(timeout=max(end - time.monotonic(), 0.0))
    except ChannelTimeout:
        raise Unreachable(f"the daemon did not answer within {_PATIENCE:g} s; see its log") from None
    except (ChannelError, AuthenticationError):
        raise Unreachable("the daemon hung up: it answers root and its own user, and few at once") from None
    except CodecError as error:
        raise ControlError(f"the daemon's answer is no event: {error}") from None
    return reply


def _taken(topic: str, text: str) -> object:
    """Return what was answered as plain data; raise what the daemon refused with."""
    for refusal in (NoSuchThing, Absent):
        if topic == _TOPICS[refusal]:
            raise refusal(text)
    if topic != "control.answer":
        raise ControlError(text)
    try:
        parsed: object = json.loads(text)
    except ValueError:
        raise ControlError("the daemon's answer is no JSON") from None
    return parsed


def _understood(kind: Any, data: object) -> Any:
    try:
        return build(kind, data)
    except Invalid as error:
        raise ControlError(f"the daemon speaks of what this command does not know ({error}); update one") from None
