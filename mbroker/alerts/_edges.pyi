"""What native/edges.c makes: named tuples of an edge, one for the engine and one for each who subscribed."""

from array import array

from .edges import Edge
from .engine import Fired
from .selector import Endpoint

def fired(
    kind: type[Fired], flips: bytes, endpoints: list[Endpoint], places: array[int], spots: dict[int, int], /
) -> list[Fired]:
    """Return the edges of which *flips* are the bytes.

    Their keys are of *endpoints*, by the place that *spots* has for their rule or else *places* for their source.
    Raise IndexError when there is none.
    """

def edges(kind: type[Edge], fired: list[Fired], takers: dict[int, list[int]], /) -> list[Edge]:
    """Return an edge for each of *fired* and each of the *takers* of its rule, whose number it has."""
