"""What the blocking and the asyncio face have in common: all but the waiting."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Generic, Literal, TypeVar

import attrs

from mchannel.address import Address
from mchannel.batch import Batch
from mchannel.codec import Codec
from mchannel.errors import ChannelBroken, ChannelClosed, ChannelTimeout
from mchannel.transport import Gate, Link, Peer, State

__all__ = ["FULL", "SILENT", "UNAGREED", "UNFLUSHED", "ChannelFace", "ListenerFace", "Message", "OverLink", "opened"]

T = TypeVar("T")

_LONGEST_QUIET = 86400.0
"""Seconds that a suspension may last."""
FULL = "the channel stayed full; is the peer reading?"
SILENT = "no message came"
UNFLUSHED = "the peer has not acknowledged every message"
UNAGREED = "the peer did not agree to a suspension"


@attrs.frozen
class Message(Generic[T]):
    """A message, and what is known of its delivery."""

    value: T
    number: int
    """Grows by one or more from message to message; the same number is the same message, also when redelivered.

    Over shared memory it is where the message ends in the ring, in bytes since the channel was opened.
    """
    redelivered: bool
    """Whether a reader before this one may have seen it, and died or left before it was done."""


class OverLink:
    """Something that stands on a link, and shows who is at its other end and how it is."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def peer(self) -> Peer:
        """Who is at the other end."""
        return self._link.peer

    @property
    def state(self) -> State:
        """Where the channel stands."""
        return self._link.state

    @property
    def session(self) -> bytes:
        """Sixteen bytes that name the exchange through all reconnections."""
        return self._link.session


def opened(link: Link) -> Link:
    """Return *link*; raise ChannelClosed when this end was closed, and has no descriptor any more."""
    if link.state is State.CLOSED:
        raise ChannelClosed("this end of the channel was closed; open it anew")
    return link


class Owned:
    """Something that belongs to the process that made it. One that is forked off has a copy, and must not end it."""

    def __init__(self) -> None:
        self._owner = os.getpid()

    @property
    def _is_copy(self) -> bool:
        return os.getpid() != self._owner


class ChannelFace(OverLink, Owned, Generic[T]):
    """A channel without its waiting: steps that are tried until one says that it is done, or raises.

    A step returns None while it is too early. The faces differ in how they wait between two tries.
    """

    def __init__(self, link: Link, codec: Codec[T], received: Sequence[bytes] = ()) -> None:
        OverLink.__init__(self, link)
        Owned.__init__(self)
        self._send = link.send
        self._recv = link.recv
        self._encode = codec.encode
        self._decode = codec.decode
        self._batch = Batch(link, codec.decode, received)

    def __repr__(self) -> str:
        """Return a short description."""
        return f"<{type(self).__name__} to {self.peer.address}, {self.state.value}>"

    def done(self) -> None:
        """Acknowledge the message that was read last, without asking for another."""
        if not self._batch.left:
            self._link.done()

    def handoff(self) -> bytes:
        """Return the suspended broker side for another broker's listener to adopt, and close this one.

        Raises ChannelError when it is not suspended, or :meth:`read_many` has messages left to hand out.
        """
        self._batch.refuse_handoff()
        return self._link.snapshot()

    def resume(self) -> None:
        """Go on after :meth:`suspend`."""
        self._link.resume()

    def _sent(self, payload: bytes) -> Literal[True] | None:
        return self._send(payload) or None

    def _flushed(self) -> Literal[True] | None:
        if self._link.flushed:
            return True
        self._refuse_over("the channel ended before the peer had acknowledged every message")
        return None

    def _check_quiet(self, timeout: float) -> None:
        """Raise ValueError for a suspension that cannot be."""
        if not 0 <= timeout <= _LONGEST_QUIET:
            raise ValueError(f"a suspension lasts from 0 to {_LONGEST_QUIET:g} seconds, not {timeout!r}")

    def _withdraw(self) -> None:
        """Take a suspension back that is not waited for any more: the peer may still be about to obey."""
        if not self._is_over:
            self._link.resume()

    def _suspended(self) -> Literal[True] | None:
        if self.state is State.SUSPENDED:
            return True
        self._refuse_over("the channel ended before its peer agreed to a suspension; read what is left")
        return None

    def _refuse_over(self, why: str) -> None:
        """Raise ChannelClosed when this end was closed or handed over, and ChannelBroken(*why*) when it ended."""
        if opened(self._link).state is State.ENDED:
            raise ChannelBroken(why)

    def _message(self, value: T) -> Message[T]:
        """Return *value*, which came from the link, with what is known of it."""
        return Message(value, self._link.number, self._link.redelivered)

    def _batched(self) -> Message[T]:
        """Return the next of the batch, with what is known of it."""
        return Message(self._batch.next(), *self._batch.stamp)

    @property
    def _is_over(self) -> bool:
        return self.state in (State.ENDED, State.CLOSED)

    @property
    def _may_flush(self) -> bool:
        return not self._is_copy and self.state in (State.OPEN, State.LOST)

    @property
    def _unflushed(self) -> ChannelTimeout:
        return ChannelTimeout(f"closed, but {self.peer.address} has not acknowledged every message")


class ListenerFace(Owned, Generic[T]):
    """A listener without its waiting."""

    def __init__(self, gate: Gate, codec: Codec[T]) -> None:
        super().__init__()
        self._gate = gate
        self._codec = codec
        self._closed = False

    @property
    def address(self) -> Address:
        """Where it really listens."""
        return self._gate.address

    @property
    def gate(self) -> Gate:
        """What accepts, for what a transport's gate can do beyond the rest, as that of ``ivshmem://`` can."""
        return self._gate

    def adopt(self, handoff: bytes, *, overtaken: bool = False) -> None:
        """Expect the agent of a channel that another broker handed over; accept() returns it when it comes.

        *overtaken*: a third broker may have gone on with it since. Then messages that it may have seen say
        ``redelivered``. Raises ProtocolError for what is no handoff.
        """
        self._open_gate.adopt(handoff, overtaken=overtaken)

    def hand_over(self) -> tuple[bytes, ...]:
        """Stop listening and return every channel for another listener to adopt, without a word to the agents.

        For a domain that is paused, as at the end of its migration: an agent that can speak meanwhile is to be
        suspended first, and its channel handed over by :meth:`Channel.handoff`. Readers of these channels see
        ChannelClosed; a message that was read counts as done.
        """
        self._closed = True
        return self._gate.hand_over()

    def close(self) -> None:
        """Stop listening. Agents are not told goodbye: they look for a successor."""
        self._closed = True
        if not self._is_copy:
            self._gate.close()

    @property
    def _open_gate(self) -> Gate:
        if self._closed:
            raise ChannelClosed(f"this listener at {self._gate.address} was closed; listen again")
        return self._gate
