"""What may block for a long time, in threads that keep no process from ending."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar, cast

import attrs

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
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            self._is_running = False
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(cast("T", result))

        def run() -> None:
            result, failure = None, None
            try:
                result = self.function()
            except BaseException as error:  # for whoever waits
                failure = error
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(settle, result, failure)

        threading.Thread(target=run, name="apart", daemon=True).start()
        return await future
