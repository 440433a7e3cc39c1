"""What the tests of the blocking and of the asyncio face share."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import mchannel
from mchannel.channel import Channel, Listener
from mchannel.codec import RawCodec
from mchannel.errors import ChannelError, ChannelTimeout, CodecError

T = TypeVar("T")
RAW = RawCodec()
WIRES = ["memory:///face", "shm:///face", "ipc:///face", "tcp://127.0.0.1:0"]


class Numbers:
    """A codec of numbers, of which not every payload is one."""

    def encode(self, message: int) -> bytes:
        return b"%d" % message

    def decode(self, payload: bytes) -> int:
        try:
            return int(payload)
        except ValueError as error:
            raise CodecError(str(error)) from None


def attended(broker: Channel[Any], opening: Future[T]) -> T:
    """Keep *broker* moving until its agent is open: one that is not answered in time asks again."""
    while not opening.done():
        with suppress(ChannelTimeout):
            broker.read(timeout=0.01)
    return opening.result()


@contextmanager
def both_ends(listener: Listener[T]) -> Generator[tuple[Channel[bytes], Channel[T]]]:
    """Have an agent that writes what it likes, and the broker's end for it; no thread is left meanwhile."""
    with ThreadPoolExecutor() as threads:
        coming = threads.submit(mchannel.open, str(listener.address), RAW, insecure=True)
        broker = listener.accept(10)
        agent: Channel[bytes] = attended(broker, coming)
    yield agent, broker
    for end in (agent, broker):
        with suppress(ChannelError):
            end.close(timeout=0)
