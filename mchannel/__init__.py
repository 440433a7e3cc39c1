"""M-channels: one open/read/write/close over every wire a host has.

::

    with mchannel.open("shm:///web1") as channel:
        channel.write(mchannel.Event("sla.epoch", value=0.02))
"""

from mchannel.address import Address
from mchannel.aio import AsyncChannel, AsyncListener, listen_async, open_async
from mchannel.channel import Channel, Listener, Message, listen, open
from mchannel.codec import Codec, EventCodec, RawCodec
from mchannel.errors import (
    AddressError,
    AuthenticationError,
    ChannelBroken,
    ChannelClosed,
    ChannelError,
    ChannelTimeout,
    CodecError,
    EndOfChannel,
    JournalError,
    KeyFileError,
    MChannelError,
    MessageTooBig,
    NotListening,
    ProtocolError,
)
from mchannel.event import Event
from mchannel.transport import Delivery, Options, Peer, State

__all__ = [
    "Address",
    "AddressError",
    "AsyncChannel",
    "AsyncListener",
    "AuthenticationError",
    "Channel",
    "ChannelBroken",
    "ChannelClosed",
    "ChannelError",
    "ChannelTimeout",
    "Codec",
    "CodecError",
    "Delivery",
    "EndOfChannel",
    "Event",
    "EventCodec",
    "JournalError",
    "KeyFileError",
    "Listener",
    "MChannelError",
    "Message",
    "MessageTooBig",
    "NotListening",
    "Options",
    "Peer",
    "ProtocolError",
    "RawCodec",
    "State",
    "listen",
    "listen_async",
    "open",
    "open_async",
]
