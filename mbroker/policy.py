"""What a policy is: a pure function with state, from one event to actions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, cast, runtime_checkable

from mbroker.action import Action
from mbroker.host import Host
from mchannel.event import Event

__all__ = ["Interruptible", "Policy", "topics_of"]


@runtime_checkable
class Policy(Protocol):
    """Turns events into actions.

    A policy does no I/O, reads no clock (time is ``event.at``) and starts no threads, so the same
    object runs live, in a replay and in a property test. It is made by calling its class with the
    options of its configuration section as keyword arguments.
    """

    topics: tuple[str, ...]
    """Topic prefixes that it wants: ``("sla.",)``; an empty tuple wants everything."""

    def decide(self, event: Event, host: Host) -> Iterable[Action]:
        """Return what should be done about *event*, given the present picture of the *host*."""
        ...


@runtime_checkable
class Interruptible(Policy, Protocol):
    """A policy whose decision can be cut off: one that runs in a process of its own."""

    def decide_within(self, event: Event, host: Host, seconds: float) -> Iterable[Action]:
        """Return what :meth:`decide` does, or raise after *seconds* at the latest."""
        ...


def topics_of(policy: object) -> tuple[str, ...]:
    """Return the topics that *policy* wants; raise TypeError, saying what it lacks, when it is no :class:`Policy`."""
    if not callable(getattr(policy, "decide", None)):
        raise TypeError("it has no method decide(event, host)")
    topics: object = getattr(policy, "topics", None)
    if not isinstance(topics, tuple) or not all(isinstance(each, str) for each in cast("tuple[object, ...]", topics)):
        raise TypeError(f"its topics must be a tuple of topic prefixes, not {topics!r}")
    return cast("tuple[str, ...]", topics)
