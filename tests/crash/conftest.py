"""What holds for every crash."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def tmp_path(memory: Path) -> Path:
    """Return a folder that is no slower than memory. What a power cut leaves is worked out, so no disk is needed."""
    return memory
