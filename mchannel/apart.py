"""What may block for a long time, in threads that keep no process from ending."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, cast

__all__ = ["apart"]

T = TypeVar("T")


def apart(function: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Run *function* in a thread of its own, called *name*; return the future of what it returns or raises.

    Cancelling the future stops waiting for it, not the thread, which the end of the process does not wait for either.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast("T", result))

    def run() -> None:
        result, failure = None, None
        try:
            result = function()
        except BaseException as error:  # for whoever waits
            failure = error
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
