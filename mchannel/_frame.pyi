"""What native/frame.c has of :mod:`mchannel.frame`."""

def encode(kind: int, epoch: int, number: int, ack: int, flags: int, body: bytes, /) -> bytes:
    """Return a frame as bytes."""

def glance(data: bytes, limit: int, epoch: int, number: int, /) -> tuple[int, bytes] | None:
    """Return ack and payload of the DATA frame with this very epoch and number, one message of at most *limit* bytes.

    None for all else.
    """
