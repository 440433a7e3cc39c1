"""The guest's end of ``xen://``: makes pages and an event channel, offers them, and lets go before a suspend."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Final

from mchannel.address import Address
from mchannel.errors import AddressError
from mchannel.transport import Options, Peer
from mchannel.transports.region import Lanes, lanes_size
from mchannel.transports.ring import Side
from mchannel.transports.ringwire import RingPort, RingWire
from mchannel.transports.timer import Timer
from mchannel.transports.xenlib import PAGE, Machine
from mchannel.transports.xenoffer import HOLD, Offer, channel_name, folder, longest

__all__ = ["GuestWire"]

_log = logging.getLogger("mchannel.transports.xen")

_CAPACITY: Final = 1 << 16
_POOL: Final = 1 << 14  # bounds a record too, though none lies in it
_BURST: Final = 64  # watches looked at for one wake-up
_RETRY: Final = 0.1  # seconds until an offer that failed is tried again


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
                ring = functools.partial(events.ring, channel)
                self.wire = RingWire(lanes, Side.A, ring, port, peer, longest=longest(options), anew=anew)
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
        name = channel_name(address)
        if address.host:
            raise AddressError(f"{address}: a guest opens xen:///{name}; only domain 0 can say which domain it means")
        self.peer = Peer("domain 0", str(address))
        self.on_news: Callable[[], None] | None = None
        self._options = options
        self._machine = machine
        self._folder = folder(name)
        self._offered: _Offered | None = None
        self._give_back: Callable[[], None] | None = None
        self._store = store = machine.store()
        self._timer = Timer()
        self.port = RingPort()
        try:
            self._domain = store.read("domid")
            if self._domain == b"0":
                raise AddressError(f"{address}: this is domain 0, which listens; a guest opens")
            self._give_back = machine.claim(name)
            store.remove(f"{self._folder}/control")  # it was meant for somebody before this one
            self._make_offer(anew=False)
            self.port.watch(store.fileno(), self._look)
            self.port.watch(self._timer.fileno(), self._on_timer)
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
        return None if self._offered is None else self._offered.wire.recv()

    def close(self) -> None:
        """Take the offer back and let go; idempotent."""
        self._withdraw()
        self._store.close()
        self._timer.close()
        self.port.close()
        if self._give_back is not None:
            self._give_back()
            self._give_back = None

    def _make_offer(self, *, anew: bool) -> None:
        offered = _Offered(self._machine, self.peer, self.port, self._options, anew=anew)
        offered.wire.on_news = self._news
        try:
            self._store.write(f"{self._folder}/offer", offered.offer.encode())
        except BaseException:
            offered.close()
            raise
        self._offered = offered

    def _withdraw(self) -> None:
        offered, self._offered = self._offered, None
        if offered is not None:
            offered.close(stale=self._is_elsewhere(self._store.read("domid")))
            self._store.remove(f"{self._folder}/offer")  # last: now the domain may be suspended

    def _is_elsewhere(self, domain: bytes | None) -> bool:
        """Whether the domain, *domain* now, was suspended and resumed since it offered.

        On another host it may have the same number, but nobody knows of the offer there.
        """
        return domain != self._domain or self._store.read(f"{self._folder}/offer") is None

    def _go_on(self) -> None:
        self._domain = self._store.read("domid")
        try:
            self._make_offer(anew=True)
        except (OSError, AddressError) as error:
            self._timer.set(_RETRY)
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
        if domain is None:
            return
        if domain != self._domain or (self._offered is not None and self._is_elsewhere(domain)):
            _log.info("%s: resumed as domain %s", self.peer.address, domain.decode("ascii", "replace")[:8])
            self._withdraw()
            self._go_on()

    def _on_control(self, value: bytes | None) -> None:
        match (value or b"").split(b" "):
            case [b"quiesce", seconds] if len(seconds) <= 3 and seconds.isdigit() and 0 < int(seconds) <= HOLD:
                self._withdraw()
                self._timer.set(int(seconds))
            case [b"resume"] | [b""] if self._offered is None:  # nothing: the order was another host's
                self._go_on()
            case _:
                pass

    def _on_timer(self) -> None:
        if self._timer.expired() and self._offered is None:
            _log.warning("%s: offering a ring again, without a suspend", self.peer.address)
            self._go_on()

    def _news(self) -> None:
        if self.on_news is not None:
            self.on_news()
