"""Who takes how much of the history, for one source is not to take what others need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import attrs

from .leisure import leisurely
from .segment import Segment
from .selector import Series

__all__ = ["Usage", "speaker"]


def speaker(series: Series) -> str:
    """Return who said it: a host, which may speak of its domains too, or a domain; empty if neither did."""
    labels = dict(series.endpoint)
    return labels.get("host") or labels.get("domain") or ""


@attrs.define
class Usage:
    """Bytes of each source in each sealed file."""

    _shares: dict[Segment, Counter[str]] = attrs.field(factory=dict[Segment, "Counter[str]"])

    def look(self, segments: Collection[Segment], series: Mapping[int, Series]) -> None:
        """Count what is in *segments*, of which those that were looked at before are known; it takes its time."""
        self._shares = {each: self._shares.get(each) or _shares(each, series) for each in leisurely(segments, 1.0)}

    def greedy(self, size: int) -> str | None:
        """Return the source that takes most of *size* bytes if it takes about twice an even share; otherwise None."""
        total = sum(self._shares.values(), Counter[str]())
        name, taken = max(total.items(), key=lambda item: item[1], default=("", 0))
        return name if len(total) > 1 and taken > 2 * size / (len(total) + 1) else None

    def oldest(self, name: str) -> Segment:
        """Return the oldest file with samples of that source."""
        return min((each for each, share in self._shares.items() if share[name]), key=lambda each: each.end)


def _shares(segment: Segment, series: Mapping[int, Series]) -> Counter[str]:
    found = Counter[str]()
    try:
        for number, size in segment.weights().items():
            if number in series:
                found[speaker(series[number])] += size
    except (OSError, ValueError):
        pass  # whoever reads it says so; it goes when it is the oldest
    return found
