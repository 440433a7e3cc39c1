"""Which series and endpoints the engine knows, by number, and which of them a selector accepts without asking all."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

from .selector import Endpoint, Label, Relation, Selector, Series

__all__ = ["Places", "Readers", "Runs"]

Pair = tuple[str, str]


class Places:
    """Numbers of series, and *places*: numbers of endpoints and groups, which are kept once however many name them."""

    def __init__(self) -> None:
        self.endpoints: list[Endpoint] = []
        """By place."""
        self.of = array("I")
        """The places of series, by their numbers."""
        self._places: dict[Endpoint, int] = {}
        self._having: dict[Pair, array[int]] = {}
        self._metrics: dict[str, dict[int, int]] = {}

    def __len__(self) -> int:
        """Return how many series there are."""
        return sum(map(len, self._metrics.values()))

    @property
    def metrics(self) -> Collection[str]:
        """The names of all metrics."""
        return self._metrics.keys()

    def count(self, metric: str) -> int:
        """Return how many series *metric* has."""
        return len(self._metrics.get(metric, ()))

    def values(self, name: str) -> set[str]:
        """Return the values that the label *name* has."""
        return {value for known, value in self._having if known == name}

    def place(self, endpoint: Endpoint) -> int:
        """Return the place of *endpoint*, a new one if it has none."""
        place = self._places.get(endpoint)
        if place is None:
            place = self._places[endpoint] = len(self.endpoints)
            self.endpoints.append(endpoint)
            for pair in endpoint:
                self._having.setdefault(pair, array("I")).append(place)
        return place

    def number(self, metric: str, place: int) -> int | None:
        """Return the number of the series of *metric* at *place*; None if there is none."""
        return self._metrics.get(metric, {}).get(place)

    def find(self, series: Series) -> int | None:
        """Return the number of *series*; None if there is none."""
        place = self._places.get(series.endpoint)
        return None if place is None else self.number(series.metric, place)

    def enter(self, metric: str, place: int, number: int) -> None:
        """Note that the series of *metric* at *place* has that *number*."""
        self._metrics.setdefault(metric, {})[place] = number
        if number >= len(self.of):
            self.of.extend(bytes(number + 1 - len(self.of)))
        self.of[number] = place

    def columns(self) -> Iterator[tuple[str, array[int], array[int]]]:
        """Yield each metric with the places and the numbers of its series."""
        for metric, numbers in self._metrics.items():
            yield metric, array("I", numbers), array("I", numbers.values())

    def accepted(self, selector: Selector) -> Iterator[tuple[int, int]]:
        """Yield place and number of each series that *selector* accepts."""
        numbers = self._metrics.get(selector.metric, {})
        needed = [label for label in selector.labels if _is_needed(label)]
        rarest = min(needed, key=lambda label: len(self._having.get((label.name, label.value), ())), default=None)
        places = numbers if rarest is None else self._having.get((rarest.name, rarest.value), ())
        others = [label for label in selector.labels if label is not rarest]
        for place in places:
            number = numbers.get(place)
            if number is not None and all(label.accepts(self.endpoints[place]) for label in others):
                yield place, number


class Runs:
    """Whole numbers, most of which follow one another: a run of them costs as much as one does."""

    def __init__(self, packed: bytes = b"") -> None:
        self.pairs = array("I", packed)
        """First and count of each run."""

    def add(self, numbers: Iterable[int]) -> None:
        """Add *numbers*, in their order."""
        pairs = self.pairs
        for number in numbers:
            if pairs and pairs[-2] + pairs[-1] == number:
                pairs[-1] += 1
            else:
                pairs.extend((number, 1))

    def __iter__(self) -> Iterator[int]:
        """Yield them in their order."""
        for first, count in zip(self.pairs[::2], self.pairs[1::2], strict=True):
            yield from range(first, first + count)


class Readers:
    """Which rules read a series, found by its metric and one label that each selector asks for."""

    def __init__(self) -> None:
        self._files: defaultdict[tuple[str, Pair | None], dict[tuple[int, Selector], None]] = defaultdict(dict)

    def file(self, selector: Selector, rule: int) -> None:
        """Note that *rule* reads what *selector* accepts."""
        self._files[_drawer(selector)][rule, selector] = None

    def drop(self, selector: Selector, rule: int) -> None:
        """Forget that *rule* reads what *selector* accepts."""
        drawer = _drawer(selector)
        self._files[drawer].pop((rule, selector), None)
        if not self._files[drawer]:
            del self._files[drawer]

    def of(self, series: Series) -> list[int]:
        """Return the rules that read *series*, in the order of their numbers."""
        return sorted(
            {
                rule
                for pair in (None, *series.endpoint)
                for rule, selector in self._files.get((series.metric, pair), ())
                if selector.accepts(series)
            }
        )


def _drawer(selector: Selector) -> tuple[str, Pair | None]:
    """Return where whoever reads what *selector* accepts is noted: under what all that it accepts has."""
    needed = next((label for label in selector.labels if _is_needed(label)), None)
    return selector.metric, None if needed is None else (needed.name, needed.value)


def _is_needed(label: Label) -> bool:
    """Whether all endpoints that *label* accepts have its pair of name and value."""
    return label.relation is Relation.IS and label.value != ""
