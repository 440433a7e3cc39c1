"""The subscription language: one tree, as text, as JSON and as msgpack."""

from __future__ import annotations

import json

import attrs

from mbroker.values import Fault, Invalid
from mchannel import packing

from . import arrays, canonical, grammar, text
from .grammar import SubscriptionError
from .tree import Handling, Rule

__all__ = ["Subscription", "SubscriptionError"]

LARGEST = 16_384  # bytes of a subscription as JSON or msgpack
_LIMITS = packing.Limits(text=1024, binary=0, items=256)


@attrs.frozen
class Subscription:
    """What someone wants to be told of, once when it begins and once when it ends (MAVIS, section IV).

    ``str(subscription)`` is its text: parsed again, it is an equal subscription.
    """

    rule: Rule
    """What is matched."""
    handling: Handling = attrs.field(factory=Handling)
    """What becomes of its alerts."""

    @classmethod
    def parse(cls, source: str) -> Subscription:
        """Return the subscription that *source* says; raise :exc:`SubscriptionError` with the column of its fault."""
        return cls(*grammar.parse(source))

    @classmethod
    def from_json(cls, source: str | bytes) -> Subscription:
        """Return the subscription in the JSON text *source*; raise :exc:`mbroker.values.Invalid` if it holds none."""
        if len(source) > LARGEST:
            raise Invalid((Fault((), f"must be at most {LARGEST} bytes, not {len(source)}"),))
        try:
            data: object = json.loads(source)
        except (ValueError, RecursionError) as error:
            raise Invalid((Fault((), f"is not JSON: {error!s:.100}"),)) from None
        return cls(*arrays.tree(data))

    @classmethod
    def from_msgpack(cls, source: bytes) -> Subscription:
        """Return the subscription packed in *source*; raise :exc:`mbroker.values.Invalid` if it holds none."""
        if len(source) > LARGEST:
            raise Invalid((Fault((), f"must be at most {LARGEST} bytes, not {len(source)}"),))
        try:
            data = packing.unpack(source, _LIMITS)
        except ValueError as error:
            raise Invalid((Fault((), f"is {error}"),)) from None
        return cls(*arrays.tree(data))

    def __str__(self) -> str:
        """Return the text, in one line."""
        return text.printed(self.rule, self.handling)

    def to_json(self) -> str:
        """Return the tree as JSON, in one line."""
        return json.dumps(arrays.arrays(self.rule, self.handling), separators=(",", ":"), ensure_ascii=False)

    def to_msgpack(self) -> bytes:
        """Return the tree as msgpack."""
        return packing.pack(arrays.arrays(self.rule, self.handling))

    def canonical(self) -> Subscription:
        """Return the subscription whose rule is that of all subscriptions that mean the same."""
        return attrs.evolve(self, rule=canonical.canonical(self.rule))
