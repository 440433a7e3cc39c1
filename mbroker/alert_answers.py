"""What ``mbroker`` asks about alerts, and the answers; all in the thread that has the alerts to itself."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterable
from typing import Any

import attrs

from mbroker import alert_rows as rows
from mbroker import control
from mbroker.alert_trials import Trials
from mbroker.alerts import Subscription, SubscriptionError
from mbroker.alerts.alert import Alert, Enrolment, State
from mbroker.alerts.book import Book, NotThere
from mbroker.alerts.catalogue import NoSuchGroup, TooBroad, unknown
from mbroker.alerts.engine import TooMuchError
from mbroker.alerts.sample import Sample
from mbroker.alerts.selector import Label, Relation, Selector, Series
from mbroker.alerts.silence import Silence, condition
from mbroker.alerts.watch import Watch
from mbroker.values import Invalid, build, plain

__all__ = ["Answers"]

_POINTS = 60  # of one series around an alert, for a person
_SERIES = 1000  # in one answer
_AROUND = 200  # series around one alert
_PAGE = 500  # subscriptions in one answer
_CANDIDATES = 5  # alerts that one may have meant
_COUNTED = 10_000  # alerts and endpoints that are looked at for what a silence would mute


class Answers:
    """Knows what can be asked."""

    def __init__(
        self,
        watch: Watch,
        book: Book,
        trials: Trials,
        receivers: Callable[[], Collection[str]],
        changed: Callable[[Iterable[Alert]], object],
        clock: Callable[[], int],
    ) -> None:
        """*changed* hears of alerts that a question begins, and of changes in who is to be told."""
        self._watch = watch
        self._book = book
        self._trials = trials
        self._receivers = receivers
        self._changed = changed
        self._clock = clock

    def answer(self, topic: str, value: str) -> Any:
        """Return the answer as plain data; raise :exc:`mbroker.control.Refused`."""
        try:
            return plain(getattr(self, rows.TOPICS[topic])(value))
        except NotThere as error:
            raise control.NoSuchThing(str(error)) from None
        except OverflowError:
            raise control.NoSuchThing("there is nothing that has so large a number") from None
        except (SubscriptionError, TooBroad, NoSuchGroup, TooMuchError, Invalid, ValueError, OSError) as error:
            raise control.Refused(str(error)) from None

    # -- subscriptions

    def subscribe(self, value: str) -> rows.SubscriptionRow:
        """Make a subscription."""
        wanted: rows.SubscribeWanted = build(rows.SubscribeWanted, json.loads(value))
        known = self._receivers()
        for name in wanted.receivers:
            if name not in known:
                there = f"there is {', '.join(sorted(known))}" if known else "name some in [alerts.receivers]"
                raise control.NoSuchThing(f"there is no receiver {name}; {there}")
        subscription = Subscription.parse(wanted.text)
        warnings = self._watch.review(subscription)
        if not known:
            warnings += ("nobody is told, as there are no receivers; name some in [alerts.receivers]",)
        told = wanted.receivers or tuple(known)
        enrolment, alerts = self._watch.enrol(wanted.owner, subscription, told, self._clock())
        self._changed(alerts)
        return attrs.evolve(_subscription(enrolment, len(alerts)), warnings=warnings)

    def unsubscribe(self, value: str) -> None:
        """End a subscription."""
        wanted: rows.Named = build(rows.Named, json.loads(value))
        self._watch.withdraw(wanted.number, wanted.by, self._clock())
        self._changed(())

    def subscriptions(self, value: str) -> list[rows.SubscriptionRow]:
        """Return the subscriptions that follow the number *value*."""
        first = int(value or 0)
        following = ((each, firing) for each, firing in self._watch.enrolments() if each.number > first)
        return list(itertools.starmap(_subscription, itertools.islice(following, _PAGE)))

    def explain(self, value: str) -> int:
        """Begin to try a subscription on the stored past, and return the trial's number."""
        wanted: rows.ExplainWanted = build(rows.ExplainWanted, json.loads(value))
        subscription, now = Subscription.parse(wanted.text), self._clock()
        warnings = self._watch.review(subscription)
        return self._trials.start(subscription, warnings, now - round(wanted.seconds * 1000), now + 1)

    def explained(self, value: str) -> rows.Task:
        """Return how a trial stands."""
        return self._trials.look(int(value))

    def metrics(self, value: str) -> rows.MetricRows:
        """Return all metrics or, when *value* names one, its series; as many as one answer holds."""
        places = self._watch.places
        if not value:
            names = sorted(places.metrics)
            told = tuple(rows.MetricRow(name, places.count(name), {}) for name in names[:_SERIES])
            return rows.MetricRows(told, len(names) - len(told))
        if value not in places.metrics:
            raise control.NoSuchThing(unknown(value, places))
        found = itertools.islice(places.accepted(Selector(value)), _SERIES)
        named = [rows.MetricRow(value, 1, rows.labels(places.endpoints[place])) for place, _ in found]
        named.sort(key=lambda row: sorted(row.labels.items()))
        return rows.MetricRows(tuple(named), places.count(value) - len(named))

    # -- alerts

    def alerts(self, value: str) -> list[rows.AlertRow]:
        """Return alerts; of a subscription only if it is there, or has alerts still."""
        wanted: rows.AlertsWanted = build(rows.AlertsWanted, json.loads(value))
        state = State(wanted.state) if wanted.state else None
        since = None if wanted.since is None else round(wanted.since * 1000)
        if wanted.subscription is not None:
            self._book.enrolment(wanted.subscription)
        return [self._row(each) for each in self._book.alerts(state, wanted.subscription, since, wanted.limit)]

    def alert(self, value: str) -> rows.AlertRow:
        """Return the alert of that id, or whose id alone begins so."""
        return self._row(self._named(value))

    def context(self, value: str) -> list[rows.ContextRow]:
        """Return what was seen around that alert."""
        seen: dict[Series, list[Sample]] = {}
        for sample in self._book.context(self._named(value).id):
            seen.setdefault(sample.series, []).append(sample)
        shown = sorted(seen.items(), key=lambda item: (item[0].metric, sorted(item[0].endpoint)))
        return [_context(series, samples) for series, samples in shown[:_AROUND]]

    def acknowledge(self, value: str) -> rows.AlertRow:
        """Note who takes care of an alert."""
        wanted: rows.AcknowledgeWanted = build(rows.AcknowledgeWanted, json.loads(value))
        row = self._row(self._book.acknowledge(self._named(wanted.id).id, wanted.by, self._clock()))
        self._changed(())
        return row

    def _named(self, said: str) -> Alert:
        found = self._book.alerts_named(said) if rows.is_id(said) else []
        match found:
            case []:
                raise control.NoSuchThing(f"there is no alert {said:.40}; see: mbroker alerts list --state all")
            case [alert]:
                return alert
            case _:
                shown = ", ".join(f"{each.id} ({rows.about(rows.labels(each.key))})" for each in found[:_CANDIDATES])
                more = ", and others" if len(found) > _CANDIDATES else ""
                raise control.Refused(f"several alerts begin with {said}: {shown}{more}; give more of the id")

    def _row(self, alert: Alert) -> rows.AlertRow:
        enrolment = self._watch.enrolment(alert.enrolment)
        return rows.alert(alert, str(enrolment.subscription) if enrolment else "")

    # -- silences and what was done

    def muted(self, value: str) -> rows.MutedRow:
        """Return what a silence of these labels, or of those of an alert, would mute now."""
        said: tuple[str, ...] = build(tuple[str, ...], json.loads(value))
        now = self._clock()
        silence = Silence(0, tuple(itertools.chain.from_iterable(map(self._conditions, said))), now, now + 1, "", "")
        firing = self._book.alerts(State.FIRING, limit=_COUNTED)
        every = self._watch.places.endpoints
        endpoints = every[:: max(len(every) // _COUNTED, 1)]  # of very many, equally spread ones stand for all
        heard = sum(silence.mutes(endpoint, now) for endpoint in endpoints)
        return rows.MutedRow(
            _silence(silence).labels,
            sum(silence.mutes(alert.key, now) for alert in firing),
            len(firing),
            round(heard * len(every) / max(len(endpoints), 1)),
            len(every),
        )

    def _conditions(self, said: str) -> tuple[Label, ...]:
        """Return the condition that is *said*, or those by which an alert is known whose id is."""
        if not rows.is_id(said):
            return (condition(said),)
        alert = self._named(said)
        if not alert.key:
            raise control.Refused(f"alert {alert.id} is about all and has no labels; name some, such as domain=web1")
        return tuple(Label(name, Relation.IS, value) for name, value in sorted(alert.key))

    def silence(self, value: str) -> rows.SilenceRow:
        """Make a silence."""
        wanted: rows.SilenceWanted = build(rows.SilenceWanted, json.loads(value))
        now = self._clock()
        until = now + round(wanted.seconds * 1000)
        made = self._book.silence(tuple(map(condition, wanted.labels)), now, until, wanted.by, wanted.why, now)
        self._changed(())
        return _silence(made)

    def silences(self, value: str) -> list[rows.SilenceRow]:
        """Return the silences that are not over."""
        return [_silence(each) for each in self._book.silences(self._clock())]

    def unsilence(self, value: str) -> None:
        """End a silence."""
        wanted: rows.Named = build(rows.Named, json.loads(value))
        self._book.unsilence(wanted.number, wanted.by, self._clock())
        self._changed(())

    def audit(self, value: str) -> list[rows.AuditRow]:
        """Return the last lines of the audit trail, *value* of them."""
        entries = self._book.audit(min(int(value), 1000))
        return [rows.AuditRow(each.at / 1000, each.who, each.did, each.what) for each in entries]


def _subscription(enrolment: Enrolment, firing: int) -> rows.SubscriptionRow:
    return rows.SubscriptionRow(
        enrolment.number,
        enrolment.owner,
        str(enrolment.subscription),
        enrolment.receivers,
        enrolment.made / 1000,
        firing,
    )


def _silence(silence: Silence) -> rows.SilenceRow:
    labels = tuple(f"{label.name}{label.relation.value}{label.value}" for label in silence.labels)
    return rows.SilenceRow(
        silence.number, labels, silence.since / 1000, silence.until / 1000, silence.owner, silence.why
    )


def _context(series: Series, samples: list[Sample]) -> rows.ContextRow:
    finite = [each for each in samples if rows.number(each.value) is not None]
    values = [each.value for each in finite]
    shown = finite[:: max(-(-len(finite) // _POINTS), 1)]
    return rows.ContextRow(
        series.metric,
        rows.labels(series.endpoint),
        len(samples),
        min(values, default=None),
        max(values, default=None),
        tuple((each.at / 1000, each.value) for each in shown),
    )
