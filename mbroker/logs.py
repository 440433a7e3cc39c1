"""Logs for the journal: one line each, no control characters, and no flood whoever causes it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

import attrs

__all__ = ["Lines", "Sparse", "set_up"]

_KEYS = 1024
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class Lines(logging.Formatter):
    """Formats a record as one printable line; a traceback, which is of our own making, follows as it is."""

    def __init__(self, template: str, *, priorities: bool = False) -> None:
        """Use *template* of logging's percent style; with *priorities* lines begin as sd-daemon(3) has it."""
        super().__init__(template)
        self._priorities = priorities

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line, what a guest may have put into it made printable."""
        line = "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in super().formatMessage(record))
        return f"<{_PRIORITIES.get(record.levelno, 5)}>{line}" if self._priorities else line


@attrs.define
class _Window:
    began: float
    passed: int = 0
    held: int = 0


class Sparse(logging.Filter):
    """Passes a few records of one kind about one subject a minute, and says how many it held back.

    The kind is the message before formatting, the subject its first argument: the agent, as a rule.
    """

    def __init__(self, limit: int = 5, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Let *limit* records pass in *seconds*."""
        super().__init__()
        self._limit, self._seconds, self._clock = limit, seconds, clock
        self._windows: dict[tuple[str, str], _Window] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether *record* is logged."""
        subject = str(record.args[0]) if isinstance(record.args, tuple) and record.args else ""
        key, now = (str(record.msg), subject[:200]), self._clock()
        window = self._windows.get(key)
        if window is None or now - window.began >= self._seconds:
            held = window.held if window else 0
            self._windows.pop(key, None)  # the newest last: the oldest is forgotten first
            window = self._windows[key] = _Window(now)
            if len(self._windows) > _KEYS:
                del self._windows[next(iter(self._windows))]
            if held:
                record.msg = f"{record.msg} ({held} more like this were held back)"
        if window.passed >= self._limit:
            window.held += 1
            return False
        window.passed += 1
        return True


def set_up(level: str) -> None:
    """Log to standard error: with priorities for the journal, else with the time."""
    handler = logging.StreamHandler()
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(Lines("%(name)s: %(message)s", priorities=True))
    else:
        handler.setFormatter(Lines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(Sparse())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
