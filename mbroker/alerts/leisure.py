"""Long work in a thread aside, done in small portions with rests between, so that it delays no other thread by much.

Only one thread of Python runs at a time, and to ask another one to step aside takes up to 5 ms at each of the dozens of
times that an alert's way needs it. Whoever rests often need not be asked.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["leisurely"]

T = TypeVar("T")

_STINT = 0.0005  # seconds of a processor that are worked at once


def leisurely(items: Iterable[T], rest: float) -> Iterator[T]:
    """Yield *items*, and rest after every half millisecond of what is done with them, *rest* times as long."""
    began = time.thread_time()
    for item in items:
        yield item
        worked = time.thread_time() - began
        if worked > _STINT:
            time.sleep(rest * worked)
            began = time.thread_time()
