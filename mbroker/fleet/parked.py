"""Sessions whose domains are away, on disk: a domain may be restored long after this broker was restarted."""

from __future__ import annotations

import logging
from pathlib import Path

from mbroker.fleet.custody import Kept
from mbroker.values import build
from mchannel.errors import JournalError
from mchannel.journal import Journal
from mchannel.packing import Limits, pack, unpack

__all__ = ["ParkedFile"]

_LIMITS = Limits(text=64, binary=64 << 20, items=4096)

_log = logging.getLogger(__name__)


class ParkedFile:
    """The journal of parked sessions. When the disk refuses, a restart forgets them: then messages repeat, marked."""

    def __init__(self, path: Path) -> None:
        """Open *path*, or make it; raises JournalError."""
        self._journal = Journal.open(path)
        self.kept = tuple(kept for record in self._journal.records if (kept := _parsed(record)) is not None)
        """What was parked when it was written last."""

    def keep(self, parked: tuple[Kept, ...]) -> None:
        """Have *parked* on disk, and nothing else."""
        if parked == self.kept:
            return
        try:
            self._journal.rewrite([pack((kept.domain, kept.generation, kept.snapshots)) for kept in parked])
        except JournalError as error:
            _log.warning("sessions of domains that are away will not survive a restart: %s", error)
        self.kept = parked

    def close(self) -> None:
        """Let go of the file; idempotent."""
        self._journal.close()


def _parsed(record: bytes) -> Kept | None:
    try:
        domain, generation, snapshots = unpack(record, _LIMITS)
        kept: Kept = build(Kept, {"domain": domain, "generation": generation, "snapshots": snapshots})
    except ValueError:
        _log.warning("a record of parked sessions was not understood and left out")
        return None
    return kept
