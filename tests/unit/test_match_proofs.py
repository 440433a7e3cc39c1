"""Proofs of the matcher in C under sanitizers, and proof that they see the faults they are there for.

``MCHANNEL_FUZZ_SECONDS`` makes them long; ``MCHANNEL_VERIFY=1`` plants every fault, not the first alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import attrs
import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
SECONDS: Final = int(os.environ.get("MCHANNEL_FUZZ_SECONDS", "8"))
CLANG: Final = next((c for c in ("clang", "clang-14", "clang-16", "clang-19") if shutil.which(c)), None)
FLAGS: Final = (
    "-std=c11",
    "-D_GNU_SOURCE",
    "-g",
    "-O1",
    "-ffp-contract=off",
    "-fsanitize=fuzzer,address,undefined",
    "-fno-sanitize-recover=all",
)
LIMITS: Final = (
    "-timeout=10",
    "-rss_limit_mb=1024",
    "-max_len=1024",
    "-len_control=0",
    "-print_final_stats=0",
    "-seed=1",
)

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(CLANG is None, reason="install clang (Debian: clang-14 libclang-rt-14-dev)"),
]


@attrs.frozen
class Fault:
    """One wrong piece of a source in place of a right one."""

    name: str
    source: str
    right: str
    wrong: str

    def __str__(self) -> str:
        return self.name


FAULTS: Final = (
    Fault(
        "a ring one too small", "match_window.c", "ring_grow(e, s, view->samples)", "ring_grow(e, s, view->samples / 2)"
    ),
    Fault("a leaf beyond the end", "match_image.c", "require(r, (NAMES(s)[i] & NAME_LEAF) < r->head->leaves);", ""),
    Fault("a timer lost", "match_image.c", "put_list(&w, &e->heap);", "put_list(&w, &(list){0});"),
    Fault("an edge told twice", "match_stream.c", "if ((*now & LEAF_TRUTH) == truth) return;", ""),
    Fault(
        "a sum forgotten", "match_image.c", "  uint16_t width = b->width;", "  uint16_t width = b->width; b->sum += 1;"
    ),
)


def build(folder: Path, fault: Fault | None = None) -> Path:
    assert CLANG is not None
    for source in (ROOT / "native").glob("match*.[ch]"):
        text = source.read_text()
        if fault is not None and fault.source == source.name:
            assert text.count(fault.right) == 1, "the fault no longer fits its source"
            text = text.replace(fault.right, fault.wrong)
        (folder / source.name).write_text(text)
    program = ROOT / "tests" / "native" / "fuzz_match.c"
    made = folder / "fuzz_match"
    subprocess.run(
        [CLANG, *FLAGS, "-I", folder, program, *folder.glob("match*.c"), "-lm", "-o", made], check=True, timeout=250
    )
    return made


def fuzz(made: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # by way of a small process: a child counts the memory of its parent as its own peak
        ["timeout", str(seconds + 110), made, *LIMITS, f"-max_total_time={seconds}"],
        cwd=made.parent,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds + 120,
        check=False,
        env={"PATH": os.defpath, "ASAN_OPTIONS": "detect_leaks=0"},
    )


def test_no_sequence_of_calls_breaks_the_matcher(tmp_path: Path) -> None:
    done = fuzz(build(tmp_path), SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("fault", FAULTS if os.environ.get("MCHANNEL_VERIFY") else FAULTS[:1], ids=str)
def test_the_proof_sees_a_planted_fault(tmp_path: Path, fault: Fault) -> None:
    done = fuzz(build(tmp_path, fault), 150)
    assert done.returncode != 0
    assert "ERROR: " in done.stderr or "runtime error" in done.stderr
