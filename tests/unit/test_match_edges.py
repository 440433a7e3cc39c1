"""The objects that native/edges.c makes are those that Python would make."""

from __future__ import annotations

import gc
import math
import struct
import sys
from array import array
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbroker.alerts import _edges
from mbroker.alerts.edges import Edge
from mbroker.alerts.engine import Fired
from mbroker.alerts.kernel import NOTHING, Flip, Flips
from mbroker.alerts.selector import Endpoint

ENDPOINTS = [Endpoint({("host", f"h{number}")}) for number in range(4)]
PLACES = array("I", [3, 2, 1])  # of the series 0, 1 and 2
SPOTS = {7: 0}  # of a rule that is not of one series
NUMBERS = st.integers(0, 0xFFFF_FFFF)
FLIPS = st.tuples(
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(allow_nan=False),
    st.integers(0, 10),
    NUMBERS,
    st.integers(0, len(PLACES) - 1),
    st.booleans(),
)


def raw(*flips: Flip) -> bytes:
    return b"".join(struct.pack("@qdIII?3x", *flip) for flip in flips)


def fired(flips: bytes) -> list[Fired]:
    return _edges.fired(Fired, flips, ENDPOINTS, PLACES, SPOTS)


@given(st.lists(FLIPS))
def test_what_fired_has_the_endpoint_of_its_rule_or_else_of_its_series(flips: list[Flip]) -> None:
    assert list(Flips(raw(*flips))) == flips
    assert fired(raw(*flips)) == [
        Fired(owner, ENDPOINTS[SPOTS[rule] if rule in SPOTS else PLACES[source]], firing, at, value)
        for at, value, rule, owner, source, firing in flips
    ]


def test_what_fired_is_a_named_tuple_of_plain_values() -> None:
    (edge,) = fired(raw((5, math.nan, 7, 9, NOTHING, True)))
    assert type(edge) is Fired
    assert (edge.rule, edge.key, edge.firing, edge.at) == (9, ENDPOINTS[0], True, 5)
    assert edge.firing is True
    assert math.isnan(edge.value)


@pytest.mark.parametrize("source", [len(PLACES), NOTHING])
def test_an_edge_of_no_known_series_raises(source: int) -> None:
    with pytest.raises(IndexError, match="of no series that is known"):
        fired(raw((1, 1.0, 1, 1, 0, True), (1, 1.0, 1, 1, source, True)))


@pytest.mark.parametrize(("places", "spots"), [(array("I", [4]), {}), (PLACES, {1: 4}), (PLACES, {1: -1})])
def test_an_edge_of_no_known_place_raises(places: array[int], spots: dict[int, int]) -> None:
    with pytest.raises(IndexError):
        _edges.fired(Fired, raw((1, 1.0, 1, 1, 0, True)), ENDPOINTS, places, spots)


@pytest.mark.parametrize(
    ("kind", "flips", "places", "error"),
    [
        (Fired, raw((1, 1.0, 1, 1, 0, True))[:-1], PLACES, ValueError),
        (Fired, b"", array("Q", PLACES), ValueError),
        (list, b"", PLACES, TypeError),
        (5, b"", PLACES, TypeError),
    ],
)
def test_what_makes_no_edges_is_refused(kind: Any, flips: bytes, places: array[int], error: type[Exception]) -> None:
    with pytest.raises(error):
        _edges.fired(kind, flips, ENDPOINTS, places, {})


@given(st.lists(FLIPS), st.dictionaries(NUMBERS, st.lists(NUMBERS, unique=True)))
def test_each_who_subscribed_is_told_in_order(flips: list[Flip], takers: dict[int, list[int]]) -> None:
    takers |= {flips[0][3]: [1, 2]} if flips else {}
    edges = fired(raw(*flips))
    told = _edges.edges(Edge, edges, takers)
    assert told == [Edge(taker, *edge[1:]) for edge in edges for taker in takers.get(edge.rule, ())]
    assert all(type(one) is Edge for one in told)


@pytest.mark.parametrize(
    ("kind", "takers", "error"), [(Edge, {1: (5,)}, TypeError), (dict, {}, TypeError), (Edge, [], TypeError)]
)
def test_what_names_no_takers_is_refused(kind: Any, takers: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        _edges.edges(kind, fired(raw((1, 1.0, 1, 1, 0, True))), takers)


def tell() -> object:
    made = fired(raw((1 << 40, 2.5, 1 << 30, 1 << 29, 0, True), (1 << 41, 3.5, 7, 1, 0, False)))
    return _edges.edges(Edge, made, {1 << 29: [300, 301]})


def fail() -> None:
    flips = raw((1 << 40, 2.5, 1 << 30, 1 << 29, 0, True), (1 << 40, 2.5, 1 << 30, 1 << 29, NOTHING, True))
    takers: Any = {1: [300], 2: 5}
    with suppress(IndexError):
        fired(flips)
    with suppress(TypeError):
        _edges.edges(Edge, [Fired(number, ENDPOINTS[0], True, 1, 1.0) for number in (1, 2)], takers)


def held() -> tuple[int, list[int]]:
    gc.collect()
    return sys.getallocatedblocks(), [sys.getrefcount(endpoint) for endpoint in ENDPOINTS]


@pytest.mark.parametrize("act", [tell, fail])
def test_nothing_is_left_behind(act: Callable[[], object]) -> None:
    act()
    blocks, references = held()
    for _ in range(1000):
        act()
    assert held()[1] == references
    assert held()[0] - blocks < 500
