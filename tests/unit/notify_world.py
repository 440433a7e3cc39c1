"""Alerts, notices and receivers for tests of the notification pipeline."""

from __future__ import annotations

from mbroker.action import Severity
from mbroker.alerts.alert import Alert, Notice, alert_id
from mbroker.alerts.delivery import Delivery, Manner, NotDelivered, Story
from mbroker.alerts.selector import Label, Relation
from mbroker.alerts.silence import Silence

PROMPT = Manner(group_wait=0, group_interval=0, rate=1000, burst=1000)
"""A receiver that is told everything at once."""


def begun(host: str, since: int, *, enrolment: int = 1, by: str = "", severity: Severity = Severity.WARNING) -> Alert:
    key = frozenset({("host", host)})
    return Alert(alert_id(enrolment, key, since), enrolment, key, severity, since, value=9.5, acknowledged=by)


def ended(alert: Alert, until: int) -> Alert:
    return Alert(alert.id, alert.enrolment, alert.key, alert.severity, alert.since, until, 3.5, alert.acknowledged)


def notices(*alerts: Alert, to: str = "ops") -> list[Notice]:
    return [Notice(alert, to) for alert in alerts]


def story(*alerts: Alert) -> Story:
    return Story(tuple(notices(*alerts)))


def delivery(*alerts: Alert, to: str = "ops") -> Delivery:
    return Delivery(to, (("subscription", "1"),), tuple(map(story, alerts)))


def silence(host: str, until: int, since: int = 0) -> Silence:
    return Silence(1, (Label("host", Relation.IS, host),), since, until, "ann", "maintenance")


class Ear:
    """A notifier that remembers, and fails as it is told to."""

    def __init__(self, *failures: Exception | None) -> None:
        self.heard: list[Delivery] = []
        self.failures = list(failures)
        self.closed = False

    async def tell(self, delivery: Delivery) -> None:
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        self.heard.append(delivery)

    async def close(self) -> None:
        self.closed = True


def refusal(reason: str = "no") -> NotDelivered:
    return NotDelivered(reason, permanent=True)
