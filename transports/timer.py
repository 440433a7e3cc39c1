"""A descriptor that wakes after a while: for ports, which a select loop waits on without a clock."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from contextlib import suppress

__all__ = ["Timer"]

_ITIMERSPEC = struct.Struct("@4l")


class Timer:
    """A timerfd, which the standard library has from Python 3.13 on."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "the kernel gives no timer")

    def fileno(self) -> int:
        """Return the descriptor; it is readable once the time has come."""
        return self._fd

    def set(self, seconds: float) -> None:
        """Wake once, *seconds* from now; takes the place of what was set before."""
        nanoseconds = max(1, int(seconds * 1e9))
        self._libc.timerfd_settime(self._fd, 0, _ITIMERSPEC.pack(0, 0, *divmod(nanoseconds, 10**9)), None)

    def expired(self) -> bool:
        """Whether the time has come; True once."""
        with suppress(BlockingIOError):
            return bool(os.read(self._fd, 8))
        return False

    def close(self) -> None:
        """Let go; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
