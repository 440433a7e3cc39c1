"""What the tests of the blocking and of the asyncio face share."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from mchannel.channel import Channel
from mchannel.codec import RawCodec
from mchannel.errors import ChannelTimeout, CodecError

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
