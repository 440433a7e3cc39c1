"""What holds for every unit test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def tmp_path(memory: Path) -> Path:
    """Return a folder that is no slower than memory."""
    return memory


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test names of its own in shm:// and ipc://; return the folder of their sockets."""
    folder = tmp_path / "run"
    monkeypatch.setenv("MCHANNEL_RUNTIME_DIR", str(folder))
    return folder
