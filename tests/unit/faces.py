"""What the tests of the blocking and of the asyncio face share."""

from __future__ import annotations

from mchannel.codec import RawCodec
from mchannel.errors import CodecError

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
