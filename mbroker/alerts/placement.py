"""What is matched where: endpoints and groups belong to shards for ever, shards to whichever hosts there are."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable

import attrs

from .selector import Endpoint, project
from .tree import Rule, leaves

__all__ = ["Anchor", "winner"]


def winner(shard: int, hosts: Iterable[str]) -> str:
    """Return which of *hosts*, of which there is one at least, has *shard*: by rendezvous hashing.

    A host that comes takes shards, and gives none to others; those of a host that goes are spread over all that stay.
    """
    return max(hosts, key=lambda host: (_digest(f"{shard} {host}"), host))


@attrs.frozen
class Anchor:
    """What keeps together all that one alert of a rule depends on."""

    metric: str = ""
    by: tuple[str, ...] | None = None
    """The labels of the rule's widest groups, each of which is matched in one place; None: it is about endpoints."""

    @classmethod
    def of(cls, rule: Rule) -> Anchor:
        """Return the anchor of *rule*: the labels of wider groups are among those of narrower ones."""
        known = list(leaves(rule.condition))
        widest = min((tuple(sorted(leaf.by)) for leaf in known if leaf.by is not None), key=len, default=None)
        return cls() if widest is None else cls(min(leaf.selector.metric for leaf in known), widest)

    def shards(self, endpoint: Endpoint, count: int) -> frozenset[int]:
        """Return the shards, of *count*, of all alerts that *endpoint* has a part in, or of the alert of that key.

        Of several, for an endpoint in many named groups, each has alerts of its own. Groups have as many shards
        again, for endpoints' rules are not to see the series that come there from elsewhere.
        """
        return _shards(self, endpoint, count)


@functools.lru_cache(maxsize=1 << 16)
def _shards(anchor: Anchor, endpoint: Endpoint, count: int) -> frozenset[int]:
    if anchor.by is None:
        return frozenset([_digest(json.dumps(sorted(endpoint))) % count])
    groups = project(endpoint, anchor.by)
    return frozenset(count + _digest(json.dumps([anchor.metric, sorted(group)])) % count for group in groups)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
