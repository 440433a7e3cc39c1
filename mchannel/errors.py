"""Every error that a caller of the library can see, as one tree.

::

    MChannelError
    ├── AddressError (ValueError)          the address names nothing that can be opened
    │   └── NotListening                   the address is well, and nobody is there (yet)
    ├── CodecError (ValueError)            a message cannot be encoded, or bytes are no message
    ├── MessageTooBig (ValueError)         larger than what both ends agreed on
    ├── ChannelError
    │   ├── ChannelClosed                  this end was closed
    │   ├── EndOfChannel (EOFError)        the peer closed, and all it wrote was read
    │   ├── ChannelBroken (ConnectionError)  the peer is gone and did not come back
    │   ├── ChannelTimeout (TimeoutError)  nothing moved within the time given
    │   └── ProtocolError                  the peer broke the rules; permanent for its channel
    ├── AuthenticationError (PermissionError)  the peer is not who it must be
    ├── KeyFileError (ValueError)          a key cannot be read, or others can read it
    └── JournalError (OSError)             a state file cannot be trusted or written
"""

from __future__ import annotations

__all__ = [
    "AddressError",
    "AuthenticationError",
    "ChannelBroken",
    "ChannelClosed",
    "ChannelError",
    "ChannelTimeout",
    "CodecError",
    "EndOfChannel",
    "JournalError",
    "KeyFileError",
    "MChannelError",
    "MessageTooBig",
    "NotListening",
    "ProtocolError",
]


class MChannelError(Exception):
    """Root of the tree: ``except MChannelError`` catches all that the library raises on purpose."""


class AddressError(MChannelError, ValueError):
    """An address is malformed, names no known transport, or cannot be listened at."""


class NotListening(AddressError):
    """Nobody listens at the address; start the broker, or wait for it."""


class CodecError(MChannelError, ValueError):
    """A message cannot be encoded, or bytes from a peer are not a message of this codec."""


class MessageTooBig(MChannelError, ValueError):
    """A message is larger than both ends agreed on when the channel was opened."""


class ChannelError(MChannelError):
    """The channel cannot go on, or not now; see the subclasses."""


class ChannelClosed(ChannelError):
    """This end was closed; open the channel anew."""


class EndOfChannel(ChannelError, EOFError):
    """The peer closed its end in good order and everything that it wrote was read."""


class ChannelBroken(ChannelError, ConnectionError):
    """The peer disappeared and did not come back in time; unacknowledged messages are kept."""


class ChannelTimeout(ChannelError, TimeoutError):
    """Nothing moved within the time given; no message was lost and the channel is as before."""


class ProtocolError(ChannelError):
    """The peer broke the rules of the wire; permanent for this channel, others go on."""


class AuthenticationError(MChannelError, PermissionError):
    """The peer's identity is unknown, or is not the one that was expected."""


class KeyFileError(MChannelError, ValueError):
    """A key file is missing, malformed, or can be read by others."""


class JournalError(MChannelError, OSError):
    """A journal on disk is damaged beyond its torn tail, belongs to another writer, or cannot be written."""
