"""How long the blocking and the asyncio face wait, and for what."""

from __future__ import annotations

import math
import time

import attrs

from mchannel import durable
from mchannel.address import Address
from mchannel.errors import ChannelBroken, ChannelTimeout, EndOfChannel, NotListening
from mchannel.transport import Gate, Link, Options, Scheme, State, Wishes, find_scheme

__all__ = ["FLUSH_INTERVAL", "KNOCK_INTERVAL", "Opening", "bind", "left", "until", "wait_of"]

FLUSH_INTERVAL = 0.001
"""Seconds between two looks at what the peer has acknowledged: no wire rings a bell for that."""
KNOCK_INTERVAL = 0.02
"""Seconds between two looks whether somebody listens by now."""
LISTENER_PATIENCE = 60.0
"""Seconds that a listener keeps the channel of an agent that went silent."""
_LONGEST = 86400.0
"""Seconds of one wait: the kernel does not count up to infinity. Whoever waits longer waits again."""


def until(timeout: float | None) -> float | None:
    """Return when *timeout* seconds will have passed, on the monotonic clock; None: never. Raises ValueError."""
    if timeout is None:
        return None
    if math.isnan(timeout):
        raise ValueError("timeout must be a number of seconds, or None to wait for ever, not nan")
    return time.monotonic() + timeout


def wait_of(timeout: float | None) -> float | None:
    """Return how long a first wait may be: when *timeout* is over already, what has come is still looked at."""
    return None if timeout is None else min(max(timeout, 0), _LONGEST)


def left(late: float | None, why: str) -> float | None:
    """Return the seconds left until *late*, at most a day of them; raise ChannelTimeout(*why*) when there are none."""
    if late is None:
        return None
    seconds = late - time.monotonic()
    if seconds <= 0:
        raise ChannelTimeout(why)
    return min(seconds, _LONGEST)


@attrs.frozen
class Opening:
    """A channel that is about to be opened, and until when."""

    address: Address
    scheme: Scheme
    options: Options
    late: float | None

    @classmethod
    def of(cls, address: str, wishes: Wishes, timeout: float | None) -> Opening:
        """Return the opening of *address*; raises AddressError, and ValueError for wishes that cannot be."""
        where = Address.parse(address)
        return cls(where, find_scheme(where), Options(**wishes), until(timeout))

    def knock(self) -> Link | None:
        """Dial; None when nobody listens yet and there is time to knock again. Raises NotListening after that."""
        try:
            return durable.dial(lambda: self.scheme.dial(self.address, self.options), self.options)
        except NotListening:
            if self.late is not None and time.monotonic() >= self.late:
                raise
            return None

    def is_answered(self, link: Link) -> bool:
        """Whether the peer has answered, one way or the other."""
        return link.state not in (State.OPENING, State.LOST)  # lost: the broker died before it answered

    @property
    def unanswered(self) -> str:
        """What to say when it is too late."""
        return f"nothing answered at {self.address}; does a broker listen there?"

    def answer(self, link: Link) -> list[bytes]:
        """Return what the peer wrote before it closed the channel, if it has closed it; raise why it refused it."""
        if link.state is not State.ENDED:
            return []
        try:
            return link.recv_many(1)
        except EndOfChannel:
            raise ChannelBroken(
                f"the broker at {self.address} closed the channel at once; see its log whether it is full or stopping"
            ) from None


def bind(address: str, wishes: Wishes) -> Gate:
    """Return the gate of a listener at *address*."""
    where = Address.parse(address)
    patient: Wishes = {"patience": LISTENER_PATIENCE, **wishes}
    scheme, options = find_scheme(where), Options(**patient)
    return durable.bind(lambda: scheme.bind(where, options), options)
