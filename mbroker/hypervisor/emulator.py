"""The process that runs a domain on this very host, and the moment in which it ends.

libvirt looks every 200 ms whether an emulator that it stopped has ended. A domain that waits for that on another host
need not wait as long.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Final
from urllib.parse import urlsplit

__all__ = ["at_exit"]

_PIDS: Final = Path("/run/libvirt/qemu")


@contextmanager
def at_exit(uri: str, name: str, uuid: str, then: Callable[[], None]) -> Generator[None]:
    """Call *then*, in a thread, when the emulator of the domain at *uri* ends within the block.

    Waits for a call that has begun. Where the process cannot be seen, *then* is not called.
    """
    process = _open(uri, name, uuid)
    if process is None:
        yield
        return
    over = os.eventfd(0)

    def watch() -> None:
        poll = select.poll()
        for each in (process, over):
            poll.register(each, select.POLLIN)
        if over not in dict(poll.poll()):
            then()

    thread = Thread(target=watch, name="emulator", daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.eventfd_write(over, 1)
        thread.join()
        os.close(process)
        os.close(over)


def _open(uri: str, name: str, uuid: str) -> int | None:
    """Return a descriptor of the emulator's process, which is ready when that has ended."""
    parts = urlsplit(uri)
    if (parts.scheme, parts.netloc, parts.query) not in {("qemu", "", ""), ("qemu+unix", "", "")}:
        return None  # of another host, perhaps
    with suppress(OSError, ValueError):
        process = os.pidfd_open(number := int((_PIDS / f"{name}.pid").read_text()))
        with suppress(OSError):
            if uuid.encode() in Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0"):
                return process
        os.close(process)
    return None
