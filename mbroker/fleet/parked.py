"""Sessions whose domains are away, on disk: a domain may be restored long after this broker was restarted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

import attrs

from mbroker.fleet.custody import Kept
from mbroker.fleet.records import RecordFile
from mchannel.errors import MChannelError
from mchannel.transports.complaints import Complaints

__all__ = ["ParkedFile"]

_log = logging.getLogger(__name__)


@attrs.frozen
class _Record:
    """One session of a domain, or that one generation of them was heard of."""

    domain: str
    generation: int
    parked: bool
    snapshot: bytes = b""


class ParkedFile:
    """The journal of parked sessions.

    What the disk refuses is tried again when it is asked for again. A restart before that forgets it: then
    messages repeat, marked.
    """

    def __init__(self, path: Path) -> None:
        """Open *path*, or make it; raises JournalError."""
        self._file = RecordFile(path, _Record)
        self._complaints = Complaints(log=_log)
        found: dict[str, Kept] = {}
        generations: dict[str, int] = {}
        for record in self._file.found:
            generations[record.domain] = max(record.generation, generations.get(record.domain, 0))
            if record.parked:
                known = found.get(record.domain, Kept(record.domain, record.generation, ()))
                more = (record.snapshot,) if record.snapshot else ()
                found[record.domain] = attrs.evolve(known, snapshots=(*known.snapshots, *more))
        self.kept = tuple(found.values())
        """What was parked when it was written last."""
        self.generations: Mapping[str, int] = generations
        """The newest generation that was heard of, by domain."""

    async def keep(self, parked: tuple[Kept, ...], generations: Mapping[str, int]) -> None:
        """Have *parked* and *generations* on disk, and nothing else; cancelled, they may be or not."""
        if parked == self.kept and generations == self.generations:
            return
        generations = dict(generations)
        records = [_Record(domain, generation, parked=False) for domain, generation in generations.items()]
        for kept in parked:
            snapshots = kept.snapshots or (b"",)
            records += [_Record(kept.domain, kept.generation, parked=True, snapshot=each) for each in snapshots]
        try:
            await asyncio.to_thread(self._file.keep, records)
        except MChannelError as error:
            self._complaints.make(f"sessions of domains that are away will not survive a restart: {error}")
        else:
            self.kept, self.generations = parked, generations

    def close(self) -> None:
        """Let go of the file; idempotent."""
        self._file.close()
