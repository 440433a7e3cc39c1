"""What every hypervisor does for the broker: one interface for KVM and Xen through libvirt, and for the fake."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, Self

from .domain import DomainInfo, State, Statistics
from .events import EventStream
from .migration import DEFAULTS, MigrationOptions, Progress

__all__ = ["Hypervisor"]


class Hypervisor(Protocol):
    """The domains of one host. Every method may raise :exc:`~mbroker.hypervisor.HypervisorUnreachable`.

    A *domain* is given by its UUID, which is the same on every host. Cancelling a call stops waiting
    for it, not the hypervisor from doing it; only :meth:`migrate` aborts what was begun.
    """

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *_: object) -> None: ...

    @property
    def uri(self) -> str:
        """Where the hypervisor answers."""
        ...

    @property
    def connected(self) -> bool:
        """Whether it answers now; when it does not, the connection is being made again in the background."""
        ...

    async def domains(self) -> list[DomainInfo]:
        """Return all domains, those that are only defined too."""
        ...

    async def info(self, domain: str) -> DomainInfo:
        """Return the domain of this UUID or, for people, name; raises :exc:`~mbroker.hypervisor.NoSuchDomain`."""
        ...

    async def state(self, domain: str) -> State | None:
        """Return what the domain does on this host; None when the host does not know it."""
        ...

    async def left(self, domain: str) -> bool | None:
        """Tell how a domain ended that is off here: True when it left for another host, False when it ran to its end.

        None when the hypervisor does not know (any more), or the end says nothing: it was destroyed, or the power cut.
        """
        ...

    async def statistics(self) -> Mapping[str, Statistics]:
        """Return the counters of every active domain, by UUID."""
        ...

    def events(self, *, limit: int = 256) -> EventStream:
        """Return the host's events from now on, beginning with the domains that are present.

        *limit* is how many may wait for a slow reader; see :class:`~mbroker.hypervisor.EventStream`.
        """
        ...

    async def migrate(
        self,
        domain: str,
        destination: str,
        options: MigrationOptions = DEFAULTS,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Move the domain to the hypervisor at *destination*, a URI; it runs there on return.

        It never runs twice: it arrives paused, and is admitted when the source has let go of it. When this process
        dies in between, or a host cannot be asked any more, halves stay behind that are
        :attr:`~mbroker.hypervisor.State.MOVING`; :mod:`mbroker.fleet.departures` says which to :meth:`admit` and which
        to :meth:`discard`.

        Its definition moves along if it is persistent. *progress* is called a few times a second. Raises
        :exc:`~mbroker.hypervisor.MigrationFailed`, which says where the domain is, and NoSuchDomain when it does
        not run here. Cancelling aborts the migration and waits until the domain stands still on one side: ask
        :meth:`state` at both for which, as an abort may come too late. After a switch to post-copy it waits for
        the end.
        """
        ...

    async def admit(self, domain: str, ticket: str) -> None:
        """Let a domain run that a migration left here, as it is sure that it runs nowhere else; idempotent.

        It is one that arrived with *ticket*; or, with none, one that did not leave, and that no migration moves any
        more. Raises HypervisorError when it is neither.
        """
        ...

    async def discard(self, domain: str, ticket: str) -> None:
        """Drop what a migration left here of a domain that goes on elsewhere, and its definition; never one that runs.

        As for :meth:`admit`, *ticket* tells which. Raises HypervisorError when it is not so.
        """
        ...

    async def set_quota(self, domain: str, share: float | None) -> None:
        """Let each virtual CPU use up to *share* of a physical one, such as 0.5; None lifts the limit."""
        ...

    async def attach(self, domain: str, xml: str) -> None:
        """Plug the device that *xml* describes into the running domain; its definition stays as it is.

        To detach it again, give it an alias: ``<alias name='ua-...'/>``.
        """
        ...

    async def detach(self, domain: str, alias: str, *, timeout: float = 10.0) -> None:
        """Unplug the device of this alias and return once the guest has let go of it.

        Raises :exc:`~mbroker.hypervisor.StillAttached` when it does not within *timeout* seconds, or refuses.
        """
        ...

    async def pause(self, domain: str) -> None:
        """Stop the virtual CPUs of a running domain."""
        ...

    async def resume(self, domain: str) -> None:
        """Let a paused domain run on. Refused for :attr:`~mbroker.hypervisor.State.MOVING`: its twin may run."""
        ...

    async def save(self, domain: str, path: Path) -> None:
        """Stop the domain and write its memory to *path* on the host."""
        ...

    async def restore(self, path: Path) -> None:
        """Let the domain that was saved to *path* run on here. Once: nothing keeps a second one from running."""
        ...

    async def destroy(self, domain: str) -> None:
        """Stop the domain at once, as by pulling its plug."""
        ...

    async def close(self) -> None:
        """End all streams and let go of the connection; idempotent."""
        ...
