"""The SLA agent as a library: how long requests take, told to the broker every 500 ms.

::

    with mchannel.open("shm:///web1") as channel, Sla(channel, source="web1") as sla:
        with sla.request():
            answer()

``sla.asgi(app)`` and ``sla.wsgi(app)`` do the same for every request of a web application. The
application never waits for the channel: counting costs a few microseconds, and another thread writes.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

import attrs

from mchannel.agents.cpu import GuestCpu
from mchannel.agents.meter import EPOCH, Meter
from mchannel.errors import ChannelTimeout, CodecError, MChannelError, MessageTooBig
from mchannel.event import Event

__all__ = ["MeasuredBody", "Recorder", "Request", "Sla", "Writer"]

logger = logging.getLogger(__name__)

Message: TypeAlias = MutableMapping[str, Any]
AsgiReceive: TypeAlias = Callable[[], Awaitable[Message]]
AsgiSend: TypeAlias = Callable[[Message], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Message, AsgiReceive, AsgiSend], Awaitable[None]]
WsgiApp: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_KEEP = 120  # events that wait for the channel: one minute


class Writer(Protocol):
    """The end of a channel that a recorder writes to; :class:`mchannel.Channel` is one."""

    def write(self, message: Event, /, timeout: float | None = None) -> object:
        """Write *message*, or raise :exc:`mchannel.ChannelTimeout` when there is no room in time."""
        ...


class Request:
    """One request that is being served; made by :meth:`Recorder.request`.

    Leaving the ``with`` block counts it, also when it is left by an exception or a cancellation: who
    asked had to wait all the same.
    """

    __slots__ = ("_recorder", "_started")

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._started: float | None = recorder.timer()

    def finish(self) -> None:
        """Count the request now; what follows in the block is not waited for by who asked."""
        if (started := self._started) is not None:
            self._started = None
            self._recorder.observe(self._recorder.timer() - started)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.finish()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.finish()


@attrs.define(eq=False)
class Recorder:
    """Counts requests from any thread and writes an event per epoch when :meth:`tick` is called.

    ``source`` names the domain (default: the host name); a broker believes the channel rather than this.
    Events that the channel does not take are kept for a minute; then the oldest are dropped, and the
    next event says in its detail how many (``dropped``). One that no reader would take, or that is too
    long for the channel, is left out, and counted likewise (``refused``). A channel that ended stays so:
    give a :class:`~mchannel.agents.reopen.Reopening` when the application outlives its broker.

    After a fork the child may call everything, but reports nothing: the channel belongs to the parent.
    A server with worker processes makes a recorder in each of them, or uses ``magent sla`` on its log.

    Raises ValueError unless ``0 < soft_ms <= hard_ms``.
    """

    _channel: Writer
    source: str = attrs.field(default="", kw_only=True)
    hard_ms: float = attrs.field(default=6.0, kw_only=True)
    """Threshold in milliseconds; who waited longer was served too late."""
    soft_ms: float = attrs.field(default=3.0, kw_only=True)
    """Threshold in milliseconds that warns before the hard one."""
    utilization: Callable[[], float | None] = attrs.field(factory=GuestCpu, kw_only=True)
    """Returns how busy the guest was since the last call, 0.0..1.0, None when that is not known."""
    clock: Callable[[], float] = attrs.field(default=time.time, kw_only=True)
    """Unix seconds."""
    timer: Callable[[], float] = attrs.field(default=time.perf_counter, kw_only=True)
    """Seconds of a clock that is never set."""
    _meter: Meter = attrs.field(init=False)
    _outbox: deque[Event] = attrs.field(factory=deque[Event], init=False)
    _is_away: bool = attrs.field(default=False, init=False)
    _has_left_out: bool = attrs.field(default=False, init=False)
    _pid: int = attrs.field(factory=os.getpid, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)  # the meter; held for microseconds
    _sending: threading.Lock = attrs.field(factory=threading.Lock, init=False)  # the outbox and the channel's writes

    def __attrs_post_init__(self) -> None:
        source = self.source or socket.gethostname()
        self._meter = Meter(source, self.clock(), hard_ms=self.hard_ms, soft_ms=self.soft_ms)
        # A fork while another thread counts must not leave the child with a lock that nobody opens.
        os.register_at_fork(
            before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._lock.release
        )

    @property
    def waiting(self) -> int:
        """Events that the channel has not taken yet."""
        return len(self._outbox)

    def request(self) -> Request:
        """Return a context manager, plain or asynchronous, that measures one request from now on."""
        return Request(self)

    def observe(self, seconds: float, finished: float | None = None) -> None:
        """Count a request that took *seconds* and ended at Unix time *finished* (default: now)."""
        with self._lock:
            self._meter.observe(self.clock() if finished is None else finished, seconds)

    def note(self, name: str, count: int = 1) -> None:
        """Say in the detail of the next event that *name* happened *count* times.

        Raises ValueError unless the name has 1 to 64 characters; names beyond the 64th of an event are
        counted together as ``others``.
        """
        with self._lock:
            self._meter.note(name, count)

    def tick(self) -> None:
        """Close the epochs that are over and write what the channel takes without waiting."""
        if self._is_child():
            return
        with self._sending:
            with self._lock:
                self._meter.advance(self.clock())
            self._send(timeout=0.0)

    def flush(self, timeout: float | None = 1.0) -> None:
        """Report the present epoch as it is, and wait up to *timeout* seconds for each write."""
        if self._is_child():
            return
        with self._sending:
            with self._lock:
                self._meter.advance(self.clock())
                self._meter.flush()
            self._send(timeout)

    def _is_child(self) -> bool:
        """Whether a fork made this process: then the lock of those who send may be held for good."""
        return os.getpid() != self._pid

    def _send(self, timeout: float | None) -> None:
        if self._meter.ready:
            utilization = self.utilization()  # reads a file: not while others wait to count
            with self._lock:
                self._outbox.extend(self._meter.take(utilization))
        while len(self._outbox) > _KEEP:
            self._outbox.popleft()
            self.note("dropped")
        try:
            while self._outbox:
                try:
                    self._channel.write(self._outbox[0], timeout=timeout)
                except (CodecError, MessageTooBig) as error:
                    self._leave_out(error)
                self._outbox.popleft()
        except ChannelTimeout:
            return  # full, or the peer is being replaced: the next tick tries again
        except (MChannelError, OSError) as error:
            if not self._is_away:
                logger.warning("the broker cannot be told about SLA violations: %s", error)
            self._is_away = True
        else:
            self._is_away = False

    def _leave_out(self, error: MChannelError) -> None:
        """Count an event that can never be sent, lest it keep the others back."""
        if not self._has_left_out:
            logger.warning("a report is left out, as no broker can take it: %s", error)
        self._has_left_out = True
        self.note("refused")

    def asgi(self, app: AsgiApp) -> AsgiApp:
        """Return *app*, measured from each HTTP request to the last byte of its response.

        What the application does after that (background tasks) is not counted. An exception is.
        """

        async def measured(scope: Message, receive: AsgiReceive, send: AsgiSend) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            with self.request() as request:

                async def sending(message: Message) -> None:
                    await send(message)
                    if message["type"] == "http.response.body" and not message.get("more_body", False):
                        request.finish()

                await app(scope, receive, sending)

        return measured

    def wsgi(self, app: WsgiApp) -> Callable[[dict[str, Any], Callable[..., Any]], MeasuredBody]:
        """Return *app*, measured from each request until its body is used up, closed, or fails."""

        def measured(environ: dict[str, Any], start_response: Callable[..., Any]) -> MeasuredBody:
            request = self.request()
            try:
                return MeasuredBody(app(environ, start_response), request)
            except BaseException:
                request.finish()
                raise

        return measured


class MeasuredBody:
    """A WSGI response body that finishes its request."""

    def __init__(self, body: Iterable[bytes], request: Request) -> None:
        self._body = body
        self._chunks = iter(body)
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._chunks)
        except BaseException:  # the end is a StopIteration
            self._request.finish()
            raise

    def close(self) -> None:
        """Close the application's body, if it wants that, and count the request."""
        try:
            if (close := getattr(self._body, "close", None)) is not None:
                close()
        finally:
            self._request.finish()


@attrs.define(eq=False)
class Sla(Recorder):
    """A :class:`Recorder` with a thread that ticks at the end of every epoch.

    The thread starts with the object and ends with :meth:`close` or the ``with`` block. Until then the
    channel is its own: channels belong to one thread at a time.
    """

    _stop: threading.Event = attrs.field(factory=threading.Event, init=False)
    _thread: threading.Thread = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._thread = threading.Thread(target=self._run, name="sla-agent", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Report the present epoch and end the thread; idempotent. The channel stays open."""
        if not self._stop.is_set():
            self._stop.set()
            if not self._is_child():
                self._thread.join()
                self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        failing = False
        while not self._stop.wait(EPOCH - self.clock() % EPOCH):
            try:
                self.tick()
                failing = False
            except Exception:  # nothing that a channel or a reading does may end the agent
                if not failing:
                    logger.exception("the SLA agent goes on after an error of its channel or its readings")
                failing = True
