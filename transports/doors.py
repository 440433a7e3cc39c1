"""Doors: how a ZeroMQ listener tells who comes, which differs from wire to wire."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeAlias

import attrs
import zmq

from mchannel.address import Address
from mchannel.transport import Peer
from mchannel.transports.complaints import Complaints
from mchannel.transports.curve import Gatekeeper

__all__ = ["Context", "CurveDoor", "Door", "LocalDoor", "OpenDoor", "Socket"]

Socket: TypeAlias = zmq.Socket[bytes]
Context: TypeAlias = zmq.Context[Socket]

_PORTION = 256  # who knocks and is answered at once


class Door(Protocol):
    """How a listener tells who comes, which differs from wire to wire."""

    watched: Sequence[Socket]
    complaints: Complaints

    def introduce(self, frame: zmq.Frame) -> Peer:
        """Return who sent *frame*; raises ZMQError when libzmq cannot tell."""
        ...

    def answer(self) -> bool:
        """Decide about those who knock, in bounded portions; False when more are waiting."""
        ...

    def close(self) -> None:
        """Let go of what listening took; the socket is closed already."""
        ...


@attrs.define(eq=False)
class LocalDoor:
    """The kernel keeps others than the owner out, and tells who comes."""

    address: Address
    path: Path
    inode: int
    watched: Sequence[Socket] = ()
    complaints: Complaints = attrs.field(factory=Complaints)

    def introduce(self, frame: zmq.Frame) -> Peer:
        """Return who sent *frame*."""
        match str(frame.get("Peer-Address")).rsplit(":", 3):
            case [_, uid, _, pid] if uid.isdecimal() and pid.isdecimal():
                return Peer(self.address.path, str(self.address), uid=int(uid), pid=int(pid))
            case _:  # a libzmq built without peer credentials
                return Peer(self.address.path, str(self.address))

    def answer(self) -> bool:
        """Decide about those who knock."""
        return True

    def close(self) -> None:
        """Let go of what listening took."""
        with suppress(OSError):
            if self.path.lstat().st_ino == self.inode:  # not yet a successor's
                self.path.unlink()


@attrs.define(eq=False)
class OpenDoor:
    """Loopback without encryption: anyone on this host may come."""

    watched: Sequence[Socket] = ()
    complaints: Complaints = attrs.field(factory=Complaints)

    def introduce(self, frame: zmq.Frame) -> Peer:
        """Return who sent *frame*."""
        return Peer(_host(frame), f"tcp://{_host(frame)}")

    def answer(self) -> bool:
        """Decide about those who knock."""
        return True

    def close(self) -> None:
        """Let go of what listening took."""


class CurveDoor:
    """Holders of trusted keys may come. libzmq asks, before it lets a connection's frames through."""

    def __init__(self, context: Context, folder: Path) -> None:
        self._context = context
        self._asked = context.socket(zmq.REP)
        self._asked.bind("inproc://zeromq.zap.01")
        self.watched: Sequence[Socket] = (self._asked,)
        self.complaints = Complaints()
        self._gatekeeper = Gatekeeper(folder, self.complaints)

    def introduce(self, frame: zmq.Frame) -> Peer:
        """Return who sent *frame*."""
        return Peer(str(frame.get("User-Id")), f"tcp://{_host(frame)}")

    def answer(self) -> bool:
        """Decide about those who knock."""
        for _ in range(_PORTION):
            if not int(self._asked.get(zmq.EVENTS)) & zmq.POLLIN:
                return True
            self._asked.send_multipart(self._gatekeeper.answer(self._asked.recv_multipart(zmq.NOBLOCK)))
        return False

    def close(self) -> None:
        """Let go of what listening took."""
        self._asked.close(0)
        threading.Thread(target=self._context.term, name="mchannel-linger").start()  # a second at most


def _host(frame: zmq.Frame) -> str:
    return str(frame.get("Peer-Address")).removeprefix("::ffff:")
