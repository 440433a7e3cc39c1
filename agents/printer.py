"""Events on standard output, for ``--dry-run``."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

import attrs

from mchannel.event import Detail, Event

__all__ = ["Printer"]

_SHOWN = {"sla.epoch": ("requests", "hard", "soft", "p99_ms")}
_NOTES = ("unparsed", "dropped", "skipped")


@attrs.frozen
class Printer:
    """Takes events as a channel does, and prints them for people, or as one JSON object a line."""

    as_json: bool = False
    unacknowledged: int = 0

    def write(self, message: Event, /, timeout: float | None = None) -> None:
        """Print *message*."""
        sys.stdout.write((_json(message) if self.as_json else _text(message)) + "\n")
        sys.stdout.flush()

    def close(self) -> None:
        """Nothing is held."""


def _json(event: Event) -> str:
    return json.dumps(attrs.asdict(event, recurse=False))


def _text(event: Event) -> str:
    at = datetime.fromtimestamp(event.at, UTC).strftime("%H:%M:%S.%f")[:-5]
    if (shown := _SHOWN.get(event.topic)) is None:
        return "  ".join([at, event.source, event.topic, repr(event.value), *_items(event.detail)])
    notes = {name: event.detail[name] for name in (*shown, *_NOTES) if name in event.detail}
    return "  ".join([at, event.source, *_items(notes)])


def _items(detail: Detail) -> list[str]:
    return [f"{name} {value!r}" for name, value in detail.items()]
