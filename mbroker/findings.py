"""What an examination of a host finds; see :mod:`mbroker.doctor`."""

from __future__ import annotations

from enum import Enum

import attrs

__all__ = ["Finding", "Verdict"]


class Verdict(Enum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """Works, but not for everything."""
    FAIL = "fail"


@attrs.frozen
class Finding:
    """What one check found out."""

    check: str
    verdict: Verdict
    meaning: str
    remedy: str = ""
    """What to do; empty when it is well."""
