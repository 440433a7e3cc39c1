"""Silences: alerts that nobody wants to be told of for a while, such as during maintenance."""

from __future__ import annotations

import attrs

from .selector import Endpoint, Label, sequence

__all__ = ["Silence"]


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
