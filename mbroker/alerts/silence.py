"""Silences: alerts that nobody wants to be told of for a while, such as during maintenance."""

from __future__ import annotations

import re

import attrs

from .selector import Endpoint, Label, Relation, sequence

__all__ = ["Silence", "condition"]

_LABEL = re.compile(r"(?P<name>[^=!~]+)(?P<relation>=~|!=|!~|=)(?P<value>.*)", re.DOTALL)


def condition(text: str) -> Label:
    """Return the condition that *text* says, such as ``domain=web1`` or ``host=~node.*``; raise ValueError."""
    match = _LABEL.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r:.100} is no condition on a label; write domain=web1, or with != =~ !~")
    return Label(match["name"], Relation(match["relation"]), match["value"])


@attrs.frozen
class Silence:
    """Alerts whose keys have all the labels are not told from one time until another."""

    number: int
    """What it is known by."""
    labels: tuple[Label, ...] = attrs.field(validator=sequence(Label, 16, 1))
    since: int
    """Milliseconds of the Unix clock."""
    until: int
    """The first millisecond in which they are told again."""
    owner: str
    why: str

    def mutes(self, key: Endpoint, now: int) -> bool:
        """Whether alerts of *key* are not told *now*."""
        return self.since <= now < self.until and all(label.accepts(key) for label in self.labels)
