"""The configuration of ``mbrokerd``: TOML, merged with a folder of more TOML, checked to the last key.

``mbroker.toml`` is read first, then ``mbroker.d/*.toml`` beside it in the order of their names. A
later file adds tables and ``[[listen]]`` entries and overrides single keys.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import tomllib
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias, cast

import attrs

from mbroker.alerts.deadman import DeadmanSection
from mbroker.alerts.intake import Bounds
from mbroker.alerts.notifiers import ReceiverSection
from mbroker.alerts.sample import SILENT
from mbroker.alerts.selector import is_name
from mbroker.broker import ISOLATED_SECONDS, Budget
from mbroker.values import Fault, Invalid, Where, build
from mchannel import keys
from mchannel.address import Address
from mchannel.errors import AddressError, KeyFileError
from mchannel.transport import find_scheme

__all__ = [
    "ActuatorSection",
    "AlertsSection",
    "BrokerSection",
    "Config",
    "ConfigError",
    "DomainSection",
    "EngineSite",
    "HostSection",
    "Isolation",
    "ListenSection",
    "Loaded",
    "NoSuchFile",
    "PolicySection",
    "ShardsSection",
    "load",
]

Options: TypeAlias = dict[str, Any]
Table: TypeAlias = dict[str, Any]

_MAX_FILE = 1 << 20  # bytes


class ConfigError(ValueError):
    """The configuration cannot be used; each line names a file, a key, and what to do."""

    def __init__(self, lines: tuple[str, ...]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


class NoSuchFile(ConfigError):
    """The configuration is not there."""


class Isolation(Enum):
    """Where a policy decides."""

    NONE = "none"
    """In the broker's process: for policies that the operator trusts like the broker itself."""
    PROCESS = "process"
    """In a child that can only compute."""


def _address(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    try:
        address = Address.parse(value)
        find_scheme(address)
        if address.scheme == "xen":  # where a star stands for all names that begin so
            address = attrs.evolve(address, path=address.path.removesuffix("*"))
        if not address.host:
            address.file("")
        elif address.port is not None or not address.path:  # others name a domain there: xen://5/mgmt
            address.endpoint()
    except AddressError as error:
        raise ValueError(f"'{attribute.name}' must be an address: {error}") from None


def _network(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    _address(instance, attribute, value)
    address = Address.parse(value)
    if address.scheme != "tcp" or address.options:
        raise ValueError(f"'{attribute.name}' must be an address like tcp://10.0.0.2:7700, without options")


def _own_host(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    _address(instance, attribute, value)
    if Address.parse(value).host:
        raise ValueError(f"'{attribute.name}' must be an address of this host, such as shm:///mbroker")


def _cgroup(_: object, attribute: attrs.Attribute[str | None], value: str | None) -> None:
    if value is not None and (not value.strip("/") or ".." in value.split("/") or "\0" in value):
        raise ValueError(f"'{attribute.name}' must be a path below the hierarchy, such as machine/web1, not {value!r}")


def _uri(_: object, attribute: attrs.Attribute[str], value: str | None) -> None:
    if value is None or not re.fullmatch(r"[a-z][a-z0-9+.-]*:[!-~]+", value):
        raise ValueError(f"'{attribute.name}' must be a hypervisor's URI such as qemu:///system, not {value!r}")


def _lane(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    sizes = [f"{1 << power}MiB" for power in range(9)]
    if value not in ("off", *sizes):
        raise ValueError(f"'{attribute.name}' must be off, {', '.join(sizes[:-1])} or {sizes[-1]}, not {value!r}")


@attrs.frozen
class BrokerSection:
    """``[broker]``."""

    name: str = attrs.field(factory=socket.gethostname)
    """What the host is called in messages."""
    state: Path = Path("/var/lib/mbroker")
    """Folder of journals: originals of actuators, the registry."""
    control: str = attrs.field(default="shm:///mbroker", validator=_own_host)
    """Where the command ``mbroker`` reaches the daemon."""
    budget: Budget = attrs.field(factory=Budget)
    """``[broker.budget]``: actions that one domain may cause."""


@attrs.frozen
class HostSection:
    """``[host]``."""

    p_states: tuple[int, ...] = ()
    """Frequencies in MHz, slowest first; without it what the cpufreq driver tells, or the paper's five."""


@attrs.frozen
class ListenSection:
    """One ``[[listen]]``: where agents come in."""

    address: str = attrs.field(validator=_address)
    domain: str | None = None
    """Whose events these are. Without it the name of a local address, or of the peer's key."""
    max_message: int = attrs.field(default=65536, validator=[attrs.validators.ge(1024), attrs.validators.le(1 << 30)])
    """Bytes in the longest message."""
    keys: Path | None = None
    insecure: bool = False
    """Allow plain tcp on loopback; then ``domain`` must be given."""

    @property
    def fixed_domain(self) -> str | None:
        """Return the domain that the address itself stands for; None when the peer's key tells."""
        where = Address.parse(self.address)
        return self.domain or (None if where.host else where.path.rpartition("/")[2])


@attrs.frozen
class PolicySection:
    """``[policies.NAME]``."""

    policy: str = ""
    """Name of an entry point in the group ``mbroker.policies``; by default NAME."""
    isolation: Isolation = Isolation.NONE
    host_wide: bool = False
    """May act on all domains and on physical CPUs."""
    deadline: float = attrs.field(default=0.05, validator=[attrs.validators.gt(0), attrs.validators.le(1)])
    """Seconds that a decision in a process of its own may take; all such policies together at most one: others wait."""
    memory_mib: int = attrs.field(default=256, validator=attrs.validators.ge(64))
    """Address space of that process."""
    options: Options = attrs.field(factory=Options)
    """Keyword arguments of the policy's class."""


@attrs.frozen
class ActuatorSection:
    """``[actuators.NAME]``."""

    actuator: str = ""
    """Name of an entry point in the group ``mbroker.actuators``; by default NAME."""
    options: Options = attrs.field(factory=Options)
    """Keyword arguments of the actuator's class."""


@attrs.frozen
class DomainSection:
    """``[domains.NAME]``."""

    cpus: tuple[int, ...] = (0,)
    """Physical CPUs that its virtual CPUs are mapped onto."""
    cgroup: str | None = attrs.field(default=None, validator=_cgroup)
    """Control group, relative to its hierarchy: its CPU usage is read there, and its quota set."""


@attrs.frozen
class HypervisorSection:
    """``[hypervisor]``: attend to every domain of this host that has the port, or under Xen, to every one."""

    uri: str = attrs.field(validator=_uri)
    """Such as ``qemu:///system`` or ``xen:///system``."""
    port: str = attrs.field(default="org.mchannel.0", validator=attrs.validators.matches_re(r"[A-Za-z0-9._-]{1,64}"))
    """Name of the virtio port that domains are given for their channels."""
    lane: str = attrs.field(default="off", validator=_lane)
    """Shared memory that a domain is given for its channels when its metadata does not say: ``off``, or as ``1MiB``."""


@attrs.frozen
class MemberSection:
    """``[fleet.hosts.NAME]``: another host; NAME is that of its broker and of its key."""

    address: str = attrs.field(validator=_network)
    """Where its broker listens to the fleet, such as ``tcp://10.0.0.2:7700``."""
    hypervisor: str | None = attrs.field(default=None, validator=attrs.validators.optional(_uri))
    """Its hypervisor as it is reached from this host; domains can be moved there when it is given."""


@attrs.frozen
class FleetSection:
    """``[fleet]``."""

    listen: str = attrs.field(validator=_network)
    """Where the other hosts reach this broker, such as ``tcp://10.0.0.1:7700``."""
    keys: Path | None = None
    hosts: dict[str, MemberSection] = attrs.field(factory=dict[str, MemberSection])


class EngineSite(Enum):
    """Where engines of alerts are, besides the broker."""

    PROCESSES = "processes"
    """In processes of this machine."""
    RAY = "ray"
    """In the Ray cluster that this machine is in; needs the extra ``ray``."""


@attrs.frozen
class ShardsSection:
    """``[alerts.shards]``: match by several engines beside the broker, when one processor is too slow for all rules."""

    engines: int = attrs.field(default=1, validator=[attrs.validators.ge(1), attrs.validators.le(64)])
    """Engines to begin with; one that is lost is replaced."""
    most: int | None = attrs.field(
        default=None, validator=attrs.validators.optional([attrs.validators.ge(1), attrs.validators.le(64)])
    )
    """Engines that there may be: one more when one takes 90 % of a processor; by default no more than to begin with."""
    on: EngineSite = EngineSite.PROCESSES

    @property
    def limit(self) -> int:
        """Engines that there may be."""
        return self.engines if self.most is None else self.most


@attrs.frozen
class AlertsSection:
    """``[alerts]``: match what agents measure against subscriptions, and tell people."""

    folder: Path | None = None
    """Folder of the book of alerts, the history and the snapshots; by default ``alerts`` in ``broker.state``."""
    interval: float = attrs.field(default=10.0, validator=[attrs.validators.ge(0.1), attrs.validators.le(3600)])
    """Seconds between two samples of a series, unless its publisher says longer ones; without three it is silent."""
    forget_hours: float = attrs.field(default=24.0, validator=[attrs.validators.ge(1), attrs.validators.le(24 * 366)])
    """Hours without a sample after which a series is forgotten and counts no more, unless an alert needs it."""
    late: float = attrs.field(default=0.0, validator=[attrs.validators.ge(0), attrs.validators.le(60)])
    """Seconds that each sample waits, so that those that come late, but no later, are matched in order. Alerts too."""
    history_hours: float = attrs.field(default=24.0, validator=[attrs.validators.gt(0), attrs.validators.le(24 * 366)])
    """How long every sample is kept, to try subscriptions on."""
    history_mib: int = attrs.field(default=1024, validator=[attrs.validators.ge(8), attrs.validators.le(1 << 20)])
    """How large that may grow; the oldest goes first, that of a source with far more than others before that of all."""
    book_mib: int = attrs.field(default=256, validator=[attrs.validators.ge(8), attrs.validators.le(1 << 20)])
    """How large alerts and their context may grow; the oldest that are over go first."""
    longest: int = attrs.field(default=1 << 20, validator=[attrs.validators.ge(16), attrs.validators.le(1 << 24)])
    """Samples of one series that the window of a subscription may hold."""
    broadest: int = attrs.field(default=100_000, validator=attrs.validators.ge(1))
    """Series that one comparison of a subscription may find."""
    hosts: tuple[str, ...] = ()
    """Names of agents' channels that are hosts, besides this one and those of the fleet; others are domains."""
    groups: dict[str, tuple[str, ...]] = attrs.field(factory=dict[str, "tuple[str, ...]"])
    """``[alerts.groups]``: for each group its members, names of hosts and domains."""
    bounds: Bounds = attrs.field(factory=Bounds)
    """``[alerts.bounds]``: what each host or domain may send."""
    shards: ShardsSection | None = None
    """``[alerts.shards]``: engines beside the broker; without it there is one, in the broker."""
    offload: bool = False
    """Ask publishers to hold back samples that change no alert. Alerts stay the same; the history lacks the samples."""
    receivers: dict[str, ReceiverSection] = attrs.field(factory=dict[str, ReceiverSection])
    deadman: DeadmanSection | None = None


@attrs.frozen
class Config:
    """All of it."""

    broker: BrokerSection = attrs.field(factory=BrokerSection)
    host: HostSection = attrs.field(factory=HostSection)
    listen: tuple[ListenSection, ...] = ()
    policies: dict[str, PolicySection] = attrs.field(factory=dict[str, PolicySection])
    actuators: dict[str, ActuatorSection] = attrs.field(factory=dict[str, ActuatorSection])
    domains: dict[str, DomainSection] = attrs.field(factory=dict[str, DomainSection])
    hypervisor: HypervisorSection | None = None
    fleet: FleetSection | None = None
    alerts: AlertsSection | None = None


@attrs.frozen
class _Origins:
    """Which file each key came from."""

    main: Path
    files: dict[Where, Path] = attrs.field(factory=dict[Where, Path])

    def line(self, fault: Fault) -> str:
        """Return the line for the operator: file, key, reason."""
        path = fault.path
        while path and path not in self.files:
            path = path[:-1]
        return f"{self.files.get(path, self.main)}: {fault}"

    def lines(self, faults: Iterable[Fault]) -> tuple[str, ...]:
        return tuple(map(self.line, faults))


@attrs.frozen
class Loaded:
    """A configuration as it was read, to be put to work."""

    config: Config
    _origins: _Origins

    @property
    def path(self) -> Path:
        """The file that was read first."""
        return self._origins.main

    def error(self, *key: str | int, reason: Exception | str) -> ConfigError:
        """Return the error of what turned out to be wrong with *key*; it names the file that set the key."""
        if isinstance(reason, OSError) and reason.filename:
            reason = f"{reason.filename}: {reason.strerror}"
        return ConfigError(self._origins.lines([Fault(key, str(reason))]))


class _Merged:
    """The tables of all files as one."""

    def __init__(self, main: Path) -> None:
        self.data: Table = {}
        self.origins = _Origins(main)

    def add(self, data: Table, file: Path) -> None:
        self._merge(self.data, data, (), file)

    def _merge(self, into: Table, data: Table, where: Where, file: Path) -> None:
        for key, value in data.items():
            path = (*where, key)
            self.origins.files[path] = file
            present = into.get(key)
            if isinstance(value, dict):
                if not isinstance(present, dict):
                    present = into[key] = {}
                self._merge(cast("Table", present), cast("Table", value), path, file)
            elif path == ("listen",) and isinstance(value, list):
                entries = cast("list[object]", into.setdefault(key, []))
                for entry in cast("list[object]", value):
                    self._originate(entry, (*path, len(entries)), file)
                    entries.append(entry)
            else:
                into[key] = value

    def _originate(self, entry: object, path: Where, file: Path) -> None:
        self.origins.files[path] = file
        for key in cast("Table", entry) if isinstance(entry, dict) else ():
            self.origins.files[*path, key] = file


def load(path: Path) -> Loaded:
    """Read the configuration; raise :exc:`ConfigError` with every fault that was found.

    It is :exc:`NoSuchFile` when there is nothing at *path*.
    """
    merged, faults = _Merged(path), list[str]()
    if not path.name:
        raise ConfigError((f"{str(path)!r} is no file; name a configuration like /etc/mbroker/mbroker.toml",))
    folder = path.with_name(f"{path.stem}.d")
    for file in (path, *sorted(folder.glob("*.toml"))):
        try:
            merged.add(_read(file), file)
        except tomllib.TOMLDecodeError as error:
            faults.append(f"{file}: {error}")
        except UnicodeDecodeError:
            faults.append(f"{file}: is not UTF-8 text")
        except RecursionError:
            faults.append(f"{file}: is nested too deep")
        except ValueError:  # of Python's int
            faults.append(f"{file}: has a number of too many digits")
        except OSError as error:
            line = f"{file}: cannot be read: {error.strerror}"
            if file == path and isinstance(error, FileNotFoundError):
                raise NoSuchFile((line,)) from None
            faults.append(line)
    if faults:
        raise ConfigError(tuple(faults))
    try:
        config: Config = build(Config, merged.data)
    except Invalid as invalid:
        raise ConfigError(merged.origins.lines(invalid.faults)) from None
    if found := _contradictions(config):
        raise ConfigError(merged.origins.lines(found))
    return Loaded(config, merged.origins)


def _read(file: Path) -> Table:
    with file.open("rb") as opened:
        text = opened.read(_MAX_FILE + 1)
    if len(text) > _MAX_FILE:
        raise OSError(0, f"it has more than {_MAX_FILE} bytes")
    return tomllib.loads(text.decode())


def _contradictions(config: Config) -> list[Fault]:
    """Return what single keys cannot show."""
    faults: list[Fault] = []
    seen = {config.broker.control: "broker.control"}
    for index, section in enumerate(config.listen):
        if other := seen.get(section.address):
            faults.append(Fault(("listen", index, "address"), f"{section.address} is used by {other} already"))
        seen[section.address] = f"listen.{index}"
        if section.insecure and not _is_loopback(Address.parse(section.address).host):
            faults.append(Fault(("listen", index, "insecure"), "is for addresses of loopback only, such as 127.0.0.1"))
        if section.insecure and not section.domain:
            faults.append(Fault(("listen", index, "domain"), "is missing; without keys nothing else tells who speaks"))
    states = config.host.p_states
    if states and (list(states) != sorted(set(states)) or states[0] <= 0):
        faults.append(Fault(("host", "p_states"), "must be frequencies in MHz, each above the last"))
    together = 0.0
    for name, policy in config.policies.items():
        together += policy.deadline if policy.isolation is Isolation.PROCESS else 0.0
        if together > ISOLATED_SECONDS + 1e-9:
            reason = f"the isolated policies up to here may take {together:g} s together; at most 1 s is allowed"
            faults.append(Fault(("policies", name, "deadline"), reason))
            break
    for name, domain in config.domains.items():
        if not domain.cpus or min(domain.cpus) < 0:
            faults.append(Fault(("domains", name, "cpus"), "must be numbers of physical CPUs, for example [0, 1]"))
    if config.fleet and not config.hypervisor:
        faults.append(Fault(("fleet",), "is of no use without [hypervisor]; give its uri there"))
    if config.fleet:
        faults += _misnamed(("broker", "name"), config.broker.name)
        for name in config.fleet.hosts:
            faults += _misnamed(("fleet", "hosts", name), name)
    faults += _misjudged(config.alerts) if config.alerts else []
    if config.fleet and config.broker.name in config.fleet.hosts:
        reason = "is this host itself; name the others, and this one by broker.name"
        faults.append(Fault(("fleet", "hosts", config.broker.name), reason))
    return faults


def _misjudged(alerts: AlertsSection) -> list[Fault]:
    faults = [
        Fault(("alerts", "groups", name), "must be a name of letters, digits and _ . :")
        for name in alerts.groups
        if not is_name(name)
    ]
    if alerts.late >= SILENT * alerts.interval:
        reason = f"must be less than {SILENT} intervals, after which a series is silent"
        faults.append(Fault(("alerts", "late"), reason))
    if alerts.offload and alerts.late:
        reason = "cannot go with late: a publisher compares its samples in the order in which it makes them"
        faults.append(Fault(("alerts", "offload"), reason))
    if alerts.shards and alerts.shards.limit < alerts.shards.engines:
        faults.append(Fault(("alerts", "shards", "most"), "must not be less than there are engines to begin with"))
    for name in alerts.deadman.receivers if alerts.deadman else ():
        if name not in alerts.receivers:
            known = ", ".join(alerts.receivers) or "none"
            faults.append(Fault(("alerts", "deadman", "receivers"), f"{name} is no receiver; there are {known}"))
    return faults


def _misnamed(where: Where, host: str) -> list[Fault]:
    try:
        keys.check_name(host)
    except KeyFileError as error:
        return [Fault(where, f"is called as its key: {error}")]
    return []


def _is_loopback(host: str) -> bool:
    try:
        return not host or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
