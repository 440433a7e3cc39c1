"""Crash points, enumerated: what every way of crashing a program has in common.

A *program* works in a directory and says what it has promised by calling ``ack``. A *check* gets
the directory as the crash left it and what had been promised by then; it recovers, and raises
when a promise is broken. ``enumerate_lines``, ``enumerate_syscalls`` and ``enumerate_disk_states``
crash the program at each point of their kind and report the points at which the check raised.
Keep planted bugs beside each use: an enumeration counts only while it finds them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

import attrs

__all__ = ["WHOLE", "Ack", "Check", "Program", "Report", "Seed", "Violation", "judged", "spread"]

WHOLE = os.environ.get("MCHANNEL_VERIFY") == "1"
"""Whether every point is wanted; otherwise a sample, evenly spread."""

T = TypeVar("T")
Ack: TypeAlias = Callable[[str], None]
Program: TypeAlias = Callable[[Path, Ack], None]
Seed: TypeAlias = Callable[[Path], None]
Check: TypeAlias = Callable[[Path, Sequence[str]], None]


@attrs.frozen
class Violation:
    """A crash point after which a promise was broken."""

    point: str
    what: str


@attrs.frozen
class Report:
    """What an enumeration found."""

    points: int
    violations: tuple[Violation, ...]


def judged(check: Check, folder: Path, acked: Sequence[str], point: str) -> Iterator[Violation]:
    """Run *check* on *folder*, remove it, and yield the violation if there is one."""
    try:
        check(folder, acked)
    except Exception as error:  # whatever recovery raises is a finding
        yield Violation(point, f"{type(error).__name__}: {error}")
    finally:
        shutil.rmtree(folder)


def spread(points: Sequence[T], most: int | None) -> Sequence[T]:
    """Return at most *most* of *points*, evenly spread, the first and the last among them."""
    if most is None or len(points) <= most:
        return points
    return [points[index * (len(points) - 1) // (most - 1)] for index in range(most)]
