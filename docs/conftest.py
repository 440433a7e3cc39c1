"""Every Python block in the documentation runs, top to bottom, one namespace a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser


@pytest.fixture
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the names of channels, and the files that a page writes, inside the test's own folder."""
    monkeypatch.setenv("MCHANNEL_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def setup(namespace: dict[str, Any]) -> None:
    namespace["__name__"] = "docs"  # classes defined on a page need a module to belong to


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()], patterns=["*.md"], setup=setup, fixtures=["runtime_dir"]
).pytest()
