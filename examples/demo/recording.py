"""What is recorded of one policy's run, and what it is summed up to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from mbroker.action import Action
from mbroker.host import Host
from mchannel.event import Event

__all__ = ["Epoch", "Recording", "Summary", "host_power"]

# The host's power is modelled: a share that no p-state changes, and one that follows frequency times voltage
# squared. The voltages are those of the p-states of processors like the paper's.
_VOLTS = {1000: 1.10, 1800: 1.20, 2000: 1.25, 2200: 1.30, 2400: 1.35}
_CONSTANT = 0.70


def host_power(level: int, p_states: Sequence[int]) -> float:
    """Return the modelled power of the host at *level*, relative to that at the top."""
    dynamic = [mhz * _VOLTS[mhz] ** 2 for mhz in p_states]
    return _CONSTANT + (1.0 - _CONSTANT) * dynamic[level] / dynamic[-1]


@attrs.frozen
class Epoch:
    """One epoch of 500 ms, as the agent reported it."""

    seconds: float
    """When it ended, after the start of the load."""
    level: int
    """The level that was decided on at its end."""
    requests: int
    violations: int
    """Requests over the hard threshold."""
    p99_ms: float | None
    power: float
    """Modelled power during the epoch, relative to top speed."""


@attrs.frozen
class Summary:
    """The figures of one policy."""

    requests: int
    violations: int
    transitions: int
    """How often the level changed."""
    mean_level: float
    energy_saving_pct: float
    """Modelled, against top speed throughout."""
    levels: tuple[int, ...]
    """Epoch by epoch."""
    energy: str = attrs.field(default="modelled", init=False)
    """Where the figure of energy comes from; stands beside it wherever it is printed."""


@attrs.define(eq=False)
class Recording:
    """Hosted by the broker after the policy, as a policy that asks for nothing: it sees what that one sees and did."""

    name: str
    start: float = 0.0
    """Unix time at which the load started; what comes before is not recorded."""
    epochs: list[Epoch] = attrs.field(factory=list[Epoch], init=False)
    levels: list[int] = attrs.field(factory=list[int], init=False)
    """The top, where each run begins, and the level after each change."""
    topics: tuple[str, ...] = attrs.field(default=("sla.epoch", "cpu.usage", "agent.silent"), init=False)

    def decide(self, event: Event, host: Host) -> Iterator[Action]:
        """Record *event* and the level that the policy chose at it."""
        level = host.level(event.source)
        if not self.levels:
            self.levels.append(host.top)
        before = self.levels[-1]
        if level != before:
            self.levels.append(level)
        if event.topic == "sla.epoch" and event.at > self.start > 0:
            p99 = event.detail.get("p99_ms")
            self.epochs.append(
                Epoch(
                    event.at - self.start,
                    level,
                    _count(event.detail.get("requests")),
                    _count(event.detail.get("hard")),
                    p99 if isinstance(p99, float) else None,
                    host_power(before, host.p_states),
                )
            )
        yield from ()

    def summary(self) -> Summary:
        """Return the figures; without a single epoch they are zero."""
        count = max(1, len(self.epochs))
        return Summary(
            sum(epoch.requests for epoch in self.epochs),
            sum(epoch.violations for epoch in self.epochs),
            max(0, len(self.levels) - 1),
            round(sum(epoch.level for epoch in self.epochs) / count, 2),
            round(100 * sum(1.0 - epoch.power for epoch in self.epochs) / count, 1),
            tuple(epoch.level for epoch in self.epochs),
        )


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0
