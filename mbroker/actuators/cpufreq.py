"""Real p-states through the kernel's cpufreq files.

Two ways, by what the driver offers. *cap* lowers ``scaling_max_freq`` and works with every driver
(acpi-cpufreq, intel_pstate and amd-pstate, active or passive): the governor still slows down
idle CPUs. *userspace* hands the clock to us through ``scaling_setspeed``: exact, where the
``userspace`` governor exists, which the active drivers do not have.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import attrs

from mbroker.action import Action, SetPState
from mbroker.actuator import Outcome
from mbroker.host import Host

from .originals import Originals, boot_id, is_root, outcomes, read_value, settle

__all__ = ["CpuFreq", "Method", "available_p_states"]

Method = Literal["cap", "userspace"]


@attrs.frozen
class _Policy:
    """One clock domain: CPUs that can only change together. All frequencies in kHz."""

    folder: Path

    def file(self, name: str) -> Path:
        return self.folder / name

    def number(self, name: str) -> int:
        return int(read_value(self.file(name)))

    def words(self, name: str) -> list[str]:
        """Return what a file lists: nothing when the driver lacks it, or all of the CPUs are offline."""
        try:
            return read_value(self.file(name)).split()
        except OSError:
            return []

    @property
    def cpus(self) -> frozenset[int]:
        return frozenset(map(int, self.words("related_cpus")))

    @property
    def table(self) -> list[int]:
        """The frequencies that the driver lists, slowest first; empty for drivers without a table."""
        return sorted(map(int, self.words("scaling_available_frequencies")))

    @property
    def firmware_limit(self) -> int:
        """The fastest that firmware allows now."""
        return min([self.number("cpuinfo_max_freq"), *map(int, self.words("bios_limit"))])

    def nearest(self, mhz: int) -> int:
        """Return what to ask for at a p-state of *mhz*: the table's own number, within the limits of now."""
        khz = min(self.table, key=lambda listed: abs(listed - mhz * 1000), default=mhz * 1000)
        return max(self.number("cpuinfo_min_freq"), min(khz, self.firmware_limit))

    def capped(self, khz: int, floor: int) -> dict[Path, str]:
        """Return what to write so that the clock stays at or below *khz* and is that high under load."""
        settings = {
            self.file("scaling_max_freq"): str(khz),
            self.file("scaling_min_freq"): str(min(floor, khz)),
        }
        preference = self.file("energy_performance_preference")
        if preference.exists() and read_value(self.file("scaling_governor")) == "powersave":
            settings[preference] = "performance"  # an active driver would hold the clock below the cap
        return settings

    def pinned(self, khz: int) -> dict[Path, str]:
        """Return what to write so that the clock is *khz*; the kernel rounds up to its table by itself."""
        if "userspace" not in self.words("scaling_available_governors"):
            raise OSError("its driver has no userspace governor; use the method cap")
        return {self.file("scaling_governor"): "userspace", self.file("scaling_setspeed"): str(khz)}

    def original(self, file: Path) -> str:
        """Return what to put back into *file*; empty for a setting that has no meaning now."""
        value = read_value(file)
        if file.name == "scaling_setspeed" and not value.isdecimal():
            return ""  # <unsupported>: the governor is another one
        if file.name == "scaling_max_freq" and int(value) == self.firmware_limit:
            return str(self.number("cpuinfo_max_freq"))  # firmware's limit of the moment is not the operator's
        return value


def _policies(root: Path) -> list[_Policy]:
    folders = sorted(root.glob("sys/devices/system/cpu/cpufreq/policy*"))
    return [policy for policy in map(_Policy, folders) if policy.cpus]


def available_p_states(root: Path = Path("/"), *, steps: int = 5) -> tuple[int, ...]:
    """Return the host's p-states in MHz, slowest first, for :attr:`mbroker.host.Host.p_states`.

    Where a driver has no table, *steps* evenly spaced ones stand for its range. Empty when there
    is no cpufreq driver; raises OSError when its files cannot be read.
    """
    found: set[int] = set()
    for policy in _policies(root):
        low, high = policy.number("cpuinfo_min_freq"), policy.number("cpuinfo_max_freq")
        spread: Iterable[int] = (low + (high - low) * step // (steps - 1) for step in range(steps))
        found.update(round(khz / 1000) for khz in policy.table or spread)
    return tuple(sorted(found))


@attrs.define(kw_only=True, eq=False)
class CpuFreq:
    """Carries out :class:`~mbroker.action.SetPState` on physical CPUs.

    CPUs that share a clock get the highest level asked for among them, where those of a domain count as
    at the top until asked for something else, and those of no domain not at all. The limits of firmware
    (``bios_limit``) and of the hardware are obeyed: the outcome says what was reached. Making one raises
    :exc:`~mchannel.errors.JournalError` when *state* cannot be used; what a killed predecessor
    left is put back first.
    """

    host: Host
    state: Path = attrs.field(converter=Path)
    """Directory of the journal of originals."""
    method: Method = attrs.field(default="cap", validator=attrs.validators.in_(("cap", "userspace")))
    root: Path = attrs.field(default=Path("/"), converter=Path, validator=is_root)
    """Where /proc and /sys are found."""
    handles: tuple[type[Action], ...] = attrs.field(default=(SetPState,), init=False)
    _levels: dict[int, int] = attrs.field(init=False)
    _originals: Originals = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._levels = self.host.at_top().cpu_levels()
        self._originals = Originals(self.state / "cpufreq.originals", boot=boot_id(self.root))
        self._originals.recover()

    def apply(self, action: Action) -> Outcome:
        """Set the p-state of some CPUs and read it back."""
        if not isinstance(action, SetPState):
            return Outcome(action, done=False, error="cpufreq sets physical CPUs: only SetPState")
        if not 0 <= action.level <= self.host.top:
            return Outcome(action, done=False, error=f"level {action.level} is not within 0..{self.host.top}")
        policies = [policy for policy in _policies(self.root) if not policy.cpus.isdisjoint(action.cpus)]
        orphans = set(action.cpus).difference(*(policy.cpus for policy in policies))
        self._levels.update(dict.fromkeys(set(action.cpus) - orphans, action.level))
        results = [self._apply(policy) for policy in policies]
        errors = [error for _, error in results if error]
        if orphans or not action.cpus:
            cpus = ", ".join(map(str, sorted(orphans))) or "(none given)"
            errors.append(f"no cpufreq driver covers CPU {cpus}; load one, or use the cpu_bandwidth actuator")
        return Outcome(
            action, done=not errors, actual="; ".join(shown for shown, _ in results), error="; ".join(errors)
        )

    def restore(self) -> list[Outcome]:
        """Give every CPU the settings that it had; raises JournalError when that cannot be noted."""
        self._levels = self.host.at_top().cpu_levels()
        return outcomes(
            self._originals.restore(),
            lambda cpus: SetPState(tuple(map(int, cpus.split())), self.host.top),
        )

    def close(self) -> None:
        """Restore and let go of the journal; idempotent."""
        self._originals.close()

    def _apply(self, policy: _Policy) -> tuple[str, str]:
        """Return what the clock domain shows afterwards, and what is wrong with that."""
        cpus = " ".join(map(str, sorted(policy.cpus)))
        level = max(self._levels.get(cpu, 0) for cpu in policy.cpus)
        try:
            khz = policy.nearest(self.host.p_states[level])
            settings = self._cap(policy, khz) if self.method == "cap" else policy.pinned(khz)
            self._originals.keep(cpus, {file: value for file in settings if (value := policy.original(file))})
            refused = settle(settings)
            reached, now = policy.number(self._shown_by), " ".join(policy.words("scaling_cur_freq"))
        except (OSError, ValueError) as error:
            return "", f"CPU {cpus}: {error}"
        shown = f"CPU {cpus} {self._shown_by} {reached} kHz, running at {now} kHz"
        if refused:
            file, why = next(iter(refused.items()))
            return shown, f"cannot write {settings[file]!r} to {file}: {why}"
        if reached != khz:
            return shown, f"{shown} instead of {khz} kHz; something else limits it"
        return shown, ""

    @property
    def _shown_by(self) -> str:
        return "scaling_max_freq" if self.method == "cap" else "scaling_setspeed"

    def _cap(self, policy: _Policy, khz: int) -> dict[Path, str]:
        least = policy.file("scaling_min_freq")
        kept = self._originals.kept.get(least)
        floor = int(kept.value) if kept else policy.number("scaling_min_freq")
        return policy.capped(khz, floor)
