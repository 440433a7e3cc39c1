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

    def __init__(self, endpoints: Iterable[Iterable[Pair] | None] = ()) -> None:
        """Know the places of *endpoints*, in their order; None: a place that is free."""
        self.endpoints: list[Endpoint] = []
        """By place; of a place that is free, the empty one."""
        self.of = array("I")
        """The places of series, by their numbers."""
        self._named: list[str] = []  # the metrics of series, by their numbers; "" if there is none of that number
        self._uses = array("I")  # of places: series, and alerts that are not of one series
        self._free: list[int] = []
        self._places: dict[Endpoint, int] = {}
        self._having: dict[Pair, array[int]] = {}
        self._metrics: dict[str, dict[int, int]] = {}
        gaps: list[int] = []
        for endpoint in endpoints:
            if endpoint is None:
                gaps.append(len(self.endpoints))
                self.endpoints.append(Endpoint())
                self._uses.append(0)
            else:
                self.place(Endpoint(endpoint))
        self._free = gaps

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
            if self._free:
                place = self._free.pop()
                self.endpoints[place] = endpoint
            else:
                place = len(self.endpoints)
                self.endpoints.append(endpoint)
                self._uses.append(0)
            self._places[endpoint] = place
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
        if (more := number + 1 - len(self.of)) > 0:
            self.of.extend(bytes(more))
            self._named.extend([""] * more)
        self.of[number], self._named[number] = place, metric
        self.hold(place)

    def series(self, number: int) -> Series | None:
        """Return the series of that *number*; None if there is none."""
        metric = self._named[number] if number < len(self._named) else ""
        return Series(metric, self.endpoints[self.of[number]]) if metric else None

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget the series of *numbers*, and the places that nobody else uses."""
        places: list[int] = []
        for number in numbers:
            metric, place = self._named[number], self.of[number]
            self._named[number] = ""
            del self._metrics[metric][place]
            if not self._metrics[metric]:
                del self._metrics[metric]
            places.append(place)
        self.release(places)

    def hold(self, place: int) -> None:
        """Note one more use of *place*."""
        self._uses[place] += 1

    def release(self, places: Iterable[int]) -> None:
        """Note the end of one use of each of *places*; those that nobody uses are free."""
        ended: set[int] = set()
        for place in places:
            self._uses[place] -= 1
            if not self._uses[place]:
                ended.add(place)
        for pair in {pair for place in ended for pair in self.endpoints[place]}:
            self._having[pair] = array("I", [place for place in self._having[pair] if place not in ended])
            if not self._having[pair]:
                del self._having[pair]
        for place in ended:
            del self._places[self.endpoints[place]]
            self.endpoints[place] = Endpoint()
        self._free += sorted(ended)

    @property
    def packed(self) -> list[list[Pair] | None]:
        """The endpoints by place, None where one is free; what is made of it has the same places."""
        free = frozenset(self._free)
        return [None if place in free else [*endpoint] for place, endpoint in enumerate(self.endpoints)]

    def columns(self) -> Iterator[tuple[str, array[int], array[int]]]:
        """Yield each metric with the places and the numbers of its series."""
        for metric, numbers in self._metrics.items():
            yield metric, array("I", numbers), array("I", numbers.values())

    def accepted(self, selector: Selector, having: Iterable[Pair] = ()) -> Iterator[tuple[int, int]]:
        """Yield place and number of each series that *selector* accepts, if its endpoint is *having* those pairs."""
        numbers = self._metrics.get(selector.metric, {})
        needed = [*having, *((label.name, label.value) for label in selector.labels if _is_needed(label))]
        rarest = min(needed, key=lambda pair: len(self._having.get(pair, ())), default=None)
        places = numbers if rarest is None else self._having.get(rarest, ())
        others = [label for label in selector.labels if (label.name, label.value) != rarest or not _is_needed(label)]
        pairs = frozenset(having)
        for place in places:
            number = numbers.get(place)
            if number is None or not pairs <= self.endpoints[place]:
                continue
            if all(label.accepts(self.endpoints[place]) for label in others):
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

    def without(self, numbers: Collection[int]) -> Runs:
        """Return the others."""
        made = Runs()
        made.add(number for number in self if number not in numbers)
        return made

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
