"""What happens to domains, in our words, and how it reaches any number of readers.

libvirt's lifecycle events and their details mean (its names without ``VIR_DOMAIN_EVENT_``):

==========================================  =============================================
libvirt                                     here
==========================================  =============================================
``STARTED_BOOTED, _WAKEUP``                 :attr:`Kind.STARTED`
``STARTED_MIGRATED``                        :attr:`Kind.ARRIVING`
``STARTED_RESTORED, _FROM_SNAPSHOT``        :attr:`Kind.RESTORED`
``SUSPENDED_MIGRATED``                      :attr:`Kind.LEAVING`
``SUSPENDED_POSTCOPY``, ``RESUMED_POSTCOPY``  :attr:`Kind.POSTCOPY`
``..._POSTCOPY_FAILED``                     :attr:`Kind.POSTCOPY_FAILED`
``SUSPENDED_...`` (all others)              :attr:`Kind.PAUSED`
``RESUMED_MIGRATED``                        :attr:`Kind.ARRIVED`
``RESUMED_...`` (all others)                :attr:`Kind.RESUMED`
``STOPPED_MIGRATED``                        :attr:`Kind.LEFT`
``STOPPED_SAVED``                           :attr:`Kind.SAVED`
``STOPPED_CRASHED``                         :attr:`Kind.CRASHED`
``STOPPED_...`` (all others)                :attr:`Kind.STOPPED`
``PMSUSPENDED_...``                         :attr:`Kind.PAUSED`
``CRASHED_...``                             :attr:`Kind.CRASHED`
reboot (an event of its own)                :attr:`Kind.REBOOTED`
==========================================  =============================================
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from types import TracebackType
from typing import Self

import attrs

from .domain import DomainInfo, State

__all__ = ["DomainEvent", "EventStream", "Fanout", "Kind"]


class Kind(Enum):
    """What happened. One host tells of its own side of a migration only."""

    PRESENT = "present"
    """It is here: said of every active domain first, and again after :attr:`RESYNC`."""
    GONE = "gone"
    """It was here, and nobody saw it go; follows :attr:`RESYNC`."""
    RESYNC = "resync"
    """About no domain: events were missed, as this reader was slow or the hypervisor away. What is so now follows."""

    STARTED = "started"
    ARRIVING = "arriving"
    """The destination holds an empty half that a migration fills: connect to its ports now.

    ARRIVED follows; or PAUSED when it is whole and held back, as by our own migrations, and RESUMED when it is
    admitted.
    """
    ARRIVED = "arrived"
    """It runs here after a migration: it came, or it stayed as the migration failed after the switch-over."""
    LEAVING = "leaving"
    """The source has stopped it at the switch-over. Read its ports to their end.

    :attr:`LEFT` follows, or, when the migration fails after all, ARRIVED or RESUMED at the same host.
    """
    LEFT = "left"
    """The source has let go of it. Comes seconds after :attr:`LEAVING`, without it for a paused domain."""
    POSTCOPY = "postcopy"
    """It runs at the destination while memory still comes from the source; said at both."""
    POSTCOPY_FAILED = "postcopy_failed"
    """The way between the halves broke; neither is whole."""
    RESTORED = "restored"
    """It is here again from a file or a snapshot; PAUSED or RESUMED follows."""
    SAVED = "saved"
    """It is in a file; PAUSED came before."""
    PAUSED = "paused"
    RESUMED = "resumed"
    STOPPED = "stopped"
    """It ended, or an arriving half was given up."""
    CRASHED = "crashed"
    REBOOTED = "rebooted"


_AFTERWARDS = {
    Kind.STARTED: State.RUNNING,
    Kind.ARRIVING: State.MOVING,
    Kind.ARRIVED: State.RUNNING,
    Kind.LEAVING: State.MOVING,
    Kind.LEFT: State.OFF,
    Kind.RESTORED: State.PAUSED,
    Kind.SAVED: State.OFF,
    Kind.PAUSED: State.PAUSED,
    Kind.RESUMED: State.RUNNING,
    Kind.STOPPED: State.OFF,
    Kind.CRASHED: State.CRASHED,
    Kind.REBOOTED: State.RUNNING,
    Kind.POSTCOPY_FAILED: State.MOVING,
    Kind.GONE: State.OFF,
}


@attrs.frozen
class DomainEvent:
    """One thing that happened to one domain on one host."""

    kind: Kind
    domain: str
    """UUID of the domain; empty for :attr:`Kind.RESYNC`."""
    name: str
    at: float
    """Seconds on the monotonic clock of this process, when it heard of it."""
    state: State
    """What the domain does from then on."""

    @classmethod
    def of(cls, kind: Kind, domain: str, name: str, at: float, state: State | None = None) -> DomainEvent:
        """Return the event with the state that follows from its kind, where *state* says none."""
        return cls(kind, domain, name, at, state or _AFTERWARDS.get(kind, State.OFF))


@attrs.define(eq=False)
class EventStream:
    """The events of one host for one reader: ``async with``, then ``async for``.

    Begins with :attr:`Kind.PRESENT` for each active domain, so a reader needs one way through its
    code. A reader that falls behind loses events and is told so by :attr:`Kind.RESYNC`. Ends when it, or the
    hypervisor's connection, is closed. Cancelling a wait loses nothing.
    """

    _fanout: Fanout
    _limit: int
    _queue: deque[DomainEvent] = attrs.field(factory=deque[DomainEvent], init=False)
    _told: dict[str, str] = attrs.field(factory=dict[str, str], init=False)
    """UUID and name of each domain that the reader takes for active."""
    _stale: bool = attrs.field(default=False, init=False)
    """Whether events were missed, and the reader is to be told so once it has read what is queued."""
    _closed: bool = attrs.field(default=False, init=False)
    _wake: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DomainEvent:
        """Wait for the next event."""
        while True:
            if self._stale and not self._queue and not self._closed:
                self.catch_up(Kind.RESYNC)
            if self._queue:
                return self._tell(self._queue.popleft())
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the stream once what is queued was read; idempotent."""
        self._closed = True
        self._fanout.drop(self)
        self._wake.set()

    def put(self, event: DomainEvent) -> None:
        """Queue *event*; a full queue is given up for a resync."""
        if len(self._queue) >= self._limit:
            self._queue.clear()
            self._stale = True
        if not self._stale or self._queue:  # else the resync will say it
            self._queue.append(event)
        self._wake.set()

    def missed(self) -> None:
        """Have the reader told, after what is queued, that it missed events and what is so now."""
        self._stale = True
        if not self._queue:
            self.catch_up(Kind.RESYNC)
        self._wake.set()

    def catch_up(self, *first: Kind) -> None:
        """Queue what is so now, after an event about no domain for each of *first*; all that was queued was read."""
        now, present = self._fanout.now(), self._fanout.present
        gone = [(domain, name) for domain, name in self._told.items() if domain not in present]
        self._queue.extend(DomainEvent.of(kind, "", "", now) for kind in first)
        self._queue.extend(DomainEvent.of(Kind.GONE, domain, name, now) for domain, name in gone)
        self._queue.extend(
            DomainEvent(Kind.PRESENT, domain, name, now, state) for domain, (name, state) in present.items()
        )
        self._stale = False

    def _tell(self, event: DomainEvent) -> DomainEvent:
        if event.state.active:
            self._told[event.domain] = event.name
        else:
            self._told.pop(event.domain, None)
        return event


@attrs.define(eq=False)
class Fanout:
    """Knows which domains are active on a host, and tells every reader what changes."""

    now: Callable[[], float]
    present: dict[str, tuple[str, State]] = attrs.field(factory=dict[str, tuple[str, State]], init=False)
    """Name and state of each active domain, by UUID."""
    _streams: list[EventStream] = attrs.field(factory=list[EventStream], init=False)
    _closed: bool = attrs.field(default=False, init=False)

    def stream(self, limit: int) -> EventStream:
        """Return a stream that queues up to *limit* events for a reader that is slow."""
        made = EventStream(self, limit)
        if self._closed:
            made.close()
        else:
            self._streams.append(made)
            made.catch_up()
        return made

    def publish(self, kind: Kind, domain: str, name: str, state: State | None = None) -> None:
        """Tell every reader of an event that happens now."""
        event = DomainEvent.of(kind, domain, name, self.now(), state)
        if event.state.active:
            self.present[domain] = name, event.state
        else:
            self.present.pop(domain, None)
        for stream in self._streams:
            stream.put(event)

    def reconcile(self, domains: Iterable[DomainInfo]) -> None:
        """Take *domains* for the truth, as events were missed, and have every reader told."""
        self.present = {each.uuid: (each.name, each.state) for each in domains if each.state.active}
        for stream in self._streams:
            stream.missed()

    def drop(self, stream: EventStream) -> None:
        """Tell *stream* no more."""
        if stream in self._streams:
            self._streams.remove(stream)

    def close(self) -> None:
        """End every stream; idempotent."""
        self._closed = True
        for stream in tuple(self._streams):
            stream.close()
