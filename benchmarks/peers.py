"""The wires that are compared: the ring, our channels, and what others would use in their place."""

from __future__ import annotations

import ctypes
import functools
import importlib
import multiprocessing
import socket
import struct
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import mchannel
from benchmarks.harness import Connect, Contender, End

__all__ = ["channel", "event", "iceoryx2", "pipe", "pyzmq", "ring", "unix"]

_Streams: TypeAlias = tuple[Callable[[Any, int], None], Callable[[int], None]]

_BATCH = 256  # messages in one write_many
_RECORDS = 2048  # records in one blob
_LARGEST = 1 << 20


# ---- ours


def ring(*, spin: float = 20e-6, blob: bool = False) -> Contender:
    """Return both ends of a shared-memory ring, without a channel around them; *spin* in seconds."""

    @contextmanager
    def prepare(_: Path) -> Generator[Connect]:
        module = importlib.import_module("mchannel.transports.ring")
        with module.Region.create() as region:

            def connect(side: int) -> End:
                end = module.RingEnd(region, module.Side(side), spin=spin)
                send_all, recv_all = _ring_blobs(end) if blob else _ring_lists(end)
                return End(end.write, functools.partial(end.read, None), send_all, recv_all, end.close)

            yield connect

    return Contender(prepare)


def _ring_lists(end: Any) -> _Streams:
    def send_all(message: bytes, count: int) -> None:
        batch = [message] * _BATCH
        while count:
            taken = end.write_many(batch if count >= _BATCH else batch[:count])
            count -= taken
            if not taken:
                end.wait_writable(None)

    def recv_all(count: int) -> None:
        while count:
            taken = len(end.read_many())
            count -= taken
            if not taken:
                end.wait_readable(None)

    return send_all, recv_all


def _ring_blobs(end: Any) -> _Streams:
    size = 64

    def send_all(message: bytes, count: int) -> None:
        blob = message * _RECORDS
        while count:
            taken = end.write_fixed(blob if count >= _RECORDS else blob[: count * size], size)
            count -= taken
            if not taken:
                end.wait_writable(None)

    def recv_all(count: int) -> None:
        while count:
            taken = len(end.read_fixed(size)) // size
            count -= taken
            if not taken:
                end.wait_readable(None)

    return send_all, recv_all


def channel(scheme: str, *, batch: bool = False) -> Contender:
    """Return the whole channel over *scheme*, raw bytes; *batch* streams by write_many and read_many."""
    return Contender(
        _channel(scheme, mchannel.RawCodec(), batch=batch),
        pinned=scheme == "shm",
    )


def event(scheme: str) -> Contender:
    """Return the whole channel over *scheme* with events."""
    return Contender(_channel(scheme, mchannel.EventCodec()), event_of, pinned=scheme == "shm")


def event_of(size: int) -> mchannel.Event:
    """Return an event that takes *size* bytes on the wire."""
    codec = mchannel.EventCodec()
    plain = mchannel.Event("sla.epoch", "", 0.02, 1_700_000_000.5, {"requests": 700, "hard": 14})
    missing = size - len(codec.encode(plain))
    return mchannel.Event(plain.topic, "w" * missing, plain.value, plain.at, plain.detail)


def _channel(
    scheme: str, codec: mchannel.Codec[Any], *, batch: bool = False
) -> Callable[[Path], AbstractContextManager[Connect]]:
    @contextmanager
    def prepare(folder: Path) -> Generator[Connect]:
        address = f"{scheme}://{folder}/wire"

        def connect(side: int) -> End:
            closing = ExitStack()
            if side == 0:
                listener = closing.enter_context(mchannel.listen(address, codec))
                opened = listener.accept(10)
            else:
                opened = mchannel.open(address, codec, timeout=10)
            closing.enter_context(suppress(mchannel.ChannelTimeout))
            closing.callback(opened.close, timeout=0.5)
            send_all, recv_all = _channel_lists(opened) if batch else _channel_each(opened)
            return End(opened.write, opened.read, send_all, recv_all, closing.close)

        yield connect

    return prepare


# A channel has no thread of its own: who stops writing flushes, and who stops reading says done.


def _channel_each(opened: mchannel.Channel[Any]) -> _Streams:
    def send_all(message: object, count: int) -> None:
        write = opened.write
        for _ in range(count):
            write(message)
        opened.flush()

    def recv_all(count: int) -> None:
        read = opened.read
        for _ in range(count):
            read()
        opened.done()

    return send_all, recv_all


def _channel_lists(opened: mchannel.Channel[Any]) -> _Streams:
    def send_all(message: bytes, count: int) -> None:
        batch = [message] * _BATCH
        while count >= _BATCH:
            opened.write_many(batch)
            count -= _BATCH
        opened.write_many(batch[:count])
        opened.flush()

    def recv_all(count: int) -> None:
        while count:
            count -= len(opened.read_many())
        opened.done()

    return send_all, recv_all


# ---- theirs


def pyzmq(kind: str) -> Contender:
    """Return two ZeroMQ PAIR sockets over ``ipc`` or ``tcp``, without encryption."""

    @contextmanager
    def prepare(folder: Path) -> Generator[Connect]:
        zmq = importlib.import_module("zmq")
        url = f"ipc://{folder}/wire" if kind == "ipc" else f"tcp://127.0.0.1:{_free_port()}"

        def connect(side: int) -> End:
            context = zmq.Context()
            end = context.socket(zmq.PAIR)
            (end.bind if side == 0 else end.connect)(url)

            def close() -> None:
                end.close()
                context.term()

            return End(end.send, end.recv, close=close)

        yield connect

    return Contender(prepare, pinned=False)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def iceoryx2() -> Contender:
    """Return two iceoryx2 services, one a direction; messages are copied in and out, and polled for."""

    @contextmanager
    def prepare(folder: Path) -> Generator[Connect]:
        importlib.import_module("iceoryx2")
        try:
            yield lambda side: _iceoryx2_end(folder, side)
        finally:  # it leaves a segment for all nodes that share a prefix; this prefix is ours alone
            for left in Path("/dev/shm").glob(f"{folder.name}*"):  # noqa: S108
                left.unlink()

    return Contender(prepare)


def _iceoryx2_end(folder: Path, side: int) -> End:
    iox: Any = importlib.import_module("iceoryx2")
    iox.set_log_level(iox.LogLevel.Fatal)
    config = iox.config.default()
    config.global_cfg.root_path = iox.Path.new(f"{folder}/")
    config.global_cfg.prefix = iox.FileName.new(folder.name)
    node = iox.NodeBuilder.new().config(config).create(iox.ServiceType.Ipc)

    def service(lane: int) -> Any:
        builder = node.service_builder(iox.ServiceName.new(f"lane {lane}"))
        builder = builder.publish_subscribe(iox.Slice[ctypes.c_uint8]).enable_safe_overflow(False)
        return builder.subscriber_max_buffer_size(64).max_publishers(1).max_subscribers(1).open_or_create()

    mine, other = service(side), service(1 - side)
    publisher = (
        mine.publisher_builder()
        .initial_max_slice_len(_LARGEST)
        .backpressure_strategy(iox.BackpressureStrategy.RetryUntilDelivered)
        .create()
    )
    subscriber = other.subscriber_builder().create()
    while not (mine.dynamic_config.number_of_subscribers and other.dynamic_config.number_of_publishers):
        pass
    publisher.update_connections()
    loan, receive, move, copy = publisher.loan_slice_uninit, subscriber.receive, ctypes.memmove, ctypes.string_at

    def send(message: bytes) -> None:
        sample = loan(len(message))
        move(sample.payload_ptr, message, len(message))
        sample.assume_init().send()

    def recv() -> bytes:
        while (sample := receive()) is None:
            pass
        payload = sample.payload()
        message = copy(payload.data_ptr, payload.number_of_elements)
        sample.delete()
        return message

    def close() -> None:
        publisher.delete()
        subscriber.delete()

    return End(send, recv, close=close)


def unix() -> Contender:
    """Return two connected UNIX stream sockets; each message goes with its length before it."""

    @contextmanager
    def prepare(_: Path) -> Generator[Connect]:
        pair = socket.socketpair()
        for each in pair:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _LARGEST)
        try:
            yield lambda side: _unix_end(pair[side])
        finally:
            for each in pair:
                each.close()

    return Contender(prepare)


def _unix_end(end: socket.socket) -> End:
    length = struct.Struct("<I")
    buffer = memoryview(bytearray(_LARGEST))

    def send(message: bytes) -> None:
        sent = end.sendmsg((length.pack(len(message)), message))
        if sent < length.size + len(message):
            end.sendall(message[sent - length.size :])

    def fill(size: int) -> memoryview:
        filled = 0
        while filled < size:
            filled += end.recv_into(buffer[filled:size])
        return buffer[:size]

    def recv() -> bytes:
        (size,) = length.unpack(fill(length.size))
        return bytes(fill(size))

    return End(send, recv)


def pipe() -> Contender:
    """Return multiprocessing's Pipe."""

    @contextmanager
    def prepare(_: Path) -> Generator[Connect]:
        pair: Sequence[Any] = multiprocessing.Pipe()
        try:
            yield lambda side: End(pair[side].send_bytes, pair[side].recv_bytes)
        finally:
            for each in pair:
                each.close()

    return Contender(prepare)
