"""How often something is done, when somebody else may change that."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import attrs

__all__ = ["Pace"]


@attrs.define(eq=False)
class Pace:
    """An interval that can be changed while it is waited for."""

    seconds: float
    _changed: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)

    def set(self, seconds: float) -> None:
        """Change the interval; whoever waits begins a new one."""
        self.seconds = seconds
        self._changed.set()

    async def wait(self) -> None:
        """Wait until an interval has passed since it was called, or last changed."""
        self._changed.set()
        while self._changed.is_set():
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.seconds):
                    await self._changed.wait()
