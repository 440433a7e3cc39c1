"""``ipc://`` and ``tcp://``: frames over ZeroMQ.

The agent's side is a DEALER, the broker's side one ROUTER for all agents. Over ``ipc`` the kernel
vouches for the peer: the socket file is open to its owner alone. Over ``tcp`` both ends prove by
CURVE who they are, and :attr:`Peer.identity <mchannel.transport.Peer.identity>` is the name under
which the peer's key is trusted here; see :mod:`mchannel.keys`.

A ZeroMQ descriptor tells edges, and a send can swallow one. So each end has an epoll descriptor,
which a send marks as readable until the next ``pump()`` has looked; from when somebody asked for it.
Whoever just waits does so inside libzmq at first, which is quickest while two talk to each other.
"""

from __future__ import annotations

import atexit
import errno
import functools
import ipaddress
import os
import select
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import attrs
import zmq
from zmq.utils.monitor import recv_monitor_message

from mchannel import keys
from mchannel.address import Address
from mchannel.errors import AddressError, AuthenticationError, ChannelBroken, MChannelError
from mchannel.framed import Framed
from mchannel.transport import Options, Peer, Transport
from mchannel.transports import local
from mchannel.transports.curve import server_key
from mchannel.transports.doors import Context, CurveDoor, Door, LocalDoor, OpenDoor, Socket

__all__ = ["IPC", "TCP", "library_version"]

_BATCH = 256  # messages taken in by one pump
_BATCH_BYTES = 4 << 20
_BACKLOG = 256  # peers that wait to be accepted
_SLACK = 4096  # bytes of a frame beyond its message
_LINGER = 1000  # ms that a closed socket goes on sending
_HANDSHAKE = 5000  # ms
_DENIALS = 3  # handshakes that the server ended without a word, before it counts as an answer
_BRIEF = 0.01  # seconds of a wait inside libzmq, which hears nothing but messages
_FRAMES = 1000  # frames that libzmq queues for one peer
_UNREAD = 256 << 20  # bytes that one peer can make libzmq hold, as it counts frames and not bytes
_OLDEST = (4, 3, 3)
_NOBLOCK = int(zmq.NOBLOCK)  # plain ints: an enum costs more than the call
_ROUTE = int(zmq.NOBLOCK | zmq.SNDMORE)
_POLLIN = int(zmq.POLLIN)
_EVENTS = int(zmq.EVENTS)


class _Port:
    """A descriptor over the sockets of one end, readable until a pump has seen all there is."""

    def __init__(self, socket: Socket, *others: Socket) -> None:
        self._socket = socket
        self._send = super(zmq.Socket, socket).send  # without what it does for other kinds of sockets
        self._recv = socket.recv
        self._again = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._nudged = self._unseen = self._watched = False
        self._epoll = select.epoll()
        self._epoll.register(self._again, select.EPOLLIN)
        for watched in (socket, *others):
            self._epoll.register(int(watched.get(zmq.FD)), select.EPOLLIN)

    def fileno(self) -> int:
        if not self._watched:
            self._watched = True
            self.nudge()  # nobody has made up for edges so far
        return self._epoll.fileno()

    def pump(self) -> None:
        """Take in what is there, in bounded portions."""
        raise NotImplementedError

    def wait(self, timeout: float | None) -> bool:
        """Sleep until something arrives, at most *timeout* seconds, and take it in; False when nothing came."""
        if not self._nudged:
            alone, self._unseen = self._unseen, False
            if timeout is None or timeout >= _BRIEF:
                if self._take_one():
                    if not alone:  # who has sent waits for one answer; who only reads is sent more than one
                        self.pump()
                    return True
                timeout = None if timeout is None else timeout - _BRIEF
            if not self.has_input() and not self._epoll.poll(timeout):
                return False
        self.pump()
        return True

    def _take_one(self) -> bool:
        """Wait a brief time for one message; False when none came."""
        raise NotImplementedError

    def has_input(self) -> bool:
        """Whether there is something to take; the descriptor tells about everything after this look."""
        return bool(int(self._socket.get(_EVENTS)) & _POLLIN)

    def look(self) -> None:
        """Make up for the edge that a send may have swallowed: look now, or after a burst of sends."""
        if self._unseen or self.has_input():
            self.nudge()

    def nudge(self) -> None:
        """Make sure that a pump follows."""
        if not self._nudged:
            self._nudged = True
            os.eventfd_write(self._again, 1)

    def settle(self) -> None:
        """Begin a pump."""
        self._unseen = False
        if self._nudged:
            self._nudged = False
            os.eventfd_read(self._again)

    def release(self) -> None:
        self._epoll.close()
        os.close(self._again)


class _Dialled(_Port):
    """One connection to a broker. ZeroMQ finds the broker; when it is lost, so is this transport."""

    def __init__(self, socket: Socket, endpoint: str, peer: Peer, limit: int) -> None:
        events = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED
        events |= zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        events |= zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        self._monitor = socket.get_monitor_socket(events)
        super().__init__(socket, self._monitor)
        self.peer = peer
        self.port = self
        self.on_news: Callable[[], None] | None = None
        self._limit = limit
        self._inbox: deque[bytes] = deque()
        self._failure: MChannelError | None = None
        self._connected = self._stalled = self._closed = False
        self._denials = 0
        socket.connect(endpoint)

    def send(self, frame: bytes) -> bool:
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if not self._connected:  # nothing is queued for a broker that is not there
            self._stalled = True
            return False
        send = self._send
        try:
            send(frame, _NOBLOCK)
        except zmq.Again:
            self._stalled = True
            if self.has_input():
                self.nudge()
            return False
        if self._watched:
            self.look()
        self._unseen = True
        return True

    def recv(self) -> bytes | None:
        if self._inbox:
            return self._inbox.popleft()
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        return None

    def pump(self) -> None:
        if self._failure is not None:
            return
        self.settle()
        inbox, take = self._inbox, self._recv
        before, size = len(inbox), 0
        try:
            while size < _BATCH_BYTES and len(inbox) - before < _BATCH:
                frame = take(_NOBLOCK)
                inbox.append(frame)
                size += len(frame)
                if len(inbox) == before + 1 and not self.has_input():
                    break  # mostly there is one, and this look is cheaper than an exception
            else:
                self.nudge()
        except zmq.Again:
            pass
        news = bool(inbox) or self._watch()
        if len(inbox) > _BATCH and sum(map(len, inbox)) > self._limit:
            inbox.clear()
            self._failure = ChannelBroken(f"{self.peer.address} sends more than was agreed")
        if (news or (self._stalled and self._connected)) and self.on_news is not None:
            self._stalled = False
            self.on_news()

    def _take_one(self) -> bool:
        take = self._recv
        if self._failure is None:
            try:
                self._inbox.append(take())
            except zmq.Again:
                return False
        if (on_news := self.on_news) is not None:
            on_news()
        return True

    def _watch(self) -> bool:
        """Look at what the connection went through; return whether that is news."""
        news = False
        with suppress(zmq.Again):
            while self._failure is None:
                event = recv_monitor_message(self._monitor, _NOBLOCK)
                news = self._experience(event["event"], int(event["value"])) or news
        return news

    @property
    def _plain(self) -> bool:
        return bool(self._socket.get(zmq.MECHANISM) == zmq.NULL)

    def _experience(self, event: int, value: int) -> bool:
        where = self.peer.address
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._connected = True
        elif event == zmq.EVENT_DISCONNECTED:
            if not self._connected:
                return False
            self._failure = ChannelBroken(f"{where}: the connection was lost")
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._failure = AuthenticationError(
                f"{where} does not trust this end's key; let it in there by: mbroker keys trust"
            )
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            hint = "with encryption; leave out insecure" if self._plain else "without encryption; it needs keys"
            self._failure = AuthenticationError(f"{where}: what listens there is no broker, or one {hint}")
        elif value in (errno.EPIPE, errno.ECONNRESET):  # it hung up, as who cannot read our greeting must
            self._denials += 1
            if self._denials < _DENIALS:
                return False
            why = (
                "it wants encryption; leave out insecure"
                if self._plain
                else "it does not hold the key that is trusted for it"
            )
            self._failure = AuthenticationError(f"{where} hangs up: {why}")
        return True

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        lost, self._failure = self._failure, ChannelBroken(f"{self.peer.address}: this end was closed")
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(_LINGER if lost is None else 0)  # what was meant for a lost broker is not its successor's
        self.release()


class _Accepted:
    """The broker's end of one agent's connection."""

    def __init__(self, owner: _Listener, route: bytes, peer: Peer) -> None:
        self.peer = peer
        self.port = owner
        self.on_news: Callable[[], None] | None = None
        self.inbox: deque[bytes] = deque()
        self.size = 0
        """Bytes in the inbox."""
        self.route = route
        self.failure: MChannelError | None = None

    def send(self, frame: bytes) -> bool:
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        return self.port.send(self, frame)

    def recv(self) -> bytes | None:
        if self.inbox:
            frame = self.inbox.popleft()
            self.size -= len(frame)
            return frame
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        return None

    def close(self) -> None:
        self.inbox.clear()
        self.port.forget(self, "this end was closed")


class _Listener(_Port):
    """The broker's socket, shared by all agents: acceptor, and port of everything it accepted."""

    def __init__(self, socket: Socket, address: Address, limit: int, door: Door) -> None:
        super().__init__(socket, *door.watched)
        self.address = address
        self.port = self
        self.on_news: Callable[[], None] | None = None
        self._limit = limit
        self._door = door
        self._accepted: dict[bytes, _Accepted] = {}
        self._backlog: deque[_Accepted] = deque()
        self._stalled: set[_Accepted] = set()
        self._closed = False

    def accept(self) -> Transport | None:
        return self._backlog.popleft() if self._backlog else None

    def send(self, to: _Accepted, frame: bytes) -> bool:
        send = self._send
        try:
            send(to.route, _ROUTE)
            send(frame, _NOBLOCK)
        except zmq.Again:
            self._stalled.add(to)
            if self.has_input():
                self.nudge()
            return False
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            self.nudge()
            self.forget(to, "the peer is gone")
            raise ChannelBroken(f"{to.peer.address}: the peer is gone") from None
        if self._watched:
            self.look()
        self._unseen = True
        return True

    def forget(self, transport: _Accepted, why: str) -> None:
        """Let go of one peer. If it speaks again, it is accepted as a new one."""
        if transport.failure is None:
            transport.failure = ChannelBroken(f"{transport.peer.address}: {why}")
            self._accepted.pop(transport.route, None)
            self._stalled.discard(transport)

    def pump(self) -> None:
        if self._closed:
            return
        self.settle()
        heard: set[_Accepted] = set()
        take, size = self._recv, 0
        try:
            for count in range(_BATCH):
                transport, length = self._take(take(_NOBLOCK))
                if transport is not None:
                    heard.add(transport)
                size += length
                if count == 0 and not self.has_input():
                    break
                if size > _BATCH_BYTES:
                    self.nudge()
                    break
            else:
                self.nudge()
        except zmq.Again:
            pass
        if not self._door.answer():
            self.nudge()
        if self._backlog and self.on_news is not None:
            self.on_news()
        stalled, self._stalled = self._stalled, set()
        for transport in (*heard, *stalled):
            if transport.on_news is not None:
                transport.on_news()

    def _take_one(self) -> bool:
        take = self._recv
        try:
            transport, _ = self._take(take())
        except zmq.Again:
            return False
        if transport is not None and (on_news := transport.on_news) is not None:
            on_news()
        if self._backlog:
            self.nudge()
        return True

    def _take(self, route: bytes) -> tuple[_Accepted | None, int]:
        """Take the rest of a message that begins with *route*; return whose it is, if anybody's, and how long."""
        take = self._recv
        frame = take(_NOBLOCK, False)
        if frame.more:  # never sent by a channel; the rest must not pass for a route
            self._skip(route)
            return None, 0
        data = frame.bytes
        transport = self._accepted.get(route) or self._meet(route, frame)
        if transport is not None:
            transport.inbox.append(data)
            transport.size += len(data)
            if transport.size > self._limit:
                self._drown(transport)
        return transport, len(data)

    def _drown(self, transport: _Accepted) -> None:
        transport.inbox.clear()
        self.forget(transport, "it sends more than was agreed")
        self._door.complaints.make(f"{self.address}: dropped {transport.peer.identity}, which floods this broker")

    def _meet(self, route: bytes, frame: zmq.Frame) -> _Accepted | None:
        """Return the transport to a peer that speaks for the first time, or None when it may not."""
        if len(route) != 5 or route[0] != 0:
            self._door.complaints.make(f"{self.address}: ignored a peer that chose its own routing id")
            return None
        if len(self._backlog) >= _BACKLOG:
            return None
        try:
            peer = self._door.introduce(frame)
        except zmq.ZMQError:  # libzmq knows nothing of it: it speaks a protocol older than handshakes
            self._door.complaints.make(f"{self.address}: ignored a peer that did not say who it is")
            return None
        transport = self._accepted[route] = _Accepted(self, route, peer)
        self._backlog.append(transport)
        return transport

    def _skip(self, route: bytes) -> None:
        while self._recv(_NOBLOCK, False).more:
            pass
        if transport := self._accepted.get(route):
            transport.inbox.clear()
            self.forget(transport, "it does not speak our protocol")
            self._door.complaints.make(
                f"{self.address}: dropped {transport.peer.identity}, which sends multipart messages"
            )

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for transport in tuple(self._accepted.values()):
            self.forget(transport, "this broker stopped listening")
        self._backlog.clear()
        if self.address.scheme == "tcp":
            _unbind(self._socket)
        self._socket.close(_LINGER)
        self._door.close()
        self.release()


@functools.cache
def _context(pid: int) -> Context:  # noqa: ARG001
    """Return the context that the process shares; a forked child has another *pid* and gets its own."""
    context: Context = zmq.Context()
    atexit.register(context.destroy, _LINGER)  # so that last frames leave before the process does
    return context


def _socket(context: Context, kind: int, options: Options) -> Socket:
    if zmq.zmq_version_info() < _OLDEST:
        raise AddressError(
            f"libzmq {zmq.zmq_version()} has holes in its handshake; upgrade pyzmq, or libzmq to 4.3.3 or newer"
        )
    socket = context.socket(kind)
    socket.set(zmq.LINGER, _LINGER)
    socket.set(zmq.RCVTIMEO, int(_BRIEF * 1000))
    socket.set(zmq.MAXMSGSIZE, options.max_message + _SLACK)
    socket.set(zmq.SNDHWM, _FRAMES)
    socket.set(zmq.RCVHWM, max(64, min(_FRAMES, _UNREAD // options.max_message)))
    socket.set(zmq.HANDSHAKE_IVL, _HANDSHAKE)
    if kind == zmq.DEALER:
        socket.set(zmq.SNDHWM, 0)  # the session's window bounds it, and what was written leaves without another call
        socket.set(zmq.RECONNECT_IVL, 50)
        socket.set(zmq.RECONNECT_IVL_MAX, 2000)
    else:
        socket.set(zmq.ROUTER_MANDATORY, 1)
    return socket


def _tcp_socket(context: Context, kind: int, options: Options) -> Socket:
    socket = _socket(context, kind, options)
    socket.set(zmq.IPV6, 1)
    socket.set(zmq.TCP_KEEPALIVE, 1)
    socket.set(zmq.TCP_KEEPALIVE_IDLE, 30)
    socket.set(zmq.TCP_KEEPALIVE_INTVL, 10)
    socket.set(zmq.TCP_KEEPALIVE_CNT, 3)
    socket.set(zmq.HEARTBEAT_IVL, 5000)  # frees what a host that vanished held, whoever uses the channel
    socket.set(zmq.HEARTBEAT_TIMEOUT, 15000)
    return socket


def _unbind(socket: Socket) -> None:
    """Return when the port is free for a successor: libzmq lets go of it in a thread of its own."""
    monitor = socket.get_monitor_socket(zmq.EVENT_CLOSED)
    socket.unbind(socket.get_string(zmq.LAST_ENDPOINT))
    monitor.poll(_LINGER)
    socket.disable_monitor()
    monitor.close(0)


def _limit(options: Options) -> int:
    """Bytes that may wait for a reader: a full window, its replay, and their headers."""
    return 2 * (options.window + options.max_message)


def _dial_ipc(address: Address, options: Options) -> Transport:
    path = local.socket_path(address)
    socket = _socket(_context(os.getpid()), zmq.DEALER, options)
    return _Dialled(socket, f"ipc://{path}", Peer(address.path, str(address)), _limit(options))


def _bind_ipc(address: Address, options: Options) -> _Listener:
    path = local.socket_path(address)
    socket = _socket(_context(os.getpid()), zmq.ROUTER, options)
    try:
        socket.set(zmq.USE_FD, local.listen(path).detach())
        socket.bind(f"ipc://{path}")
    except BaseException:
        socket.close(0)
        raise
    return _Listener(socket, address, _limit(options), LocalDoor(address, path, path.lstat().st_ino))


def _endpoint(address: Address, options: Options) -> str:
    """Return what libzmq connects or binds to; raise AddressError for what is not allowed."""
    host, port = address.endpoint()
    address.refuse_options("server")
    if options.insecure:
        host = "127.0.0.1" if host == "localhost" else host
        try:
            loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise AddressError(
                f"{address}: without encryption only loopback addresses work, for example 127.0.0.1;"
                " leave out insecure, and make keys by: mbroker keys new NAME"
            )
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _dial_tcp(address: Address, options: Options) -> Transport:
    endpoint = _endpoint(address, options)
    if options.insecure:
        socket = _tcp_socket(_context(os.getpid()), zmq.DEALER, options)
        return _Dialled(socket, endpoint, Peer(address.host, str(address)), _limit(options))
    folder = options.keys or keys.default_folder()
    key = keys.own(folder)
    name, server = server_key(folder, address)
    socket = _tcp_socket(_context(os.getpid()), zmq.DEALER, options)
    socket.set(zmq.CURVE_SERVERKEY, server.text.encode())
    socket.set(zmq.CURVE_PUBLICKEY, key.public.text.encode())
    socket.set(zmq.CURVE_SECRETKEY, key.secret)
    return _Dialled(socket, endpoint, Peer(name, str(address)), _limit(options))


def _bind_tcp(address: Address, options: Options) -> _Listener:
    endpoint = _endpoint(address, options)
    if options.insecure:
        socket = _tcp_socket(_context(os.getpid()), zmq.ROUTER, options)
        door: Door = OpenDoor()
    else:
        folder = options.keys or keys.default_folder()
        key = keys.own(folder)
        context: Context = zmq.Context()  # its own, as a context can ask one door only
        door = CurveDoor(context, folder)
        socket = _tcp_socket(context, zmq.ROUTER, options)
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set(zmq.CURVE_SECRETKEY, key.secret)
        socket.set(zmq.ZAP_DOMAIN, b"mchannel")
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close(0)
        door.close()
        raise AddressError(f"cannot listen at {address}: {error.strerror}") from None
    port = int(socket.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
    return _Listener(socket, attrs.evolve(address, port=port), _limit(options), door)


def library_version() -> str:
    """Return the version of libzmq."""
    return zmq.zmq_version()


IPC = Framed(_dial_ipc, _bind_ipc)
"""``ipc:///NAME``: agents of this host and user."""
TCP = Framed(_dial_tcp, _bind_tcp)
"""``tcp://HOST:PORT[?server=NAME]``: agents anywhere whose key is trusted."""
