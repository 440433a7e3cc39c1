"""A hypervisor as far as a virtio port goes: the host's UNIX socket, and the guest's character device."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Self

from mchannel.transport import Transport
from mchannel.transports.domain import DomainSocket

PAGE = 4096
BUFFERED = 1 << 16
"""Bytes on their way to the host before the guest is held back."""
BUFFERS = 16
"""Buffers of the guest, of a page each, before the host is held back."""


def wakeups(port: Transport | DomainSocket, seconds: float) -> int:
    """Return how often a select loop turns in that time."""
    late, count = time.monotonic() + seconds, 0
    poll = select.poll()
    poll.register(port.port, select.POLLIN)
    while (left := late - time.monotonic()) > 0:
        if poll.poll(left * 1000):
            count += 1
            port.port.pump()
    return count


class Hypervisor:
    """Behaves as QEMU and Linux do: one client at a time; what it had not read when it left is gone.

    A read gives what one of the guest's buffers holds, which is what the hypervisor found at the socket at one time.
    The guest's descriptor is readable while something is there to be read, and all the time while no
    host is attached: then only an edge tells that something has changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attached = False
        self.opened = 0
        """How often the guest has opened the port."""
        self._lock = threading.Lock()
        self._edge = os.eventfd(1, os.EFD_NONBLOCK)
        self._kick = os.eventfd(0, os.EFD_NONBLOCK)
        self._to_guest: deque[bytes] = deque()
        self._to_host = bytearray()
        self.is_open = False
        self._stopped = False
        self._client: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        os.close(self._edge)

    def stop(self) -> None:
        """The domain leaves this host: the socket file goes, and who is connected is hung up on."""
        if not self._stopped:
            self._stopped = True
            os.eventfd_write(self._kick, 1)
            self._thread.join()
            os.close(self._kick)

    def arrive(self, path: Path) -> None:
        """The domain is on another host, whose socket is at *path*."""
        self.stop()
        self.path, self._stopped = path, False
        self._kick = os.eventfd(0, os.EFD_NONBLOCK)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    # --- the guest's kernel -----------------------------------------------------------------

    def open(self, path: Path) -> Hypervisor:
        """Open the port, which works once."""
        if self.is_open:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        self.is_open = True
        self.opened += 1
        os.eventfd_write(self._kick, 1)
        return self

    def fileno(self) -> int:
        return self._edge

    def read(self, size: int) -> bytes | None:
        with self._lock:
            if not self._to_guest:
                return None if self.attached else b""
            found = self._to_guest.popleft()
            taken, rest = found[:size], found[size:]
            if rest:
                self._to_guest.appendleft(rest)
            self._settle()
            os.eventfd_write(self._kick, 1)
            return taken

    def write(self, data: bytes) -> int:
        with self._lock:
            taken = min(len(data), BUFFERED - len(self._to_host)) if self.attached else 0
            self._to_host += data[:taken]
            if taken:
                os.eventfd_write(self._kick, 1)
            return taken

    def close(self) -> None:
        with self._lock:
            self.is_open = False
            self._to_guest.clear()

    @property
    def buffers(self) -> int:
        """How many buffers wait to be read."""
        return len(self._to_guest)

    # --- the host's side --------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped:
            reads: list[int | socket.socket] = [self._kick]
            client = self._client
            if client is None:
                reads.append(self._listener)
            elif self.is_open and len(self._to_guest) < BUFFERS:
                reads.append(client)
            ready, writable, _ = select.select(reads, [client] if client and self._to_host else [], [], 5)
            if self._kick in ready:
                os.eventfd_read(self._kick)
            with self._lock:
                if self._listener in ready:
                    self._client, _ = self._listener.accept()
                    self._client.setblocking(False)
                    self.attached = True
                    self._wake()
                    self._settle()
                if client and writable:
                    self._send(client)
                if client in ready:
                    self._receive(client)
        with self._lock:
            self._hang_up()
            self._listener.close()
            self.path.unlink()

    def _send(self, client: socket.socket) -> None:
        try:
            del self._to_host[: client.send(self._to_host)]
        except BlockingIOError:
            pass
        except OSError:
            self._hang_up()

    def _receive(self, client: socket.socket) -> None:
        try:
            data = client.recv(PAGE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._to_guest.append(data)
            self._wake()
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None
        self.attached = False
        self._to_host.clear()  # the guest's writes succeeded, and yet it is lost
        self._wake()

    def _wake(self) -> None:
        os.eventfd_write(self._edge, 1)

    def _settle(self) -> None:
        """Be readable no more when nothing is left."""
        if self.attached and not self._to_guest:
            with suppress(BlockingIOError):
                os.eventfd_read(self._edge)
