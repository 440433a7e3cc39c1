"""What is known of a domain: values, and how they are read from the hypervisor's XML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from itertools import islice
from uuid import UUID
from xml.etree import ElementTree as ET

import attrs

from .errors import HypervisorError, NoSuchPort

__all__ = [
    "ARRIVAL",
    "METADATA",
    "Arrival",
    "DomainInfo",
    "Port",
    "State",
    "Statistics",
    "channel_xml",
    "is_uuid",
    "read_domain",
]

METADATA = "urn:mchannel:1"
"""Namespace of the element in a domain's ``<metadata>`` whose attributes are ours to read."""
ARRIVAL = "urn:mchannel:arrival:1"
"""Namespace of the element ``<arrival>`` there that a domain has from its arrival until it runs."""

XEN_CHANNELS = "mgmt"
"""With what the names of the channels begin that agents open under Xen."""

_LARGEST_XML = 1 << 20  # characters: a domain with a thousand devices has a tenth of it
_MOST_METADATA = 64
_ALIAS = re.compile(r"ua-[A-Za-z0-9_-]{1,120}")


class State(Enum):
    """What a domain does on this host."""

    RUNNING = "running"
    PAUSED = "paused"
    """By a person or an error: resuming it is safe."""
    MOVING = "moving"
    """Held by a migration, as the half that leaves or the half that arrives: never resume it by hand.

    A domain that is whole already belongs here, too, until it is sure that its source has let go of it.
    """
    SUSPENDED = "suspended"
    """Asleep by its own will (ACPI S3)."""
    STOPPING = "stopping"
    OFF = "off"
    """Defined here and not running."""
    CRASHED = "crashed"

    @property
    def active(self) -> bool:
        """Whether the domain has memory and virtual CPUs on this host."""
        return self not in {State.OFF, State.CRASHED}


def is_uuid(text: str) -> bool:
    """Whether *text* is the UUID of a domain in its usual spelling, in either case."""
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


@attrs.frozen
class Arrival:
    """What a domain carries that is whole at its destination, and waits until it is sure that it runs nowhere else."""

    ticket: str
    """Of the migration that brought it; see :class:`~mbroker.hypervisor.MigrationOptions`."""
    source: str
    """Name of the host that it came from, for people."""


@attrs.frozen
class Port:
    """A character channel between a domain and its MVM."""

    name: str
    """By which the guest finds it, such as ``org.mchannel.0``."""
    path: str
    """Absolute path of the UNIX socket on the MVM; empty while the domain is off."""
    connected: bool | None = None
    """Whether the guest holds it open; None when the hypervisor does not say."""


@attrs.frozen
class DomainInfo:
    """A domain as its host describes it now."""

    uuid: str
    """In lower case; the identity of the domain wherever it runs."""
    name: str
    state: State
    vcpus: int
    memory: int
    """Bytes that it has now."""
    number: int | None = None
    """By which the hypervisor calls it while it runs here: Xen's domid."""
    xen: bool = False
    """Whether it is one of Xen's, which need no port for channels."""
    persistent: bool = True
    """Whether its definition stays on the host when it stops."""
    ports: tuple[Port, ...] = ()
    metadata: Mapping[str, str] = attrs.field(factory=dict[str, str])
    """Attributes of our element (:data:`METADATA`) in its XML, such as ``class`` and ``sla``."""
    devices: frozenset[str] = frozenset()
    """Aliases (``ua-...``) of devices that were given one."""
    free_ports: tuple[int, ...] = ()
    """Buses of the PCI Express root ports with nothing in them, where a device can be plugged in."""
    arrival: Arrival | None = None
    """Set while it is whole here and waits for :meth:`~mbroker.hypervisor.Hypervisor.admit`."""

    def address(self, port: str) -> str:
        """Return where its MVM listens to its agents: at the port called *port*, or to what it offers under Xen.

        Raises :exc:`NoSuchPort` as :meth:`port` does.
        """
        if not self.xen:
            return f"virtio://{self.port(port).path}?domain={self.uuid}"
        if not self.state.active:
            raise NoSuchPort(f"{self.name} does not run, so it offers no channel; start it first")
        return f"xen://{self.uuid}/{XEN_CHANNELS}*"

    def port(self, name: str) -> Port:
        """Return the port called *name*; raise :exc:`NoSuchPort` with the XML that it takes."""
        for port in self.ports:
            if port.name == name and port.path:
                return port
        if any(port.name == name for port in self.ports):
            raise NoSuchPort(f"{self.name} does not run, so its port {name} has no socket; start it first")
        raise NoSuchPort(f"{self.name} has no port {name}; add to its <devices> and restart it: {channel_xml(name)}")


@attrs.frozen
class Statistics:
    """Counters of a domain since it started on this host."""

    cpu_seconds: float
    """CPU time of all that runs for it, emulator included."""
    vcpu_seconds: tuple[float, ...] = ()
    """CPU time of each virtual CPU; empty when the hypervisor does not say."""
    memory: int | None = None
    """Bytes that the balloon leaves it."""
    most_memory: int | None = None
    """Bytes that the balloon could give it."""
    resident: int | None = None
    """Bytes of the host's memory that it takes up."""


def channel_xml(name: str) -> str:
    """Return the XML that gives a domain a virtio port called *name*."""
    return f"<channel type='unix'><target type='virtio' name='{name}'/></channel>"


def read_domain(xml: str, state: State, *, persistent: bool) -> DomainInfo:
    """Return what the XML of a domain says; raises :exc:`HypervisorError` when it cannot be understood."""
    if len(xml) > _LARGEST_XML or "<!" in xml.replace("<!--", ""):
        raise HypervisorError("the XML of a domain is too long, or has declarations: is that a hypervisor?")
    try:
        root = ET.fromstring(xml)  # noqa: S314 - no declarations, so no entities
        uuid, name = str(UUID(root.findtext("uuid", ""))), root.findtext("name", "")
        vcpus = root.find("vcpu")
        count = int((vcpus.get("current") or vcpus.text or "0") if vcpus is not None else "0")
        told = root.find("currentMemory")
        size = _bytes(told if told is not None else root.find("memory"))
        free = tuple(_free_ports(root))
        number = int(called) if (called := root.get("id")) is not None else None
    except (ET.ParseError, ValueError) as error:
        raise HypervisorError(f"the XML of a domain cannot be understood: {error}") from error
    mine = root.find(f"metadata/{{{METADATA}}}m")
    return DomainInfo(
        uuid=uuid,
        name=name,
        state=state,
        vcpus=count,
        memory=size,
        number=number,
        xen=root.get("type") == "xen",
        persistent=persistent,
        ports=tuple(_ports(root)),
        metadata={} if mine is None else dict(islice(mine.attrib.items(), _MOST_METADATA)),
        devices=frozenset(
            alias for each in root.findall("devices/*/alias") if _ALIAS.fullmatch(alias := each.get("name", ""))
        ),
        free_ports=free,
        arrival=_arrival(root.find(f"metadata/{{{ARRIVAL}}}arrival")),
    )


def _ports(root: ET.Element) -> Iterator[Port]:
    for channel in root.findall("devices/channel[@type='unix']"):
        target, source = channel.find("target"), channel.find("source")
        if target is None or target.get("type") not in {"virtio", "xen"} or not (name := target.get("name")):
            continue
        state = target.get("state")
        path = "" if source is None else source.get("path", "")
        yield Port(name, path, None if state is None else state == "connected")


def _arrival(element: ET.Element | None) -> Arrival | None:
    return None if element is None else Arrival(element.get("ticket", ""), element.get("source", ""))


def _free_ports(root: ET.Element) -> list[int]:
    controllers = root.findall("devices/controller[@type='pci'][@model='pcie-root-port']")
    taken = {int(each.get("bus", "0"), 0) for each in root.findall("devices/*/address[@type='pci']")}
    return sorted({int(each.get("index", "0")) for each in controllers} - taken)


def _bytes(element: ET.Element | None) -> int:
    if element is None or element.text is None:
        raise ValueError("it says nothing of memory")
    units = {"b": 1, "bytes": 1, "KiB": 1 << 10, "k": 1 << 10, "MiB": 1 << 20, "M": 1 << 20, "GiB": 1 << 30}
    unit = element.get("unit", "KiB")
    if unit not in units:
        raise ValueError(f"memory in {unit}")
    return int(element.text) * units[unit]
