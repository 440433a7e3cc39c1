"""What native/quick.c adds to a ring: the calls that every message costs."""

class Quick:
    """One end of a ring, as far as it must be quick."""

    def _join(self, address: int, /) -> None:
        """Work on the ``mcp_end`` at *address* from now on."""

    def write(self, message: bytes, /) -> bool:
        """Publish *message*; False when there is no room until the peer reads on. Raise MessageTooBig."""

    def read(self, timeout: float | None = 0.0) -> bytes | None:
        """Acknowledge what was handed out before, and return the next message, or None after *timeout* seconds.

        A timeout of 0 never waits, None waits for ever.
        """

    def read_newest(self) -> bytes | None:
        """Acknowledge all but the newest message that is there, and return that one, or None.

        Those that come meanwhile are left: a writer that is faster than this reader cannot hold it.
        """
