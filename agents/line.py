"""One logical channel of the daemon, opened again whenever it ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import attrs

from mchannel.agents.discover import Way
from mchannel.aio import AsyncChannel, open_async
from mchannel.errors import ChannelTimeout, MChannelError
from mchannel.event import Event
from mchannel.transport import State

__all__ = ["Line", "Open", "Talk"]

_KNOCK = 2.0
"""Seconds in which somebody must begin to listen; nothing rings a bell then, so it is looked for all the time."""
_ANSWER = 300.0
"""Seconds to wait for the answer of a host that may come any time; its coming rings a bell."""
_PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0)  # seconds between attempts; the last one repeats
_STEADY = 30.0  # seconds after which a channel that ends was a good one
_MAX_MESSAGE, _WINDOW = 1 << 16, 1 << 17  # bytes; a guest keeps no more of each line than this

_log = logging.getLogger("magent")


class Talk(Protocol):
    """An open channel, as far as the daemon uses it."""

    @property
    def state(self) -> State:
        """Where it stands."""
        ...

    async def write(self, message: Event, timeout: float | None = None) -> None:
        """Send *message*."""
        ...

    async def read(self, timeout: float | None = None) -> Event:
        """Acknowledge the event before and return the next."""
        ...


class Open(Protocol):
    """What opens a channel: :func:`mchannel.open_async`."""

    async def __call__(
        self, address: str, *, timeout: float | None, name: str, max_message: int, window: int
    ) -> AsyncChannel[Event]:
        """Return the channel once the broker has answered."""
        ...


@attrs.define(eq=False)
class Line:
    """Keeps a channel called *stream* open, by whichever *way* there is, and says once when it cannot be had."""

    stream: str
    way: Callable[[], Awaitable[Way]]
    """Waits until a way leads to the broker."""
    open: Open = attrs.field(default=open_async, kw_only=True)
    pauses: tuple[float, ...] = attrs.field(default=_PAUSES, kw_only=True)
    _said: str = attrs.field(default="", init=False)
    _failures: int = attrs.field(default=0, init=False)
    _fickle: bool = attrs.field(default=False, init=False)
    """Whether the last channel ended soon after it was opened: the next may too, and is no news."""

    async def keep(self, use: Callable[[Talk], Awaitable[None]]) -> None:
        """Open the channel and let *use* have it, again and again; return when *use* does, after a flush.

        Raises ChannelTimeout when that flush takes too long. A cancellation says goodbye and waits for nothing.
        """
        patience = _KNOCK
        while True:
            opened: float | None = None
            try:
                address = (await self.way()).address(self.stream)
                async with await self._open(address, patience) as channel:
                    opened, patience = time.monotonic(), _KNOCK
                    if not self._fickle:
                        _log.info("%s: open to %s", self.stream, address)
                    await use(channel)
                    return
            except ChannelTimeout as error:
                if opened is not None:
                    raise
                patience = _ANSWER
                self._complain(str(error))
                continue
            except (MChannelError, OSError, ImportError) as error:
                patience = _KNOCK
                if opened is not None:
                    self._ended(time.monotonic() - opened)
                self._complain(f"{error}; it is opened again as soon as that is possible")
            await asyncio.sleep(self.pauses[min(self._failures, len(self.pauses) - 1)])
            self._failures += 1

    async def _open(self, address: str, patience: float) -> AsyncChannel[Event]:
        return await self.open(
            address,
            timeout=patience,
            name=self.stream,
            max_message=_MAX_MESSAGE,
            window=_WINDOW,
        )

    def _ended(self, lived: float) -> None:
        self._fickle = lived < _STEADY
        if not self._fickle:
            self._failures, self._said = 0, ""

    def _complain(self, why: str) -> None:
        if why != self._said:
            self._said = why
            _log.warning("%s: %s", self.stream, why)
