"""A planned migration: a table of steps, each with a timeout and what takes it back.

The channels need no step of their own: they pass from host to host when the domain does
(:mod:`mbroker.fleet.custody`), whoever moves it. The steps see to it that the move can succeed, that a
device which cannot travel is taken out before, and that afterwards it is known where the domain is.
Nothing here starts, resumes or destroys a domain: the hypervisors move it, and what a fault leaves behind of a move is
settled by :mod:`mbroker.fleet.departures`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import attrs

from mbroker.fleet.message import Expected, Whereabouts
from mbroker.hypervisor import HypervisorError
from mchannel.errors import MChannelError

__all__ = ["STEPS", "Means", "MigrationError", "NoSuchHost", "Order", "Progress", "Result", "Step", "migrate"]

_SETTLE = 15.0
"""Seconds for both hosts to agree where the domain is, after a failure."""
_SETTLE_INTERVAL = 0.25


class MigrationError(MChannelError):
    """A step cannot be done; the message says what to do."""


class NoSuchHost(MigrationError):
    """The fleet has no host of that name."""


@attrs.frozen
class Order:
    """What an operator or a policy asked for."""

    domain: str
    """UUID."""
    name: str
    """The domain's name, for messages."""
    source: str
    """Name of this host."""
    destination: str
    """Name of a member of the fleet."""
    live: bool = True
    """Keep the domain running while its memory is copied."""
    timeout: float = 300.0
    """Seconds for the move itself; then it is called off and the domain stays."""


@attrs.frozen
class Progress:
    """How far a migration is."""

    step: str
    number: int
    """Steps that are done."""
    copied: float = 0.0
    """Part of the domain's memory that was copied, from 0 to 1."""


@attrs.frozen
class Result:
    """How a migration ended."""

    domain: str
    moved: bool
    host: str | None
    """Where the domain is now; None when that could not be found out."""
    seconds: float
    step: str = ""
    """The step that failed; empty when none did."""
    reason: str = ""
    """Why, in one line; with what could not be taken back."""


class Means(Protocol):
    """What the steps stand on: two hypervisors and the broker at the destination."""

    async def here(self, domain: str) -> Whereabouts:
        """Return what this host's hypervisor says of *domain*."""
        ...

    async def there(self, host: str, domain: str) -> Whereabouts:
        """Return what the destination says of *domain*; raises Away."""
        ...

    async def expect(self, order: Order) -> Expected:
        """Ask the destination whether the domain may come; raises Away."""
        ...

    async def unplug(self, domain: str) -> None:
        """Take out devices that cannot travel, when their channels went over to others; nothing when there are none."""
        ...

    async def plug(self, domain: str) -> None:
        """Put them in again, when the domain is still here."""
        ...

    async def move(self, order: Order, on_copied: Callable[[float], None]) -> None:
        """Let the hypervisors move the domain. Cancelled, it calls the move off."""
        ...


async def _check(means: Means, order: Order) -> None:
    if order.destination == order.source:
        raise MigrationError(f"{order.name} is on {order.source} already")
    found = await means.here(order.domain)
    if not found.here:
        raise MigrationError(
            f"{order.name} does not run on {order.source}; start it first,"
            " or move its definition by: virsh migrate --offline --persistent"
        )
    if found.moving:
        raise MigrationError(f"{order.name} is on its way already, or a half of it is here; see the log of mbrokerd")
    if not found.running:
        raise MigrationError(f"{order.name} is here, but paused; let it run first by: virsh resume {order.name}")


async def _expect(means: Means, order: Order) -> None:
    answer = await means.expect(order)
    if not answer.willing:
        raise MigrationError(f"{order.destination} does not take {order.name}: {answer.reason}")


async def _unplug(means: Means, order: Order) -> None:
    await means.unplug(order.domain)


async def _plug(means: Means, order: Order) -> None:
    await means.plug(order.domain)


async def _confirm(means: Means, order: Order) -> None:
    while True:
        found = await _there(means, order)
        if found.running and found.attended:
            return
        await asyncio.sleep(_SETTLE_INTERVAL)


@attrs.frozen
class Step:
    """One row of the table."""

    name: str
    do: Callable[[Means, Order], Awaitable[None]]
    timeout: float
    """Seconds; then the step counts as failed."""
    undo: Callable[[Means, Order], Awaitable[None]] | None = None
    """Takes the step back, also when it was done in part, within the same time."""


MOVE = "move"
STEPS = (
    Step("check", _check, 10.0),
    Step("expect", _expect, 10.0),
    Step("unplug", _unplug, 20.0, _plug),
)
"""Before the move. The move itself takes as long as the order allows."""
CONFIRM = Step("confirm", _confirm, 30.0)
"""After the move: the destination says that the domain runs there and that its broker attends to it."""


async def migrate(means: Means, order: Order, on_progress: Callable[[Progress], None] = lambda _: None) -> Result:
    """Move a domain; never raises for what goes wrong, and always says where the domain is, if anybody knows.

    Cancelled, it calls the move off, takes back what was done, and then raises CancelledError.
    """
    clock = asyncio.get_running_loop().time
    began = clock()
    done: list[Step] = []

    async def move(means: Means, order: Order) -> None:
        await means.move(order, lambda copied: on_progress(Progress(MOVE, len(STEPS), copied)))

    steps = (*STEPS, Step(MOVE, move, order.timeout), CONFIRM)
    for number, step in enumerate(steps):
        on_progress(Progress(step.name, number))
        done.append(step)
        try:
            async with asyncio.timeout(step.timeout):
                await step.do(means, order)
        except asyncio.CancelledError:
            await _take_back(means, order, done)
            raise
        except TimeoutError:
            reason = f"it was not done within {step.timeout:g} s"
        except (MChannelError, HypervisorError) as error:
            reason = str(error)
        else:
            continue
        notes = await _take_back(means, order, done)
        host: str | None = order.source
        if number >= len(STEPS):
            try:
                host = await _settle(means, order)
            except MigrationError as error:
                host, notes = None, [*notes, str(error)]
        moved = host == order.destination
        reason = "; ".join((reason, *notes))
        return Result(order.domain, moved, host, clock() - began, step.name, reason)
    on_progress(Progress("done", len(steps), 1.0))
    return Result(order.domain, moved=True, host=order.destination, seconds=clock() - began)


async def _take_back(means: Means, order: Order, done: list[Step]) -> list[str]:
    """Undo *done*, the last first; return what could not be."""
    notes: list[str] = []
    for step in reversed(done):
        if step.undo is not None:
            try:
                async with asyncio.timeout(step.timeout):
                    await step.undo(means, order)
            except TimeoutError:
                notes.append(f"{step.name} could not be taken back within {step.timeout:g} s")
            except (MChannelError, HypervisorError) as error:
                notes.append(f"{step.name} could not be taken back: {error}")
    return notes


async def _settle(means: Means, order: Order) -> str | None:
    """Ask both hosts until one says that it runs the domain and the other does not, or does not answer.

    Return that host; else the only one that has it, paused; None when that stays unclear. Raises MigrationError when
    both run it.
    """
    clock = asyncio.get_running_loop().time
    until = clock() + _SETTLE
    twice = False
    while True:
        here, there = await asyncio.gather(_look(means.here(order.domain)), _look(_there(means, order)))
        match here is not None and here.running, there is not None and there.running:
            case True, True if twice:
                raise MigrationError(
                    f"{order.name} RUNS TWICE, ON {order.source} AND ON {order.destination}: at once,"
                    f" stop the one whose work is to be lost, by: virsh destroy {order.name}"
                )
            case True, True:
                twice = True  # or it moved between both answers
            case True, False:
                return order.source
            case False, True:
                return order.destination
            case _:
                twice = False
        if clock() >= until and not twice:
            break
        await asyncio.sleep(_SETTLE_INTERVAL)
    if here is not None and there is not None and here.here != there.here:  # paused, but at one host
        return order.source if here.here else order.destination
    return None


async def _there(means: Means, order: Order) -> Whereabouts:
    """Return what the destination says of the domain; raises MigrationError when it speaks of another."""
    found = await means.there(order.destination, order.domain)
    if found.domain != order.domain:
        raise MigrationError(f"{order.destination} was asked about {order.domain} and answered about another domain")
    return found


async def _look(look: Awaitable[Whereabouts]) -> Whereabouts | None:
    try:
        async with asyncio.timeout(_SETTLE / 3):
            return await look
    except (TimeoutError, MChannelError, HypervisorError):
        return None
