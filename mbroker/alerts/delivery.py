"""What a receiver is told at once, how it wants to be told, and what telling it may come to."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any, Protocol, TypeAlias

import attrs

from .alert import Alert, Notice
from .selector import is_name

__all__ = ["Common", "Delivery", "Manner", "NotDelivered", "Notifier", "Remark", "Story", "changed"]


Common: TypeAlias = tuple[tuple[str, str], ...]
"""What alerts have in common that are told together: pairs of name and value, as :attr:`Manner.group_by` asks."""


def changed(alert: Alert) -> int:
    """Return when *alert* came into the state that it is in: its begin or its end."""
    return alert.since if alert.until is None else alert.until


class Remark(Enum):
    """What is said of an alert that changes again and again."""

    NONE = ""
    FLAPPING = "flapping"
    """It is told of no more until it calms."""
    CALMED = "calmed"
    """It was flapping; this is where it came to rest."""


@attrs.frozen
class Story:
    """What a receiver has not heard yet of one alert: its begin, its end, or both."""

    notices: tuple[Notice, ...] = attrs.field(validator=attrs.validators.min_len(1))
    """In the order of what happened."""
    remark: Remark = Remark.NONE
    covered: tuple[Notice, ...] = ()
    """Notices of earlier alerts of the same place which this one tells enough of: it flapped meanwhile."""

    @property
    def alert(self) -> Alert:
        """The alert as it is now."""
        return self.notices[-1].alert

    @property
    def begins(self) -> bool:
        """Whether the receiver does not know yet that the alert began."""
        return self.notices[0].alert.until is None

    @property
    def ends(self) -> bool:
        """Whether the alert ended."""
        return self.alert.until is not None

    @property
    def settled(self) -> tuple[Notice, ...]:
        """All notices that are done with when this was told."""
        return self.covered + self.notices


@attrs.frozen
class Delivery:
    """What one receiver is told at once."""

    receiver: str
    group: Common
    stories: tuple[Story, ...] = attrs.field(validator=attrs.validators.min_len(1))

    @property
    def notices(self) -> tuple[Notice, ...]:
        """All notices that are done with when it was delivered."""
        return tuple(notice for story in self.stories for notice in story.settled)

    @property
    def eldest(self) -> Notice:
        """The notice that failed most often: it counts the failures of those that are told with it."""
        return max(self.notices, key=lambda notice: notice.attempts)

    @property
    def firing(self) -> Iterator[Alert]:
        """Those of its alerts that have not ended."""
        return (story.alert for story in self.stories if not story.ends)


class NotDelivered(Exception):
    """A receiver was not told; the message says why in one line and holds no secret."""

    def __init__(self, reason: str, *, permanent: bool = False, wait: float | None = None) -> None:
        super().__init__(reason)
        self.permanent = permanent
        """Whether it would be refused again: it is not tried again."""
        self.wait = wait
        """Seconds that the receiver asks to be left alone for."""


class Notifier(Protocol):
    """Tells a receiver. The one place where the pipeline touches the world."""

    async def tell(self, delivery: Delivery) -> None:
        """Tell *delivery*, or raise :exc:`NotDelivered`; cancelled, it may have been told or not."""
        ...

    async def close(self) -> None:
        """Let go of connections. Idempotent."""
        ...


def _between(least: float, most: float) -> Any:
    return [attrs.validators.ge(least), attrs.validators.le(most)]


def _group_by(_: object, attribute: attrs.Attribute[Any], names: tuple[str, ...]) -> None:
    if not all(name == "severity" or is_name(name) for name in names):
        raise ValueError(f"'{attribute.name}' must be subscription, severity or names of labels, not {list(names)!r}")


@attrs.frozen
class Manner:
    """How a receiver wants to be told. Durations are in seconds."""

    group_by: tuple[str, ...] = attrs.field(default=("subscription",), validator=_group_by)
    """What alerts that are told together have in common: ``subscription``, ``severity``, and labels."""
    group_wait: float = attrs.field(default=1.0, validator=_between(0, 3600))
    """How long the first alert of a group waits for others."""
    group_interval: float = attrs.field(default=30.0, validator=_between(0, 86400))
    """How long after one delivery the next one of the same group comes, at the earliest."""
    after: float = attrs.field(default=0.0, validator=_between(0, 7 * 86400))
    """Escalation: tell only of alerts that fire for so long, and that nobody acknowledged meanwhile."""
    rate: float = attrs.field(default=0.5, validator=_between(0.0001, 1000))
    """Deliveries a second, in the long run."""
    burst: int = attrs.field(default=10, validator=_between(1, 10000))
    """Deliveries at once."""
    most: int = attrs.field(default=100, validator=_between(1, 10000))
    """Alerts in one delivery; the others follow in the next."""
    timeout: float = attrs.field(default=10.0, validator=_between(0.05, 600))
    """How long one attempt to tell may take."""
    retry_first: float = attrs.field(default=1.0, validator=_between(0.01, 3600))
    """Wait after the first failure; doubled after each further one, each time between half and all of it."""
    retry_most: float = attrs.field(default=600.0, validator=_between(0.01, 86400))
    """The longest such wait."""
    tries: int = attrs.field(default=200, validator=_between(1, 100000))
    """Attempts before a delivery is given up: about a day and a half with the waits above."""
