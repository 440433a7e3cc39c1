"""Walks through the world of a session: any interleaving of what applications, networks and brokers can do.

Plain dice make ten walks while a library for properties makes one, and what breaks promises here is
rare: the order of many steps. A walk uses some kinds of steps and not others, for what heals hides
what broke.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from itertools import product
from types import ModuleType
from typing import Any

import attrs

import mchannel.session
from mchannel.transport import Delivery
from tests.unit.session_world import MAX_MESSAGE, World

__all__ = ["Step", "fewest", "outcome", "walks"]

LENGTH = 60
"""Steps of a walk."""


@attrs.frozen
class Step:
    """Something that happens."""

    do: Callable[..., object]
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.do.__name__}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"


def _write(world: World, agent: bool, size: int, count: int) -> None:
    for _ in range(count):
        world.write(agent=agent, size=size)


def _deliver(world: World, to_broker: bool, count: int) -> None:
    for _ in range(count):
        world.deliver(to_broker=to_broker)


def _exchange(world: World, count: int) -> None:
    for _ in range(count):
        world.deliver(to_broker=True)
        world.deliver(to_broker=False)


def _turn_up_late(world: World, to_broker: bool, which: int, count: int) -> None:
    for _ in range(count):
        world.deliver(to_broker=to_broker, stale=which)


def _migrate(world: World, count: int) -> None:
    world.suspend(agent=False)
    _exchange(world, count)
    world.hand_over()
    world.tick(0.5)  # the agent looks for the successor
    _exchange(world, count)
    world.read(agent=False, limit=1)


def _restart_broker(world: World, limit: int) -> None:
    world.settle()
    world.read(agent=False, limit=limit)
    world.crash_broker()
    world.tick(3.5)  # the agent notices
    world.settle()
    world.read(agent=False, limit=1)


def _crash_agent(world: World) -> None:
    if len(world.from_agent.payloads) > 3:
        world.new_agent()


def _each(do: Callable[..., object], **choices: Iterable[Any]) -> list[Step]:
    return [Step(do, dict(zip(choices, values, strict=True))) for values in product(*choices.values())]


_ENDS = (False, True)
_SIZES = (0, 1, 40, 120, MAX_MESSAGE)
_BATCHES = ((), (0,) * 6, (1, 0), (40, 40, 40, 40), (120, 0, 120), (0, MAX_MESSAGE, 40, 120, 40), (MAX_MESSAGE,) * 3)

KINDS = (
    _each(_write, agent=_ENDS, size=_SIZES, count=range(1, 5)),
    _each(World.write_many, agent=_ENDS, sizes=_BATCHES),
    _each(World.read, agent=_ENDS, limit=range(1, 4)),
    _each(World.done, agent=_ENDS),
    _each(_deliver, to_broker=_ENDS, count=range(1, 9)),
    _each(_exchange, count=range(1, 7)),
    _each(World.deliver, to_broker=_ENDS, again=[True]),
    _each(_turn_up_late, to_broker=_ENDS, which=range(4), count=range(1, 5)),
    _each(World.lose, to_broker=_ENDS),
    _each(World.disconnect),
    _each(World.reconnect),
    _each(World.tick, seconds=(0.01, 0.03, 0.5, 1.1, 3.5)),
    _each(World.suspend, agent=_ENDS),
    _each(World.resume, agent=_ENDS),
    _each(World.hand_over),
    _each(_migrate, count=range(1, 5)),
    _each(World.crash_broker),
    _each(_restart_broker, limit=range(4)),
    _each(_crash_agent),
    _each(World.heal),
)


def walks(count: int, seed: object = 0) -> Iterable[list[Step]]:
    """Make *count* walks, the same ones for the same *seed*."""
    dice = random.Random(f"walks {seed}")
    for _ in range(count):
        share = dice.random()
        kinds = [kind for kind in KINDS if dice.random() < share] or KINDS
        yield [dice.choice(dice.choice(kinds)) for _ in range(LENGTH)]


def outcome(
    walk: Iterable[Step], delivery: Delivery = Delivery.ALL, module: ModuleType = mchannel.session
) -> Exception | None:
    """Return what breaks on *walk*, or None when every promise is kept, to the end."""
    world = World(module, delivery)
    try:
        for step in walk:
            step.do(world, **step.arguments)
        world.heal()
    except Exception as error:
        return error
    return None


def fewest(walk: list[Step], breaks: Callable[[list[Step]], bool]) -> list[Step]:
    """Leave out of *walk*, which *breaks*, every step without which it still does."""
    place = 0
    while place < len(walk):
        shorter = walk[:place] + walk[place + 1 :]
        if breaks(shorter):
            walk, place = shorter, 0
        else:
            place += 1
    return walk
