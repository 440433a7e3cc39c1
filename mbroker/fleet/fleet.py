"""The other hosts: a channel to each, and what they ask and tell.

Each member listens at its address and dials every other member. Both ends of these channels are known
by their keys; the name of a member's key is the name of the member. The heartbeats of the channel itself
tell whether a member is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from itertools import count
from typing import TypeVar

import attrs

from mbroker.fleet.message import MAX_MESSAGE, Message, MessageCodec, Numbered, Unable
from mbroker.hypervisor import HypervisorError
from mchannel.aio import AsyncChannel, AsyncListener, listen_async, open_async
from mchannel.errors import AuthenticationError, CodecError, MChannelError
from mchannel.transport import State, Wishes

__all__ = ["Away", "Desk", "Fleet", "Member"]

_RETRY = 1.0
"""Seconds until a member that could not be reached is tried again."""
_REFUSED_RETRY = 30.0
_KNOCK = 5.0
"""Seconds that a member has to answer a HELLO."""
_WRITE = 5.0
"""Seconds that a member may keep its channel full."""

_log = logging.getLogger(__name__)

T = TypeVar("T", bound=Message)

Desk = Callable[[str, Message], Awaitable[Message | None]]
"""Takes what the member of that name says; returns the answer when it is a question."""


class Away(MChannelError):
    """A member of the fleet cannot be reached, or did not answer in time."""


@attrs.frozen
class Member:
    """Another host of the fleet, as configured."""

    name: str
    """Name of the host, and of its key."""
    address: str
    """Where its broker listens to the fleet, such as ``tcp://10.0.0.2:7700``."""
    hypervisor: str = ""
    """Its hypervisor's address as this host reaches it, such as ``qemu+tls://10.0.0.2/system``."""


@attrs.define(eq=False)
class _Line:
    """This host's channel to one member."""

    member: Member
    channel: AsyncChannel[Numbered] | None = None
    asked: dict[int, asyncio.Future[Message]] = attrs.field(factory=dict[int, "asyncio.Future[Message]"])

    @property
    def present(self) -> bool:
        return self.channel is not None and self.channel.state is State.OPEN


class Fleet:
    """The members of one fleet as this host sees them."""

    def __init__(self, name: str, members: tuple[Member, ...], address: str, wishes: Wishes) -> None:
        """Be *name* in a fleet with *members*; listen at *address*.

        Raises AddressError when that is not possible; needs a running event loop.
        """
        self.name = name
        self.on_change: Callable[[], None] | None = None
        """Called when a member comes or goes."""
        self._lines = {member.name: _Line(member) for member in members}
        self._wishes: Wishes = {**wishes, "name": name, "max_message": MAX_MESSAGE, "window": 2 * MAX_MESSAGE}
        self._listener: AsyncListener[Numbered] = listen_async(address, MessageCodec(), **self._wishes)
        self._questions = count(1)
        self._seen: frozenset[str] = frozenset()

    @property
    def members(self) -> Mapping[str, Member]:
        """The other hosts, by name."""
        return {name: line.member for name, line in self._lines.items()}

    @property
    def present(self) -> frozenset[str]:
        """Names of the members that answer now."""
        return frozenset(name for name, line in self._lines.items() if line.present)

    async def serve(self, desk: Desk) -> None:
        """Keep in touch with all members, and bring to *desk* what they say, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch())
                for line in self._lines.values():
                    tasks.create_task(self._keep(line))
                async for channel in self._listener:
                    if channel.peer.identity in self._lines:
                        tasks.create_task(self._hear(channel, desk))
                    else:
                        _log.warning("%s is no member of this fleet; its channel was closed", channel.peer.identity)
                        channel.abort()
        finally:
            self.close()

    def close(self) -> None:
        """Stop listening; idempotent."""
        self._listener.close()

    async def ask(self, host: str, question: Message, kind: type[T], timeout: float) -> T:
        """Return the answer of *host*, of *kind*; raise :exc:`Away` when there is none within *timeout* seconds."""
        line = self._line(host)
        number = next(self._questions)
        answer = line.asked[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._write(line, Numbered(question, number))
                found = await answer
        except TimeoutError:
            raise Away(f"{host} did not answer within {timeout:g} s; is mbrokerd running there?") from None
        finally:
            del line.asked[number]
        if isinstance(found, Unable):
            raise Away(f"{host} cannot answer: {found.reason}")
        if not isinstance(found, kind):
            raise Away(f"{host} gave an answer to another question; do both run the same version?")
        return found

    async def tell(self, message: Message, host: str | None = None) -> None:
        """Send *message* to *host*, or to all that are present; who is away misses it."""
        lines = [self._line(host)] if host is not None else list(self._lines.values())
        for line in lines:
            if line.present:
                try:
                    await self._write(line, Numbered(message))
                except Away as error:
                    _log.warning("%s", error)

    def _line(self, host: str) -> _Line:
        try:
            return self._lines[host]
        except KeyError:
            known = ", ".join(sorted(self._lines)) or "none"
            raise Away(f"{host} is no other host of this fleet; known are {known}") from None

    async def _write(self, line: _Line, message: Numbered) -> None:
        channel = line.channel
        if channel is None:
            raise Away(f"{line.member.name} cannot be reached at {line.member.address}")
        try:
            await channel.write(message, _WRITE)
        except MChannelError as error:
            raise Away(f"{line.member.name} cannot be reached: {error}") from None

    async def _keep(self, line: _Line) -> None:
        """Dial the member, take its answers, and dial again when the channel ends."""
        complained = ""
        while True:
            pause = _RETRY
            try:
                address = f"{line.member.address}?server={line.member.name}"
                line.channel = await open_async(address, MessageCodec(), timeout=_KNOCK, **self._wishes)
                complained = ""
                while True:
                    answer = await line.channel.read()
                    future = line.asked.get(answer.question)
                    if future is not None and not future.done():
                        future.set_result(answer.message)
            except (AuthenticationError, CodecError) as error:
                pause = _REFUSED_RETRY
                if str(error) != complained:
                    complained = str(error)
                    _log.warning("fleet member %s: %s", line.member.name, error)
            except MChannelError:
                pass  # it is away; its state says so
            finally:
                if line.channel is not None:
                    line.channel.abort()
                    line.channel = None
            await asyncio.sleep(pause)

    async def _hear(self, channel: AsyncChannel[Numbered], desk: Desk) -> None:
        """Bring what one member says to *desk* in order; a question that takes long holds nothing else up."""
        host = channel.peer.identity

        async def answer(question: Numbered) -> None:
            found = await _answered(host, question.message, desk)
            with suppress(MChannelError):  # it went away, and asks again if it still wants to know
                await channel.write(Numbered(found, question.question), _WRITE)

        try:
            async with asyncio.TaskGroup() as answers:
                while True:
                    heard = await channel.read()
                    if heard.question:
                        answers.create_task(answer(heard))
                    else:
                        await _answered(host, heard.message, desk)
        except* CodecError as errors:
            _log.warning("fleet member %s: %s; its channel was closed", host, errors.exceptions[0])
        except* MChannelError:
            pass  # it went away; it dials again
        finally:
            channel.abort()

    async def _watch(self) -> None:
        """Say when a member comes or goes."""
        while True:
            if (present := self.present) != self._seen:
                for name in sorted(present - self._seen):
                    _log.info("fleet member %s is here", name)
                for name in sorted(self._seen - present):
                    _log.warning("fleet member %s is away", name)
                self._seen = present
                if self.on_change is not None:
                    self.on_change()
            await asyncio.sleep(0.1)


async def _answered(host: str, message: Message, desk: Desk) -> Message:
    """Return the answer of *desk*, or why there is none: what goes wrong with one message ends nothing else."""
    try:
        return await desk(host, message) or Unable("it is no question")
    except (HypervisorError, MChannelError) as error:
        return Unable(str(error))
    except Exception as error:
        _log.exception("a message of fleet member %s was not taken", host)
        return Unable(f"the broker failed: {type(error).__name__}")
