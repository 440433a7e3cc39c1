"""Hypervisors: what the broker needs of KVM and Xen, through libvirt or a fake.

::

    async with await connect("qemu:///system") as host:
        async with host.events() as events:
            async for event in events:
                ...
"""

from .connect import connect, is_xen
from .domain import Arrival, DomainInfo, Port, State, Statistics, channel_xml
from .driver import Hypervisor
from .errors import (
    HypervisorError,
    HypervisorUnreachable,
    MigrationFailed,
    NoSuchDomain,
    NoSuchPort,
    StillAttached,
    Where,
)
from .events import DomainEvent, EventStream, Kind
from .migration import MigrationOptions, Phase, Progress

__all__ = [
    "Arrival",
    "DomainEvent",
    "DomainInfo",
    "EventStream",
    "Hypervisor",
    "HypervisorError",
    "HypervisorUnreachable",
    "Kind",
    "MigrationFailed",
    "MigrationOptions",
    "NoSuchDomain",
    "NoSuchPort",
    "Phase",
    "Port",
    "Progress",
    "State",
    "Statistics",
    "StillAttached",
    "Where",
    "channel_xml",
    "connect",
    "is_xen",
]
