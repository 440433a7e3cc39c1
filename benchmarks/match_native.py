"""The matcher without Python: compile ``native/bench_match.c`` with what compiler there is, run it, count for it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import Unavailable

__all__ = ["build", "instructions", "run"]

_NATIVE = Path(__file__).parent.parent / "native"
_BATCH = 8192  # of bench_match.c
_FLAGS = ("-std=c11", "-O3", "-ffp-contract=off")  # as in native/build_match.py


def build() -> Path:
    """Return the program, compiled unless the same source was before; raise Unavailable when that fails."""
    sources = sorted(_NATIVE.glob("*match*.[ch]"))
    compiler = os.environ.get("CC", "cc")
    try:
        digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources) + compiler.encode())
        program = _NATIVE.parent / ".cache" / f"bench_match-{digest.hexdigest()[:16]}"
        if not program.exists():
            program.parent.mkdir(exist_ok=True)
            units = [str(source) for source in sources if source.suffix == ".c"]
            command = [compiler, *_FLAGS, "-o", f"{program}.new", *units, "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
            Path(f"{program}.new").rename(program)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"cannot compile bench_match.c: {getattr(error, 'stderr', None) or error}") from None
    return program


def run(program: Path, *arguments: str | int) -> dict[str, float]:
    """Run *program* and return what it found; raise Unavailable when it fails."""
    try:
        command = [str(program), *map(str, arguments)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        found: dict[str, float] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise Unavailable(f"{program.name} failed: {error}") from None
    return found


def instructions(program: Path, series: int, each: int, samples: int) -> float:
    """Return how many instructions a sample takes, by callgrind, whatever else the machine does meanwhile."""
    with TemporaryDirectory(prefix="mchannel-bench-") as folder:
        options = ["--tool=callgrind", "--toggle-collect=measured", f"--callgrind-out-file={folder}/out"]
        command = ["valgrind", *options, str(program), str(series), str(each), str(samples)]
        try:
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"no instruction counts (Debian: valgrind): {error}") from None
    collected = re.search(r"Collected : (\d+)", done.stderr)
    if collected is None:
        raise Unavailable("callgrind counted nothing")
    return int(collected[1]) / (math.ceil(samples / _BATCH) * _BATCH)
