"""What an actuator is: it applies actions, reads back what happened, and restores."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import attrs

from mbroker.action import Action

__all__ = ["Actuator", "Outcome"]


@attrs.frozen
class Outcome:
    """What became of one action."""

    action: Action
    done: bool
    """True when the value read back is the value asked for (or the nearest that the hardware has)."""
    actual: str = ""
    """What was read back, with its unit, for people and logs."""
    error: str = ""
    """One line that says what went wrong and what to do; empty when done."""


@runtime_checkable
class Actuator(Protocol):
    """Carries out actions of the types in :attr:`handles`.

    It is made from the options of its configuration, the picture of the ``host``, and ``state``, the
    folder of its journal. That changes nothing but what a killed predecessor left in the journal, and
    works beside another one at work whose ``state`` is another: so a new configuration is tried out.

    Originals are journalled with the boot id and fsynced before the first write, a live journal is
    never overwritten, and :meth:`restore` puts the originals back: on exit, on SIGTERM, and after a
    crash at the next start.
    """

    handles: tuple[type[Action], ...]

    def apply(self, action: Action) -> Outcome:
        """Carry out *action* and read back the result. Never raises for a refusing machine: see the outcome."""
        ...

    def restore(self) -> list[Outcome]:
        """Put back every journalled original; idempotent."""
        ...

    def close(self) -> None:
        """Restore and let go of the journal; idempotent."""
        ...
