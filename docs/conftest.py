"""Every Python block in the documentation runs, top to bottom, one namespace a page."""

from __future__ import annotations

from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser


def setup(namespace: dict[str, Any]) -> None:
    """Give the page a module for its classes, and a folder of its own for the names of channels."""
    namespace["__name__"] = "docs"
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="mc-"))
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("MCHANNEL_RUNTIME_DIR", folder)
        namespace["_page"] = stack.pop_all()


def teardown(namespace: dict[str, Any]) -> None:
    namespace["_page"].close()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()], patterns=["*.md"], setup=setup, teardown=teardown
).pytest()
