"""What native/frame.c has of :mod:`mchannel.frame`."""

def encode(kind: int, epoch: int, number: int, ack: int, flags: int, body: bytes, /) -> bytes:
    """Return a frame as bytes."""

def glance(data: bytes, limit: int, /) -> tuple[int, int, int, int, bytes] | None:
    """Return what a DATA frame with at most *limit* bytes says; None for all else."""
