"""What is told to whom: secrets live in files of their own, and what is not encrypted stays on this host."""

from __future__ import annotations

import ipaddress
import os
import stat
from pathlib import Path

from .delivery import NotDelivered

__all__ = ["is_loopback", "read_secret"]

_LONGEST = 4096  # bytes


def read_secret(path: Path) -> str:
    """Return the text in *path*, without white space around it; raise :exc:`~.delivery.NotDelivered`.

    It is read each time, so that it can be replaced while the broker runs, and refused when others could read it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - what was opened is what is checked
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise NotDelivered(f"{path} is not a regular file")
            if status.st_mode & 0o077:
                raise NotDelivered(f"{path} is open to other users; close it with: chmod go= {path}")
            text = file.read(_LONGEST + 1)
    except OSError as error:
        raise NotDelivered(f"{path}: {error.strerror}") from None
    if len(text) > _LONGEST:
        raise NotDelivered(f"{path} has more than {_LONGEST} bytes")
    try:
        secret = text.decode("ascii").strip()
    except UnicodeDecodeError:
        secret = ""
    if not secret or not secret.isprintable():
        raise NotDelivered(f"{path} holds no single line of ASCII")
    return secret


def is_loopback(host: str) -> bool:
    """Whether *host* is this host, as a name or an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
