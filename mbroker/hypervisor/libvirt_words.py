"""libvirt's numbers and words, translated into ours: no state, no waiting."""

from __future__ import annotations

from contextlib import suppress

import attrs
import libvirt

from .domain import ARRIVAL, DomainInfo, State, Statistics, is_uuid, read_domain
from .errors import HypervisorError, HypervisorUnreachable, NoSuchDomain
from .events import Kind
from .migration import MigrationOptions, Phase, Progress

__all__ = [
    "counted",
    "described",
    "happened",
    "look_up",
    "migration_flags",
    "migration_parameters",
    "plain_error",
    "progressed",
    "quota_parameters",
    "state_of",
]

_STATES = {
    libvirt.VIR_DOMAIN_PAUSED: State.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: State.STOPPING,
    libvirt.VIR_DOMAIN_SHUTOFF: State.OFF,
    libvirt.VIR_DOMAIN_CRASHED: State.CRASHED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: State.SUSPENDED,
}
_HELD = {
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION,
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY,
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED,
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP,
}

# Kinds by event and detail, and by event alone for all other details; see mbroker.hypervisor.events.
_LIFECYCLE = {
    "STARTED": (Kind.STARTED, None),
    "STARTED_MIGRATED": (Kind.ARRIVING, None),
    "STARTED_RESTORED": (Kind.RESTORED, None),
    "STARTED_FROM_SNAPSHOT": (Kind.RESTORED, None),
    "SUSPENDED": (Kind.PAUSED, None),
    "SUSPENDED_MIGRATED": (Kind.LEAVING, None),
    "SUSPENDED_POSTCOPY": (Kind.POSTCOPY, State.MOVING),
    "SUSPENDED_POSTCOPY_FAILED": (Kind.POSTCOPY_FAILED, None),
    "RESUMED": (Kind.RESUMED, None),
    "RESUMED_MIGRATED": (Kind.ARRIVED, None),
    "RESUMED_POSTCOPY": (Kind.POSTCOPY, State.RUNNING),
    "RESUMED_POSTCOPY_FAILED": (Kind.POSTCOPY_FAILED, None),
    "STOPPED": (Kind.STOPPED, None),
    "STOPPED_MIGRATED": (Kind.LEFT, None),
    "STOPPED_SAVED": (Kind.SAVED, None),
    "STOPPED_CRASHED": (Kind.CRASHED, None),
    "PMSUSPENDED": (Kind.PAUSED, State.SUSPENDED),
    "CRASHED": (Kind.CRASHED, None),
}


def _number(name: str) -> int:
    return int(getattr(libvirt, f"VIR_DOMAIN_EVENT_{name}"))


_EVENTS = {_number(name): meaning for name, meaning in _LIFECYCLE.items() if "_" not in name}
_DETAILS = {
    (_number(name.split("_")[0]), _number(name)): meaning for name, meaning in _LIFECYCLE.items() if "_" in name
}

_UNLIMITED = 17_592_186_044_415  # microseconds: the kernel's most; -1 is refused on cgroup v2
_PERIOD = 10_000  # microseconds: a tenth of the kernel's default, so that a slow domain does not stutter
_LEAST_QUOTA = 1_000  # microseconds


def happened(event: int, detail: int) -> tuple[Kind, State | None] | None:
    """Return what a lifecycle event means, with a state that its kind does not tell; None for what is no matter."""
    return _DETAILS.get((event, detail)) or _EVENTS.get(event)


def plain_error(error: libvirt.libvirtError, uri: str) -> HypervisorError:
    """Return what went wrong at *uri* in one line."""
    words = " ".join((error.get_error_message() or str(error)).split())
    if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
        return NoSuchDomain(f"{uri} has no such domain: {words}")
    if error.get_error_domain() in {libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE}:
        return HypervisorUnreachable(f"{uri} does not answer: {words}; is its libvirtd running, and the URI right?")
    return HypervisorError(f"{uri}: {words}")


def look_up(connection: libvirt.virConnect, domain: str) -> libvirt.virDomain:
    """Return libvirt's handle of the domain of this UUID or name."""
    if is_uuid(domain):
        return connection.lookupByUUIDString(domain)
    return connection.lookupByName(domain)


def state_of(domain: libvirt.virDomain) -> State:
    """Return what *domain* does."""
    state, reason = domain.state()
    if state == libvirt.VIR_DOMAIN_PAUSED and (reason in _HELD or _arrived(domain)):
        return State.MOVING
    return _STATES.get(state, State.RUNNING)  # blocked on I/O is running; Xen may also say nothing


def _arrived(domain: libvirt.virDomain) -> bool:
    try:
        domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, ARRIVAL, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        if error.get_error_code() in {libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_NO_SUPPORT}:
            return False
        raise
    return True


def described(domain: libvirt.virDomain) -> DomainInfo:
    """Return all that is known of *domain*."""
    info = read_domain(domain.XMLDesc(), state_of(domain), persistent=bool(domain.isPersistent()))
    state, reason = domain.state()
    whole = not (state == libvirt.VIR_DOMAIN_PAUSED and reason in _HELD)
    return info if whole else attrs.evolve(info, arrival=None)


def counted(domain: libvirt.virDomain, said: dict[str, int]) -> Statistics:
    """Return the counters in *said*; a driver that says nothing of CPUs (Xen's, the test driver) is asked again."""
    total = said.get("cpu.time")
    spent = [said.get(f"vcpu.{number}.time") for number in range(min(said.get("vcpu.maximum", 0), 4096))]
    if total is None:
        total = domain.info()[4]
        with suppress(libvirt.libvirtError):
            spent = [each[2] for each in domain.vcpus()[0]]
    return Statistics(
        cpu_seconds=total / 1e9,
        vcpu_seconds=tuple(each / 1e9 for each in spent if each is not None),
        memory=_kib(said.get("balloon.current")),
        most_memory=_kib(said.get("balloon.maximum")),
        resident=_kib(said.get("balloon.rss")),
    )


def _kib(value: int | None) -> int | None:
    return None if value is None else value << 10


def quota_parameters(known: dict[str, int], share: float | None, vcpus: int) -> dict[str, int]:
    """Return the scheduler's parameters that let each of *vcpus* use *share* of a CPU.

    *known* are the parameters that the hypervisor has; raises ValueError for a share that is too small,
    LookupError when there is no parameter for it.
    """
    if share is not None and not share * _PERIOD >= _LEAST_QUOTA:
        raise ValueError(f"a virtual CPU needs at least {_LEAST_QUOTA / _PERIOD} of a CPU, not {share}")
    if "vcpu_quota" in known:
        return (
            {"vcpu_quota": _UNLIMITED}
            if share is None
            else {"vcpu_period": _PERIOD, "vcpu_quota": min(int(share * _PERIOD), _UNLIMITED)}
        )
    if "cap" in known:  # Xen's credit schedulers: per cent of one CPU for all together, 0 for no limit
        return {"cap": 0 if share is None else max(1, round(share * 100 * vcpus))}
    raise LookupError("no parameter of its scheduler limits CPU time")


def migration_flags(options: MigrationOptions, *, persistent: bool, held: bool) -> int:
    """Return libvirt's flags for *options*; the definition of a persistent domain moves along.

    One that is *held* arrives paused.
    """
    flags = libvirt.VIR_MIGRATE_LIVE if options.live else 0
    if held:
        flags |= libvirt.VIR_MIGRATE_PAUSED
    if persistent:
        flags |= libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    if options.postcopy_after is not None:
        flags |= libvirt.VIR_MIGRATE_POSTCOPY
    return flags


def migration_parameters(options: MigrationOptions) -> dict[str, int]:
    """Return libvirt's parameters for *options*."""
    return {} if options.bandwidth is None else {libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: options.bandwidth}


def progressed(job: dict[str, int], elapsed: float, *, postcopy: bool) -> Progress:
    """Return how far the migration is that *job* tells of."""
    total = job.get("data_total", 0)
    phase = Phase.POSTCOPY if postcopy else Phase.COPYING if total else Phase.PREPARING
    return Progress(phase, job.get("data_processed", 0), job.get("data_remaining", 0), total, elapsed)
