"""What the brokers of a fleet say to each other, and how it travels.

Every message is a value; a question is answered by the value that its docstring names. On the wire it
is a msgpack array: the name of the class, the number of the question (0 for what wants no answer),
and the fields. A member is trusted to speak for its host (its key says who it is), not to be free of
bugs: what it sends is checked to the last field.
"""

from __future__ import annotations

from typing import TypeAlias, get_args

import attrs

from mbroker.hypervisor.domain import is_uuid
from mbroker.values import Invalid, build, plain
from mchannel.errors import CodecError
from mchannel.packing import Limits, pack, unpack

__all__ = [
    "MAX_MESSAGE",
    "Admit",
    "Claim",
    "Claimed",
    "Discard",
    "Expect",
    "Expected",
    "Hail",
    "Hailed",
    "Message",
    "MessageCodec",
    "Numbered",
    "Offer",
    "Offering",
    "Taken",
    "Unable",
    "Whereabouts",
    "Wherever",
]

MAX_MESSAGE = 64 << 20
"""Bytes of the longest message: a domain's sessions with full windows."""
_LIMITS = Limits(text=4096, binary=MAX_MESSAGE, items=4096)


def _is_domain(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not is_uuid(value):
        raise ValueError(f"'{attribute.name}' must be the UUID of a domain, not {value!r:.80}")


@attrs.frozen
class Offering:
    """The domain's sessions follow, and are large or many enough to take a while."""

    domain: str = attrs.field(validator=_is_domain)


@attrs.frozen
class Offer:
    """The domain paused here; these sessions are for whoever runs it next."""

    domain: str = attrs.field(validator=_is_domain)
    """UUID."""
    generation: int
    """How often the domain's sessions have changed hands; the highest counts."""
    snapshots: tuple[bytes, ...]


@attrs.frozen
class Taken:
    """The domain runs here, with its sessions of this generation; whoever keeps them may forget them."""

    domain: str = attrs.field(validator=_is_domain)
    generation: int


@attrs.frozen
class Claim:
    """The domain appeared here: does anybody have its sessions? Answered by :class:`Claimed`."""

    domain: str = attrs.field(validator=_is_domain)


@attrs.frozen
class Claimed:
    """What this host keeps of a domain; generation 0 when that is nothing."""

    domain: str = attrs.field(validator=_is_domain)
    generation: int = 0
    snapshots: tuple[bytes, ...] = ()


@attrs.frozen
class Expect:
    """The domain is to come from here: may it? Answered by :class:`Expected`."""

    domain: str = attrs.field(validator=_is_domain)
    name: str


@attrs.frozen
class Expected:
    """Whether the domain may come, and why not."""

    willing: bool
    reason: str = ""


@attrs.frozen
class Unable:
    """A question cannot be answered, and why."""

    reason: str


@attrs.frozen
class Wherever:
    """Is the domain with you? Answered by :class:`Whereabouts`."""

    domain: str = attrs.field(validator=_is_domain)


@attrs.frozen
class Whereabouts:
    """What the hypervisor of this host says of a domain now."""

    domain: str = attrs.field(validator=_is_domain)
    here: bool
    running: bool
    attended: bool = False
    """Whether the broker listens to it."""
    ticket: str = ""
    """Of the migration that brought it whole, until it was admitted."""
    moving: bool = False
    """Whether a migration holds it, or has left a half of it: not to be resumed by hand."""


@attrs.frozen
class Admit:
    """The domain came to you with this ticket, and its source has let go of it: let it run.

    Answered by :class:`Whereabouts`.
    """

    domain: str = attrs.field(validator=_is_domain)
    ticket: str


@attrs.frozen
class Discard:
    """The domain came to you with this ticket, and went on at its source: drop it. Answered by :class:`Whereabouts`."""

    domain: str = attrs.field(validator=_is_domain)
    ticket: str


@attrs.frozen
class Hail:
    """What do you run? Answered by :class:`Hailed`."""


@attrs.frozen
class Hailed:
    """What the broker of this host is, and when it said so."""

    version: str
    unix: float
    """Seconds since 1970, by the clock of this host."""


Message: TypeAlias = (
    Offering
    | Offer
    | Taken
    | Claim
    | Claimed
    | Expect
    | Expected
    | Unable
    | Wherever
    | Whereabouts
    | Admit
    | Discard
    | Hail
    | Hailed
)

_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}


@attrs.frozen
class Numbered:
    """A message, and the question that it asks or answers."""

    message: Message
    question: int = 0


class MessageCodec:
    """:class:`Numbered` messages as msgpack."""

    def encode(self, message: Numbered) -> bytes:
        """Return *message* as bytes."""
        return pack((type(message.message).__name__, message.question, plain(message.message)))

    def decode(self, payload: bytes) -> Numbered:
        """Return the message in *payload*; raise CodecError for anything else."""
        try:
            name, question, fields = unpack(payload, _LIMITS)
            if not isinstance(name, str) or name not in _KINDS:
                raise ValueError("of no kind that this version knows")
            if type(question) is not int or question < 0:
                raise ValueError("without the number of a question")
            message: Message = build(_KINDS[name], fields)
            return Numbered(message, question)
        except (Invalid, ValueError) as error:
            raise CodecError(f"not a message of a fleet: {error}") from None
