"""The ring without Python: compile ``native/bench_ring.c`` with what compiler there is, and run it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.harness import Sample, Unavailable

__all__ = ["KEYS", "build", "run"]

KEYS = ("c_ring_64B_p50_us", "c_ring_wake_64B_p50_us")

_ROOT = Path(__file__).parent.parent
_SOURCES = ("native/bench_ring.c", "native/ring.c", "native/ring.h")


def build() -> Path:
    """Return the program, compiled unless the same source was before; raise Unavailable when that fails."""
    sources = [_ROOT / source for source in _SOURCES]
    compiler = os.environ.get("CC", "cc")
    try:
        digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources) + compiler.encode())
        program = _ROOT / ".cache" / f"bench_ring-{digest.hexdigest()[:16]}"
        if not program.exists():
            program.parent.mkdir(exist_ok=True)
            command = [compiler, "-std=c11", "-O3", "-D_GNU_SOURCE", *map(str, sources[:2]), "-o", f"{program}.new"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
            Path(f"{program}.new").rename(program)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"cannot compile {_SOURCES[0]}: {getattr(error, 'stderr', None) or error}") from None
    return program


def run(program: Path, rounds: int, wakes: int) -> dict[str, Sample]:
    """Run *program* and return its figures; raise Unavailable when it fails."""
    try:
        done = subprocess.run(
            [program, str(rounds), str(wakes)], check=True, capture_output=True, text=True, timeout=60
        )
        figures: dict[str, Any] = json.loads(done.stdout)
        return {key: Sample(float(figures[key])) for key in KEYS}
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        raise Unavailable(f"{program.name} failed: {error}") from None
