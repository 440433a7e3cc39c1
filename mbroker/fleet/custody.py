"""Which domains' channels this host looks after, and how they pass from host to host. Without I/O.

A domain's channels end at the host that runs it. When its hypervisor says that the domain has paused
to go elsewhere, the broker side of its sessions is taken from the channels and *parked*, and offered
to every member of the fleet: the one where the domain arrives takes them up and goes on, nothing lost,
nothing repeated. It does not matter who started the migration. A host where a domain appears of which
it was offered nothing (the domain was restored from a file, or this broker started late) claims them
from the others, and attends after :data:`GRACE` at the latest: then nothing is lost either, and what
is replayed says ``redelivered``.

Feed :meth:`Custody.happened` and the ``on_`` methods, take :attr:`Custody.orders` away and carry them
out in order, and call :meth:`Custody.tick` when :meth:`Custody.deadline` has come. Times are seconds of
any monotonic clock.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Mapping
from enum import Enum
from typing import TypeAlias

import attrs

from mbroker.fleet.message import Claim, Claimed, Offer, Offering, Taken
from mbroker.hypervisor import DomainEvent, Kind, State

__all__ = ["GRACE", "SETTLING", "Attend", "Custody", "Kept", "Order", "Part", "Tell"]

GRACE = 2.0
"""Seconds after its arrival that a domain's handoff is waited for, from hosts that can be reached and do not answer.

Its agents' messages wait in the guest meanwhile.
"""
SETTLING = 3.0
"""Seconds that a broker gives the others to be reached, after its start."""
_OFFERED = 60.0
"""Seconds that an offer is kept for a domain that does not come, and that one which is on its way is waited for."""
_LARGE = 1 << 20
"""Bytes of sessions from which on a host says that they come: a second on a slow network."""
_MOST = 256
"""Domains whose sessions are kept at once, own or offered; the oldest give way."""


@attrs.frozen
class Attend:
    """Listen to the domain, and go on with these sessions."""

    domain: str
    snapshots: tuple[bytes, ...] = ()
    overtaken: bool = False
    """Whether another host may have gone on with them since, so that what is replayed may have been seen."""


@attrs.frozen
class Part:
    """Stop listening to the domain; what is left of its sessions comes back by :meth:`Custody.parted`."""

    domain: str


@attrs.frozen
class Tell:
    """Send *message* to one member of the fleet, or to all that are there."""

    message: Offering | Offer | Taken | Claim | Claimed
    host: str | None = None


Order: TypeAlias = Attend | Part | Tell


@attrs.frozen
class Kept:
    """Sessions of a domain that is not here, or does not run: parked by this host, or offered by another."""

    domain: str
    generation: int
    snapshots: tuple[bytes, ...]


@attrs.frozen
class _Offered:
    """Another host's sessions, kept in case their domain comes here."""

    kept: Kept
    at: float
    """When they came."""


class _Stage(Enum):
    EXPECTED = "expected"
    """It arrives; its sessions have not come yet."""
    HERE = "here"
    """Its channels are attended to."""


@attrs.define
class _Domain:
    stage: _Stage
    ran: bool = True
    """Whether it runs or ran here; False while a migration fills it."""
    until: float | None = None
    """Expected: when to attend without a handoff; None while it does not run yet."""
    asked: frozenset[str] = frozenset()
    """Members that have not answered yet what they keep of it."""


class Custody:
    """The domains of one host."""

    def __init__(
        self,
        parked: tuple[Kept, ...] = (),
        fleet: frozenset[str] = frozenset(),
        now: float = -math.inf,
        generations: Mapping[str, int] | None = None,
    ) -> None:
        """Begin *now* with what was *parked*, and heard of, before a restart; *fleet* names the other hosts."""
        self.orders: deque[Order] = deque()
        """What is to be done, in order; the owner takes it away."""
        self._members: frozenset[str] = frozenset()
        """Members of the fleet that can be reached now."""
        self._settled = now + SETTLING
        """Until then members that cannot be reached yet are waited for."""
        self._fleet = fleet
        self._domains: dict[str, _Domain] = {}
        self._generations = OrderedDict(generations or {})
        """The newest generation that was heard of."""
        self._generations.update((kept.domain, kept.generation) for kept in parked)
        self._parked = OrderedDict((kept.domain, kept) for kept in parked)
        self._offered: OrderedDict[str, _Offered] = OrderedDict()
        self._parting: set[str] = set()
        self._left = {kept.domain for kept in parked}
        """Parked domains that are known to have gone, or to have ended their life here: another host may know more."""
        self._coming: OrderedDict[str, str] = OrderedDict()
        """Members that send sessions now, by domain."""
        self._taken: set[str] = set()
        """Parked domains whose sessions another host holds ready; they may still stay here."""

    def on_members(self, present: frozenset[str]) -> None:
        """Note which members can be reached now, and ask those that came about domains that wait."""
        for domain, found in self._domains.items():
            if found.until is not None:
                if self._coming.get(domain, "") in self._members - present:
                    found.until = self._settled  # what it sent will not come any more
                self.orders.extend(
                    Tell(Claim(domain), host) for host in sorted(found.asked & (present - self._members))
                )
        self._members = present

    @property
    def parked(self) -> tuple[Kept, ...]:
        """What must outlive a restart of this broker."""
        return tuple(kept for domain, kept in self._parked.items() if domain not in self._taken)

    @property
    def generations(self) -> Mapping[str, int]:
        """What must outlive a restart too, or a clock that goes wrong would make new sessions look old."""
        return self._generations

    def attends(self, domain: str) -> bool:
        """Tell whether the domain's channels end here."""
        found = self._domains.get(domain)
        return found is not None and found.stage is _Stage.HERE

    # --- what the hypervisor says -------------------------------------------------------------

    def happened(self, event: DomainEvent, now: float) -> None:
        """Take in one event of a domain's life on this host."""
        domain = event.domain
        match event.kind:
            case Kind.STARTED:  # booted afresh: its agents begin new sessions
                self._attend(domain, None)
            case Kind.ARRIVING:
                self._expect(domain)
            case Kind.PRESENT if event.state is State.MOVING:
                self._expect(domain)
            case Kind.POSTCOPY if event.state is State.MOVING:
                self._part(domain)
            case Kind.PRESENT | Kind.POSTCOPY | Kind.ARRIVED | Kind.RESTORED | Kind.RESUMED:
                self._appear(domain, now)
            case Kind.LEAVING:
                self._part(domain)
            case Kind.LEFT | Kind.SAVED | Kind.GONE:
                self._part(domain)
                self._note_left(domain)
            case Kind.STOPPED | Kind.CRASHED:
                ran = self.attends(domain) and self._domains[domain].ran
                self._part(domain)
                self._note_left(domain)
                if ran:
                    self._forget(domain)  # it ended, and its sessions with it
            case _:
                pass  # paused by its operator, or rebooted: it stays whose it is

    def parted(self, domain: str, snapshots: tuple[bytes, ...], unix: float) -> None:
        """Take in what was left of a domain's sessions after :class:`Part`, at *unix* seconds.

        The time makes a generation newer than those that were forgotten, here or by a restart.
        """
        if domain not in self._parting:
            return  # it ended, and so did they
        self._parting.discard(domain)
        generation = max(self._generations.get(domain, 0) + 1, int(unix * 1000))
        self._note(domain, generation)
        self._parked[domain] = Kept(domain, generation, snapshots)
        if len(self._parked) > _MOST:
            self._parked.popitem(last=False)
        if sum(map(len, snapshots)) > _LARGE:
            self.orders.append(Tell(Offering(domain)))
        self.orders.append(Tell(Offer(domain, generation, snapshots)))

    # --- what other members say ---------------------------------------------------------------

    def on_offering(self, host: str, offering: Offering, now: float) -> None:
        """Wait for sessions that are on their way from *host*, longer than for others."""
        self._coming[offering.domain] = host
        self._coming.move_to_end(offering.domain)
        if len(self._coming) > _MOST:
            self._coming.popitem(last=False)
        found = self._domains.get(offering.domain)
        if found is not None and found.until is not None:
            found.until = now + _OFFERED

    def on_offer(self, offer: Offer, now: float) -> None:
        """Keep another host's sessions until their domain comes, or go on with them if it has come."""
        kept = Kept(offer.domain, offer.generation, offer.snapshots)
        self._coming.pop(offer.domain, None)
        if self._is_news(kept, now) and (found := self._domains.get(offer.domain)):
            found.asked = frozenset()
            self._attend(offer.domain, kept)

    def on_taken(self, taken: Taken) -> None:
        """Forget sessions that another host goes on with, once their domain has left this one."""
        domain = taken.domain
        if taken.generation >= self._generations.get(domain, 0):
            self._note(domain, taken.generation)
            self._offered.pop(domain, None)
            if domain in self._left or domain not in self._parked:
                self._forget(domain)
            else:  # the other may fail before it runs there
                self._taken.add(domain)

    def on_claim(self, host: str, claim: Claim) -> None:
        """Answer what is kept of a domain; of one that is attended, as soon as the hypervisor says that it leaves."""
        if self.attends(claim.domain) or claim.domain in self._parting:
            return
        kept = None if claim.domain in self._taken else self._kept(claim.domain)
        answer = Claimed(claim.domain, kept.generation, kept.snapshots) if kept else Claimed(claim.domain)
        if kept and sum(map(len, kept.snapshots)) > _LARGE:
            self.orders.append(Tell(Offering(claim.domain), host))
        self.orders.append(Tell(answer, host))

    def on_claimed(self, host: str, answer: Claimed, now: float) -> None:
        """Note what another host kept; when all have answered, go on with the newest."""
        if answer.generation > 0:
            self._coming.pop(answer.domain, None)
            self._is_news(Kept(answer.domain, answer.generation, answer.snapshots), now)
        found = self._domains.get(answer.domain)
        if found is not None and found.until is not None:
            found.asked -= {host}
            if not found.asked & (self._members if now >= self._settled else self._fleet):
                self._attend(answer.domain, self._kept(answer.domain))

    # --- time ---------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """Return when :meth:`tick` is due, or None."""
        due = [found.until for found in self._domains.values() if found.until is not None]
        due += [offered.at + _OFFERED for offered in self._offered.values()]
        return min(due, default=None)

    def tick(self, now: float) -> None:
        """Attend to domains whose handoff does not come, and let old offers go."""
        for domain, found in tuple(self._domains.items()):
            if found.until is not None and now >= found.until:
                self._attend(domain, self._kept(domain))
        for domain, offered in tuple(self._offered.items()):
            if now >= offered.at + _OFFERED:
                del self._offered[domain]

    # --- small parts --------------------------------------------------------------------------

    def _expect(self, domain: str) -> None:
        """Wait for the offer that comes when the domain pauses; one that came earlier may be an older one's."""
        if domain not in self._domains:
            self._note_left(domain)  # it comes from elsewhere
            self._domains[domain] = _Domain(_Stage.EXPECTED, ran=False)

    def _appear(self, domain: str, now: float) -> None:
        found = self._domains.get(domain)
        if found is not None and (found.stage is _Stage.HERE or found.until is not None):
            found.ran = True
            return
        if domain in self._parked and domain not in self._left:  # it never went: nobody can have overtaken them
            self._attend(domain, self._parked[domain])
            return
        coming = self._coming.get(domain, "") in self._members
        until = max(now + (_OFFERED if coming else GRACE), self._settled)
        self._domains[domain] = _Domain(_Stage.EXPECTED, until=until, asked=self._fleet)
        if self._members:
            self.orders.append(Tell(Claim(domain)))
        elif not self._fleet or now >= self._settled:
            self._attend(domain, self._kept(domain))

    def _is_news(self, kept: Kept, now: float) -> bool:
        """Keep sessions of another host, if they are newer than what is known."""
        domain = kept.domain
        if kept.generation <= self._generations.get(domain, 0) or self.attends(domain):
            return False
        self._note(domain, kept.generation)
        self._parked.pop(domain, None)
        self._offered[domain] = _Offered(kept, now)
        self._offered.move_to_end(domain)
        if len(self._offered) > _MOST:
            self._offered.popitem(last=False)
        return True

    def _attend(self, domain: str, kept: Kept | None) -> None:
        """Listen to *domain*, and say that what others keep of it is of no use any more.

        Members that were asked and have not answered may know better.
        """
        found = self._domains.get(domain)
        overtaken = found is not None and bool(found.asked)
        self._domains[domain] = _Domain(_Stage.HERE, ran=found is None or found.ran)
        self._forget(domain)
        self.orders.append(Attend(domain, kept.snapshots, overtaken) if kept else Attend(domain))
        if kept:
            self.orders.append(Tell(Taken(domain, kept.generation)))

    def _part(self, domain: str) -> None:
        found = self._domains.pop(domain, None)
        if found is not None and found.stage is _Stage.HERE:
            self._parting.add(domain)
            self._left.discard(domain)
            self.orders.append(Part(domain))

    def _note(self, domain: str, generation: int) -> None:
        self._generations[domain] = generation
        self._generations.move_to_end(domain)
        if len(self._generations) > 16 * _MOST:
            self._generations.popitem(last=False)

    def _note_left(self, domain: str) -> None:
        if domain in self._taken:
            self._forget(domain)
        self._left = {known for known in self._left if known in self._parked} | {domain}

    def _forget(self, domain: str) -> None:
        self._parting.discard(domain)
        self._left.discard(domain)
        self._taken.discard(domain)
        self._parked.pop(domain, None)
        self._offered.pop(domain, None)

    def _kept(self, domain: str) -> Kept | None:
        offered = self._offered.get(domain)
        return offered.kept if offered else self._parked.get(domain)
