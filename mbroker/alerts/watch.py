"""Everything between a publisher's samples and the notices of it, without I/O but that of the book and the history.

The caller passes the time and what arrives, and stores the snapshots. An edge is in the book before its samples are in
the history and before their publisher is answered. While the book cannot be written, edges wait in memory, no snapshot
is made, and :attr:`Watch.is_behind` asks the caller to take no more. A kill loses no alert that goes on: what the
history has is matched again, and the book knows what it was told before.
"""

from __future__ import annotations

import itertools
from array import array
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import attrs

from mchannel.packing import Limits, pack, unpack
from mchannel.samples import Declared, Offload, Offloaded, Samples

from . import _edges, catalogue
from .alert import Alert, Enrolment, State
from .book import BookError, Edge
from .doubts import Doubts
from .engine import Fired, TooMuchError
from .gone import Waiting
from .image import SnapshotError
from .intake import Arrived, Bounds, Intake
from .language import Subscription
from .matcher import Matcher
from .offloading import Offloading
from .places import Places
from .sample import SILENT, Sample
from .selector import Endpoint, Series
from .slack import Slack
from .tree import Rule
from .workers import InBroker, Matching

__all__ = ["HEARTBEAT", "Book", "Counts", "History", "Settings", "Watch"]

HEARTBEAT = "broker.heartbeat"
"""A metric of the broker itself: one sample at every tick."""

_VERSION = 2
_LIMITS = Limits(text=16, binary=(1 << 32) - 1, items=6)
_REFRESH = 2  # intervals after which a publisher tells a series although nothing has changed
_MOST_WAITING = 1 << 17  # edges that a book which cannot be written leaves in memory
_MOST_UNSTORED = 1 << 20  # samples that it leaves there: a message of each publisher, and a heartbeat a second
_ALL = 1 << 30  # alerts
_MINUTE = 60_000


class Book(Protocol):
    """What is needed of :class:`mbroker.alerts.book.Book`."""

    def enrol(self, owner: str, subscription: Subscription, receivers: Sequence[str], now: int) -> Enrolment:
        """Note a subscription."""
        ...

    def withdraw(self, number: int, by: str, now: int) -> None:
        """End a subscription."""
        ...

    def enrolments(self) -> list[Enrolment]:
        """Return the subscriptions."""
        ...

    def record(self, edges: Iterable[Edge], now: int) -> list[Alert]:
        """Note what began and ended; return the alerts that this changed."""
        ...

    def resume(self, since: int) -> None:
        """Expect that what was recorded at *since* or later is recorded again."""
        ...

    def alerts(
        self, state: State | None = None, enrolment: int | None = None, since: int | None = None, limit: int = 1000
    ) -> list[Alert]:
        """Return alerts."""
        ...


class History(Protocol):
    """What is needed of :class:`mbroker.alerts.history.History`."""

    def name(self, number: int, series: Series) -> None:
        """Say which series a number is."""
        ...

    def pace(self, number: int, interval: int | None) -> None:
        """Say how often it is read."""
        ...

    def append(self, numbers: array[int], values: array[float], times: array[int]) -> None:
        """Store samples."""
        ...


@attrs.frozen
class Settings:
    """What the operator decides."""

    host: str
    """What the broker's own series are called."""
    hosts: frozenset[str] = frozenset()
    """Sources, besides :attr:`host`, that are hosts; others are domains."""
    groups: Mapping[str, Collection[str]] = attrs.field(factory=dict[str, "tuple[str, ...]"])
    """For each group its members, hosts and domains."""
    interval: int = 10_000
    """Milliseconds between two samples of a series; when three are missing it is silent."""
    longest: int = 1 << 20
    """Samples of one series that windows may hold."""
    broadest: int = 100_000
    """Series that one comparison may find."""
    bounds: Bounds = attrs.field(factory=Bounds)
    forget: int = 86_400_000
    """Milliseconds without a sample after which a series is forgotten, unless an alert needs it or a rule waits."""
    late: int = 0
    """Milliseconds that each sample waits, so that those which come late, but no later, are matched in order."""
    offload: bool = False
    """Whether publishers are asked to hold back samples that change no alert; the history lacks those."""


@attrs.frozen
class Counts:
    """How it is doing."""

    subscriptions: int
    rules: int
    """Different ones: equal subscriptions are matched once."""
    series: int
    samples: int
    """Since the start."""
    refused: int
    """Samples and series, since the start."""


@attrs.define
class _Followed:
    """A rule that the engine follows, and for whom: those who subscribed to the same."""

    number: int
    rule: Rule
    takers: dict[int, Enrolment] = attrs.field(factory=dict[int, Enrolment])


class Watch:
    """Follows all subscriptions of the book over all samples that arrive."""

    def __init__(
        self,
        settings: Settings,
        book: Book,
        history: History,
        now: int,
        image: bytes = b"",
        matching: Matching | None = None,
    ) -> None:
        """Go on from *image*, a snapshot; when it is missing or of no use, windows begin empty.

        *matching* makes what matches, by default one engine in this thread; it is not closed here.
        What came after :attr:`since`, the time of the snapshot, is for :meth:`replay`; :attr:`spans` tells what before.
        """
        self._anew = ""
        self._is_restored = False
        self.settings = settings
        self._matching = matching or InBroker()
        self._slack = Slack(settings.late)
        self._silent = Waiting(settings.forget, settings.interval)
        self._book = book
        self._history = history
        self.since, self._matcher = self._restored(image, now)
        hosts = settings.hosts | {settings.host}
        self._intake = Intake(hosts, self._number, self._pace, groups=settings.groups, bounds=settings.bounds)
        self._offloading = Offloading(_REFRESH * settings.interval) if settings.offload else None
        self._followed = dict[Rule, _Followed]()
        for number, rule in self._matcher.rules.items():
            if rule in self._followed:  # once it is the opposite of another
                self._matcher.remove(number)
            else:
                self._followed[rule] = _Followed(number, rule)
        for rule, followed in self._followed.items():
            self._silent.follow(rule)
            if self._offloading is not None:
                self._offloading.follow(followed.number, rule)
        self._rules = {followed.number: followed for followed in self._followed.values()}
        self._takers: dict[int, list[int]] = {}  # by rules, for each edge needs them
        self._doubts = Doubts(self._matcher)
        self._enrolments: dict[int, Rule] = {}
        for enrolment in book.enrolments():
            try:
                self._follow(enrolment)
            except TooMuchError as error:  # it was made when more was allowed
                self._anew = f"subscription {enrolment.number} is not followed: {error}"
        for rule in [rule for rule, followed in self._followed.items() if not followed.takers]:
            self._leave(rule)
        self._waiting: list[Edge] = []
        self._unstored = Arrived.none()  # what made them, and what came after it
        self._unwritten = ""
        self._dropped = 0
        self._news: list[str] = []
        self._began: dict[tuple[int, Endpoint], int] = {}
        self._unsettled: int | None = now + SILENT * settings.interval
        self._looked = now  # for series that are gone
        self._knows = False  # of all series what they did since the start
        for alert in book.alerts(State.FIRING, limit=_ALL):
            if alert.enrolment in self._enrolments:
                followed = self._followed[self._enrolments[alert.enrolment]]
                self._doubts.look(followed.number, followed.rule)
        self._samples = 0
        self._heart = self._number(Series(HEARTBEAT, Endpoint({("host", settings.host)})))

    @property
    def problem(self) -> str:
        """What the operator should look into, in one line; empty when there is nothing."""
        if self._waiting:
            dropped = f", {self._dropped} more were dropped" if self._dropped else ""
            return f"{len(self._waiting)} begins and ends of alerts are not stored yet{dropped}: {self._unwritten}"
        return self._anew or self._matcher.problem

    @property
    def is_behind(self) -> bool:
        """Whether the book lacks what happened, so that samples should wait; :meth:`tick` tries again to write it."""
        return bool(self._waiting)

    @property
    def spans(self) -> dict[str, int]:
        """For each metric that rules read how many milliseconds of its past matter to them, if windows began anew.

        The heartbeat is one: it tells how far the broker was.
        """
        found = {} if self._is_restored else self._silent.spans
        return {**found, HEARTBEAT: max(found.values())} if found else {}

    @property
    def places(self) -> Places:
        """The series that there are."""
        return self._matcher.places

    # -- what arrives

    def declare(self, source: str, declared: Declared, now: int) -> list[Alert]:
        """Take note of the series of a publisher; *source* is who the channel says it is.

        Returns the alerts that began or ended, by samples that waited for it.
        """
        waited = self._intake.declare(source, declared, now)
        return [alert for columns in waited for alert in self._take(columns, now)]

    def samples(self, source: str, samples: Samples, now: int) -> list[Alert]:
        """Match and store samples; return the alerts that began or ended."""
        return self._take(self._intake.columns(source, samples, now), now)

    def offers(self, source: str, samples: Samples, now: int) -> Offload | None:
        """Return what the publisher of these *samples* should compare itself from now on; None to leave it as it is."""
        if self._offloading is None or not self._offloading.count(source, samples, now):
            return None
        declared = self._intake.declared(source, samples.run)
        return self._offloading.offer(source, samples.run, now, declared)

    def offloaded(self, source: str, answer: Offloaded) -> None:
        """Take note of what a publisher says of an offer."""
        if self._offloading is not None and not answer.cuts:
            self._offloading.given_back(source, answer.run)

    def asks_again(self, source: str, now: int) -> bool:
        """Tell whether the publishers of *source* should declare their series again."""
        return self._intake.asks_again(source, now)

    def tick(self, now: int) -> list[Alert]:
        """Do what time alone asks for, about once a second; return the alerts that began or ended."""
        changed = self._take(Arrived(array("I", [self._heart]), array("d", [1.0]), array("q", [now])), now)
        if self._unsettled is not None and now >= self._unsettled:
            self._unsettled = None
            changed += self._record(self._differences(now), now)
            self._knows = True
        if self._unsettled is None and now - self._looked >= _MINUTE:
            self._looked = now
            self._forget(now)
        return changed

    def _forget(self, now: int) -> None:
        """Know no longer some of the series of which nothing was heard for long."""
        unheard = self._silent.over(self._matcher.unheard(now - self.settings.forget), self._matcher.places.series, now)
        waiting = self._slack.numbers.union(self._unstored.numbers)
        gone = self._matcher.forget([number for number in unheard if number not in waiting])
        self._silent.drop(gone)
        self._intake.forget(gone)

    def complaints(self, now: int) -> Iterator[str]:
        """Yield, once a minute, what was refused of whom; and what a book that could not be written lacks."""
        news, self._news = self._news, []
        return itertools.chain(news, self._intake.complaints(now))

    # -- who is told

    def review(self, subscription: Subscription) -> tuple[str, ...]:
        """Return what whoever wants to subscribe should know; raises as :func:`.catalogue.review`."""
        catalogue.check_windows(subscription, self.settings.longest)
        return catalogue.review(subscription, self._matcher.places, self.settings.groups, self.settings.broadest)

    def enrol(
        self, owner: str, subscription: Subscription, receivers: Sequence[str], now: int
    ) -> tuple[Enrolment, list[Alert]]:
        """Follow *subscription* from now on; return it, and the alerts that fire already.

        Raises what :meth:`review` does, :exc:`.engine.TooMuchError`, and :exc:`.book.BookError`; then nothing was
        changed.
        """
        self.review(subscription)
        rule = subscription.canonical().rule
        known = self._followed.get(rule)
        followed = known or self._add(rule)  # what fires at once will be among the edges of the next tick
        try:
            enrolment = self._book.enrol(owner, subscription, receivers, now)
        except BaseException:
            if known is None:
                self._leave(rule)
            raise
        self._note(followed, enrolment)
        firing = self._matcher.firing(known.number) if known else ()
        return enrolment, self._record([Edge(enrolment.number, key, True, now) for key in firing], now)

    def withdraw(self, number: int, by: str, now: int) -> None:
        """Follow that subscription no longer; raises :exc:`.book.NotThere` and :exc:`.book.BookError`."""
        self._book.withdraw(number, by, now)
        rule = self._enrolments.pop(number, None)
        if rule is None:  # it could not be followed
            return
        followed = self._followed[rule]
        del followed.takers[number]
        self._takers[followed.number].remove(number)
        if not followed.takers:
            self._leave(rule)

    def enrolment(self, number: int) -> Enrolment | None:
        """Return the subscription of that number; None if there is none."""
        rule = self._enrolments.get(number)
        return None if rule is None else self._followed[rule].takers[number]

    def enrolments(self) -> Iterator[tuple[Enrolment, int]]:
        """Yield the subscriptions, oldest first, each with how many of its alerts fire."""
        for number, rule in sorted(self._enrolments.items()):
            followed = self._followed[rule]
            yield followed.takers[number], len(self._matcher.firing(followed.number))

    @property
    def counts(self) -> Counts:
        """How it is doing."""
        return Counts(
            subscriptions=len(self._enrolments),
            rules=len(self._followed),
            series=len(self._matcher.places),
            samples=self._samples,
            refused=self._intake.refused,
        )

    # -- living through a restart

    def snapshot(self, now: int) -> bytes:
        """Return what to start from again; empty while the book lacks what the engine has seen."""
        if self._waiting:
            return b""
        self._anew = ""
        return pack((*self._form, now, self._matcher.save()))

    def replay(self, samples: Iterable[Sample], now: int, intervals: Mapping[Series, int] | None = None) -> None:
        """Let the engine see, in the order of time, what was stored since the snapshot; nobody is told of it yet.

        *intervals* are those of series that are not read as often as usual, in milliseconds.
        What it saw before the snapshot it drops as late. Samples that waited are in the history, and wait again: as far
        as the broker's clock was, which its heartbeats tell, what they made happen is in the book, and no further.
        """
        paced = dict(intervals or {})
        for series, interval in paced.items():
            known = self._matcher.places.find(series)
            if known is not None:
                self._silent.pace(known, interval)
        heard = self.since if self._is_restored else 0
        for second, batch in itertools.groupby(samples, lambda sample: sample.at // 1000):
            clock = min(max(self.since, 1000 * (second + 1)), now)
            columns = Arrived.none()
            for sample in batch:
                number = self._matcher.number(sample.series)
                if paced and sample.series in paced:
                    interval = paced.pop(sample.series)
                    self._matcher.pace(number, interval)
                    self._silent.pace(number, interval)
                columns.numbers.append(number)
                columns.values.append(sample.value)
                columns.times.append(sample.at)
                if columns.numbers[-1] == self._heart:
                    heard = max(heard, sample.at)
            fired = self._matcher.push(clock, *self._in_order(columns, heard))
            self._began.update(((each.rule, each.key), each.at) for each in fired)
        self._book.resume(heard)

    def _restored(self, image: bytes, now: int) -> tuple[int, Matcher]:
        if image:
            try:
                found = self._unpacked(image)
            except (SnapshotError, ValueError, TypeError) as error:
                self._anew = f"the engine's snapshot cannot be used, so that windows begin anew: {error}"
            else:
                self._is_restored = True
                return found
        return now, self._matching.fresh(now, interval=self.settings.interval, longest=self.settings.longest)

    @property
    def _form(self) -> tuple[int, str, int, int]:
        """What snapshots must have in common."""
        return _VERSION, self._matching.form, self.settings.interval, self.settings.longest

    def _unpacked(self, image: bytes) -> tuple[int, Matcher]:
        said: Any = unpack(image, _LIMITS)
        *form, since, matcher = said
        if tuple(form) != self._form:
            raise ValueError("it was made by another version, or with another interval, longest or shards")
        return int(since), self._matching.load(matcher)

    def _differences(self, now: int) -> list[Edge]:
        """Return the edges between what the book says and what the engine found, where one lacks some.

        What fires by the book fires on until the engine finds that it does not: until windows are full, and ``for``
        is over, it cannot tell. What began and ended while nobody looked is not known.
        """
        told: defaultdict[int, set[Endpoint]] = defaultdict(set)
        for alert in self._book.alerts(State.FIRING, limit=_ALL):
            told[alert.enrolment].add(alert.key)
        edges: list[Edge] = []
        for followed in self._rules.values():
            firing = self._matcher.firing(followed.number)
            for number in followed.takers:
                begun = [(key, self._began.get((followed.number, key), now)) for key in firing - told[number]]
                edges += [Edge(number, key, True, at) for key, at in begun]
            missed = set[Endpoint]().union(*(told[number] for number in followed.takers)) - firing
            if self._knows:
                ended = missed - self._doubts.at(followed.number)
                edges += [Edge(number, key, False, now) for key in ended for number in followed.takers]
                missed -= ended
            self._doubts.put(followed.number, followed.rule, missed)
        self._began.clear()
        edges += self._edges(self._matched(Arrived.none(), now))
        false = [(self._rules[number], key) for number, key in self._doubts.false()]
        return edges + [Edge(number, key, False, now) for followed, key in false for number in followed.takers]

    # -- the way of a sample

    def _take(self, columns: Arrived, now: int) -> list[Alert]:
        """Match, note in the book, and only then store: what the history has is not told any more after a kill."""
        self._silent.hear(columns.numbers)
        if self._unsettled is not None:  # soon after a restart all have been silent: what that makes is not told
            passed = self._matcher.tick(now)
            self._began.update(((each.rule, each.key), each.at) for each in passed if each.firing)
        changed = self._record(self._edges(self._matched(columns, now)), now)
        if not self._waiting:
            self._history.append(columns.numbers, columns.values, columns.times)
        elif len(self._unstored) + len(columns) <= _MOST_UNSTORED:
            self._unstored.extend(columns)
        self._samples += len(columns)
        return changed

    def _matched(self, columns: Arrived, now: int) -> list[Fired]:
        """Match samples that arrive, or those that waited long enough; return the edges, of time alone too."""
        return self._matcher.push(now, *self._in_order(columns, now))

    def _in_order(self, columns: Arrived, now: int) -> tuple[array[int], array[float], array[int]]:
        if not self._slack.length:
            return columns.numbers, columns.values, columns.times
        self._slack.put(columns.numbers, columns.values, columns.times)
        return self._slack.due(now)

    def _edges(self, fired: list[Fired]) -> list[Edge]:
        return _edges.edges(Edge, self._doubts.settled(fired) if len(self._doubts) else fired, self._takers)

    def _record(self, edges: list[Edge], now: int) -> list[Alert]:
        """Note *edges* in the book, or keep them until it can be written."""
        if not edges and not self._waiting:
            return []
        self._waiting += edges
        try:
            changed = self._book.record(self._waiting, now)
        except BookError as error:
            self._dropped += len(self._waiting[_MOST_WAITING:])
            del self._waiting[_MOST_WAITING:]
            self._unwritten = str(error)
            return []
        self._waiting.clear()
        unstored, self._unstored = self._unstored, Arrived.none()
        if unstored:
            self._history.append(unstored.numbers, unstored.values, unstored.times)
        if self._dropped:
            self._anew = (
                f"{self._dropped} begins and ends of alerts were dropped while the book could not be written; what "
                "fires, and what does not any more, is told late"
            )
            self._news.append(self._anew)
            self._dropped = 0
            self._unsettled = now if self._unsettled is None else self._unsettled
        return changed

    def _number(self, series: Series) -> int:
        number = self._matcher.number(series)
        self._history.name(number, series)
        return number

    def _pace(self, number: int, interval: int | None) -> None:
        self._matcher.pace(number, interval)
        self._silent.pace(number, interval)
        self._history.pace(number, interval)

    # -- rules

    def _follow(self, enrolment: Enrolment) -> None:
        rule = enrolment.subscription.canonical().rule
        self._note(self._followed.get(rule) or self._add(rule), enrolment)

    def _note(self, followed: _Followed, enrolment: Enrolment) -> None:
        followed.takers[enrolment.number] = enrolment
        self._takers.setdefault(followed.number, []).append(enrolment.number)
        self._enrolments[enrolment.number] = followed.rule

    def _add(self, rule: Rule) -> _Followed:
        followed = self._followed[rule] = _Followed(self._matcher.add(rule), rule)
        self._rules[followed.number] = followed
        self._silent.follow(rule)
        if self._offloading is not None:
            self._offloading.follow(followed.number, rule)
        return followed

    def _leave(self, rule: Rule) -> None:
        followed = self._followed.pop(rule)
        self._doubts.trust(followed.number)
        del self._rules[followed.number]
        self._takers.pop(followed.number, None)
        self._silent.leave(rule)
        if self._offloading is not None:
            self._offloading.leave(followed.number, rule)
        self._matcher.remove(followed.number)
