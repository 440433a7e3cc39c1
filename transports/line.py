"""The socket beside a ring: packets with descriptors, bells, and the end that tells that the peer is gone."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Sequence

from mchannel.errors import ChannelBroken, ProtocolError
from mchannel.frame import Frame

__all__ = ["Line", "close_all"]

_BELL = 8
"""Bytes of the packet that is only a bell; every frame is longer."""
_PACKET = 4096
_BURST = 64
_BELLS = 1 << 14
"""Bells that may come before they are asked for again: more than a socket holds."""


class Line:
    """The socket beside a ring: packets with descriptors, neither waiting nor trusting."""

    def __init__(self, wire: socket.socket) -> None:
        wire.setblocking(False)
        self._wire = wire
        self.hear: Callable[[], None] = lambda: None
        self.heard = False
        """Set when anything came, also a bell; whoever looks away clears it."""
        self._bells = _BELLS
        """Bells that may come still."""

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._wire.fileno()

    def pump(self) -> None:
        """Let the owner hear what arrived."""
        self.hear()

    def replace(self, other: Line) -> None:
        """Become *other*, under the descriptor that the ring rings."""
        os.dup2(other.fileno(), self.fileno(), inheritable=False)
        other.close()

    def ask(self) -> None:
        """Note that the ring was asked for its bell, which rings once for that."""
        self._bells = min(self._bells + 1, _BELLS)

    def send(self, frame: Frame, descriptors: Sequence[int] = ()) -> bool:
        """Send *frame*; False when the peer is gone or does not read."""
        try:
            socket.send_fds(self._wire, [frame.encode()], descriptors, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def recv(self) -> tuple[bytes, list[int]] | None:
        """Return the next packet and its descriptors, or None; raise ChannelBroken when the peer is gone."""
        try:
            data, descriptors, found = self._receive()
        except BlockingIOError:
            return None
        except OSError as error:
            raise ChannelBroken(f"the peer is gone: {error.strerror}") from None
        self.heard = True
        if not data:
            close_all(descriptors)
            raise ChannelBroken("the peer is gone")
        if found & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            close_all(descriptors)
            raise ProtocolError("the peer sent a packet that is too long or has too many descriptors")
        return data, descriptors

    def _receive(self) -> tuple[bytes, list[int], int]:
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            data, descriptors, found, _ = socket.recv_fds(self._wire, _PACKET, 1, flags)
        except ConnectionResetError:  # told once, and before what the peer said last
            data, descriptors, found, _ = socket.recv_fds(self._wire, _PACKET, 1, flags)
        return data, descriptors, found

    def frame(self) -> tuple[Frame, list[int]] | None:
        """Return the next frame; None when there is none, or when only bells rang (bounded work).

        Raise ChannelBroken when the peer is gone, and ProtocolError for what is no frame, and for bells without end.
        """
        for _ in range(_BURST):
            if (packet := self.recv()) is None:
                return None
            data, descriptors = packet
            if len(data) != _BELL:
                try:
                    return Frame.decode(data, _PACKET), descriptors
                except ProtocolError:
                    close_all(descriptors)
                    raise
            close_all(descriptors)
            self._bells -= 1
            if self._bells < 0:
                raise ProtocolError("the peer rings its bell without being asked to")
        return None

    def credentials(self) -> tuple[int, int]:
        """Return process id and user id of the peer, as the kernel knows them."""
        pid, uid, _ = struct.unpack("3i", self._wire.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid, uid

    def close(self) -> None:
        """Let go; idempotent."""
        self._wire.close()


def close_all(descriptors: Sequence[int]) -> None:
    """Close what came with a packet."""
    for descriptor in descriptors:
        os.close(descriptor)
