"""The qualitative results of the M-channels paper (figures 4 to 6), from the real policy objects."""

from __future__ import annotations

import pytest

from tests.sim.server import POLICIES, Load, Result, simulate

TOP = 4


@pytest.fixture(scope="module", params=[600.0, 800.0], ids=lambda peak: f"{peak:g}rps")
def results(request: pytest.FixtureRequest) -> dict[str, Result]:
    load = Load(peak=request.param)
    return {name: simulate(policy(), load=load) for name, policy in POLICIES.items()}


def saving(results: dict[str, Result], name: str) -> float:
    return results[name].saving_pct(managed=name != "none")


def hard(results: dict[str, Result], name: str) -> float:
    return results[name].hard / results[name].requests


def test_without_power_management_the_level_never_moves(results: dict[str, Result]) -> None:
    assert results["none"].transitions == 0
    assert results["none"].share(TOP) == 1.0


@pytest.mark.parametrize("name", ["basic", "richer", "utilization", "adaptive"])
def test_every_other_policy_goes_up_and_down(results: dict[str, Result], name: str) -> None:
    steps = [after - before for before, after in zip(results[name].levels, results[name].levels[1:], strict=False)]
    assert min(steps) < 0 < max(steps)


def test_utilization_runs_at_the_highest_speed_most_of_the_time(results: dict[str, Result]) -> None:
    assert results["utilization"].share(TOP) > 0.5


def test_richer_saves_the_most_and_basic_lies_between(results: dict[str, Result]) -> None:
    order = [saving(results, name) for name in ("none", "utilization", "basic", "richer")]
    assert order == sorted(order)
    assert order[3] > order[2] + 2.0


def test_richer_runs_at_the_two_lowest_speeds_most_of_the_time(results: dict[str, Result]) -> None:
    assert results["richer"].share(0) + results["richer"].share(1) > 0.6


def test_no_power_management_has_the_fewest_violations_and_utilization_slightly_fewer_than_basic(
    results: dict[str, Result],
) -> None:
    assert hard(results, "none") <= hard(results, "utilization") <= hard(results, "basic") <= hard(results, "richer")


def test_adaptive_keeps_the_agreement_that_richer_breaks_with_a_tenth_of_the_moves_of_basic(
    results: dict[str, Result],
) -> None:
    assert hard(results, "adaptive") < 0.01 < hard(results, "richer")
    assert results["adaptive"].transitions < results["basic"].transitions / 10
    assert saving(results, "adaptive") > 10.0


def test_a_run_can_be_repeated() -> None:
    first, second = (simulate(POLICIES["adaptive"](), seed=7, seconds=30) for _ in range(2))
    assert first == second
