"""A port that stands for others."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from mchannel.port import StandingPort


def descriptors() -> set[str]:
    gc.collect()  # what other tests left must not end between two looks
    return {each.name for each in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize("used", [False, True])
def test_a_port_that_is_closed_is_not_nudged_any_more(used: bool) -> None:
    port = StandingPort()
    if used:
        port.fileno()
    port.close()
    before = descriptors()
    port.nudge()  # late news of a link
    port.close()
    assert descriptors() <= before
