"""How a domain is to be moved, and how far it has come."""

from __future__ import annotations

from enum import Enum

import attrs

from .domain import State
from .errors import HypervisorUnreachable, Where

__all__ = ["DEFAULTS", "MigrationOptions", "Phase", "Progress", "whereabouts"]


@attrs.frozen
class MigrationOptions:
    """On which terms a domain is moved."""

    live: bool = True
    """Whether it runs while its memory is copied; a cold migration stops it first."""
    postcopy_after: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.ge(0))
    )
    """Seconds of copying after which it switches over and fetches the rest from there; None: never.

    From that moment on it can neither be aborted nor be saved if a host or the network dies. libvirt lets it run at
    the destination at once, and never again at the source. One that is whole before that moment comes is not held
    back either: there only libvirt's own last step keeps it from running twice.
    """
    timeout: float = attrs.field(default=600.0, validator=attrs.validators.gt(0))
    """Seconds after which it is aborted."""
    bandwidth: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.gt(0)))
    """Most MiB/s that it may take; None leaves that to the hypervisor."""
    ticket: str = attrs.field(default="-", validator=attrs.validators.min_len(1))
    """Tells this migration from earlier and later ones of the domain; see :class:`~mbroker.hypervisor.Arrival`."""


DEFAULTS = MigrationOptions()


class Phase(Enum):
    """What a migration does now."""

    PREPARING = "preparing"
    COPYING = "copying"
    POSTCOPY = "postcopy"


@attrs.frozen
class Progress:
    """How far a migration has come. More than the whole may be done, as a running domain dirties its memory."""

    phase: Phase
    done: int
    """Bytes that were sent."""
    left: int
    """Bytes that are to be sent as it looks now."""
    total: int
    """Bytes of memory and storage that the domain has."""
    elapsed: float
    """Seconds since it began."""

    @property
    def fraction(self) -> float:
        """How much of the domain is on the other side, from 0 to 1."""
        return 1 - min(self.left / self.total, 1) if self.total else 0.0


def whereabouts(
    source: State | HypervisorUnreachable | None, destination: State | HypervisorUnreachable | None
) -> Where:
    """Return where a domain is by what both hosts say of it once nothing moves it any more.

    None is a host that does not know it, an error one that does not answer.
    """
    here, there = (
        isinstance(each, State) and each.active and each is not State.MOVING for each in (source, destination)
    )
    if here != there:
        return Where.SOURCE if here else Where.DESTINATION
    known = all(each is None or (isinstance(each, State) and not each.active) for each in (source, destination))
    return Where.NOWHERE if known else Where.UNKNOWN
