"""What a physical channel must offer, and how one is found by its name.

Two ways lead into the library. A wire that moves frames and may lose them implements
:class:`Transport` and :class:`Acceptor`; :class:`mchannel.framed.Framed` puts numbering, replay and
back-pressure on top. A wire that numbers and acknowledges by itself, as shared memory does,
implements :class:`Link` and :class:`Gate` directly.

Nothing here ever waits: a file descriptor wakes, and the blocking and asyncio faces do the waiting.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from enum import Enum
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, TypedDict

import attrs

from mchannel.address import Address
from mchannel.errors import AddressError

__all__ = [
    "MAX_MESSAGE",
    "MAX_NAME",
    "MAX_WINDOW",
    "Acceptor",
    "Delivery",
    "Gate",
    "Link",
    "Options",
    "Peer",
    "Port",
    "Scheme",
    "State",
    "Transport",
    "Wishes",
    "find_scheme",
]


class Delivery(Enum):
    """What happens to messages when the reader is slower than the writer."""

    ALL = "all"
    """Every message arrives; a full channel holds the writer back."""
    LATEST = "latest"
    """History is given up for freshness: newer messages displace older ones that were not read."""


class State(Enum):
    """Where a link stands."""

    OPENING = "opening"
    """Waiting for the peer's first answer."""
    OPEN = "open"
    SUSPENDED = "suspended"
    """Quiet on purpose, for a migration or a handoff; writes queue up."""
    LOST = "lost"
    """The peer went silent; the link looks for it, or waits for its successor."""
    ENDED = "ended"
    """The peer closed, refused or broke the rules; what was received can still be read."""
    CLOSED = "closed"
    """This end was closed."""


@attrs.frozen
class Peer:
    """Who is at the other end, as far as the transport vouches for it."""

    identity: str
    """Name that the transport authenticated: a key's name, or the local endpoint and user."""
    address: str
    uid: int | None = None
    """User id of the peer's process, where the kernel tells."""
    pid: int | None = None
    """Process id of the peer at the time it connected, where the kernel tells."""
    name: str = ""
    """What the peer calls itself; not authenticated, for people and logs."""


class Wishes(TypedDict, total=False):
    """The fields of :class:`Options` as keyword arguments of ``open`` and ``listen``."""

    name: str
    max_message: int
    window: int
    delivery: Delivery | str
    heartbeat: float
    patience: float | None
    keys: Path | None
    insecure: bool
    durable: Path | None


_MIB = 1 << 20


MAX_MESSAGE = 1 << 30
"""Largest ``max_message`` that the wire can agree on, in bytes."""
MAX_WINDOW = 1 << 32
"""Largest ``window`` that the wire can agree on, in bytes."""
MAX_NAME = 255
"""Longest name of an end, in bytes of UTF-8."""


def _bytes_to(most: int) -> Callable[[object, attrs.Attribute[int], int], None]:
    def check(_: object, attribute: attrs.Attribute[int], value: int) -> None:
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"{attribute.name} must be a number of bytes from 1 to {most}, not {value!r}")

    return check


def _is_printable(_: object, attribute: attrs.Attribute[str], value: object) -> None:
    if not (isinstance(value, str) and value.isprintable() and len(value.encode()) <= MAX_NAME):
        raise ValueError(f"{attribute.name} must be printable text of at most {MAX_NAME} bytes, not {value!r:.80}")


def _is_positive(_: object, attribute: attrs.Attribute[float], value: object) -> None:
    if isinstance(value, bool) or not (isinstance(value, (int, float)) and 0 < value < math.inf):
        raise ValueError(f"{attribute.name} must be a number of seconds above 0, not {value!r}")


def _is_switch(_: object, attribute: attrs.Attribute[bool], value: bool) -> None:
    if value is not True and value is not False:
        raise ValueError(f"{attribute.name} must be True or False, not {value!r}")


def _delivery(value: object) -> Delivery:
    try:
        return Delivery(value)
    except ValueError:
        known = " or ".join(repr(each.value) for each in Delivery)
        raise ValueError(f"delivery must be {known}, not {value!r}") from None


@attrs.frozen(kw_only=True)
class Options:
    """How one end wants its channel to be. Both ends' wishes are joined once, at HELLO, for good."""

    name: str = attrs.field(default="", validator=_is_printable)
    """What this end calls itself, at most 255 bytes."""
    max_message: int = attrs.field(default=_MIB, validator=_bytes_to(MAX_MESSAGE))
    """Largest message in bytes; the smaller of both ends' counts."""
    window: int = attrs.field(default=4 * _MIB, validator=_bytes_to(MAX_WINDOW))
    """Bytes written but not yet acknowledged before the writer is held back."""
    delivery: Delivery = attrs.field(default=Delivery.ALL, converter=_delivery)
    heartbeat: float = attrs.field(default=1.0, validator=_is_positive)
    """Seconds of quiet after which a sign of life is sent; three times that long means lost."""
    patience: float | None = attrs.field(default=None, validator=attrs.validators.optional(_is_positive))
    """Seconds a lost peer is waited for before reads and writes raise ChannelBroken; None: for ever."""
    keys: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    """Folder of keys, for transports that authenticate by key; None: the user's or the host's own."""
    insecure: bool = attrs.field(default=False, validator=_is_switch)
    """Allow a network transport without encryption, on loopback only."""
    durable: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    """File in which received messages are put on disk before they are acknowledged; see :mod:`mchannel.durable`."""


class Port(Protocol):
    """A descriptor that wakes, and what to do then. One port may feed many links."""

    def fileno(self) -> int:
        """Return the descriptor to wait on for reading (level or edge triggered)."""
        ...

    def pump(self) -> None:
        """Take in what has arrived, in bounded portions, and call ``on_news`` of whom it concerns."""
        ...


class Transport(Protocol):
    """A pipe of whole frames to one peer. Frames arrive in order or not at all."""

    @property
    def peer(self) -> Peer:
        """Who is at the other end."""
        ...

    @property
    def port(self) -> Port:
        """What wakes when frames arrive; of an accepted transport it is the acceptor's."""
        ...

    on_news: Callable[[], None] | None
    """Called by ``port.pump()``, or after a send that took in frames, when :meth:`recv` has something."""

    def send(self, frame: bytes) -> bool:
        """Hand over one frame; False when it cannot be taken now. Raises ChannelBroken when the peer is gone."""
        ...

    def recv(self) -> bytes | None:
        """Return the next frame, or None. Raises ChannelBroken when the peer is gone and all was read."""
        ...

    def close(self) -> None:
        """Let go of everything; idempotent. Frames that were taken are still sent, within a second."""
        ...


class Acceptor(Protocol):
    """The listening side of a :class:`Transport`."""

    @property
    def address(self) -> Address:
        """Where it really listens: a port of 0 replaced by the one that was given."""
        ...

    @property
    def port(self) -> Port:
        """What wakes, for the acceptor and for every transport that it accepted."""
        ...

    on_news: Callable[[], None] | None
    """Called by ``port.pump()`` when :meth:`accept` has something."""

    def accept(self) -> Transport | None:
        """Return the pipe to a peer that was not there before, or None."""
        ...

    def close(self) -> None:
        """Stop listening; pipes that were accepted and share the port end too. Idempotent."""
        ...


class Link(Protocol):
    """One numbered, acknowledged, back-pressured exchange with a peer; what channels stand on."""

    @property
    def peer(self) -> Peer:
        """Who is at the other end."""
        ...

    @property
    def port(self) -> Port:
        """What wakes when there is news; of an accepted link it may be the gate's."""
        ...

    @property
    def state(self) -> State:
        """Where the link stands."""
        ...

    @property
    def session(self) -> bytes:
        """Sixteen bytes that name the exchange across reconnections, restarts and handoffs."""
        ...

    @property
    def number(self) -> int:
        """Number of the message that :meth:`recv` returned last; grows by one or more from message to message."""
        ...

    @property
    def redelivered(self) -> bool:
        """Whether that message may have been seen before, by a predecessor that did not mark it."""
        ...

    on_news: Callable[[], None] | None

    def send(self, payload: bytes) -> bool:
        """Take one message; False when the window is full. Raises what ended the link."""
        ...

    def recv(self) -> bytes | None:
        """Acknowledge the previous message and return the next, or None. Raises what ended the link."""
        ...

    def send_many(self, payloads: Sequence[bytes]) -> int:
        """Take as many messages as there is room for; return how many."""
        ...

    def recv_many(self, limit: int) -> list[bytes]:
        """Acknowledge the messages before and return up to *limit*; they are acknowledged together."""
        ...

    @property
    def stamps(self) -> Sequence[tuple[int, bool]]:
        """Number of each message that :meth:`recv_many` returned last, and whether it is redelivered."""
        ...

    def done(self) -> None:
        """Acknowledge the message returned last without asking for another."""
        ...

    def wait_readable(self, timeout: float | None) -> None:
        """Sleep until there may be news or *timeout* seconds have passed; may return early."""
        ...

    def wait_writable(self, timeout: float | None) -> None:
        """Sleep until there may be room or *timeout* seconds have passed; may return early."""
        ...

    def arm_readable(self) -> bool:
        """Ask for ``on_news`` when a message comes; True when there may be one already: then look once more."""
        ...

    def arm_writable(self) -> bool:
        """Ask for ``on_news`` when there is more room than the last message found; True when there may be already."""
        ...

    def deadline(self) -> float | None:
        """Return when :meth:`tick` is due next, on the monotonic clock, or None."""
        ...

    def tick(self, now: float) -> None:
        """Do what is due at *now*: signs of life, retries, reconnection."""
        ...

    @property
    def flushed(self) -> bool:
        """Whether the peer has acknowledged everything that was sent."""
        ...

    def suspend(self, timeout: float) -> None:
        """Start to quiesce; ``state`` becomes SUSPENDED once the peer agreed, or it is given up after *timeout*."""
        ...

    def snapshot(self) -> bytes:
        """Return the suspended link for another process to adopt, and let go of the peer."""
        ...

    def resume(self) -> None:
        """Take up a suspended link again."""
        ...

    def leave(self) -> None:
        """Let go without goodbye; the message returned last is not acknowledged, and the peer looks for a successor.

        Calls ``on_news`` at the end, as whoever waits waits in vain. :meth:`close` is still due.
        """
        ...

    def close(self) -> None:
        """Say goodbye and let go; idempotent, also after an error."""
        ...


class Gate(Protocol):
    """The listening side of a :class:`Link`."""

    @property
    def address(self) -> Address:
        """Where it really listens."""
        ...

    @property
    def port(self) -> Port:
        """What wakes when an agent comes."""
        ...

    on_news: Callable[[], None] | None

    def accept(self) -> Link | None:
        """Return the link to an agent that was not there before, or None."""
        ...

    def adopt(self, snapshot: bytes, *, overtaken: bool = False) -> None:
        """Expect the agent of a link that another broker handed over; raises ProtocolError when it is malformed.

        When it may have been *overtaken* by a third broker, what the agent replays says ``redelivered``.
        """
        ...

    def hand_over(self) -> tuple[bytes, ...]:
        """Close, and return each link as :meth:`Link.snapshot` does; only while no agent can speak."""
        ...

    def deadline(self) -> float | None:
        """Return when :meth:`tick` is due next, on the monotonic clock, or None."""
        ...

    def tick(self, now: float) -> None:
        """Do what is due at *now*."""
        ...

    def close(self) -> None:
        """Stop listening and close the links; idempotent."""
        ...


class Scheme(Protocol):
    """What an entry point of the group ``mchannel.transports`` names."""

    def dial(self, address: Address, options: Options) -> Link:
        """Start to connect to *address*; never waits for the peer."""
        ...

    def bind(self, address: Address, options: Options) -> Gate:
        """Listen at *address*; raises AddressError when that is not possible."""
        ...


@functools.cache  # to look through all that is installed takes milliseconds
def _load(name: str) -> Scheme:
    for point in entry_points(group="mchannel.transports", name=name):
        scheme: Scheme = point.load()
        return scheme
    raise LookupError(name)


def find_scheme(address: Address) -> Scheme:
    """Return the installed transport for *address*; raise :class:`AddressError` when there is none that loads."""
    try:
        return _load(address.scheme)
    except ImportError as error:
        raise AddressError(f"{address}: this installation cannot load the transport: {error}") from error
    except LookupError:
        pass
    known = ", ".join(sorted({point.name for point in entry_points(group="mchannel.transports")}))
    raise AddressError(f"{address}: no transport is called {address.scheme!r}; installed are {known}")
