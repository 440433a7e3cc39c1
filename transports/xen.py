"""``xen:///name``: a ring in pages that a guest grants to domain 0, with an event channel as its bell.

The guest makes the pages and the channel and *offers* them in xenstore, under its own
``data/mchannel/NAME/offer``: one node, so that it is never read half written. Domain 0 listens
there (``xen:///NAME`` for all domains, ``xen://DOMID/NAME`` or ``xen://UUID/NAME`` for one) and maps
what it finds. Whatever a guest writes is a stranger's word; who it is, domain 0 knows by itself.

Pages survive save, restore and migration, grants and event channels do not, and a channel that is
closed *after* such a suspend trips a bug of the guest's kernel. So :func:`quiesce` asks the agents
of a domain to let go before, :func:`resume` to go on when nothing came of it; an agent whose domain
got another number offers anew, and the session replays. A suspend that nobody announced works too,
but the agent then keeps one dead descriptor for as long as it runs.
"""

from __future__ import annotations

import logging
import re
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import attrs

from mchannel.address import Address
from mchannel.errors import AddressError, ChannelBroken, MChannelError, ProtocolError
from mchannel.framed import Framed
from mchannel.transport import Options, Peer, Transport
from mchannel.transports.region import Lanes, lanes_size
from mchannel.transports.ring import Side
from mchannel.transports.ringwire import RingPort, RingWire
from mchannel.transports.xenlib import LIBXEN, PAGE, Events, Machine, Store

__all__ = ["XEN", "Offer", "quiesce", "resume", "scheme"]

_log = logging.getLogger("mchannel.transports.xen")

_CAPACITY: Final = 1 << 16
_POOL: Final = 1 << 14  # bounds a record too, though none lies in it
_PAGES: Final = 256  # most that a guest can make domain 0 map for one channel
_LAST_DOMAIN: Final = 0x7FEF
_LAST_PORT: Final = (1 << 17) - 1
_SLACK: Final = 1 << 16  # bytes of a frame beyond its longest message
_BURST: Final = 64  # watches or event channels looked at for one wake-up
_OFFERS: Final = 16  # offers that a domain can make at once; then one every _REFILL seconds
_REFILL: Final = 5.0
_HOLD: Final = 600  # longest quiesce, in seconds
_NAMES: Final = 64  # channels of one domain that a quiesce asks
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@attrs.frozen
class Offer:
    """What a guest offers: the port of an event channel, and the references of its pages in order."""

    port: int
    references: tuple[int, ...]

    def encode(self) -> bytes:
        """Return the value of the node: the version, the port and the references, in decimal."""
        return " ".join(map(str, (1, self.port, *self.references))).encode()

    @classmethod
    def decode(cls, value: bytes) -> Offer:
        """Return what *value* says; raise :class:`ProtocolError` unless all of it can be."""
        words = value.split(b" ", _PAGES + 3)
        if len(words) < 3 or len(words) > _PAGES + 2 or not all(len(word) <= 10 and word.isdigit() for word in words):
            raise ProtocolError(f"an offer is a version, a port and 1 to {_PAGES} page references")
        version, port, *references = map(int, words)
        if version != 1:
            raise ProtocolError(f"the offer has version {version}; this end knows version 1")
        if not 0 < port <= _LAST_PORT:
            raise ProtocolError(f"no event channel has the port {port}")
        if max(references) >= 1 << 32 or len(set(references)) != len(references):
            raise ProtocolError("the page references of the offer are out of range, or not all different")
        return cls(port, tuple(references))


def _folder(name: str, domain: int | None = None) -> str:
    """Return where the channel *name* stands in xenstore: of this domain, or of another one."""
    return ("" if domain is None else f"/local/domain/{domain}/") + f"data/mchannel/{name}"


def _name(address: Address) -> str:
    address.refuse_options()
    if address.port is not None or not _NAME.match(address.path):
        raise AddressError(f"{address}: a name has 1 to 64 letters, digits, dashes or underscores, like xen:///mgmt")
    return address.path


def _longest(options: Options) -> int:
    return options.max_message + _SLACK


# --- the guest ------------------------------------------------------------------------------------


class _Offered:
    """What the guest has made at present: pages, event channel, ring."""

    def __init__(self, machine: Machine, peer: Peer, port: RingPort, options: Options, *, anew: bool) -> None:
        self._port = port
        self._pages = machine.grant(0, lanes_size(_CAPACITY, _POOL) // PAGE)
        try:
            self._events = events = machine.events()
            try:
                self._channel = channel = events.offer(0)
                lanes = Lanes.lay_out(self._pages.memory, _CAPACITY, _POOL)
                longest = _longest(options)
                self.wire = RingWire(
                    lanes, Side.A, lambda: events.ring(channel), port, peer, longest=longest, anew=anew
                )
            except BaseException:
                events.close()
                raise
        except BaseException:
            self._pages.close()
            raise
        self.offer = Offer(channel, tuple(self._pages.references))
        port.watch(events.fileno(), self._heed)

    def _heed(self) -> None:
        if self._events.rung() is not None:
            self.wire.hear()

    def close(self, *, stale: bool = False) -> None:
        """Let go. Of *stale* event channels, bound before a suspend, the descriptor stays open: see the module."""
        self.wire.close()
        self._port.unwatch(self._events.fileno())
        if not stale:
            self._events.close()
        self._pages.close()


class GuestWire:
    """The guest's end. It outlives its rings: what is sent while there is none is lost, and the session replays it."""

    def __init__(self, address: Address, options: Options, machine: Machine) -> None:
        name = _name(address)
        if address.host:
            raise AddressError(f"{address}: a guest opens xen:///{name}; only domain 0 can say which domain it means")
        self.peer = Peer("domain 0", str(address))
        self.port = RingPort()
        self.on_news: Callable[[], None] | None = None
        self._options = options
        self._machine = machine
        self._folder = _folder(name)
        self._offered: _Offered | None = None
        self._parked_until: float | None = None
        self._store = store = machine.store()
        try:
            self._domain = store.read("domid")
            if self._domain == b"0":
                raise AddressError(f"{address}: this is domain 0, which listens; a guest opens")
            store.remove(f"{self._folder}/control")  # it was meant for somebody before this one
            self._make_offer(anew=False)
            self.port.watch(store.fileno(), self._look)
            for node in ("domid", f"{self._folder}/control"):
                store.watch(node, node)
        except OSError as error:
            self.close()
            raise AddressError(f"{address}: {error.strerror}") from None
        except BaseException:
            self.close()
            raise

    def send(self, frame: bytes) -> bool:
        """Put *frame* into the ring."""
        return True if self._offered is None else self._offered.wire.send(frame)

    def recv(self) -> bytes | None:
        """Return the next frame, or None."""
        if self._parked_until is not None and time.monotonic() > self._parked_until:
            _log.warning("%s: the suspend that was announced did not come; going on", self.peer.address)
            self._go_on()
        return None if self._offered is None else self._offered.wire.recv()

    def close(self) -> None:
        """Take the offer back and let go; idempotent."""
        self._withdraw()
        self._store.close()
        self.port.close()

    def _make_offer(self, *, anew: bool) -> None:
        self._parked_until = None
        self._offered = _Offered(self._machine, self.peer, self.port, self._options, anew=anew)
        self._offered.wire.on_news = self._news
        self._store.write(f"{self._folder}/offer", self._offered.offer.encode())

    def _withdraw(self, *, stale: bool = False) -> None:
        offered, self._offered = self._offered, None
        if offered is not None:
            offered.close(stale=stale)
            self._store.remove(f"{self._folder}/offer")  # last: now the domain may be suspended

    def _go_on(self) -> None:
        try:
            self._make_offer(anew=True)
        except (OSError, AddressError) as error:
            self._parked_until = time.monotonic() + 1.0
            _log.warning("%s: cannot offer a ring again: %s", self.peer.address, error)

    def _look(self) -> None:
        for _ in range(_BURST):
            if (token := self._store.fired()) is None:
                return
            if token == "domid":  # noqa: S105 - the name of a watch
                self._on_domain(self._store.read("domid"))
            else:
                self._on_control(self._store.read(f"{self._folder}/control"))

    def _on_domain(self, domain: bytes | None) -> None:
        if domain is not None and domain != self._domain:
            _log.info("%s: resumed as domain %s", self.peer.address, domain.decode("ascii", "replace")[:8])
            self._domain = domain
            self._withdraw(stale=True)
            self._go_on()

    def _on_control(self, value: bytes | None) -> None:
        match (value or b"").split(b" "):
            case [b"quiesce", seconds] if len(seconds) <= 3 and seconds.isdigit() and 0 < int(seconds) <= _HOLD:
                self._withdraw()
                self._parked_until = time.monotonic() + int(seconds)
            case [b"resume"] if self._offered is None:
                self._go_on()
            case _:
                pass

    def _news(self) -> None:
        if self.on_news is not None:
            self.on_news()


# --- domain 0 -------------------------------------------------------------------------------------


@attrs.define(eq=False)
class _Domain:
    """What domain 0 remembers of a guest."""

    number: int
    value: bytes | None = None
    """The offer as it was read last."""
    wire: RingWire | None = None
    tokens: float = float(_OFFERS)
    since: float = attrs.field(factory=time.monotonic)

    def may_offer(self) -> bool:
        """Whether the guest did not make too many offers of late."""
        now = time.monotonic()
        self.tokens = min(self.tokens + (now - self.since) / _REFILL, _OFFERS)
        self.since = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class HostDoor:
    """Domain 0's end: meets the offers of guests, each a transport whose identity is the domain's UUID."""

    def __init__(self, address: Address, options: Options, machine: Machine) -> None:
        self.address = address
        self.port = RingPort()
        self.on_news: Callable[[], None] | None = None
        self._options = options
        self._machine = machine
        self._name = _name(address)
        self._only = address.host
        if self._only and not _UUID.fullmatch(self._only) and not self._number(self._only):
            raise AddressError(f"{address}: name a domain by its number or its UUID, or none for all of them")
        self._domains: dict[int, _Domain] = {}
        self._wires: dict[int, RingWire] = {}
        self._backlog: deque[RingWire] = deque()
        self._store: Store = machine.store()
        try:
            if self._store.read("domid") not in (None, b"0"):
                raise AddressError(f"{address}: only domain 0 can listen; a guest opens xen:///{self._name}")
            self._events: Events = machine.events()
        except BaseException:
            self._store.close()
            raise
        self.port.watch(self._store.fileno(), self._look)
        self.port.watch(self._events.fileno(), self._heed)
        for node in ("@introduceDomain", "@releaseDomain"):
            self._store.watch(node, node)

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
        for _ in range(_BURST):
            if (token := self._store.fired()) is None:
                break
            if token.startswith("@"):
                self._count_domains()
            elif (domain := self._domains.get(int(token))) is not None:
                self._on_offer(domain)
        if self._backlog and self.on_news is not None:
            self.on_news()

    def _count_domains(self) -> None:
        """Watch the domains that came, and let go of those that went."""
        there = {number for name in self._store.names("/local/domain") if (number := self._number(name))}
        if self._only.isdigit():
            there &= {int(self._only)}
        for number in self._domains.keys() - there:
            self._let_go(self._domains.pop(number), "the domain is gone")
            self._store.unwatch(f"{_folder(self._name, number)}/offer", str(number))
        for number in there - self._domains.keys():
            self._domains[number] = _Domain(number)
            self._store.watch(f"{_folder(self._name, number)}/offer", str(number))

    def _on_offer(self, domain: _Domain) -> None:
        value = self._store.read(f"{_folder(self._name, domain.number)}/offer")
        if value == domain.value:
            return
        domain.value = value
        self._let_go(domain, "the guest took the ring back")
        if value is None:
            return
        try:
            if not domain.may_offer():
                raise ProtocolError("it offers too often; this one is not looked at")
            if (identity := self._identity(domain.number)) is not None:
                self._meet(domain, Offer.decode(value), identity)
        except (MChannelError, OSError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            _log.warning("xen://%d/%s: refused the offer: %s", domain.number, self._name, why)

    def _meet(self, domain: _Domain, offer: Offer, identity: str) -> None:
        peer = Peer(identity, f"xen://{domain.number}/{self._name}")
        pages = self._machine.map(domain.number, offer.references)
        try:
            lanes = Lanes(pages.memory)
            port = self._events.bind(domain.number, offer.port)
        except BaseException:
            pages.close()
            raise

        def release() -> None:
            self._wires.pop(port, None)
            self._events.unbind(port)
            pages.close()

        try:
            domain.wire = wire = RingWire(
                lanes,
                Side.B,
                lambda: self._events.ring(port),
                self.port,
                peer,
                longest=_longest(self._options),
                release=release,
            )
        except BaseException:
            release()
            raise
        self._wires[port] = wire
        self._backlog.append(wire)

    def _identity(self, number: int) -> str | None:
        """Return the UUID of a domain as the toolstack wrote it, or None if another one is wanted."""
        found = _UUID.search((self._store.read(f"/local/domain/{number}/vm") or b"").decode("ascii", "replace"))
        if found is None:
            raise ProtocolError("the toolstack gave this domain no UUID")
        return found[0] if self._only in ("", found[0]) or self._only.isdigit() else None

    @staticmethod
    def _let_go(domain: _Domain, why: str) -> None:
        if domain.wire is not None:
            domain.wire.fail(ChannelBroken(f"{domain.wire.peer.address}: {why}"))
            domain.wire = None

    @staticmethod
    def _number(text: str) -> int | None:
        """Return the number of a guest, or None."""
        number = int(text) if len(text) <= 5 and text.isascii() and text.isdigit() else 0
        return number if 0 < number <= _LAST_DOMAIN else None


def quiesce(domain: int, *, timeout: float = 5.0, hold: int = 60, machine: Machine = LIBXEN) -> bool:
    """Ask the agents of a domain to let go of their event channels, before it is suspended in any way.

    Called in domain 0. Return True when all have within *timeout* seconds; a guest that does not answer must not stop
    a migration, so go on either way. Agents offer anew when the domain has a new number, when :func:`resume` says so,
    or after *hold* seconds (1 to 600). Raises AddressError where there is no Xen.
    """
    if not 0 < hold <= _HOLD:
        raise ValueError(f"hold must be 1 to {_HOLD} seconds, not {hold}")
    store = machine.store()
    try:
        store.watch(_folder("", domain).rstrip("/"), "agents")
        names = _tell(store, domain, b"quiesce %d" % hold)
        until = time.monotonic() + timeout
        while any(store.read(f"{_folder(name, domain)}/offer") is not None for name in names):
            if (left := until - time.monotonic()) <= 0:
                return False
            select.select([store], [], [], left)
            while store.fired() is not None:
                pass
        return True
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
    names = [name for name in store.names(_folder("", domain).rstrip("/")) if _NAME.match(name)][:_NAMES]
    for name in names:
        store.write(f"{_folder(name, domain)}/control", what)
    return names


def scheme(machine: Machine) -> Framed:
    """Return the scheme ``xen`` on *machine*."""
    return Framed(
        lambda address, options: GuestWire(address, options, machine),
        lambda address, options: HostDoor(address, options, machine),
    )


XEN = scheme(LIBXEN)
