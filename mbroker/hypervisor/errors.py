"""What a hypervisor refuses, as one tree.

::

    HypervisorError
    ├── HypervisorUnreachable (ConnectionError)  nobody answers at the URI, or not any more
    ├── NoSuchDomain (LookupError)               no domain of that UUID or name on this host
    ├── NoSuchPort (LookupError)                 the domain lacks the port; the message has the XML
    ├── StillAttached (TimeoutError)             the guest did not let go of a device
    └── MigrationFailed                          it says where the domain is now
"""

from __future__ import annotations

from enum import Enum

__all__ = [
    "HypervisorError",
    "HypervisorUnreachable",
    "MigrationFailed",
    "NoSuchDomain",
    "NoSuchPort",
    "StillAttached",
    "Where",
]


class Where(Enum):
    """On which side of a migration the domain is, as far as can be known."""

    SOURCE = "source"
    """It stayed, or came back."""
    DESTINATION = "destination"
    """It arrived, although the migration was reported to have failed."""
    NOWHERE = "nowhere"
    """Both sides answer, and it runs on neither: start it again, or restore it."""
    UNKNOWN = "unknown"
    """A side does not answer, or holds a stopped half. Ask both again before anything is resumed or started."""


class HypervisorError(Exception):
    """Root of the tree; itself raised with the hypervisor's own words for what has no class below."""


class HypervisorUnreachable(HypervisorError, ConnectionError):
    """Nobody answers at the URI, or the connection is lost and being made again."""


class NoSuchDomain(HypervisorError, LookupError):
    """This host knows no domain of that UUID or name."""


class NoSuchPort(HypervisorError, LookupError):
    """The domain runs without the virtio or Xen port that was asked for."""


class StillAttached(HypervisorError, TimeoutError):
    """A device was to be detached, and the guest did not release it in time; it is still attached."""


class MigrationFailed(HypervisorError):
    """A migration did not end as asked; :attr:`where` says on which side the domain is."""

    def __init__(self, message: str, where: Where) -> None:
        super().__init__(message)
        self.where = where
