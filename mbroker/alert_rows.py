"""What ``mbroker`` and ``mbrokerd`` tell each other about subscriptions and alerts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import attrs

from mbroker.alerts.alert import Alert
from mbroker.alerts.selector import GROUP, Endpoint

__all__ = [
    "LONGEST",
    "TOPICS",
    "AcknowledgeWanted",
    "AlertRow",
    "AlertsStatus",
    "AlertsWanted",
    "AuditRow",
    "ContextRow",
    "ExplainRow",
    "ExplainWanted",
    "MetricRow",
    "MetricRows",
    "MutedRow",
    "Named",
    "SilenceRow",
    "SilenceWanted",
    "SubscribeWanted",
    "SubscriptionRow",
    "Task",
    "about",
    "alert",
    "is_id",
    "labels",
    "number",
]


TOPICS = {
    f"control.{name}": name
    for name in (
        "subscribe",
        "unsubscribe",
        "subscriptions",
        "metrics",
        "alerts",
        "alert",
        "context",
        "acknowledge",
        "muted",
        "silence",
        "silences",
        "unsilence",
        "audit",
        "explain",
        "explained",
    )
}
"""Questions, and the methods of :class:`mbroker.alert_answers.Answers` that answer them."""


_ID = re.compile(r"[0-9a-f]{4,20}")


LONGEST = 366 * 86400.0
"""Seconds that a silence lasts, or that are looked back, at most."""


def _within_a_year(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 < value <= LONGEST:
        raise ValueError(f"'{attribute.name}' must be above 0, and a year at most")


def is_id(text: str) -> bool:
    """Tell whether *text* can name an alert: its id, or the first four characters of it or more."""
    return _ID.fullmatch(text) is not None


def number(value: float) -> float | None:
    """Return *value* as JSON can hold it: None for what is no number, or infinite."""
    return value if math.isfinite(value) else None


def labels(endpoint: Endpoint) -> dict[str, str]:
    """Return the labels of *endpoint*; one that belongs to several groups names them all."""
    named: dict[str, str] = {}
    for name, value in sorted(endpoint):
        named[name] = f"{named[name]},{value}" if name == GROUP and name in named else value
    return named


def about(named: Mapping[str, str]) -> str:
    """Return labels in one line."""
    return ", ".join(f"{name}={value}" for name, value in named.items()) or "all"


@attrs.frozen
class SubscribeWanted:
    """A subscription that is asked for."""

    owner: str
    text: str
    receivers: tuple[str, ...] = ()
    """None are all that are configured."""


@attrs.frozen
class SubscriptionRow:
    """A subscription."""

    number: int
    owner: str
    text: str
    receivers: tuple[str, ...]
    made: float
    """Unix seconds, as all times here."""
    firing: int
    """How many of its alerts fire."""
    warnings: tuple[str, ...] = ()
    """Of what it asks for, what is not there yet."""


@attrs.frozen
class Named:
    """A subscription or a silence that somebody names by its number, to end it."""

    number: int
    by: str


@attrs.frozen
class MetricRow:
    """A metric, or one series of it."""

    metric: str
    series: int
    """How many there are."""
    labels: dict[str, str]
    """Of one series; none of a metric."""


@attrs.frozen
class MetricRows:
    """Metrics, or the series of one."""

    rows: tuple[MetricRow, ...]
    more: int
    """Those that are not told."""


@attrs.frozen
class AlertsWanted:
    """Alerts that are asked for."""

    state: str = ""
    """``firing``, ``resolved``, or all."""
    subscription: int | None = None
    since: float | None = None
    limit: int = attrs.field(default=100, validator=[attrs.validators.ge(1), attrs.validators.le(1000)])


@attrs.frozen
class AlertRow:
    """An alert."""

    id: str
    subscription: int
    text: str
    """The subscription; empty when it was withdrawn."""
    labels: dict[str, str]
    """What it is about."""
    severity: str
    state: str
    since: float
    until: float | None
    value: float | None
    """What was compared last."""
    acknowledged: str
    """By whom; empty when by nobody."""


def alert(found: Alert, text: str) -> AlertRow:
    """Return *found* as it is shown; *text* is its subscription."""
    return AlertRow(
        found.id,
        found.enrolment,
        text,
        labels(found.key),
        found.severity.value,
        found.state.value,
        found.since / 1000,
        None if found.until is None else found.until / 1000,
        number(found.value),
        found.acknowledged,
    )


@attrs.frozen
class AcknowledgeWanted:
    """An alert that somebody takes care of."""

    id: str
    by: str


@attrs.frozen
class ContextRow:
    """One series as it was around an alert."""

    metric: str
    labels: dict[str, str]
    samples: int
    least: float | None
    most: float | None
    points: tuple[tuple[float, float], ...]
    """Times and values; when there are many, of equal distances."""


@attrs.frozen
class SilenceWanted:
    """A silence that is asked for."""

    labels: tuple[str, ...]
    """As ``domain=web1`` or ``host=~node.*``; an id of an alert stands for the alert's own."""
    seconds: float = attrs.field(validator=_within_a_year)
    by: str
    why: str


@attrs.frozen
class MutedRow:
    """What a silence would mute, if it were made now."""

    labels: tuple[str, ...]
    """Its conditions."""
    firing: int
    """How many of the alerts that fire."""
    all_firing: int
    endpoints: int
    """How many of the endpoints that are watched: sets of labels from which there are metrics."""
    all_endpoints: int


@attrs.frozen
class SilenceRow:
    """A silence."""

    number: int
    labels: tuple[str, ...]
    since: float
    until: float
    by: str
    why: str


@attrs.frozen
class AuditRow:
    """One line of the audit trail."""

    at: float
    who: str
    did: str
    what: str


@attrs.frozen
class ExplainWanted:
    """A subscription that is to be tried on the last seconds of what is stored."""

    text: str
    seconds: float = attrs.field(default=86400.0, validator=_within_a_year)


@attrs.frozen
class ExplainRow:
    """What a subscription would have fired on, and what it costs."""

    text: str
    series: int
    samples: int
    oldest: float | None
    """When the first of them was: how far back the history of these series reaches."""
    cost: str
    place: str
    """Where it is matched: ``publisher``, if that saves samples, ``broker`` or ``engines``."""
    alerts: tuple[AlertRow, ...]
    more: int
    """Alerts besides."""
    warnings: tuple[str, ...]


@attrs.frozen
class Task:
    """How work that takes a while stands."""

    share: float
    """How much of it is done, 0 to 1."""
    result: ExplainRow | None = None
    error: str = ""


@attrs.frozen
class AlertsStatus:
    """How the alerts of a daemon are doing."""

    subscriptions: int
    rules: int
    series: int
    samples: int
    refused: int
    delivered: int
    """Deliveries to receivers."""
    unreachable: dict[str, str]
    """Receivers that were not told the last time that it was tried, and why."""
    problem: str
    engines: dict[str, float] = attrs.field(factory=dict[str, float])
    """How much of a processor each engine beside the broker took of late; none when the broker matches itself."""
