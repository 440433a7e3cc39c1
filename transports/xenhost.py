"""Domain 0's end of ``xen://``: meets the offers of guests, and asks them to let go before a suspend."""

from __future__ import annotations

import re
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import attrs

from mchannel.address import Address
from mchannel.bucket import TokenBucket
from mchannel.errors import AddressError, ChannelBroken, MChannelError, ProtocolError
from mchannel.transport import Options, Peer, Transport
from mchannel.transports.complaints import Complaints
from mchannel.transports.region import Lanes
from mchannel.transports.ring import Side
from mchannel.transports.ringwire import RingPort, RingWire
from mchannel.transports.xenlib import LIBXEN, Events, Machine, Store
from mchannel.transports.xenoffer import HOLD, Offer, channel_name, folder, is_channel_name, longest

__all__ = ["HostDoor", "channels", "quiesce", "resume"]

_LAST_DOMAIN: Final = 0x7FEF
_BURST: Final = 64  # watches or event channels looked at for one wake-up
_OFFERS: Final = 16  # offers that a domain can make at once; then one every _REFILL seconds
_REFILL: Final = 5.0
_NAMES: Final = 64  # channels of one domain that are looked at, and that a quiesce asks
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@attrs.define(eq=False)
class _Ring:
    """What domain 0 remembers of one channel of a guest."""

    value: bytes | None = None
    """The offer as it was read last."""
    wire: RingWire | None = None

    def let_go(self, why: str) -> None:
        """End the wire, if there is one."""
        if self.wire is not None:
            self.wire.fail(ChannelBroken(f"{self.wire.peer.address}: {why}"))
            self.wire = None


@attrs.define(eq=False)
class _Domain:
    """What domain 0 remembers of a guest."""

    number: int
    rings: dict[str, _Ring] = attrs.field(factory=dict[str, _Ring])
    """By the name of the channel."""
    offers: TokenBucket = attrs.field(factory=lambda: TokenBucket(1 / _REFILL, _OFFERS))


class HostDoor:
    """Domain 0's end: meets the offers of guests, each a transport whose identity is the domain's UUID."""

    def __init__(self, address: Address, options: Options, machine: Machine) -> None:
        self.address = address
        self.on_news: Callable[[], None] | None = None
        self._options = options
        self._machine = machine
        self._many = address.path.endswith("*")
        self._name = channel_name(attrs.evolve(address, path=address.path.removesuffix("*")))
        self._only = address.host
        if self._only and not _UUID.fullmatch(self._only) and not self._number(self._only):
            raise AddressError(f"{address}: name a domain by its number or its UUID, or none for all of them")
        self._complaints = Complaints()
        self._domains: dict[int, _Domain] = {}
        self._others: set[int] = set()
        """Domains that are there and not listened to."""
        self._wires: dict[int, RingWire] = {}
        self._backlog: deque[RingWire] = deque()
        self._store: Store = machine.store()
        try:
            if self._store.read("domid") not in (None, b"0"):
                raise AddressError(f"{address}: only domain 0 can listen; a guest opens xen:///{self._name}")
            for node in ("@introduceDomain", "@releaseDomain"):
                self._store.watch(node, node)
            self._events: Events = machine.events()
        except OSError as error:
            self._store.close()
            raise AddressError(f"{address}: {error.strerror}") from None
        except BaseException:
            self._store.close()
            raise
        self.port = RingPort()
        self.port.watch(self._store.fileno(), self._look)
        self.port.watch(self._events.fileno(), self._heed)

    def accept(self) -> Transport | None:
        """Return the wire to a guest that offers one, or None."""
        return self._backlog.popleft() if self._backlog else None

    def close(self) -> None:
        """Let go of all that is mapped; idempotent."""
        for wire in tuple(self._wires.values()):
            wire.close()
        self._backlog.clear()
        self.port.close()
        self._events.close()
        self._store.close()

    def _heed(self) -> None:
        for _ in range(_BURST):
            if (port := self._events.rung()) is None:
                return
            if (wire := self._wires.get(port)) is not None:
                wire.hear()

    def _look(self) -> None:
        tokens: set[str] = set()  # a guest that writes much is looked at once for all of it
        for _ in range(_BURST):
            if (token := self._store.fired()) is None:
                break
            tokens.add(token)
        if any(token.startswith("@") for token in tokens):
            self._count_domains()
        for token in tokens:
            if token.isdigit() and (domain := self._domains.get(int(token))) is not None:
                self._look_at(domain)
        if self._backlog and self.on_news is not None:
            self.on_news()

    def _count_domains(self) -> None:
        """Watch the domains that came, and let go of those that went."""
        there = {number for name in self._store.names("/local/domain") if (number := self._number(name))}
        self._others &= there
        for number in self._domains.keys() - there:
            for ring in self._domains.pop(number).rings.values():
                ring.let_go("the domain is gone")
            self._store.unwatch(self._watched(number), str(number))
        for number in there - self._domains.keys() - self._others:
            identity = self._identity(number)
            if self._only in ("", str(number), identity):
                self._domains[number] = _Domain(number)
                self._store.watch(self._watched(number), str(number))
            elif identity is not None:  # else the toolstack is still making it
                self._others.add(number)

    def _watched(self, number: int) -> str:
        return folder("", number).rstrip("/") if self._many else f"{folder(self._name, number)}/offer"

    def _look_at(self, domain: _Domain) -> None:
        """Meet the offers of a domain that are new, and let go of those that are not there any more."""
        names = _names(self._store, domain.number, self._name) if self._many else [self._name]
        for name in domain.rings.keys() - names:
            domain.rings.pop(name).let_go("the guest took the ring back")
        for name in names:
            self._on_offer(domain, name)

    def _on_offer(self, domain: _Domain, name: str) -> None:
        value = self._store.read(f"{folder(name, domain.number)}/offer")
        ring = domain.rings.setdefault(name, _Ring())
        if value == ring.value:
            return
        ring.value = value
        ring.let_go("the guest took the ring back")
        if value is None:
            return
        try:
            if not domain.offers.take(time.monotonic()):
                raise ProtocolError("it offers too often; this one is not looked at")
            if (identity := self._identity(domain.number)) is None:
                raise ProtocolError("the toolstack gave this domain no UUID")
            ring.wire = self._meet(Peer(identity, f"xen://{domain.number}/{name}"), domain.number, Offer.decode(value))
        except (MChannelError, OSError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            self._complaints.make(f"xen://{domain.number}/{name}: refused the offer: {why}")

    def _meet(self, peer: Peer, number: int, offer: Offer) -> RingWire:
        pages = self._machine.map(number, offer.references)
        try:
            lanes = Lanes(pages.memory)
            port = self._events.bind(number, offer.port)
        except BaseException:
            pages.close()
            raise

        def release() -> None:
            self._wires.pop(port, None)
            self._events.unbind(port)
            pages.close()

        try:
            wire = RingWire(
                lanes,
                Side.B,
                lambda: self._events.ring(port),
                self.port,
                peer,
                longest=longest(self._options),
                release=release,
            )
        except BaseException:
            release()
            raise
        self._wires[port] = wire
        self._backlog.append(wire)
        return wire

    def _identity(self, number: int) -> str | None:
        """Return the UUID of a domain as the toolstack wrote it, or None as long as it has not."""
        found = _UUID.search((self._store.read(f"/local/domain/{number}/vm") or b"").decode("ascii", "replace"))
        return None if found is None else found[0]

    @staticmethod
    def _number(text: str) -> int | None:
        """Return the number of a guest, or None."""
        number = int(text) if len(text) <= 5 and text.isascii() and text.isdigit() else 0
        return number if 0 < number <= _LAST_DOMAIN else None


def quiesce(domain: int, *, timeout: float = 5.0, hold: int = 60, machine: Machine = LIBXEN) -> bool:
    """Ask the agents of a domain to let go of their event channels, before it is suspended in any way.

    Called in domain 0; it waits, so give it a thread where others must go on. Return True when all have within
    *timeout* seconds; a guest that does not answer must not stop a migration, so go on either way. Agents offer anew
    when the domain has a new number, when :func:`resume` says so, or after *hold* seconds (1 to 600). Raises
    AddressError where there is no Xen.
    """
    if not 0 < hold <= HOLD:
        raise ValueError(f"hold must be 1 to {HOLD} seconds, not {hold}")
    store = machine.store()
    try:
        store.watch(folder("", domain).rstrip("/"), "agents")
        names = _tell(store, domain, b"quiesce %d" % hold)
        news = select.poll()  # select() ends at descriptor 1023, and a broker may have more
        news.register(store, select.POLLIN)
        until = time.monotonic() + timeout
        while any(store.read(f"{folder(name, domain)}/offer") is not None for name in names):
            if (left := until - time.monotonic()) <= 0:
                return False
            news.poll(left * 1000)
            while store.fired() is not None:
                pass
        return True
    finally:
        store.close()


def channels(domain: int, *, machine: Machine = LIBXEN) -> list[str]:
    """Return the names of the channels that the agents of a domain offer now; raises AddressError without Xen."""
    store = machine.store()
    try:
        return [name for name in _names(store, domain) if store.read(f"{folder(name, domain)}/offer") is not None]
    finally:
        store.close()


def resume(domain: int, *, machine: Machine = LIBXEN) -> None:
    """Tell the agents of a domain that was not suspended after all, or only copied, to go on."""
    store = machine.store()
    try:
        _tell(store, domain, b"resume")
    finally:
        store.close()


def _tell(store: Store, domain: int, what: bytes) -> list[str]:
    """Write *what* to every channel of a domain, in bounds: the names are the guest's. Return the names."""
    names = _names(store, domain)
    for name in names:
        store.write(f"{folder(name, domain)}/control", what)
    return names


def _names(store: Store, domain: int, prefix: str = "") -> list[str]:
    """Return the channels of a domain whose names begin with *prefix*, in bounds: the names are the guest's."""
    found = store.names(folder("", domain).rstrip("/"))
    return [name for name in found if name.startswith(prefix) and is_channel_name(name)][:_NAMES]
