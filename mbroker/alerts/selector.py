"""Which series a subscription is about: a metric, and conditions on the labels of its endpoints."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, TypeAlias

import attrs
import re2

__all__ = ["GROUP", "WORDS", "Endpoint", "Label", "Relation", "Selector", "Series", "is_name", "project"]

Endpoint: TypeAlias = frozenset[tuple[str, str]]
"""What is observed (a host, a domain, one disk of a host), known by its labels: pairs of name and value.

Only :data:`GROUP` may occur more than once, for an endpoint may belong to many named groups.
"""

GROUP = "group"
"""The label that names the groups an endpoint belongs to."""

WORDS = frozenset(
    ["absent", "and", "by", "clear", "expire", "for", "keep", "nodata", "not", "or", "severity"],
)
"""Words of the language, which name neither metrics nor labels."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:]{0,127}")
_TEXT = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{0,256}")
_MEMORY = 1 << 20  # bytes that RE2 may spend on one pattern; more, and it is refused


def _text(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not _TEXT.fullmatch(value):
        raise ValueError(f"{attribute.name} must be at most 256 characters and no control characters")


class Relation(Enum):
    """How the value of a label is compared; both patterns must match the whole of it."""

    IS = "="
    IS_NOT = "!="
    MATCHES = "=~"
    MATCHES_NOT = "!~"


@functools.lru_cache(maxsize=1024)
def _pattern(text: str) -> Callable[[str], object]:
    """Return the matcher of the pattern *text*, by RE2: its time is linear in the value, its memory bounded."""
    options = re2.Options()
    options.max_mem = _MEMORY
    options.log_errors = False
    options.never_capture = True
    try:
        return re2.compile(text, options).fullmatch
    except re2.error as error:
        reason: str = error.args[0].decode(errors="replace")
        raise ValueError(f"not a pattern that RE2 accepts: {reason}") from None


def is_name(text: object) -> bool:
    """Whether *text* may name a metric or a label: letters, digits, ``_ . :``, at most 128, and no word of ours."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None and text not in WORDS


def name(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Refuse what :func:`is_name` does not accept; a validator of attrs."""
    if not is_name(value):
        raise ValueError(f"{attribute.name} must be a name, not {value!r:.60}")


def sequence(kind: Any, most: int, least: int = 0) -> Callable[[object, attrs.Attribute[Any], object], None]:
    """Return a validator of attrs: a tuple of *least* to *most* values of *kind*."""

    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, tuple) or not all(isinstance(item, kind) for item in value):  # pyright: ignore[reportUnknownVariableType]
            raise ValueError(f"{attribute.name} must be a tuple of the right values, not {value!r:.60}")
        if not least <= len(value) <= most:  # pyright: ignore[reportUnknownArgumentType]
            raise ValueError(f"{attribute.name} must be {least} to {most}, not {len(value)}")  # pyright: ignore[reportUnknownArgumentType]

    return check


@attrs.frozen
class Label:
    """One condition on a label. A label that an endpoint does not have is the empty text."""

    name: str = attrs.field(validator=name)
    relation: Relation = attrs.field(validator=attrs.validators.instance_of(Relation))
    value: str = attrs.field(validator=_text)
    """The text or, with :attr:`Relation.MATCHES` and :attr:`Relation.MATCHES_NOT`, a pattern of RE2."""

    def __attrs_post_init__(self) -> None:
        """Refuse a pattern that RE2 refuses."""
        if self.relation in (Relation.MATCHES, Relation.MATCHES_NOT):
            _pattern(self.value)

    def accepts(self, endpoint: Endpoint) -> bool:
        """Whether the condition holds; of several groups one suffices, and for a negation none may match."""
        values = [value for name, value in endpoint if name == self.name] or [""]
        match self.relation:
            case Relation.IS:
                return self.value in values
            case Relation.IS_NOT:
                return self.value not in values
            case Relation.MATCHES:
                return any(_pattern(self.value)(value) for value in values)
            case Relation.MATCHES_NOT:
                return not any(_pattern(self.value)(value) for value in values)


@attrs.frozen
class Series:
    """One metric of one endpoint: the stream that samples belong to."""

    metric: str
    endpoint: Endpoint


@attrs.frozen
class Selector:
    """All series of a metric whose endpoints have the labels."""

    metric: str = attrs.field(validator=name)
    labels: tuple[Label, ...] = attrs.field(default=(), validator=sequence(Label, 16))

    def accepts(self, series: Series) -> bool:
        """Whether *series* is one of them."""
        return series.metric == self.metric and all(label.accepts(series.endpoint) for label in self.labels)


def project(endpoint: Endpoint, names: Iterable[str]) -> frozenset[Endpoint]:
    """Return the groups that *endpoint* belongs to when endpoints are grouped by the labels *names*.

    It is one, unless an endpoint of several named groups is grouped by :data:`GROUP`.
    """
    keys = frozenset([Endpoint()])
    for name in names:
        values = [value for known, value in endpoint if known == name] or [""]
        keys = frozenset(key | {(name, value)} for key in keys for value in values)
    return keys
