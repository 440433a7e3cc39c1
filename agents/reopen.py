"""A channel end that is opened again after it broke."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from mchannel.errors import ChannelBroken, ChannelTimeout, CodecError, MChannelError, MessageTooBig
from mchannel.event import Event

__all__ = ["Reopening"]

_PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0)  # seconds between attempts; the last one repeats


class _Channel(Protocol):
    def write(self, message: Event, /, timeout: float | None = None) -> object: ...

    def flush(self, timeout: float | None = None) -> object: ...

    def close(self) -> object: ...


class Reopening:
    """Writes to what *connect* returns, and calls it anew, at growing intervals, when that breaks.

    Opened at once: raises whatever *connect* raises. For a :class:`~mchannel.agents.sla.Recorder` in a
    process that outlives its broker.
    """

    def __init__(self, connect: Callable[[], _Channel], *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._connect = connect
        self._monotonic = monotonic
        self._failures = 0
        self._again = 0.0
        self._channel: _Channel | None = connect()
        self.unacknowledged = 0
        """Messages written since the peer was last known to have acknowledged all."""

    def write(self, message: Event, /, timeout: float | None = None) -> None:
        """Write *message*; raises what the channel raises, or :exc:`ChannelBroken` between attempts.

        A message whose write raised was not taken, and must be written again.
        """
        if self._channel is None and self._monotonic() < self._again:
            raise ChannelBroken("the channel is gone; it is opened again soon")
        try:
            if self._channel is None:
                self._channel = self._connect()
            self._look(self._channel)
            self._channel.write(message, timeout=timeout)
        except (ChannelTimeout, CodecError, MessageTooBig):  # the channel is as before
            raise
        except (MChannelError, OSError):
            self._again = self._monotonic() + _PAUSES[min(self._failures, len(_PAUSES) - 1)]
            self._failures += 1
            self.close()
            raise
        self._failures = 0
        self.unacknowledged += 1

    def _look(self, channel: _Channel) -> None:
        with suppress(ChannelTimeout):
            channel.flush(timeout=0.0)
            self.unacknowledged = 0

    def close(self) -> None:
        """Close the channel; idempotent. :attr:`unacknowledged` tells what is lost."""
        channel, self._channel = self._channel, None
        if channel is not None:
            try:
                channel.close()
                self.unacknowledged = 0
            except (MChannelError, OSError):
                return  # it is gone either way
