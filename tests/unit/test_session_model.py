"""The session as a model: every interleaving of two messages, a death, a handoff and a loss."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).parents[1] / "models" / "session.pml"
MUTANTS = (
    "ACK_ON_ARRIVAL",
    "FORGET_RECEIVED",
    "NO_REPLAY",
    "NO_DOUBT",
    "NO_DOUBT_AHEAD",
    "HANDOFF_OF_RECEIVED",
)

pytestmark = pytest.mark.skipif(not (shutil.which("spin") and shutil.which("cc")), reason="install spin and gcc")


def check(folder: Path, *defines: str) -> str:
    subprocess.run(["spin", *defines, "-a", str(MODEL)], cwd=folder, check=True, capture_output=True, timeout=60)
    compile_ = ["cc", "-O1", "-w", "-DSAFETY", "-DVECTORSZ=2048", "-o", "pan", "pan.c"]
    subprocess.run(compile_, cwd=folder, check=True, timeout=60)
    command = [str(folder / "pan"), "-m100000"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=100).stdout


def test_no_interleaving_breaks_a_promise(tmp_path: Path) -> None:
    output = check(tmp_path)
    assert "errors: 0" in output
    assert "Search not completed" not in output
    assert "max search depth too small" not in output


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_planted_bug_is_found_in_the_model(mutant: str, tmp_path: Path) -> None:
    assert "errors: 0" not in check(tmp_path, f"-D{mutant}")
