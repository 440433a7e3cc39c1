"""Work that rests between its portions."""

from __future__ import annotations

import pytest

from mbroker.alerts.leisure import leisurely


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was rested, by a clock on which each look is a fifth of a millisecond after the one before."""
    rested: list[float] = []
    clock = iter(range(1000))
    monkeypatch.setattr("time.thread_time", lambda: next(clock) * 0.0002)
    monkeypatch.setattr("time.sleep", rested.append)
    return rested


def test_it_rests_in_proportion_after_half_a_millisecond(rests: list[float]) -> None:
    assert list(leisurely(range(6), 4.0)) == list(range(6))
    assert rests == pytest.approx([4 * 0.0006] * 2)


def test_short_work_is_not_interrupted(rests: list[float]) -> None:
    assert list(leisurely(range(2), 4.0)) == [0, 1]
    assert rests == []


def test_without_rest_the_work_is_done_at_once(rests: list[float]) -> None:
    assert list(leisurely(range(6), 0.0)) == list(range(6))
    assert sum(rests) == 0
