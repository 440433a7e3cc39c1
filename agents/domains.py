"""How the domains of a host are, as their hypervisor tells: read by libvirt, which may not change anything for us.

=================================  =====================================================================
``domain.running``                 1, or 0 when it is paused, crashed or asleep
``domain.cpu``                     share of its virtual CPUs that it used since the reading before, 0..1
``domain.cpu_seconds``             CPU time, counted since it started on this host
``domain.vcpus``                   virtual CPUs that it has now
``domain.memory``                  bytes that its balloon leaves it; ``.most`` could be; ``.resident`` of the host's
``domain.memory.unused``           bytes that its guest does not use, where its balloon says so
``domain.disk.reads{device}``      counters: ``.read_bytes`` ``.writes`` ``.written_bytes``
``domain.network.sent_bytes{..}``  counters: as ``network`` of a guest, by ``interface``
=================================  =====================================================================

Each has the label ``domain``, its name. Counters begin anew where a domain starts or arrives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice

import attrs
import libvirt

from mchannel.agents.publisher import Reading
from mchannel.samples import Named

__all__ = ["DomainMetrics", "Unreachable", "from_statistics"]

_WHAT = (
    libvirt.VIR_DOMAIN_STATS_STATE
    | libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
    | libvirt.VIR_DOMAIN_STATS_VCPU
    | libvirt.VIR_DOMAIN_STATS_BALLOON
    | libvirt.VIR_DOMAIN_STATS_BLOCK
    | libvirt.VIR_DOMAIN_STATS_INTERFACE
)
# A domain that a migration holds says less, and nobody waits for it.
_WHICH = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
_MOST_DOMAINS = 4096
_MOST_DEVICES = 64  # of a kind, of a domain
_RUNNING = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED)
_MEMORY = {
    "": "balloon.current",
    ".most": "balloon.maximum",
    ".resident": "balloon.rss",
    ".unused": "balloon.unused",
}  # KiB
_DISK = {
    "reads": "rd.reqs",
    "read_bytes": "rd.bytes",
    "writes": "wr.reqs",
    "written_bytes": "wr.bytes",
}
_NETWORK = {
    "received_bytes": "rx.bytes",
    "received_packets": "rx.pkts",
    "receive_errors": "rx.errs",
    "receive_drops": "rx.drop",
    "sent_bytes": "tx.bytes",
    "sent_packets": "tx.pkts",
    "send_errors": "tx.errs",
    "send_drops": "tx.drop",
}
_DEVICES = (("disk", "block", "device", _DISK), ("network", "net", "interface", _NETWORK))

Said = Mapping[str, int | str]


class Unreachable(Exception):
    """libvirt does not answer; says where and why, in one line."""


def from_statistics(domain: str, said: Said) -> Iterator[Reading]:
    """Yield what libvirt's statistics of the domain of that name say."""
    labels = (("domain", domain),)
    state = said.get("state.state")
    if state is not None:
        yield Reading(Named("domain.running", labels), float(state in _RUNNING))
    if (spent := _number(said, "cpu.time")) is not None:
        yield Reading(Named("domain.cpu_seconds", labels), spent / 1e9)
    if (vcpus := _number(said, "vcpu.current")) is not None:
        yield Reading(Named("domain.vcpus", labels), vcpus)
    for name, key in _MEMORY.items():
        if (value := _number(said, key)) is not None:
            yield Reading(Named("domain.memory" + name, labels), value * 1024)
    for group, prefix, label, columns in _DEVICES:
        for number in range(min(int(_number(said, f"{prefix}.count") or 0), _MOST_DEVICES)):
            device = str(said.get(f"{prefix}.{number}.name", number))
            for name, key in columns.items():
                if (value := _number(said, f"{prefix}.{number}.{key}")) is not None:
                    at = tuple(sorted(((label, device), *labels)))
                    yield Reading(Named(f"domain.{group}.{name}", at), value)


def _number(said: Said, key: str) -> float | None:
    value = said.get(key)
    return float(value) if isinstance(value, int | float) else None


@attrs.define(eq=False)
class DomainMetrics:
    """Reads the metrics of all domains that are active at a libvirt *uri*. Blocks, for ever if libvirt does."""

    uri: str
    monotonic: Callable[[], float] = attrs.field(default=time.monotonic, kw_only=True)
    _connection: libvirt.virConnect | None = attrs.field(default=None, init=False)
    _spent: dict[str, tuple[float, float]] = attrs.field(factory=dict[str, tuple[float, float]], init=False)
    """CPU time of each domain, and when it was that."""

    def read(self) -> list[Reading]:
        """Return what is so now; raise :exc:`Unreachable`, after which the next call connects again."""
        try:
            if self._connection is None:
                libvirt.registerErrorHandler(lambda _context, _error: None, None)  # its own prints to stderr
                self._connection = libvirt.openReadOnly(self.uri)
            said = dict(islice(_told(self._connection), _MOST_DOMAINS))
        except libvirt.libvirtError as error:
            self._connection = None
            raise Unreachable(f"{self.uri}: {' '.join(str(error).split())}") from None
        now = self.monotonic()
        found = [reading for name, values in said.items() for reading in from_statistics(name, values)]
        return found + list(self.shares(said, now))

    def shares(self, said: Mapping[str, Said], now: float) -> Iterator[Reading]:
        """Yield how much of its virtual CPUs each domain used since the statistics before; *now* in seconds."""
        before, self._spent = self._spent, {}
        for name, values in said.items():
            spent, vcpus = _number(values, "cpu.time"), _number(values, "vcpu.current")
            if spent is None or not vcpus:
                continue
            self._spent[name] = (spent, now)
            last, at = before.get(name, (spent, now))
            if now > at and spent >= last:
                share = (spent - last) / 1e9 / (now - at) / vcpus
                yield Reading(Named("domain.cpu", (("domain", name),)), share)


def _told(connection: libvirt.virConnect) -> Iterator[tuple[str, Said]]:
    """Yield names of domains and their statistics; a driver that says little (Xen's, the test driver) is asked more."""
    try:
        told = connection.getAllDomainStats(_WHAT, _WHICH)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise
        told = [(handle, dict[str, int]()) for handle in connection.listAllDomains() if handle.isActive()]
    for handle, values in told:
        with suppress(libvirt.libvirtError):  # it went meanwhile
            said: Said = values
            if "cpu.time" not in values:
                state, _, memory, vcpus, spent = handle.info()
                told_apart = {"state.state": state, "vcpu.current": vcpus, "cpu.time": spent, "balloon.current": memory}
                said = {**told_apart, **values}
            yield handle.name(), said
