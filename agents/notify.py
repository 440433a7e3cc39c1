"""Telling systemd how a service is."""

from __future__ import annotations

import os
import socket

__all__ = ["sd_notify"]


def sd_notify(state: str) -> None:
    """Send *state* (``READY=1``, ``STOPPING=1``) to the service manager, when there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        try:
            sock.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
            sock.send(state.encode())
        except OSError:
            return  # the agent works without a manager that listens
