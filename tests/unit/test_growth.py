"""When engines get one more host, and when one less."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mbroker.alerts.growth import Growth, Wish


def wishes(growth: Growth, *measured: dict[str, float]) -> list[Wish]:
    grown = itertools.accumulate(measured, Growth.after, initial=growth)
    return [each.wish for each in grown][1:]


STAY, GROW, SHRINK = Wish.STAY, Wish.GROW, Wish.SHRINK
BUSY, CALM, IDLE = {"a": 0.95, "b": 0.1}, {"a": 0.7, "b": 0.5}, {"a": 0.2, "b": 0.1}


def test_one_host_above_the_mark_long_enough_asks_for_another() -> None:
    assert wishes(Growth(patience=3), BUSY, BUSY, BUSY) == [STAY, STAY, GROW]


def test_the_mark_itself_is_not_above_it() -> None:
    assert wishes(Growth(patience=1), {"a": 0.9}, {"a": 0.91}) == [STAY, GROW]


def test_a_calm_moment_begins_the_count_anew() -> None:
    assert wishes(Growth(patience=3), BUSY, BUSY, CALM, BUSY, BUSY, BUSY) == [STAY] * 5 + [GROW]


def test_after_a_change_it_waits_for_what_moves() -> None:
    assert wishes(Growth(patience=2), *[BUSY] * 6) == [STAY, GROW, STAY, STAY, STAY, GROW]


def test_hosts_that_the_rest_could_carry_ask_for_one_less() -> None:
    assert wishes(Growth(patience=2), IDLE, IDLE) == [STAY, SHRINK]


def test_one_host_is_never_too_many() -> None:
    assert wishes(Growth(patience=1), {"a": 0.0}, {"a": 0.0}) == [STAY, STAY]


def test_there_are_not_more_than_allowed() -> None:
    assert wishes(Growth(patience=1, most=2), BUSY, BUSY) == [STAY, STAY]


@given(st.floats(0, 50), st.integers(1, 60))
def test_under_a_steady_load_it_comes_to_rest(load: float, hosts: int) -> None:
    growth = Growth(patience=1)
    changes: list[Wish] = []
    for _ in range(300):
        growth = growth.after({str(n): load / hosts for n in range(hosts)})
        hosts += {GROW: 1, SHRINK: -1, STAY: 0}[growth.wish]
        changes.append(growth.wish)
    assert set(changes[-20:]) == {STAY}
    assert load / hosts <= 0.9
    assert len(set(changes) - {STAY}) <= 1


def test_what_is_missing_of_those_to_begin_with_is_asked_for_at_once_and_none_of_them_goes() -> None:
    growth = Growth(patience=3, least=2)
    assert wishes(growth, {"a": 0.0}, *[{"a": 0.0, "b": 0.0}] * 8) == [GROW] + [STAY] * 8


def test_looks_right_after_one_was_missing_do_not_ask_for_another() -> None:
    growth = Growth(patience=2, least=2)
    assert wishes(growth, {"a": 0.95}, *[BUSY] * 4) == [GROW, STAY, STAY, STAY, GROW]
