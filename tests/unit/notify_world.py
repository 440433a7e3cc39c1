"""Alerts, notices and receivers for tests of the notification pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mbroker.action import Severity
from mbroker.alerts.alert import Alert, Notice, alert_id
from mbroker.alerts.delivery import Delivery, Manner, NotDelivered, Story
from mbroker.alerts.dispatcher import LOOK
from mbroker.alerts.notify import Pipeline, Plan
from mbroker.alerts.outbox import Memory, Outbox
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


def step(pipeline: Pipeline, now: int, outbox: Outbox, silences: Sequence[Silence] = ()) -> Plan:
    """Plan once, as a teller does; the wake of the plan may be now."""
    for name, newest in pipeline.idle(now).items():
        pipeline.learn(name, outbox.news(name, newest, LOOK))
    found = {name: outbox.untold(name, alerts) for name, alerts in pipeline.wanted(now).items()}
    made = pipeline.plan(now, found, silences)
    outbox.refuse(made.dropped, now, "unheard")
    return made


def plan_from(pipeline: Pipeline, now: int, outbox: Outbox, silences: Sequence[Silence] = ()) -> Plan:
    """Plan until nothing more can be done now, and return all of it."""
    plans = [step(pipeline, now, outbox, silences)]
    while plans[-1].wake is not None and plans[-1].wake <= now:
        plans.append(step(pipeline, now, outbox, silences))
        assert len(plans) < 10_000
    deliveries = tuple(delivery for plan in plans for delivery in plan.deliveries)
    return Plan(deliveries, tuple(notice for plan in plans for notice in plan.dropped), plans[-1].wake)


class _Anew(Memory):
    """An outbox all of which is news."""

    def news(self, receiver: str, after: int = 0, limit: int = 1000) -> list[tuple[int, Notice]]:
        return super().news(receiver, 0, limit)


def plan(pipeline: Pipeline, now: int, waiting: Iterable[Notice], silences: Sequence[Silence] = ()) -> Plan:
    """Return all that can be done now when *waiting*, which are few, is all that the outbox holds."""
    outbox = _Anew()
    outbox.put(waiting)
    return plan_from(pipeline, now, outbox, silences)
