"""What is told of a subscription: an alert that begins and ends, and the notices of it."""

from __future__ import annotations

import hashlib
import math
from enum import Enum

import attrs

from mbroker.action import Severity

from .language import Subscription
from .selector import Endpoint

__all__ = ["Alert", "Enrolment", "Notice", "State", "alert_id"]


class State(Enum):
    """Where an alert is in its life; the values are Alertmanager's words."""

    FIRING = "firing"
    RESOLVED = "resolved"


@attrs.frozen
class Enrolment:
    """A subscription that somebody made."""

    number: int
    """What it is known by, for ever: the numbers of withdrawn ones are not used again."""
    owner: str
    """Who made it."""
    subscription: Subscription
    receivers: tuple[str, ...]
    """Names of those who are told."""
    made: int
    """When, in milliseconds of the Unix clock."""


def alert_id(enrolment: int, key: Endpoint, since: int, before: int = 0) -> str:
    """Return the name of the alert of that enrolment, endpoint or group, and begin: the same one whenever computed.

    *before* is how many alerts of that place began at that time before: what comes late may have the time of another.
    """
    said = repr((enrolment, sorted(key), since, before) if before else (enrolment, sorted(key), since))
    return hashlib.blake2b(said.encode(), digest_size=10).hexdigest()


@attrs.frozen
class Alert:
    """A condition that began at one endpoint or group and, perhaps, ended."""

    id: str
    """As :func:`alert_id` says, so that whoever hears of it twice knows."""
    enrolment: int
    """Number of the :class:`Enrolment`."""
    key: Endpoint
    """The endpoint or, of a spatial rule, the values of its ``by`` labels."""
    severity: Severity
    since: int
    """Event time of the begin, in milliseconds of the Unix clock."""
    until: int | None = None
    """Event time of the end; None while it fires."""
    value: float = math.nan
    """What was compared last; NaN if nothing was."""
    acknowledged: str = ""
    """By whom; empty when by nobody."""

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return State.FIRING if self.until is None else State.RESOLVED


@attrs.frozen
class Notice:
    """What one receiver is to be told once: that an alert began, or that it ended."""

    alert: Alert
    """As it was then."""
    receiver: str
    attempts: int = 0
    """How often telling has failed."""
    due: int = 0
    """Not to be tried before, in milliseconds of the Unix clock."""

    @property
    def id(self) -> tuple[str, State, str]:
        """What no two notices have in common."""
        return self.alert.id, self.alert.state, self.receiver
