"""``shm:///name``: a ring in memory that both ends share, and a socket beside it.

The agent makes the memory (a sealed memfd) and passes it to the broker over a UNIX socket, so it
outlives a broker that dies: the successor gets the same memory and reads on. The ring's own indices
are the numbers and the acknowledgements; nothing is added to a message. The socket carries the
handshake, the bell of an end that sleeps in a select loop, suspensions and the goodbye, and its end
tells that the peer is gone.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable

import attrs

from mchannel.address import Address
from mchannel.errors import ChannelBroken, MChannelError, ProtocolError
from mchannel.frame import Frame, Hello, Kind, Welcome
from mchannel.transport import Gate, Link, Options, Peer, Port, State
from mchannel.transports import local
from mchannel.transports.line import Line, close_all
from mchannel.transports.ring import Region, Side
from mchannel.transports.shmlink import OVER, AgentLink, BrokerLink, size_limit

__all__ = ["SHM"]

_BURST = 64
"""Connections let in at once."""
_HANDSHAKE = 5.0
"""Seconds that a stranger has to say HELLO."""
_MAX_STRANGERS = 64
_MAX_LINKS = 4096
_MAX_LOST = 32
"""Links that wait for an agent that is gone."""
_NAME = 16
"""Bytes that name a session."""


@attrs.define(eq=False)
class _Stranger:
    """A connection on which nobody has said HELLO."""

    line: Line
    until: float


class ShmGate:
    """Accepts agents, and brings those that come back to the links that they had."""

    def __init__(self, address: Address, options: Options) -> None:
        self.address = address
        self.on_news: Callable[[], None] | None = None
        self._options = options
        self._path = local.socket_path(address)
        self._door = local.listen(self._path, socket.SOCK_SEQPACKET)
        self._door.setblocking(False)
        self._inode = self._path.stat().st_ino
        self._epoll = select.epoll()
        self._epoll.register(self._door, select.EPOLLIN)
        self._strangers: list[_Stranger] = []
        self._links: dict[tuple[int, bytes], BrokerLink] = {}
        self._ready: list[BrokerLink] = []

    @property
    def port(self) -> Port:
        """The gate itself: it wakes at the door, and when a stranger speaks."""
        return self

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._epoll.fileno()

    def pump(self) -> None:
        """Let in who knocks, and hear the strangers."""
        for _ in range(_BURST):
            try:
                wire, _ = self._door.accept()
            except OSError:
                break
            line = Line(wire)
            self._epoll.register(line, select.EPOLLIN)
            self._strangers.append(_Stranger(line, time.monotonic() + _HANDSHAKE))
        if self._strangers:
            self.tick(time.monotonic())

    def accept(self) -> Link | None:
        """Return the link to an agent that was not there before, or None."""
        return self._ready.pop(0) if self._ready else None

    def adopt(self, snapshot: bytes, *, overtaken: bool = False) -> None:
        """Check the name of the session; its agent brings the ring, which knows everything else."""
        if len(snapshot) != _NAME:
            raise ProtocolError("not a channel over shared memory that was handed over")

    def deadline(self) -> float | None:
        """Return when the patience with a stranger ends."""
        return min((stranger.until for stranger in self._strangers), default=None)

    def tick(self, now: float) -> None:
        """Hear the strangers; show out those who say nothing."""
        surplus = len(self._strangers) - _MAX_STRANGERS
        for place, stranger in enumerate(list(self._strangers)):
            if now > stranger.until or place < surplus:
                self._show_out(stranger.line)
            elif not self._greet(stranger.line):
                continue
            self._strangers.remove(stranger)
        if self._ready and self.on_news is not None:
            self.on_news()

    def hand_over(self) -> tuple[bytes, ...]:
        """Close, and return the names of the sessions: all else is in the rings."""
        found = tuple(link.hand_over() for link in self._links.values() if link.state not in OVER)
        self.close()
        return found

    def close(self) -> None:
        """Stop listening. Agents are not told goodbye: they look for a successor."""
        self._epoll.close()
        self._door.close()
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        for stranger in self._strangers:
            stranger.line.close()
        for link in self._links.values():
            link.leave()
        self._strangers.clear()
        self._links.clear()

    def _greet(self, line: Line) -> bool:
        """Hear one stranger; True when it is none any more."""
        try:
            if (packet := line.frame()) is None:
                return False
        except (ChannelBroken, ProtocolError):
            self._show_out(line)
            return True
        frame, descriptors = packet
        self._epoll.unregister(line)
        try:
            self._admit(line, frame, descriptors)
        except (MChannelError, OSError) as error:
            line.send(Frame(Kind.REFUSE, frame.epoch, body=str(error).encode()[:512]))
            line.close()
        finally:
            close_all(descriptors)
        return True

    def _show_out(self, line: Line) -> None:
        self._epoll.unregister(line)
        line.close()

    def _admit(self, line: Line, frame: Frame, descriptors: list[int]) -> None:
        if frame.kind is not Kind.HELLO or not descriptors:
            raise ProtocolError("say HELLO first, and bring the memory")
        hello = Hello.decode(frame.body)
        pid, uid = line.credentials()
        peer = Peer(self.address.path, str(self.address), uid, pid, hello.name)
        link = self._links.get((uid, hello.session))
        if link is not None and isinstance(link.failure, ChannelBroken):
            link = None  # it was given up, but here it is
        if link is not None and link.moved:
            line.close()  # the successor will answer
            return
        if link is None and (heir := self.heir(peer)) is not None:
            self._welcome(heir, line, frame, hello, [heir.memory.fd])
        elif link is None:
            self._make_room()
            memory = Region.attach(descriptors[0], size_limit(self._options))
            link = BrokerLink(peer, self._options, hello.session, memory)
            self._welcome(link, line, frame, hello, [])
            self._links[uid, hello.session] = link
            self._ready.append(link)
        elif link.state in OVER:
            raise ProtocolError("this channel is over; open a new one")
        elif not os.path.samestat(os.fstat(link.memory.fd), os.fstat(descriptors[0])) or frame.epoch <= link.epoch:
            raise ProtocolError("the session is another agent's")
        else:
            self._welcome(link, line, frame, hello, [])

    def _welcome(self, link: BrokerLink, line: Line, frame: Frame, hello: Hello, descriptors: list[int]) -> None:
        terms = link.terms.grant(hello.terms, agreed=link.epoch > 0)
        link.use(line)
        link.begin(Side.B, terms, frame.epoch)
        answer = Welcome(link.session, terms, None, 1)
        link.line.send(Frame(Kind.WELCOME, frame.epoch, body=answer.encode()), descriptors)
        if link.on_news is not None:
            link.on_news()

    def heir(self, peer: Peer) -> BrokerLink | None:
        """Return the link of a predecessor of the same name and user that died."""
        for (uid, _), link in self._links.items():
            if peer.name and uid == peer.uid and link.peer.name == peer.name:
                link.tick(time.monotonic())
                if link.state is State.LOST:
                    return link
        return None

    def _make_room(self) -> None:
        lost = [link for link in self._links.values() if link.state is State.LOST]
        for link in lost[: len(lost) - _MAX_LOST + 1]:  # the oldest first: each holds memory and descriptors
            link.fail(ChannelBroken("the agent is gone, and others went after it"))
            if link.on_news is not None:
                link.on_news()
        if len(self._links) >= _MAX_LINKS:
            self._links = {key: link for key, link in self._links.items() if link.state not in OVER}
        if len(self._links) >= _MAX_LINKS:
            raise ProtocolError(f"this broker has {_MAX_LINKS} channels already; close some")


class _Shm:
    """The scheme ``shm``."""

    def dial(self, address: Address, options: Options) -> Link:
        """Start to connect to *address*."""
        return AgentLink(address, options)

    def bind(self, address: Address, options: Options) -> Gate:
        """Listen at *address*."""
        return ShmGate(address, options)


SHM = _Shm()
