"""Feedback on the 99th percentile of the response time, with hysteresis and back-off."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
from attrs import validators

from mbroker.action import Action, Notify, SetFrequency, Severity
from mbroker.host import Host
from mbroker.policies.epoch import SlaEpoch, fraction
from mchannel.event import Event

__all__ = ["Adaptive"]

_LONG_BACKOFF = 16  # times the patience: 32 s with the defaults


@attrs.define
class _Control:
    """What is remembered of one domain."""

    usage: float | None = None  # the MVM's view, else the guest's
    quiet: int = 0  # epochs in a row that would do with less
    held: int = 0  # epochs since the last move or violation
    backoff: int = 1  # by how much longer than usual it must be quiet
    alerted: bool = False  # the operator knows that the agent is silent


@attrs.define(kw_only=True)
class Adaptive:
    """Fast up, slow down, and slower still where slowing down was a mistake.

    *Up* when p99 exceeds the target: one p-state, or straight to the one that brings the utilisation
    down to :attr:`relaxed` with 15 % to spare, whichever is faster. *Down* by one p-state after
    :attr:`patience` quiet epochs: p99 below :attr:`margin` of the target, and the next slower p-state
    would run below :attr:`ceiling`. The two conditions leave a band in which nothing moves. A violation
    below the top within 20 epochs of a move doubles the patience, up to 16 times; 120 epochs without
    either reset it. One at the top, where nothing is left to do, says nothing against slowing down later.

    *Silence*: an agent that misses :attr:`hold` epochs changes nothing. Beyond that what it said before
    no longer counts towards slowing down. At :attr:`silence` epochs the domain goes to the top and the
    operator is told once. When the agent speaks again, control goes on from the top.
    """

    target_ms: float | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    """Limit for p99 in milliseconds; None takes the hard threshold that the agent reports."""
    margin: float = attrs.field(default=0.6, validator=[validators.gt(0), validators.le(1)])
    """Fraction of the target below which p99 is quiet."""
    ceiling: float = attrs.field(default=0.70, validator=[validators.gt(0), validators.le(1)])
    """Highest utilisation that is acceptable after a step down."""
    relaxed: float = attrs.field(default=0.75, validator=[validators.gt(0), validators.le(1)])
    """Utilisation that a jump after a violation aims at."""
    patience: int = attrs.field(default=4, validator=validators.ge(1))
    """Quiet epochs before a step down."""
    hold: int = attrs.field(default=3, validator=validators.ge(0))
    """Epochs of silence that mean nothing."""
    silence: int = attrs.field(default=10, validator=validators.ge(1))
    """Epochs of silence after which the domain is put to the top."""
    topics: tuple[str, ...] = attrs.field(default=("sla.epoch", "cpu.usage", "agent.silent"), init=False)
    _domains: dict[str, _Control] = attrs.field(factory=dict[str, _Control], init=False)

    def decide(self, event: Event, host: Host) -> Iterator[Action]:
        """Return what the agent's report, or its silence, asks for; ``cpu.usage`` is only remembered."""
        control = self._domains.setdefault(event.source, _Control())
        if event.topic == "cpu.usage":
            control.usage = fraction(event.value)
        elif event.topic == "agent.silent":
            yield from self._silent(control, event, host)
        elif report := SlaEpoch.read(event):
            control.alerted = False
            yield from self._adjust(control, report, event.source, host)

    def _adjust(self, control: _Control, report: SlaEpoch, domain: str, host: Host) -> Iterator[Action]:
        target = self.target_ms or report.hard_ms or 6.0
        p99 = report.p99_ms or 0.0
        usage = control.usage if control.usage is not None else report.utilization
        present, mhz = host.level(domain), host.p_states
        control.held += 1
        if p99 > target:
            needed = 1.15 * (usage or 0.0) * mhz[present] / self.relaxed
            enough = next((level for level, speed in enumerate(mhz) if speed >= needed), host.top)
            if present < host.top and control.held <= 20:
                control.backoff = min(2 * control.backoff, _LONG_BACKOFF)
            control.held = control.quiet = 0
            if present < host.top:
                yield SetFrequency(domain, level=max(present + 1, enough))
            return
        if control.held > 120:
            control.backoff = 1
        slower = present > 0 and usage is not None and usage * mhz[present] / mhz[present - 1] < self.ceiling
        control.quiet = control.quiet + 1 if slower and p99 < self.margin * target else 0
        if control.quiet >= self.patience * control.backoff:
            control.held = control.quiet = 0
            yield SetFrequency(domain, level=present - 1)

    def _silent(self, control: _Control, event: Event, host: Host) -> Iterator[Action]:
        epochs = event.value if isinstance(event.value, int) else 0
        if epochs > self.hold:
            control.quiet = 0
        if epochs < self.silence:
            return
        if host.level(event.source) != host.top:
            yield SetFrequency(event.source, level=host.top)
        if not control.alerted:
            control.alerted = True
            text = f"no word from the SLA agent of {event.source} for {epochs} epochs; running it at top speed"
            yield Notify(event.source, text, Severity.WARNING)
