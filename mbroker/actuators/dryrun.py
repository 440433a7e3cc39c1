"""An actuator that touches nothing and says so."""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path

import attrs

from mbroker.action import Action, SetFrequency, SetPState
from mbroker.actuator import Outcome
from mbroker.host import Host

__all__ = ["DryRun"]

_log = logging.getLogger(__name__)


@attrs.define(kw_only=True, eq=False)
class DryRun:
    """Takes every change of speed for done; for rehearsals and for machines that must not be changed."""

    host: Host
    state: Path = attrs.field(converter=Path)
    """Not used: there is nothing to restore."""
    actions: deque[Action] = attrs.field(factory=lambda: deque[Action](maxlen=1000), init=False)
    """The last actions, oldest first."""
    handles: tuple[type[Action], ...] = attrs.field(default=(SetFrequency, SetPState), init=False)

    def apply(self, action: Action) -> Outcome:
        """Record *action*."""
        self.actions.append(action)
        level = action.level if isinstance(action, SetFrequency | SetPState) else None
        speed = "" if level is None else f"{self.host.p_states[min(max(level, 0), self.host.top)]} MHz, "
        _log.info("dry run: %s", action)
        return Outcome(action, done=True, actual=f"dry run: {speed}nothing was changed")

    def restore(self) -> list[Outcome]:
        """Return nothing: nothing was changed."""
        return []

    def close(self) -> None:
        """Do nothing."""
