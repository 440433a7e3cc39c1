"""One migration through libvirt: the call that blocks, and what can be done to it meanwhile."""

from __future__ import annotations

from contextlib import suppress
from threading import Lock
from xml.etree import ElementTree as ET

import attrs
import libvirt

from .domain import State
from .errors import HypervisorUnreachable, NoSuchDomain, Where
from .libvirt_link import open_connection, plainly
from .libvirt_words import migration_flags, migration_parameters, progressed, state_of
from .migration import MigrationOptions, Progress, whereabouts

__all__ = ["Abandoned", "Passage"]


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
            flags = migration_flags(self.options, persistent=bool(self.domain.isPersistent()))
        parameters = migration_parameters(self.options)
        if self.options.peer_to_peer:
            self._begin()
            with plainly(self.source):
                self.domain.migrateToURI3(self.destination, parameters, flags)
            return
        self._target = open_connection(self.destination)  # may take minutes where packets vanish
        self._begin()
        with plainly(self.source):
            self.domain.migrate3(self._target, parameters, flags)

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
