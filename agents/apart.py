"""What may block for a long time, one call at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import attrs

from mchannel.apart import apart

__all__ = ["Apart"]

T = TypeVar("T")


@attrs.define(eq=False)
class Apart(Generic[T]):
    """Runs *function*, one call at a time, each in a thread of its own."""

    function: Callable[[], T]
    _is_running: bool = attrs.field(default=False, init=False)

    async def __call__(self) -> T:
        """Return what the function returns, or raise what it raises; BlockingIOError while a call has not ended.

        Cancelling stops waiting for it, not the thread.
        """
        if self._is_running:
            raise BlockingIOError("the look before has not ended")
        self._is_running = True
        return await apart(self._run, "apart")

    def _run(self) -> T:
        try:
            return self.function()
        finally:
            self._is_running = False
