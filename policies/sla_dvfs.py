"""The power management policies of the M-channels paper (section 4.1.1), and the one it compares with.

Each moves the p-state of one domain's virtual CPUs. The broker clamps the steps and gives every
physical CPU the highest p-state among the virtual CPUs that are mapped onto it.

The events are ``sla.epoch`` from the agent in the guest and ``cpu.usage``, the MVM's own view of the
domain, one of each per epoch of 500 ms.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs
from attrs import validators

from mbroker.action import Action, SetFrequency
from mbroker.host import Host
from mbroker.policies.epoch import SlaEpoch, fraction
from mchannel.event import Event

__all__ = ["Basic", "Richer", "TopSpeed", "Utilization"]

_FRACTION = validators.and_(validators.ge(0.0), validators.le(1.0))


def _option(default: float) -> float:
    """Return a field for a fraction that the administrator sets once."""
    checked: float = attrs.field(default=default, kw_only=True, validator=_FRACTION, on_setattr=attrs.setters.frozen)
    return checked


@attrs.define
class TopSpeed:
    """No power management ("No PM"): every domain runs at the fastest p-state."""

    topics: tuple[str, ...] = attrs.field(default=("sla.epoch", "cpu.usage"), init=False)

    def decide(self, event: Event, host: Host) -> Iterator[Action]:
        """Put a domain that runs slower back to the top."""
        if host.level(event.source) != host.top:
            yield SetFrequency(event.source, level=host.top)


@attrs.define
class _Epoch:
    """The two views of one domain's present epoch, each None until it is known."""

    violated: bool | None = None
    low: bool | None = None


@attrs.define
class Basic:
    """One p-state up when the SLA is violated, one down when the CPU has time to spare.

    The SLA is violated in an epoch when more than :attr:`violations` of its requests took longer than
    the one threshold that this policy knows. That is the agent's *soft* threshold (3 ms): were it the
    hard one, Richer could never run slower than Basic, since it does all that Basic does and more,
    yet in the paper (figures 4 and 6) it does, and simulation agrees. To judge by another limit, give
    the agent another soft threshold.

    A violation is acted on at once. A low utilisation waits for the agent's view of the epoch and is
    forgotten when that is a violation, in whichever order the two come. They are paired as they arrive
    and not by number, because a guest's clock may be off. A domain whose agent says nothing keeps its
    speed: without the agent nobody knows whether slower is still fast enough.
    """

    violations: float = _option(0.01)
    """Fraction of an epoch's requests that may be late."""
    utilization: float = _option(0.80)
    """The domain is slowed down below this utilisation, in the MVM's view."""
    topics: tuple[str, ...] = attrs.field(default=("sla.epoch", "cpu.usage"), init=False)
    _epochs: dict[str, _Epoch] = attrs.field(factory=dict[str, _Epoch], init=False)

    def decide(self, event: Event, host: Host) -> Iterator[Action]:
        """Return the step that this view of the epoch, or the two together, ask for."""
        epoch = self._epochs.setdefault(event.source, _Epoch())
        if event.topic == "cpu.usage":
            usage = fraction(event.value)
            if usage is None:
                return
            epoch.low = usage < self.utilization
        else:
            report = SlaEpoch.read(event)
            if report is None:
                return
            violated = self._violated(event.source, report)
            # An epoch whose low utilisation never came is joined with the next, and taints it.
            epoch.violated = violated or bool(epoch.violated)
            if violated:
                yield SetFrequency(event.source, step=+1)
        if epoch.violated is None or epoch.low is None:
            return
        self._epochs[event.source] = _Epoch()
        if epoch.low and not epoch.violated:
            yield SetFrequency(event.source, step=-1)

    def _violated(self, domain: str, report: SlaEpoch) -> bool:
        return report.soft > self.violations


@attrs.define
class _Window:
    """Soft violations in the consecutive epochs that are being recorded for one domain."""

    epochs: int = 0
    soft: int = 0


@attrs.define
class Richer(Basic):
    """Basic on hard violations; soft ones count only when they are frequent.

    Soft violations are recorded for :attr:`window` consecutive epochs. When more than
    :attr:`tolerance` of these had one, that is as good as a hard violation, else they are ignored;
    then the next recording begins.
    """

    window: int = attrs.field(default=10, kw_only=True, validator=validators.ge(1), on_setattr=attrs.setters.frozen)
    """Epochs in a recording: 10 are 5 seconds."""
    tolerance: float = _option(0.30)
    """Fraction of a recording's epochs that may have soft violations."""
    _windows: dict[str, _Window] = attrs.field(factory=dict[str, _Window], init=False)

    def _violated(self, domain: str, report: SlaEpoch) -> bool:
        window = self._windows.setdefault(domain, _Window())
        window.epochs += 1
        window.soft += report.soft > self.violations
        frequent = False
        if window.epochs >= self.window:
            frequent = window.soft > self.tolerance * window.epochs
            del self._windows[domain]
        return frequent or report.hard > self.violations


@attrs.define
class Utilization:
    """What the guest's own ``ondemand`` governor would choose, carried out by the broker.

    The governor sets the p-state of the virtual CPU from the utilisation that the *guest* sees: the
    top above :attr:`utilization`, else the lowest frequency that would keep it there or below. The
    broker does with that p-state what it does with Basic's: a physical CPU takes the highest of its
    virtual CPUs. SLA violations are not looked at.
    """

    utilization: float = attrs.field(
        default=0.80,
        kw_only=True,
        validator=validators.and_(_FRACTION, validators.gt(0.0)),
        on_setattr=attrs.setters.frozen,
    )
    """The governor's threshold, 0.0..1.0."""
    topics: tuple[str, ...] = attrs.field(default=("sla.epoch",), init=False)

    def decide(self, event: Event, host: Host) -> Iterator[Action]:
        """Return the p-state that the guest's governor chooses, when it differs from the present."""
        report = SlaEpoch.read(event)
        if report is None or report.utilization is None:
            return
        present = host.level(event.source)
        busy, level = host.p_states[present] * report.utilization, host.top
        if report.utilization <= self.utilization:
            level = next(level for level, mhz in enumerate(host.p_states) if busy <= self.utilization * mhz)
        if level != present:
            yield SetFrequency(event.source, level=level)
