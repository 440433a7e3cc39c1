"""KVM and Xen through libvirt, without blocking the loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

import attrs
import libvirt

from mchannel.apart import apart

from .domain import DomainInfo, State, Statistics
from .errors import (
    HypervisorError,
    HypervisorUnreachable,
    MigrationFailed,
    NoSuchDomain,
    StillAttached,
    Where,
)
from .events import EventStream, Fanout, Kind
from .libvirt_link import Ear, Link, plainly
from .libvirt_words import counted, described, look_up, quota_parameters, state_of
from .migration import DEFAULTS, MigrationOptions, Progress
from .passage import Abandoned, Passage, admit, discard, left

__all__ = ["LibvirtHypervisor"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

_CALLS = 4
"""Calls that may block at the same time."""
_PROGRESS_INTERVAL = 0.25
_ABORT_INTERVAL = 0.2
_ABORT_PATIENCE = 30.0
"""Seconds in which an aborted migration must end: longer than the keepalive of a dead connection."""
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0
"""Seconds before the first and between later attempts to connect again."""


@attrs.define(eq=False)
class LibvirtHypervisor:
    """A :class:`~mbroker.hypervisor.Hypervisor` behind a libvirt URI; made by :meth:`connect`."""

    uri: str
    _loop: asyncio.AbstractEventLoop = attrs.field(factory=asyncio.get_running_loop, init=False)
    _fanout: Fanout = attrs.field(factory=lambda: Fanout(time.monotonic), init=False)
    _calls: ThreadPoolExecutor = attrs.field(
        factory=lambda: ThreadPoolExecutor(_CALLS, thread_name_prefix="libvirt"), init=False
    )
    _link: Link | None = attrs.field(default=None, init=False)
    _attempt: object = attrs.field(factory=object, init=False)
    """Stands for the present connection; what an earlier one still says is not heard."""
    _held: list[tuple[Kind, str, str, State | None]] | None = attrs.field(default=None, init=False)
    """Events that came while the domains were being listed."""
    _detaching: dict[tuple[str, str], asyncio.Future[bool]] = attrs.field(
        factory=dict[tuple[str, str], "asyncio.Future[bool]"], init=False
    )
    _reconnecting: asyncio.Task[None] | None = attrs.field(default=None, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    @classmethod
    async def connect(cls, uri: str) -> Self:
        """Connect to *uri*; raises HypervisorUnreachable when nobody answers."""
        made = cls(uri)
        try:
            await made._connect()
        except BaseException:
            await made.close()
            raise
        return made

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        """Whether libvirt answers now."""
        return self._link is not None

    async def close(self) -> None:
        """End all streams and let go of the connection; migrations that go on are not aborted. Idempotent."""
        self._closed = True
        self._fanout.close()
        link, self._link, self._attempt = self._link, None, object()
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        if link is not None:
            await self._loop.run_in_executor(self._calls, link.let_go)
        self._calls.shutdown(wait=False, cancel_futures=True)

    # The connection

    async def _connect(self) -> None:
        attempt = self._attempt = object()
        self._held = []
        link = await apart(lambda: self._open(attempt), "libvirt")
        try:
            present = await self._loop.run_in_executor(self._calls, _described_all, link.connection, self.uri)
            self._check(attempt)
        except BaseException:
            with suppress(RuntimeError):  # closed meanwhile
                self._calls.submit(link.let_go)
            raise
        self._link = link
        self._fanout.reconcile(present)
        held, self._held = self._held, None
        for kind, domain, name, state in held:
            self._fanout.publish(kind, domain, name, state)

    def _open(self, attempt: object) -> Link:
        link = Link.open(self.uri, self._ear(attempt))
        try:
            self._check(attempt)
        except HypervisorUnreachable:
            link.let_go()
            raise
        return link

    def _check(self, attempt: object) -> None:
        if attempt is not self._attempt:
            raise HypervisorUnreachable(f"{self.uri}: the connection was lost at once; see the log of its libvirtd")

    def _ear(self, attempt: object) -> Ear:
        def post(heard: Callable[[], None]) -> None:
            with suppress(RuntimeError):  # the loop was closed without closing this
                self._loop.call_soon_threadsafe(lambda: heard() if attempt is self._attempt else None)

        return Ear(
            event=lambda kind, domain, name, state: post(lambda: self._heard(kind, domain, name, state)),
            detached=lambda domain, alias, released: post(lambda: self._detached(domain, alias, released)),
            lost=lambda: post(self._lost),
        )

    def _heard(self, kind: Kind, domain: str, name: str, state: State | None) -> None:
        if self._held is not None:
            self._held.append((kind, domain, name, state))
        else:
            self._fanout.publish(kind, domain, name, state)

    def _detached(self, domain: str, alias: str, released: bool) -> None:
        waiter = self._detaching.get((domain, alias))
        if waiter is not None and not waiter.done():
            waiter.set_result(released)

    def _lost(self) -> None:
        link, self._link, self._attempt = self._link, None, object()
        if link is not None:  # else it was lost before it was whole, and whoever makes it sees that
            _log.warning("%s: the connection to libvirt is lost; connecting again", self.uri)
            self._calls.submit(link.let_go)
            self._reconnecting = self._loop.create_task(self._reconnect())

    async def _reconnect(self) -> None:
        wait = _FIRST_WAIT
        while True:
            await asyncio.sleep(wait)
            try:
                await self._connect()
            except HypervisorError:
                wait = min(wait * 2, _LONGEST_WAIT)
            else:
                _log.info("%s: libvirt answers again", self.uri)
                return

    async def _call(self, function: Callable[[libvirt.virConnect], T]) -> T:
        link = self._link
        if link is None:
            why = "was closed" if self._closed else "does not answer; is its libvirtd running? It is tried again"
            raise HypervisorUnreachable(f"{self.uri} {why}")

        def call() -> T:
            with plainly(self.uri):
                return function(link.connection)

        return await self._loop.run_in_executor(self._calls, call)

    async def _on(self, domain: str, function: Callable[[libvirt.virDomain], T]) -> T:
        return await self._call(lambda connection: function(look_up(connection, domain)))

    # What is so

    async def domains(self) -> list[DomainInfo]:
        """Return all domains, those that are only defined too."""
        return await self._call(lambda connection: _described_all(connection, self.uri))

    async def info(self, domain: str) -> DomainInfo:
        """Return the domain of this UUID or name."""
        return await self._on(domain, described)

    async def state(self, domain: str) -> State | None:
        """Return what the domain does here; None when this host does not know it."""
        try:
            return await self._on(domain, state_of)
        except NoSuchDomain:
            return None

    async def left(self, domain: str) -> bool | None:
        """Tell how a domain ended that is off here."""
        try:
            return await self._on(domain, left)
        except NoSuchDomain:
            return None

    async def statistics(self) -> dict[str, Statistics]:
        """Return the counters of every active domain, by UUID."""
        return await self._call(_counted_all)

    def events(self, *, limit: int = 256) -> EventStream:
        """Return the events from now on, beginning with the domains that are present."""
        return self._fanout.stream(limit)

    # What is done

    async def set_quota(self, domain: str, share: float | None) -> None:
        """Let each virtual CPU use up to *share* of a physical one; None lifts the limit."""

        def limit(handle: libvirt.virDomain) -> None:
            known = handle.schedulerParametersFlags(libvirt.VIR_DOMAIN_AFFECT_LIVE)
            wanted = quota_parameters(known, share, handle.info()[3])
            handle.setSchedulerParametersFlags(wanted, libvirt.VIR_DOMAIN_AFFECT_LIVE)

        try:
            await self._on(domain, limit)
        except LookupError as error:
            if isinstance(error, HypervisorError):
                raise
            raise HypervisorError(f"{self.uri} cannot limit the CPU time of a domain: {error}") from error

    async def attach(self, domain: str, xml: str) -> None:
        """Plug the device that *xml* describes into the running domain."""
        await self._on(domain, lambda handle: handle.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE))

    async def detach(self, domain: str, alias: str, *, timeout: float = 10.0) -> None:
        """Unplug the device of this alias and return once the guest has let go of it."""
        waiter = self._detaching[domain, alias] = self._loop.create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._on(domain, lambda handle: handle.detachDeviceAlias(alias, libvirt.VIR_DOMAIN_AFFECT_LIVE))
                released = await waiter
        except TimeoutError:
            released = alias not in (await self.info(domain)).devices  # the event may be lost with its connection
        finally:
            if self._detaching.get((domain, alias)) is waiter:
                del self._detaching[domain, alias]
        if not released:
            raise StillAttached(
                f"{domain} did not let go of {alias} in {timeout:g} s; does its guest support hot-unplug?"
            )

    async def pause(self, domain: str) -> None:
        """Stop the virtual CPUs of a running domain."""
        await self._on(domain, lambda handle: handle.suspend())

    async def resume(self, domain: str) -> None:
        """Let a paused domain run on."""

        def run(handle: libvirt.virDomain) -> None:
            if state_of(handle) is State.MOVING:
                raise HypervisorError(f"{handle.name()} is half of a migration; its other half may run")
            handle.resume()

        await self._on(domain, run)

    async def admit(self, domain: str, ticket: str) -> None:
        """Let a domain run that a migration left here."""
        await self._on(domain, lambda handle: admit(handle, ticket))

    async def discard(self, domain: str, ticket: str) -> None:
        """Drop what a migration left here of a domain that goes on elsewhere."""
        await self._on(domain, lambda handle: discard(handle, ticket))

    async def save(self, domain: str, path: Path) -> None:
        """Stop the domain and write its memory to *path* on the host."""
        await self._on(domain, lambda handle: handle.save(str(path)))

    async def restore(self, path: Path) -> None:
        """Let the domain that was saved to *path* run on here."""
        await self._call(lambda connection: connection.restore(str(path)))

    async def destroy(self, domain: str) -> None:
        """Stop the domain at once."""
        await self._on(domain, lambda handle: handle.destroy())

    async def migrate(
        self,
        domain: str,
        destination: str,
        options: MigrationOptions = DEFAULTS,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Move the domain to the hypervisor at *destination*; see :class:`~mbroker.hypervisor.Hypervisor`."""

        def prepare(connection: libvirt.virConnect) -> Passage:
            handle = look_up(connection, domain)
            if not state_of(handle).active:
                raise NoSuchDomain(f"{handle.name()} does not run at {self.uri}; start it there first")
            return Passage(connection, handle, self.uri, destination, options)

        passage = await self._call(prepare)
        work = apart(passage.make, "libvirt")
        watch = self._loop.create_task(self._accompany(passage, progress))
        try:
            await asyncio.wait((work,), timeout=options.timeout)
            late = not work.done()
            if late:
                await self._abort(passage, work)
        except asyncio.CancelledError:
            await self._abort(passage, work)
            raise
        finally:
            watch.cancel()
            work.add_done_callback(_retrieve)
        await self._judge(passage, work, f"it took longer than {options.timeout:g} s" if late else "")

    async def _accompany(self, passage: Passage, tell: Callable[[Progress], None] | None) -> None:
        """Report progress, and switch to post-copy in time."""
        began = self._loop.time()
        while True:
            await asyncio.sleep(_PROGRESS_INTERVAL)
            elapsed = self._loop.time() - began
            now = await self._loop.run_in_executor(self._calls, passage.progress, elapsed)
            if now is not None and tell is not None:
                tell(now)

    async def _abort(self, passage: Passage, work: asyncio.Future[None]) -> None:
        """Abort and wait until the migration is over, or was called off before it began.

        One that has switched to post-copy cannot be aborted, and whoever leaves it now loses the domain.
        """
        late = self._loop.time() + _ABORT_PATIENCE
        while not work.done() and (passage.postcopy or self._loop.time() < late) and not passage.abandon():
            await self._loop.run_in_executor(self._calls, passage.abort)
            await asyncio.wait((work,), timeout=_ABORT_INTERVAL)

    async def _judge(self, passage: Passage, work: asyncio.Future[None], why: str) -> None:
        """Return when the domain moved; raise MigrationFailed when it did not."""
        if work.done():
            error = work.exception()
            if error is None:
                return
            if not isinstance(error, HypervisorError | Abandoned):
                raise error
            why = why or str(error)
        where = Where.UNKNOWN
        with suppress(TimeoutError, HypervisorError):
            async with asyncio.timeout(_ABORT_PATIENCE):
                where = await self._loop.run_in_executor(self._calls, passage.where)
        raise MigrationFailed(why, where)


def _retrieve(work: asyncio.Future[None]) -> None:
    """Take note of how a migration ended that nobody waits for any more."""
    if not work.cancelled() and (error := work.exception()):
        _log.debug("a migration ended: %s", error)


def _described_all(connection: libvirt.virConnect, uri: str) -> list[DomainInfo]:
    found: list[DomainInfo] = []
    with plainly(uri):
        handles = connection.listAllDomains()
    for handle in handles:
        if handle.ID() != 0:  # Xen's domain 0, which is this host
            with suppress(NoSuchDomain), plainly(uri):  # it went meanwhile
                found.append(described(handle))
    return found


def _counted_all(connection: libvirt.virConnect) -> dict[str, Statistics]:
    what = libvirt.VIR_DOMAIN_STATS_CPU_TOTAL | libvirt.VIR_DOMAIN_STATS_VCPU | libvirt.VIR_DOMAIN_STATS_BALLOON
    which = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
    try:
        # A domain that a migration holds says less, and nobody waits for it.
        said = connection.getAllDomainStats(what, which | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise
        said = [(handle, dict[str, int]()) for handle in connection.listAllDomains() if state_of(handle).active]
    counters: dict[str, Statistics] = {}
    for handle, values in said:
        with suppress(libvirt.libvirtError):  # it went meanwhile
            counters[handle.UUIDString()] = counted(handle, values)
    return counters
