"""When a session acts by itself."""

from __future__ import annotations

import attrs

__all__ = ["Timing"]


@attrs.frozen
class Timing:
    """When a session acts by itself, in seconds."""

    heartbeat: float = 1.0
    """The agent asks for a sign of life this often; three times without one means lost."""
    retry: float = 0.5
    """Wait for the answer to a handshake before it is tried again."""
    ack_delay: float = 0.02
    """Longest wait for a message that can carry an acknowledgement along."""
    catch_up: float = 0.1
    """Latest only: longest wait of a reader that fell behind for the peer to say what is newest."""
    patience: float | None = None
    """How long a lost peer is waited for; None: for ever."""
