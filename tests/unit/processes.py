"""What the tests of programs that start others share."""

from __future__ import annotations

from pathlib import Path

__all__ = ["is_running"]


def is_running(pid: int | str) -> bool:
    """Whether a process is there, and no mere remnant of one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):  # the latter: it went between the opening and the reading
        return False
