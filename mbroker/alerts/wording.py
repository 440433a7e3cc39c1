"""How a delivery is put: as text for people, and as JSON that receivers of Prometheus' Alertmanager understand."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import attrs

from .alert import Alert, State
from .clock import rfc3339
from .delivery import Delivery, Remark, Story
from .selector import GROUP

__all__ = ["BROKER", "Wording", "digest"]

BROKER = 0
"""In place of a subscription: what is told is that the broker itself is silent."""

_ZERO = "0001-01-01T00:00:00Z"  # what Alertmanager says of an end that is not known
_REMARKS = {
    Remark.NONE: "",
    Remark.FLAPPING: "flapping: nothing more is told of it until it calms",
    Remark.CALMED: "calmed: it had been flapping",
}


def digest(delivery: Delivery) -> str:
    """Return the same name for a delivery whenever it is told again."""
    said = repr(sorted((notice.alert.id, notice.alert.state.value, notice.receiver) for notice in delivery.notices))
    return hashlib.blake2b(said.encode(), digest_size=10).hexdigest()


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)


def _labels(alert: Alert) -> dict[str, str]:
    """Return the labels of the endpoint; one that belongs to several groups names them all."""
    labels: dict[str, str] = {}
    for name, value in sorted(alert.key):
        labels[name] = f"{labels[name]},{value}" if name == GROUP and name in labels else value
    return labels


@attrs.frozen
class Wording:
    """Puts deliveries of one broker into words."""

    host: str
    """The broker's name."""
    subscription: Callable[[int], str]
    """Returns what the subscription of that number says, or "" when it is not known any more."""

    def title(self, delivery: Delivery) -> str:
        """Return one line that says what it is about: ``node1: 2 firing, 1 resolved: load > 8``."""
        firing = len(list(delivery.firing))
        counts = {State.FIRING: firing, State.RESOLVED: len(delivery.stories) - firing}
        said = ", ".join(f"{count} {state.value}" for state, count in counts.items() if count)
        names = {self._name(story.alert) for story in delivery.stories}
        about = names.pop() if len(names) == 1 else f"{len(names)} subscriptions"
        return _printable(f"{self.host}: {said}: {about}")[:200]

    def lines(self, delivery: Delivery) -> list[str]:
        """Return one line for each alert."""
        return [_printable(self._line(story)) for story in delivery.stories]

    def payload(self, delivery: Delivery) -> dict[str, Any]:
        """Return what Alertmanager sends to webhooks, version 4.

        Flapping is an annotation. ``fingerprint`` is the id of the alert, the same for its begin and its end, and
        other than Alertmanager's another one for each time that it fires.
        """
        alerts = [self._alert(story) for story in delivery.stories]
        group = dict(delivery.group)
        return {
            "version": "4",
            "groupKey": f"{self.host}/{delivery.receiver}:{group}",
            "truncatedAlerts": 0,
            "status": State.FIRING.value if any(delivery.firing) else State.RESOLVED.value,
            "receiver": delivery.receiver,
            "groupLabels": group,
            "commonLabels": _common([alert["labels"] for alert in alerts]),
            "commonAnnotations": _common([alert["annotations"] for alert in alerts]),
            "externalURL": "",
            "alerts": alerts,
        }

    def _name(self, alert: Alert) -> str:
        if alert.enrolment == BROKER:
            return f"the broker on {self.host} is silent"
        return self.subscription(alert.enrolment) or f"subscription {alert.enrolment}"

    def _where(self, alert: Alert) -> str:
        return ", ".join(f"{name}={value}" for name, value in _labels(alert).items()) or "everywhere"

    def _line(self, story: Story) -> str:
        alert = story.alert
        times = f"since {rfc3339(alert.since)}" + (f" until {rfc3339(alert.until)}" if alert.until is not None else "")
        value = "" if math.isnan(alert.value) else f", value {alert.value:.6g}"
        remark = _REMARKS[story.remark] and f"; {_REMARKS[story.remark]}"
        kind = f"{alert.state.value.upper()} {alert.severity.value}"
        return f"{kind}: {self._name(alert)} at {self._where(alert)} {times}{value}{remark} [{alert.id}]"

    def _alert(self, story: Story) -> dict[str, Any]:
        alert = story.alert
        mine = {
            "alertname": self._name(alert),
            "severity": alert.severity.value,
            "subscription": str(alert.enrolment),
            "broker": self.host,
        }
        annotations = {"summary": f"{self._name(alert)} at {self._where(alert)}"}
        if not math.isnan(alert.value):
            annotations["value"] = repr(alert.value)
        if story.remark is not Remark.NONE:
            annotations["remark"] = _REMARKS[story.remark]
        return {
            "status": alert.state.value,
            "labels": {**_labels(alert), **mine},
            "annotations": annotations,
            "startsAt": rfc3339(alert.since),
            "endsAt": _ZERO if alert.until is None else rfc3339(alert.until),
            "generatorURL": "",
            "fingerprint": alert.id,
        }


def _common(each: list[dict[str, str]]) -> dict[str, str]:
    first, *others = each
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}
