"""One migration through libvirt: the call that blocks, what can be done to it meanwhile, and what it may leave behind.

libvirt's own last step can be taken twice: when the answer of the destination's daemon is lost, the source lets the
domain run on, and the destination may do so as well. Here a domain arrives paused, and carries an ``<arrival>`` in its
metadata until it is *admitted*: after the source's emulator has ended, which no error and no silence can stand for.
"""

from __future__ import annotations

from contextlib import suppress
from threading import Lock
from xml.etree import ElementTree as ET

import attrs
import libvirt

from .domain import ARRIVAL, State
from .emulator import at_exit
from .errors import HypervisorError, HypervisorUnreachable, NoSuchDomain, Where
from .libvirt_link import open_connection, plainly
from .libvirt_words import described, look_up, migration_flags, migration_parameters, progressed, state_of
from .migration import MigrationOptions, Progress, whereabouts

__all__ = ["Abandoned", "Passage", "admit", "discard", "left"]

_ENDS = {
    libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED: True,
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: False,
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: False,
    libvirt.VIR_DOMAIN_SHUTOFF_SAVED: False,
}
"""Whether it left, by the reason for which a domain is off. One that was destroyed may not have run before."""


class Abandoned(Exception):
    """The migration was called off before it began; nothing happened."""


@attrs.define(eq=False)
class Passage:
    """A migration to *destination*. Everything here blocks: :meth:`make` for minutes, the rest for a round trip."""

    connection: libvirt.virConnect
    """To the source."""
    domain: libvirt.virDomain
    source: str
    destination: str
    options: MigrationOptions
    postcopy: bool = attrs.field(default=False, init=False)
    """Whether the domain has switched over already and cannot go back."""
    _lock: Lock = attrs.field(factory=Lock, init=False)
    _begun: bool = attrs.field(default=False, init=False)
    _abandoned: bool = attrs.field(default=False, init=False)
    _target: libvirt.virConnect | None = attrs.field(default=None, init=False)

    def make(self) -> None:
        """Move the domain. Raises Abandoned and HypervisorError."""
        with plainly(self.source):
            held = self.options.postcopy_after is None and state_of(self.domain) is State.RUNNING
            flags = migration_flags(self.options, persistent=bool(self.domain.isPersistent()), held=held)
            parameters: dict[str, int | str] = {**migration_parameters(self.options)}
            if held:
                parameters[libvirt.VIR_MIGRATE_PARAM_DEST_XML] = self._ticketed()
        target = self._target = open_connection(self.destination)  # may take minutes where packets vanish
        self._begin()

        def admit_early() -> None:
            # The source's emulator has ended. Had the source been told to let the domain run on, then because the
            # connection is broken that this uses, or because the destination has given its half up.
            with suppress(libvirt.libvirtError, HypervisorError):
                admit(look_up(target, uuid), self.options.ticket)

        with plainly(self.source):
            name, uuid = self.domain.name(), self.domain.UUIDString()
            with at_exit(self.source, name, uuid, admit_early):
                self.domain.migrate3(target, parameters, flags)
        if held:
            self._admit(target)

    def _ticketed(self) -> str:
        """Return the domain's XML with the ``<arrival>`` that it is to have at the destination."""
        root = ET.fromstring(  # noqa: S314 - of our own hypervisor
            self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE)
        )
        metadata = root.find("metadata")
        if metadata is None:
            metadata = ET.SubElement(root, "metadata")
        for old in metadata.findall(f"{{{ARRIVAL}}}arrival"):
            metadata.remove(old)
        mark = {"xmlns": ARRIVAL, "ticket": self.options.ticket, "source": self.connection.getHostname()}
        ET.SubElement(metadata, "arrival", mark)  # not qualified: nothing is left of its namespace when it goes
        return ET.tostring(root, encoding="unicode")

    def _admit(self, target: libvirt.virConnect) -> None:
        """Let the domain run at the destination when the source has let go of it."""
        uuid = self.domain.UUIDString()
        here = _sight(self.connection, uuid, self.source)
        if here is not None and not (isinstance(here, State) and not here.active):
            raise HypervisorError(
                f"{self.destination} has {self.domain.name()}, paused, as {self.source} may not have let go of it"
            )
        with plainly(self.destination):
            admit(look_up(target, uuid), self.options.ticket)

    def _begin(self) -> None:
        with self._lock:
            if self._abandoned:
                raise Abandoned
            self._begun = True

    def abandon(self) -> bool:
        """Call the migration off; False when it has begun, and must be aborted."""
        with self._lock:
            self._abandoned = True
            return not self._begun

    def abort(self) -> None:
        """Ask libvirt to abort; without effect before its job runs and after the switch-over."""
        with suppress(libvirt.libvirtError):
            self.domain.abortJob()

    def progress(self, elapsed: float) -> Progress | None:
        """Return how far the migration is, None when libvirt does not say.

        Switches to post-copy when it is time, and aborts when the destination's daemon is gone: the halves would
        copy on, for nothing.
        """
        if self._target is not None and not self.postcopy and not self._target.isAlive():
            self.abort()
        late = self.options.postcopy_after
        if late is not None and elapsed >= late and not self.postcopy:
            with suppress(libvirt.libvirtError):  # the job has not begun, or is over
                self.domain.migrateStartPostCopy()
                self.postcopy = True
        try:
            job = self.domain.jobStats()
        except libvirt.libvirtError:
            return None
        return progressed(job, elapsed, postcopy=self.postcopy)

    def where(self) -> Where:
        """Return where the domain is, now that nothing moves it any more."""
        uuid = self.domain.UUIDString()
        here = _sight(self.connection, uuid, self.source)
        if not self._begun:
            return whereabouts(here, None)
        try:
            target = self._target or open_connection(self.destination)
        except HypervisorUnreachable as error:
            return whereabouts(here, error)
        if _same_host(self.connection, target):  # which has refused
            return whereabouts(here, None)
        return whereabouts(here, _sight(target, uuid, self.destination))


def admit(domain: libvirt.virDomain, ticket: str) -> None:
    """Let *domain* run; see :meth:`mbroker.hypervisor.Hypervisor.admit`."""
    if state_of(domain) is State.MOVING:
        _check(domain, ticket)
        domain.resume()
    try:
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, None, ARRIVAL, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in {libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_NO_SUPPORT}:
            raise


def discard(domain: libvirt.virDomain, ticket: str) -> None:
    """Drop *domain*; see :meth:`mbroker.hypervisor.Hypervisor.discard`."""
    _check(domain, ticket)
    if domain.isPersistent():
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)  # its other half may share that
    domain.destroy()


def left(domain: libvirt.virDomain) -> bool | None:
    """Tell how *domain* ended; see :meth:`mbroker.hypervisor.Hypervisor.left`."""
    state, reason = domain.state()
    if state == libvirt.VIR_DOMAIN_CRASHED:
        return False
    return _ENDS.get(reason) if state == libvirt.VIR_DOMAIN_SHUTOFF else None


def _check(domain: libvirt.virDomain, ticket: str) -> None:
    """See that a migration which is over left *domain* here; raise HypervisorError when not."""
    found = described(domain)
    if found.state is not State.MOVING or ticket != (found.arrival.ticket if found.arrival else ""):
        raise HypervisorError(f"{found.name} was not left here by that migration")
    if domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
        raise HypervisorError(f"{found.name} is being migrated")


def _same_host(one: libvirt.virConnect, other: libvirt.virConnect) -> bool:
    try:
        mine, theirs = (ET.fromstring(each.getCapabilities()).findtext("host/uuid") for each in (one, other))  # noqa: S314
    except (libvirt.libvirtError, ET.ParseError):
        return False
    return mine is not None and mine == theirs


def _sight(connection: libvirt.virConnect, uuid: str, uri: str) -> State | HypervisorUnreachable | None:
    try:
        with plainly(uri):
            return state_of(connection.lookupByUUIDString(uuid))
    except NoSuchDomain:
        return None
    except HypervisorUnreachable as error:
        return error
