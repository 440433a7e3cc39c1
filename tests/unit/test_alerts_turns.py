"""Items of several owners: they take turns, and who has most gives up first."""

from __future__ import annotations

from collections import Counter

import attrs
from hypothesis import given
from hypothesis import strategies as st

from mbroker.alerts.turns import Turns


@attrs.frozen(order=True)
class Item:
    at: int
    owner: str = attrs.field(order=False)


def pushed(turns: Turns[str, Item], owners: str, at: int = 0) -> list[str | None]:
    return [turns.push(owner, Item(at, owner)) for owner in owners]


def popped(turns: Turns[str, Item], now: int = 0) -> str:
    found: list[str] = []
    while (item := turns.pop(now)) is not None:
        found.append(item.owner)
    return "".join(found)


def test_owners_take_turns() -> None:
    turns = Turns[str, Item](10)
    pushed(turns, "aaaabbc")
    assert popped(turns) == "abcabaa"
    assert len(turns) == 0


def test_of_one_owner_the_earliest_comes_first_and_none_before_its_time() -> None:
    turns = Turns[str, Item](10)
    for at in (7, 3, 5, 9):
        turns.push("a", Item(at, "a"))
    assert [item.at for _ in range(4) if (item := turns.pop(5))] == [3, 5]
    assert [item.at for _ in range(4) if (item := turns.pop(9))] == [7, 9]


def test_who_waits_holds_up_nobody() -> None:
    turns = Turns[str, Item](10)
    pushed(turns, "a", at=9)
    pushed(turns, "b")
    assert (popped(turns), popped(turns, 9)) == ("b", "a")


def test_who_has_most_gives_one_up_for_another() -> None:
    turns = Turns[str, Item](3)
    assert pushed(turns, "aaabbc") == [None, None, None, "a", "b", "a"]
    assert popped(turns) == "abc"


def test_nobody_gives_one_up_for_somebody_who_has_as_many() -> None:
    turns = Turns[str, Item](2)
    assert pushed(turns, "aba") == [None, None, "a"]


@given(st.lists(st.sampled_from(["a", "b", "c", "d", "e", ""]), max_size=60))
def test_there_is_room_for_a_fair_share_of_everybody(steps: list[str]) -> None:
    """An empty step takes one out."""
    turns, held = Turns[str, Item](7), Counter[str]()
    for step in steps:
        if step:
            loser = turns.push(step, Item(0, step))
            held[step] += 1
            if loser is not None:
                assert held[loser] == max(held.values())
                held[loser] -= 1
        elif (item := turns.pop(0)) is not None:
            held[item.owner] -= 1
        assert len(turns) == held.total() <= 7
    assert Counter(popped(turns)) == +held
