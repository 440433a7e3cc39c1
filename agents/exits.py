"""How ``magent`` ends."""

from __future__ import annotations

__all__ = ["DONE", "FAILED", "NOT_FOUND", "UNREACHABLE", "USAGE", "Exit"]

DONE, FAILED, USAGE, UNREACHABLE, NOT_FOUND = range(5)


class Exit(Exception):
    """The command ends with this status and this one line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status
