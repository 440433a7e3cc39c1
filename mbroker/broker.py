"""The broker without I/O: an event goes in, the actions that its policies ask for come out.

Nothing here reads a clock, a file or a socket: the caller passes the time. :mod:`mbroker.serve`
puts channels before it and actuators behind it, :mod:`mbroker.replay` a recorded trace.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeGuard

import attrs

from mbroker.action import Action, Notify, SetFrequency, SetPState, Severity
from mbroker.host import Host
from mbroker.policy import Interruptible, Policy, topics_of
from mchannel.bucket import TokenBucket
from mchannel.errors import AuthenticationError
from mchannel.event import Event

__all__ = ["RESERVED_TOPICS", "Broker", "Budget", "Hosted", "PolicyReport", "Stats", "attributed", "one_line"]

RESERVED_TOPICS = ("agent.", "alert.", "broker.", "control.", "cpu.")
"""Topics that only the host itself may speak: what it measured or noticed, and its own control."""

MAX_ACTIONS = 64
"""Most actions that one policy may ask for at one event."""

ISOLATED_SECONDS = 1.0
"""Most time that policies in processes of their own may together take at one event."""

_FIRST_BENCH = 1.0
_LONGEST_BENCH = 3600.0
_MAX_TEXT = 500


def attributed(event: Event, domain: str) -> Event:
    """Return *event* as said by *domain*, whatever it claimed to be; *domain* comes from the channel.

    Raises :exc:`~mchannel.errors.AuthenticationError` for a topic of :data:`RESERVED_TOPICS`: a
    guest that could say ``cpu.usage`` would choose its own clock speed.
    """
    if event.topic.startswith(RESERVED_TOPICS):
        raise AuthenticationError(f"only the host itself says {event.topic.split('.')[0]}.*, not {domain}")
    return event if event.source == domain else attrs.evolve(event, source=domain)


@attrs.frozen
class Budget:
    """How many actions one domain may cause: a token bucket."""

    rate: float = attrs.field(default=4.0, validator=attrs.validators.gt(0))
    """Actions a second in the long run. The paper's epochs ask for at most two to four."""
    burst: int = attrs.field(default=16, validator=attrs.validators.gt(0))
    """Actions at once."""


@attrs.frozen(eq=False)
class Hosted:
    """A policy and the terms on which the broker hosts it."""

    policy: Policy
    name: str = attrs.field(default=attrs.Factory(lambda self: type(self.policy).__name__, takes_self=True))
    host_wide: bool = False
    """May act on every domain and on physical CPUs; others only on the domain of their event."""
    trusted: bool = True
    """Runs inside the broker's process: it can be blamed afterwards, not interrupted."""
    deadline: float = attrs.field(default=1.0, validator=attrs.validators.gt(0))
    """Seconds that one decision may take; ``math.inf`` for a replay, where time is not real."""
    entry: str = ""
    """The entry point that it was made from; empty when it was made by hand."""


@attrs.frozen
class PolicyReport:
    """How a policy has been doing since the broker started."""

    name: str
    entry: str
    """The entry point that it was made from, as :attr:`Hosted.entry`."""
    topics: tuple[str, ...]
    trusted: bool
    """Whether it runs inside the broker's process, as :attr:`Hosted.trusted`."""
    events: int
    """Events that it decided about."""
    skipped: int
    """Events that passed while it was benched, or when others had used up the time."""
    actions: int
    failures: int
    """Decisions that raised, were no actions, touched what they may not, or came too late."""
    slowest: float
    """Seconds that its slowest decision took, failed ones included."""
    benched_for: float
    """Seconds until it is asked again; 0 when it is in play."""
    error: str
    """The last failure in one line; empty when there was none."""


@attrs.frozen
class Stats:
    """What went through the broker since it started."""

    events: int = 0
    actions: int = 0
    over_budget: int = 0
    """Actions dropped because their domain had spent its budget."""


@attrs.define
class _Seat:
    """The broker's book-keeping for one policy."""

    hosted: Hosted
    topics: tuple[str, ...]
    events: int = 0
    skipped: int = 0
    actions: int = 0
    failures: int = 0
    took: float = 0.0
    """Seconds that its last decision took."""
    slowest: float = 0.0
    error: str = ""
    strikes: int = 0
    benched_until: float = -math.inf

    def bench(self, now: float, error: str) -> float:
        """Note a failure; return for how many seconds the policy is not asked."""
        if now - self.benched_until > 2 * self._bench():  # behaved for twice as long as it was out
            self.strikes = 0
        self.strikes += 1
        self.failures += 1
        self.error = error
        self.benched_until = now + self._bench()
        return self._bench()

    def _bench(self) -> float:
        return min(_FIRST_BENCH * 2.0 ** (min(self.strikes, 32) - 1), _LONGEST_BENCH)


@attrs.define
class _Account:
    """What is left of one domain's budget."""

    left: TokenBucket
    told: bool = False
    """Whether the operator knows that it ran dry; forgotten once it is half full again."""


class _BadDecision(Exception):
    """A policy's answer is not something that it may ask for."""


def one_line(error: BaseException) -> str:
    """Return the kind of *error* and what it says, which a policy's own class may refuse to say."""
    try:
        text = " ".join(str(error).split())[:_MAX_TEXT]
    except BaseException:
        return type(error).__name__
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Broker:
    """Hosts policies for one host.

    Every action is resolved against the present picture of the host (steps become levels), clamped
    to its p-states, dropped when it changes nothing, and charged to its domain's :class:`Budget`.
    A physical CPU runs at the maximum over the virtual CPUs mapped onto it (M-channels, section
    4.1.1): where that changes, a :class:`~mbroker.action.SetPState` follows.

    A policy acts only on the domain of the event that it was asked about, unless it is hosted
    ``host_wide``. One that raises, answers with anything else than actions, or takes longer than its
    deadline loses that decision and is benched for 1, 2, 4 ... 3600 seconds; the others go on. Policies
    in processes of their own take one second together at most: who comes after that is skipped.
    """

    def __init__(
        self,
        host: Host,
        policies: Iterable[Policy | Hosted] = (),
        *,
        budget: Budget | None = None,
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Host *policies*; *stopwatch* only measures how long their decisions take.

        Raises :exc:`ValueError` for two policies of one name, :exc:`TypeError` for what is no policy.
        """
        self._host = host
        self._cpu_levels = host.cpu_levels()
        self._budget = budget or Budget()
        self._stopwatch = stopwatch
        self._seats: dict[str, _Seat] = {}
        self._accounts: dict[str, _Account] = {}
        self._before: dict[str, int] = {}
        self._stats = Stats()
        for policy in policies:
            hosted = policy if isinstance(policy, Hosted) else Hosted(policy)
            try:
                topics = topics_of(hosted.policy)
            except TypeError as error:
                raise TypeError(f"policy {hosted.name} cannot be asked: {error}") from None
            if hosted.name in self._seats:
                raise ValueError(f"two policies are named {hosted.name!r}: give one another name")
            self._seats[hosted.name] = _Seat(hosted, topics)

    @property
    def host(self) -> Host:
        """The present picture of the host."""
        return self._host

    @property
    def stats(self) -> Stats:
        """What went through since the start."""
        return self._stats

    def observe(self, host: Host) -> None:
        """Take over a new picture of the host: domains came, went, or moved to other CPUs."""
        self._host = host
        self._cpu_levels = host.cpu_levels()

    def handle(self, event: Event, now: float | None = None) -> list[Action]:
        """Return what is to be done about *event*, in order.

        *event* must be :func:`attributed`. *now* is the time in seconds of any clock that does not
        go back, for budgets and benches; without it ``event.at`` is taken, as a replay wants. Live
        callers pass their own clock: a guest's ``at`` is only a claim. Never raises for what a
        policy does.
        """
        now = event.at if now is None else now
        self._before.clear()
        actions: list[Action] = []
        over_budget, left = 0, ISOLATED_SECONDS
        for seat in self._seats.values():
            if seat.topics and not event.topic.startswith(seat.topics):
                continue
            interruptible = isinstance(seat.hosted.policy, Interruptible)
            if now < seat.benched_until or (interruptible and left <= 0):
                seat.skipped += 1
                continue
            decision = self._ask(seat, event, now, left, actions)
            if interruptible:
                left -= seat.took
            for action in decision:
                effective = self._effective(action)
                if effective is None:
                    continue
                if self._charge(_domain_of(effective, event), now, actions):
                    self._note(effective)
                    seat.actions += 1
                    actions.append(effective)
                else:
                    over_budget += 1
        actions.extend(self._cpu_changes(actions))
        self._stats = Stats(
            self._stats.events + 1,
            self._stats.actions + len(actions),
            self._stats.over_budget + over_budget,
        )
        return actions

    def failed(self, action: Action) -> None:
        """Say that *action* of the last event could not be carried out: the level before it is in force."""
        if isinstance(action, SetFrequency) and action.domain in self._before:
            self._host = self._host.with_level(action.domain, self._before.pop(action.domain))
            self._cpu_levels = self._host.cpu_levels()

    def reports(self, now: float = -math.inf) -> tuple[PolicyReport, ...]:
        """Return how each policy is doing; *now* as for :meth:`handle`."""
        return tuple(
            PolicyReport(
                name,
                seat.hosted.entry,
                seat.topics,
                seat.hosted.trusted,
                seat.events,
                seat.skipped,
                seat.actions,
                seat.failures,
                seat.slowest,
                max(0.0, seat.benched_until - now) if math.isfinite(now) else 0.0,
                seat.error,
            )
            for name, seat in self._seats.items()
        )

    def _ask(self, seat: _Seat, event: Event, now: float, left: float, aside: list[Action]) -> list[Action]:
        """Return the policy's decision; none, and a word to the operator in *aside*, when it failed."""
        hosted = seat.hosted
        seat.events += 1
        try:
            decision = self._decide(seat, event, left)
            if seat.took > hosted.deadline:
                raise _BadDecision(f"took {seat.took:.3f} s, its deadline is {hosted.deadline:g} s")
            if len(decision) > MAX_ACTIONS:
                raise _BadDecision(f"asked for more than {MAX_ACTIONS} actions at one event")
            for action in decision:
                _check(action, event, hosted.host_wide)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a policy does, sys.exit() too, is its own failure
            reason = str(error) if isinstance(error, _BadDecision) else one_line(error)
            seconds = seat.bench(now, reason)
            text = f"policy {hosted.name} failed at {event.topic[:100]}: {reason}; not asked for {seconds:g} s"
            aside.append(Notify(self._host.name, text))
            return []
        return decision

    def _decide(self, seat: _Seat, event: Event, left: float) -> list[Action]:
        """Return what the policy answers; how long that took is noted even when it raises."""
        policy = seat.hosted.policy
        began = self._stopwatch()
        try:
            if isinstance(policy, Interruptible):
                answer = policy.decide_within(event, self._host, left)
            else:
                answer = policy.decide(event, self._host)
            return list(islice(answer, MAX_ACTIONS + 1))
        finally:
            seat.took = self._stopwatch() - began
            seat.slowest = max(seat.slowest, seat.took)

    def _effective(self, action: Action) -> Action | None:
        """Return *action* with its step resolved and clamped; None when it would change nothing."""
        top = self._host.top
        if isinstance(action, SetFrequency):
            present = self._host.level(action.domain)
            wanted = present + action.step if action.level is None else action.level
            level = min(max(wanted, 0), top)
            return None if level == present else SetFrequency(action.domain, level=level)
        if isinstance(action, SetPState):
            return attrs.evolve(action, level=min(max(action.level, 0), top))
        return action

    def _note(self, action: Action) -> None:
        if isinstance(action, SetFrequency) and action.level is not None:
            self._before.setdefault(action.domain, self._host.level(action.domain))
            self._host = self._host.with_level(action.domain, action.level)

    def _charge(self, domain: str, now: float, aside: list[Action]) -> bool:
        """Charge one action to *domain*; when its budget is spent, say so once to the operator in *aside*."""
        budget = self._budget
        account = self._accounts.get(domain)
        if account is None:
            account = self._accounts[domain] = _Account(TokenBucket(budget.rate, budget.burst))
        if account.left.take(now):
            account.told = account.told and account.left.tokens < budget.burst / 2
            return True
        if not account.told:
            account.told = True
            text = f"{domain}: more than {budget.rate:g} actions a second; what exceeds is dropped"
            aside.append(Notify(domain, text))
        return False

    def _cpu_changes(self, actions: list[Action]) -> Iterator[SetPState]:
        """Yield the p-states of physical CPUs whose maximum over their virtual CPUs changed."""
        if not any(isinstance(action, SetFrequency) for action in actions):
            return
        before, self._cpu_levels = self._cpu_levels, self._host.cpu_levels()
        changed: dict[int, list[int]] = {}
        for cpu, level in self._cpu_levels.items():
            if before[cpu] != level:
                changed.setdefault(level, []).append(cpu)
        for level, cpus in sorted(changed.items()):
            yield SetPState(tuple(sorted(cpus)), level)


def _domain_of(action: Action, event: Event) -> str:
    """Return whose budget pays; what is about physical CPUs is paid by the domain that caused it."""
    return event.source if isinstance(action, SetPState) else action.domain


def _check(action: object, event: Event, host_wide: bool) -> None:
    """Raise unless *action* is a well-formed action that the policy may ask for at *event*."""
    match action:
        case SetFrequency(domain=str(domain), step=step, level=level):
            if not _is_int(step) or not (level is None or _is_int(level)):
                raise _BadDecision("SetFrequency: step and level must be whole numbers")
        case Notify(domain=str(domain), text=str(text), severity=Severity()):
            if len(text) > _MAX_TEXT:
                raise _BadDecision(f"Notify: the text has more than {_MAX_TEXT} characters")
        case SetPState(cpus=tuple(cpus), level=level):
            if not host_wide:
                raise _BadDecision("asked for SetPState: only a policy hosted host_wide acts on physical CPUs")
            if not cpus or not all(_is_int(cpu) and cpu >= 0 for cpu in cpus) or not _is_int(level):
                raise _BadDecision("SetPState: cpus must be numbers of physical CPUs, and level a whole number")
            return
        case _:
            raise _BadDecision(f"answered with {type(action).__name__}, which is no action")
    if domain != event.source and not host_wide:
        raise _BadDecision(f"acted on {domain[:100]!r} at an event of {event.source!r}, and is not host_wide")


def _is_int(value: object) -> TypeGuard[int]:
    return type(value) is int  # one of a class of its own could raise when it is reckoned with
