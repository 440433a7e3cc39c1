"""A small file of values that must outlive this broker, written whole."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

import attrs

from mbroker.values import build
from mchannel.journal import MAX_RECORD, Journal
from mchannel.packing import Limits, pack, unpack

__all__ = ["RecordFile"]

R = TypeVar("R", bound=attrs.AttrsInstance)

_LIMITS = Limits(text=256, binary=MAX_RECORD, items=8)

_log = logging.getLogger(__name__)


class RecordFile(Generic[R]):
    """A journal of attrs values of one *kind*, with plain fields."""

    def __init__(self, path: Path, kind: type[R]) -> None:
        """Open *path*, or make it; raises JournalError. What is not understood is left out."""
        self._journal = Journal.open(path)
        self._lock = Lock()
        self.found: tuple[R, ...] = tuple(
            made for record in self._journal.records if (made := _parsed(record, kind)) is not None
        )
        """What was written last, when this was opened."""

    def keep(self, records: Iterable[R]) -> None:
        """Have *records* on disk, and nothing else; takes as long as the disk does. Any thread may call it.

        Raises JournalError; then the old ones are there.
        """
        with self._lock:
            self._journal.rewrite([pack(attrs.astuple(record)) for record in records])

    def close(self) -> None:
        """Let go of the file, when what is being written is; idempotent."""
        with self._lock:
            self._journal.close()


def _parsed(record: bytes, kind: type[R]) -> R | None:
    try:
        fields: Any = unpack(record, _LIMITS)
        names = (field.name for field in attrs.fields(kind))
        found: R = build(kind, dict(zip(names, fields, strict=True)))
    except (TypeError, ValueError):
        _log.warning("a record of %s was not understood and left out", kind.__name__)
        return None
    return found
