"""CPU bandwidth as a soft p-state: a domain at *f* gets f/f_max of the time of its CPUs.

For machines whose clock cannot be set, guests and containers among them. The kernel hands out
quota by period; 10 ms keeps the gaps short against response times of some milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import attrs

from mbroker.action import Action, SetFrequency
from mbroker.actuator import Outcome
from mbroker.cgroup import Cgroup, Hierarchy
from mbroker.host import Host
from mchannel.errors import JournalError

from .originals import Originals, boot_id, is_root, outcomes, read_value, settle

__all__ = ["CpuBandwidth"]

_LEAST_QUOTA_US = 1000  # the kernel refuses less


def _by_domain(_: object, attribute: attrs.Attribute[Mapping[str, float]], value: object) -> None:
    numbers = cast("Mapping[str, object]", value).values() if isinstance(value, Mapping) else [value]
    if not all(isinstance(cpus, int | float) and 0 < cpus < math.inf for cpus in numbers):
        raise ValueError(f"{attribute.name} must be positive numbers by domain, for example {{web1 = 0.5}}: {value!r}")


@attrs.define(kw_only=True, eq=False)
class CpuBandwidth:
    """Carries out :class:`~mbroker.action.SetFrequency` by cgroup quotas (version 1 or 2).

    Making one raises :exc:`~mchannel.errors.JournalError` when *state* cannot be used and
    :exc:`~mbroker.cgroup.CgroupError` when no CPU controller is mounted; what a killed
    predecessor left is put back first.
    """

    host: Host
    state: Path = attrs.field(converter=Path)
    """Directory of the journal of originals."""
    cgroups: Mapping[str, str] = attrs.field(factory=dict[str, str])
    """Domain to control group, relative to the hierarchy: ``{"web1": "machine/web1"}``."""
    cpus: Mapping[str, float] = attrs.field(factory=dict[str, float], validator=_by_domain)
    """CPUs that a domain may fill at top speed; by default as many as the host maps it onto."""
    period_us: int = attrs.field(default=10_000, validator=[attrs.validators.ge(1000), attrs.validators.le(1_000_000)])
    root: Path = attrs.field(default=Path("/"), converter=Path, validator=is_root)
    """Where /proc and /sys are found."""
    handles: tuple[type[Action], ...] = attrs.field(default=(SetFrequency,), init=False)
    _hierarchy: Hierarchy = attrs.field(init=False)
    _originals: Originals = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._hierarchy = Hierarchy.detect(self.root)
        self._originals = Originals(self.state / "cpu_bandwidth.originals", boot=boot_id(self.root))
        self._originals.recover()

    def group(self, domain: str) -> Cgroup:
        """Return the control group of *domain*; raises KeyError when none is configured."""
        return self._hierarchy.group(self.cgroups[domain])

    def quota_us(self, domain: str, level: int) -> int:
        """Return the microseconds in each period that *domain* may run at *level*."""
        known = self.host.domains.get(domain)
        cpus = self.cpus.get(domain, len(known.cpus) if known else 1)
        share = self.host.p_states[level] / self.host.p_states[-1]
        return max(_LEAST_QUOTA_US, round(self.period_us * cpus * share))

    def apply(self, action: Action) -> Outcome:
        """Set the quota of a domain and read it back."""
        if not isinstance(action, SetFrequency) or action.level is None:
            return Outcome(action, done=False, error="only SetFrequency with a level; the broker resolves steps")
        if not 0 <= action.level <= self.host.top:
            return Outcome(action, done=False, error=f"level {action.level} is not within 0..{self.host.top}")
        if action.domain not in self.cgroups:
            return Outcome(action, done=False, error=f"no cgroup is configured for {action.domain}; add it to cgroups")
        try:
            group = self.group(action.domain)
            settings = group.quota_settings(self.quota_us(action.domain, action.level), self.period_us)
            self._originals.keep(action.domain, {file: read_value(file) for file in settings})
            refused = settle(settings)
            actual = {file: read_value(file) for file in settings}
        except JournalError as error:
            return Outcome(action, done=False, error=str(error))
        except OSError as error:
            where = error.filename or self.cgroups[action.domain]
            return Outcome(action, done=False, error=f"{where}: {error.strerror or error}; is {action.domain} running?")
        shown = ", ".join(f"{file.name} {value}" for file, value in actual.items())
        wrong = [f"cannot write {settings[file]!r} to {file}: {why}" for file, why in refused.items()]
        done = actual == settings
        return Outcome(action, done=done, actual=shown, error="" if done else "; ".join(wrong) or f"it reads {shown}")

    def restore(self) -> list[Outcome]:
        """Give every domain the quota that it had; raises JournalError when that cannot be noted."""
        return outcomes(self._originals.restore(), lambda domain: SetFrequency(domain, level=self.host.top))

    def close(self) -> None:
        """Restore and let go of the journal; idempotent."""
        self._originals.close()
