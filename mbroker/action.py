"""What a policy may ask for. Actions are values: they say what, never how."""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

import attrs

__all__ = ["Action", "Notify", "SetFrequency", "SetPState", "Severity"]


class Severity(Enum):
    """How much a person should care."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@attrs.frozen
class SetFrequency:
    """Move a domain's virtual CPUs to another p-state (M-channels, section 4.1.1).

    Either :attr:`level` (absolute) or :attr:`step` (relative to the domain's present level) is
    given. The broker resolves steps, clamps to the host's p-states, and drops what changes nothing.
    """

    domain: str
    step: int = attrs.field(default=0, kw_only=True)
    """How many p-states up (positive, faster) or down; ignored when ``level`` is given."""
    level: int | None = attrs.field(default=None, kw_only=True)
    """Index into :attr:`mbroker.host.Host.p_states`: 0 is the slowest."""


@attrs.frozen
class SetPState:
    """Set the p-state of physical CPUs; the broker derives it as the maximum over their vCPUs."""

    cpus: tuple[int, ...]
    level: int


@attrs.frozen
class Notify:
    """Tell the operator."""

    domain: str
    text: str
    severity: Severity = Severity.WARNING


Action: TypeAlias = SetFrequency | SetPState | Notify
