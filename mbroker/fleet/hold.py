"""What one broker of a machine has, and others leave alone; the kernel lets go of it with the process."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

import attrs

from mchannel.errors import MChannelError

__all__ = ["Hold", "HoldError"]


class HoldError(MChannelError):
    """Another process has it; the message names which."""


@attrs.frozen
class Hold:
    """A lock, by a file that says which process has it."""

    path: Path
    _fd: int

    @classmethod
    def take(cls, path: Path) -> Hold:
        """Lock *path*, a file of nobody else's folder; raise HoldError, or OSError where there can be no file."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(fd, path):
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, str(os.getpid()).encode(), 0)
                    return cls(path, fd)
            except BlockingIOError:
                holder = os.pread(fd, 20, 0).decode("ascii", "replace")
                os.close(fd)
                raise HoldError(f"process {holder or 'that just started'}") from None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # its last holder took the name away meanwhile

    def release(self) -> None:
        """Let go of it; once."""
        with suppress(OSError):
            self.path.unlink()
        os.close(self._fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False
