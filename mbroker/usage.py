"""How much of their CPU time domains use, as the MVM sees it: ``cpu.usage`` events."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import attrs

from mbroker.host import Host
from mbroker.registry import EPOCH
from mchannel.event import Event

__all__ = ["UsageMeter"]


@attrs.define
class UsageMeter:
    """Turns counters of CPU seconds into utilisations, one for each domain and epoch.

    ``value`` is relative to what the domain may use at its present speed: all of its CPUs where the
    clock itself is changed; the quota where a quota stands for the clock.
    """

    counters: Mapping[str, Callable[[], float]]
    """For each domain, what returns its CPU seconds so far; raises OSError while it does not run."""
    quota: bool = False
    """Whether a quota stands for the clock."""
    cpus: Mapping[str, float] = attrs.field(factory=dict[str, float])
    """CPUs that a quota lets a domain fill at top speed; by default as many as the host maps it onto."""
    _last: dict[str, tuple[float, float]] = attrs.field(factory=dict[str, tuple[float, float]], init=False)

    def sample(self, host: Host, now: float, at: float) -> list[Event]:
        """Return the events of the epoch that ends at *at* (Unix seconds); *now* is a clock for differences."""
        events: list[Event] = []
        for domain, counter in self.counters.items():
            try:
                used = counter()
            except OSError:
                self._last.pop(domain, None)
                continue
            before, self._last[domain] = self._last.get(domain), (now, used)
            if before is None or now <= before[0] or used < before[1]:
                continue
            share = (used - before[1]) / ((now - before[0]) * self._capacity(host, domain))
            detail = {"epoch": math.floor(at / EPOCH) - 1}
            events.append(Event("cpu.usage", domain, min(share, 1.0), at, detail))
        return events

    def _capacity(self, host: Host, domain: str) -> float:
        known = host.domains.get(domain)
        cpus = self.cpus.get(domain, len(known.cpus) if known and known.cpus else 1)
        return cpus * (host.p_states[host.level(domain)] / host.p_states[-1] if self.quota else 1.0)
