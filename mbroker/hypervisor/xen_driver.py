"""Xen through libvirt: its driver says nothing before a domain is suspended, so that is said to the agents here."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs

from mchannel.errors import MChannelError
from mchannel.transports import xen

from .domain import State
from .errors import HypervisorError, NoSuchDomain
from .events import Kind
from .libvirt_driver import LibvirtHypervisor
from .migration import DEFAULTS, MigrationOptions, Progress

__all__ = ["XenHypervisor"]

_QUIET = 5.0
"""Seconds that the agents of a domain have to let go of their event channels."""
_SAVE = 600.0
"""Seconds that a save may take before the agents go on by themselves; then it was one that nobody announced."""

_log = logging.getLogger(__name__)


@attrs.define(eq=False)
class XenHypervisor(LibvirtHypervisor):
    """A :class:`~mbroker.hypervisor.Hypervisor` behind a ``xen:`` URI, on the host itself.

    Event channels must be closed before a suspend (:mod:`mchannel.transports.xen`), and nobody tells when it comes. So
    the agents of a domain let go before it is saved or moved, and readers hear
    :attr:`~mbroker.hypervisor.Kind.LEAVING` then: channels are quiet as long as its memory is copied. They hear
    :attr:`~mbroker.hypervisor.Kind.RESUMED` when it stays after all.
    """

    async def migrate(
        self,
        domain: str,
        destination: str,
        options: MigrationOptions = DEFAULTS,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Move the domain to the hypervisor at *destination*; see :class:`~mbroker.hypervisor.Hypervisor`."""
        async with self._quiet(domain, options.timeout):
            await super().migrate(domain, destination, options, progress)

    async def save(self, domain: str, path: Path) -> None:
        """Stop the domain and write its memory to *path* on the host."""
        async with self._quiet(domain, _SAVE):
            await super().save(domain, path)

    @asynccontextmanager
    async def _quiet(self, domain: str, seconds: float) -> AsyncGenerator[None]:
        """Have the agents of *domain* let go, for so many *seconds*, and go on when the block raises."""
        info = await self.info(domain)
        if info.number is None:
            raise NoSuchDomain(f"{info.name} does not run at {self.uri}; start it there first")
        try:
            await self._hush(info.number, info.name, seconds)
            self._fanout.publish(Kind.LEAVING, info.uuid, info.name)
            yield
        except BaseException:
            with suppress(MChannelError, OSError):  # no Xen here
                await asyncio.to_thread(xen.resume, info.number)
            with suppress(HypervisorError):  # which then tells of it again when it answers
                if await self.state(info.uuid) is State.RUNNING:
                    self._fanout.publish(Kind.RESUMED, info.uuid, info.name)
            raise

    async def _hush(self, number: int, name: str, seconds: float) -> None:
        hold = min(math.ceil(seconds), xen.HOLD)
        try:
            quiet = await asyncio.to_thread(xen.quiesce, number, timeout=_QUIET, hold=hold)
        except (MChannelError, OSError) as error:
            _log.warning("%s: its agents cannot be told of the suspend: %s", name, error)
            return
        if not quiet:
            _log.warning("%s: not all of its agents let go within %g s; it is suspended all the same", name, _QUIET)
