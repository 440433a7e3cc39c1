"""One engine made of many: shards of the endpoints and of the groups, on whichever hosts there are.

A shard is an :class:`.engine.Engine` of its own. All that one alert depends on is in one shard: of an endpoint its
series, of a group the series of all members, which are sent there besides. So each edge is that of one engine, for
every function, with nothing to combine; a member's sample costs a group some nanoseconds, less
than partial sums of it would cost to send. Edges of alerts of which a shard sees but a part are dropped.
"""

from __future__ import annotations

import itertools
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import attrs

from . import arrays, image
from .engine import Engine, Fired, TooMuchError
from .engine_host import EngineHost, Expect, Follow, Forget, InProcess, Leave, Match, Pace, Step, Tick, Unheard
from .gone import is_needed
from .housing import Housing
from .kernel import NOTHING
from .newest import Newest
from .placement import Anchor
from .places import Places, Readers
from .selector import Endpoint, Series
from .tree import Handling, Rule, leaves

__all__ = ["Shards"]

_NOBODY = Series("", Endpoint())  # has the numbers that are free
_MOST_PLANNED = 1 << 24  # numbers in plans of batches


@attrs.define
class _Followed:
    rule: Rule
    anchor: Anchor
    at: dict[int, int] = attrs.field(factory=dict[int, int])
    """Its numbers in shards, by shard."""
    firing: set[Endpoint] = attrs.field(factory=set[Endpoint])


class Shards:
    """Follows rules over series as an :class:`.engine.Engine` does, on several hosts. For one thread at a time.

    :exc:`.engine_host.LostError` is raised when a shard is lost wherever it is placed; then only :meth:`load` helps.
    """

    def __init__(
        self,
        now: int = 0,
        *,
        hosts: int = 1,
        make: Callable[[], EngineHost] = InProcess,
        count: int = 16,
        interval: int = 10_000,
        longest: int = 1 << 20,
    ) -> None:
        """Make shards, *count* of endpoints and *count* of groups, on so many *hosts*, each of which *make* makes.

        The rest is as for an engine. *count* is more than there will ever be hosts, since whole shards move.
        """
        self._count, self._interval, self._longest = count, interval, longest
        self._now = now
        self._housing = Housing(hosts, make)
        self._names: dict[int, dict[int, int]] = {}  # of each shard: the numbers of rules here, by those there
        self._known = Places()
        self._readers = Readers()
        self._series: list[Series] = []
        self._fresh: list[int] = []  # those that shards were not told of: they wait for whatever is done next
        self._free: list[int] = []  # numbers that are nobody's any more
        self._routes: list[dict[int, int]] = []  # of each series: its numbers in shards, by shard
        self._plans: dict[bytes, list[tuple[int, array[int]]]] = {}  # of batches, by their numbers
        self._planned = 0  # how many numbers are in them
        self._intervals: dict[int, int | None] = {}  # of series that are not read as often as usual
        self._repaced: set[int] = set()  # those of them that shards were not told of
        self._newest = Newest()
        self._rules: dict[int, _Followed] = {}
        self._next = 1
        self._waiting: list[Fired] = []
        self._lacks = ""

    @property
    def places(self) -> Places:
        """The series that it knows."""
        return self._known

    @property
    def rules(self) -> dict[int, Rule]:
        """The rules that it follows, by number."""
        return {number: followed.rule for number, followed in self._rules.items()}

    @property
    def problem(self) -> str:
        """What a rule lacks, in one line; empty when there is nothing."""
        return self._lacks or self._housing.problem

    # -- rules

    def add(self, rule: Rule) -> int:
        """Follow *rule* and return its number; raise :exc:`.engine.TooMuchError` if it needs more than may be kept.

        As one engine does, except that windows of a group begin empty even where other rules keep the same ones,
        and that silence of its members counts from now on.
        """
        self._route_new()
        name, self._next = self._next, self._next + 1
        followed = _Followed(rule, Anchor.of(rule))
        series = self._accepted(rule)
        wanted = {number: self._shards_of(followed, number) for number in series}
        self._route(wanted)
        self._rules[name] = followed
        for leaf in leaves(rule.condition):
            self._readers.file(leaf.selector, name)
        shards = frozenset[int]().union(*wanted.values())
        answers = self._do({shard: [Follow(rule)] for shard in shards})
        refused = self._entered({shard: [name] for shard in shards}, answers)
        if refused:
            self.remove(name)
            raise TooMuchError(refused)
        return name

    def remove(self, number: int) -> None:
        """Forget the rule of that *number*; its alerts end without an edge."""
        self._route_new()
        self._waiting = [fired for fired in self._waiting if fired.rule != number]
        followed = self._rules.pop(number)
        for leaf in leaves(followed.rule.condition):
            self._readers.drop(leaf.selector, number)
        self._do({shard: [Leave(there)] for shard, there in followed.at.items()})
        for shard, there in followed.at.items():
            del self._names[shard][there]
        self._replan()
        for series in self._accepted(followed.rule):
            for shard in self._routes[series].keys() - self._needed(series):
                del self._routes[series][shard]

    def firing(self, number: int) -> frozenset[Endpoint]:
        """Return the keys of the alerts of a rule."""
        return frozenset(self._rules[number].firing)

    def _accepted(self, rule: Rule) -> list[int]:
        """Return the numbers of the series that *rule* looks at."""
        found = (self._known.accepted(leaf.selector) for leaf in leaves(rule.condition))
        return list(dict.fromkeys(number for _, number in itertools.chain.from_iterable(found)))

    def _entered(self, names: Mapping[int, Sequence[int]], answers: Mapping[int, Sequence[Any]]) -> str:
        """Note which numbers the rules *names* have in each shard, now that it follows them; return what it refused."""
        refused = ""
        for shard, followed in names.items():
            for name, there in zip(followed, answers[shard], strict=False):
                if isinstance(there, Exception):
                    refused = str(there)
                else:
                    self._rules[name].at[shard] = there
                    self._names[shard][there] = name
        return refused

    # -- series

    def number(self, series: Series) -> int:
        """Return the number of *series* for :meth:`push`; from now on its samples are expected."""
        number = self._known.find(series)
        if number is None:
            if self._free:
                number = self._free.pop()
                self._series[number] = series
            else:
                number = len(self._series)
                self._series.append(series)
                self._routes.append({})
                self._newest.expect()
            self._known.enter(series.metric, self._known.place(series.endpoint), number)
            self._fresh.append(number)
        return number

    def pace(self, number: int, interval: int | None) -> None:
        """Expect samples of the series of that *number* so often, in milliseconds, as an engine does."""
        if self._intervals.get(number) != interval:
            self._intervals[number] = interval
            self._repaced.add(number)

    def register(self, *series: Series) -> None:
        """Expect samples of *series*, from now on."""
        for each in series:
            self.number(each)

    def unheard(self, before: int) -> list[int]:
        """Return the numbers of some series of which nothing was heard since the clock was *before*."""
        self._route_new()
        answers = self._do({shard: [Unheard(before)] for shard in self._names if shard < self._count})
        found = {(shard, there) for shard, (unheard,) in answers.items() for there in unheard}
        return [number for number, routes in enumerate(self._routes) if not found.isdisjoint(routes.items())]

    def forget(self, numbers: Iterable[int]) -> list[int]:
        """Forget the series of *numbers* that no alert needs, and return which, as one engine does."""
        self._route_new()
        going = {number for number in numbers if self._routes[number]}
        while needed := [number for number in going if self._is_needed(number, going)]:
            going.difference_update(needed)
        homes = {number: min(self._routes[number].items()) for number in going}
        forgotten = self._forgotten(homes.values())
        gone = [number for number in going if homes[number] in forgotten]
        self._forgotten(route for number in gone for route in self._routes[number].items() if route != homes[number])
        for number in gone:
            self._routes[number] = {}
            self._intervals.pop(number, None)
        self._replan()
        self._newest.forget(gone)
        self._known.drop(gone)
        self._free += gone
        return gone

    def _forgotten(self, routes: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
        """Have each shard forget series by its numbers, and return those that it did not need."""
        wanted: defaultdict[int, list[int]] = defaultdict(list)
        for shard, there in routes:
            wanted[shard].append(there)
        answers = self._do({shard: [Forget(tuple(theirs))] for shard, theirs in wanted.items()})
        return {(shard, there) for shard, (forgotten,) in answers.items() for there in forgotten}

    def _is_needed(self, number: int, going: set[int]) -> bool:
        """Whether an alert of groups needs a series; whether one of endpoints does its home knows."""
        series = self._series[number]
        reading = (self._rules[name] for name in self._readers.of(series))
        return any(
            is_needed(series, followed.rule, followed.firing, going, self._known)
            for followed in reading
            if followed.anchor.by is not None
        )

    def _shards_of(self, followed: _Followed, number: int) -> frozenset[int]:
        return followed.anchor.shards(self._series[number].endpoint, self._count)

    def _needed(self, number: int) -> frozenset[int]:
        """Return the shards that see a series: that of its endpoint, and those of groups for which there are rules."""
        series = self._series[number]
        home = Anchor().shards(series.endpoint, self._count)
        return home.union(*(self._shards_of(self._rules[name], number) for name in self._readers.of(series)))

    def _route_new(self) -> None:
        """Tell shards of series that are new, of all at once: asking hosts takes longer than what they do."""
        fresh, self._fresh = self._fresh, []
        if fresh:
            self._route({number: self._needed(number) for number in fresh})
        if self._repaced:
            repaced: defaultdict[int, list[tuple[int, int | None]]] = defaultdict(list)
            for number in sorted(self._repaced):
                for shard, there in self._routes[number].items():
                    repaced[shard].append((there, self._intervals[number]))
            self._repaced.clear()
            self._do({shard: [Pace(tuple(intervals))] for shard, intervals in repaced.items()})

    def _route(self, wanted: Mapping[int, frozenset[int]]) -> None:
        """Show series to shards that do not see them yet, as they are now, and to the rules for which they came."""
        self._replan()
        new: defaultdict[int, list[int]] = defaultdict(list)
        for number, shards in wanted.items():
            for shard in shards - self._routes[number].keys():
                new[shard].append(number)
        names = {shard: self._missing(shard, numbers) for shard, numbers in new.items()}
        answers = self._do(
            {
                shard: [
                    *(Follow(self._rules[name].rule) for name in names[shard]),
                    Expect(tuple(self._series[number] for number in numbers)),
                ]
                for shard, numbers in new.items()
            }
        )
        refused = self._entered(names, answers)
        if refused:  # whoever publishes is not to blame
            self._lacks = f"a rule does not follow all of its series: {refused}"
        self._repaced |= {number for numbers in new.values() for number in numbers} & self._intervals.keys()
        newest: dict[int, list[Step]] = {}
        for shard, numbers in new.items():
            there = answers[shard][-1]
            if isinstance(there, Exception):
                raise there
            known = dict(zip(numbers, there, strict=True))
            for number, here in known.items():
                self._routes[number][shard] = here
            seen = [(known[number], value, at) for number, value, at in self._newest.of(numbers)]
            if seen:
                columns = zip(*seen, strict=True)
                newest[shard] = [Match(self._now, *map(array, "Idq", columns))]
        for shard, (edges,) in self._do(newest).items():
            self._waiting += self._told(shard, edges)

    def _missing(self, shard: int, numbers: Iterable[int]) -> list[int]:
        """Return the rules that series bring to *shard*, where they are not followed yet."""
        read = ((name, number) for number in numbers for name in self._readers.of(self._series[number]))
        brought = (name for name, number in read if shard in self._shards_of(self._rules[name], number))
        return [name for name in dict.fromkeys(brought) if shard not in self._rules[name].at]

    # -- what happens

    def tick(self, now: int) -> list[Fired]:
        """Return the edges that time itself makes."""
        self._route_new()
        self._now = now
        return self._edges({shard: [Tick(now)] for shard in self._names})

    def push(self, now: int, numbers: array[int], values: array[float], times: array[int]) -> list[Fired]:
        """Return the edges of samples that arrive together at *now*: arrays ``I``, ``d`` and ``q`` of one length.

        Samples of numbers that :meth:`number` did not return are dropped. Nobody may change the arrays any more.
        """
        self._route_new()
        self._now = now
        if not len(numbers) == len(values) == len(times):
            raise ValueError("numbers, values and times must be of one length")
        self._newest.put(numbers, values, times)
        tasks: dict[int, Sequence[Step]] = dict.fromkeys(self._names, (Tick(now),))
        tasks.update((shard, (Match(now, there, values, times),)) for shard, there in self._parts(numbers))
        return self._edges(tasks)

    def _parts(self, numbers: array[int]) -> list[tuple[int, array[int]]]:
        """Return which shards see some of *numbers*, and how they call them. Publishers send the same ones again.

        All of a batch goes to each of them, for they pass over what they do not see faster than it is picked here.
        """
        batch = numbers.tobytes()
        plan = self._plans.get(batch)
        if plan is None:
            plan = self._plan(numbers)
            more = len(plan) * len(numbers)
            if self._planned + more > _MOST_PLANNED:
                self._replan()
            self._plans[batch] = plan
            self._planned += more
        return plan

    def _replan(self) -> None:
        self._plans.clear()
        self._planned = 0

    def _plan(self, numbers: array[int]) -> list[tuple[int, array[int]]]:
        nothing = array("I", [NOTHING]) * len(numbers)
        made: defaultdict[int, array[int]] = defaultdict(lambda: nothing[:])
        for index, number in enumerate(numbers):
            for shard, there in self._routes[number].items() if number < len(self._routes) else ():
                made[shard][index] = there
        return [*made.items()]

    def _edges(self, tasks: Mapping[int, Sequence[Step]]) -> list[Fired]:
        waiting, self._waiting = self._waiting, []
        return waiting + [fired for shard, (edges,) in self._do(tasks).items() for fired in self._told(shard, edges)]

    def _told(self, shard: int, edges: Iterable[Fired]) -> Iterator[Fired]:
        """Yield *edges* of a shard by the numbers that rules have here, without those that are not its own."""
        for fired in edges:
            name = self._names[shard][fired.rule]
            followed = self._rules[name]
            if followed.anchor.by is None or shard in followed.anchor.shards(fired.key, self._count):  # it sees all
                if fired.firing:
                    followed.firing.add(fired.key)
                else:
                    followed.firing.discard(fired.key)
                yield Fired(name, fired.key, fired.firing, fired.at, fired.value)

    # -- hosts

    @property
    def where(self) -> dict[str, frozenset[int]]:
        """Which shards each host has."""
        return self._housing.where

    def grow(self) -> str:
        """Have one more host, and return its name: shards move there, between two samples and with all they know."""
        return self._housing.grow()

    def shrink(self, name: str) -> None:
        """Have one host less; raise ValueError if it is the only one, or there is none of that name."""
        self._housing.shrink(name)

    def losses(self) -> list[str]:
        """Return what is to be said of hosts that were lost since the last call, a line each."""
        return self._housing.losses()

    def shares(self, elapsed: int) -> dict[str, float]:
        """Return how much of a processor each host took since the last call, *elapsed* nanoseconds ago."""
        return self._housing.shares(elapsed)

    def close(self) -> None:
        """Give back all hosts. What was not saved is lost."""
        self._housing.close()

    def _do(self, tasks: Mapping[int, Sequence[Step]]) -> dict[int, Sequence[Any]]:
        """Have shards take steps, those that are missing too, and return the results."""
        for shard in tasks.keys() - self._names.keys():
            fresh = Engine(self._now, interval=self._interval, longest=self._longest).save()
            self._names[shard] = {}
            self._housing.open(shard, fresh)
        return self._housing.do(tasks)

    # -- snapshots

    def save(self) -> bytes:
        """Return all that it knows; it ends the batch. Edges that were not taken yet are part of it."""
        self._route_new()
        free = frozenset(self._free)
        table = [
            [self._count, self._interval, self._longest, self._now, self._next],
            self._known.packed,
            [
                None if number in free else [series.metric, self._known.place(series.endpoint)]
                for number, series in enumerate(self._series)
            ],
            [*self._newest.save(), [*self._intervals.items()]],
            [
                [name, arrays.arrays(followed.rule, Handling()), [[*key] for key in followed.firing]]
                for name, followed in self._rules.items()
            ],
            [self._packed(shard, kept) for shard, kept in self._housing.images().items()],
            [[each.rule, [*each.key], each.firing, each.at, each.value] for each in self._waiting],
        ]
        return image.packed(table, b"")

    def _packed(self, shard: int, kept: bytes) -> list[object]:
        seen = [(number, routes[shard]) for number, routes in enumerate(self._routes) if shard in routes]
        numbers, there = array("I", [number for number, _ in seen]), array("I", [known for _, known in seen])
        return [shard, kept, [*self._names[shard].items()], numbers.tobytes(), there.tobytes()]

    @classmethod
    def load(cls, snapshot: bytes, *, hosts: int = 1, make: Callable[[], EngineHost] = InProcess) -> Shards:
        """Return what :meth:`save` wrote, on any number of hosts; raise :exc:`.image.SnapshotError` when it is none."""
        table, _ = image.unpacked(snapshot)
        try:
            (count, interval, longest, now, following), *rest = cast("Any", table)
            made = cls(now, hosts=hosts, make=make, count=count, interval=interval, longest=longest)
            made._next = following
            try:
                made._restore(*rest)
            except BaseException:
                made.close()
                raise
        except (LookupError, TypeError, ValueError) as error:
            raise image.SnapshotError(f"the snapshot makes no sense to this version: {error}") from None
        return made

    def _restore(self, endpoints: Any, series: Any, newest: Any, rules: Any, shards: Any, waiting: Any) -> None:
        self._known = Places(endpoints)
        for number, named in enumerate(series):
            if named is None:
                self._free.append(number)
                self._series.append(_NOBODY)
            else:
                metric, place = named
                self._known.enter(metric, place, number)
                self._series.append(Series(metric, self._known.endpoints[int(place)]))
            self._routes.append({})
        values, times, intervals = newest
        self._intervals.update(intervals)
        self._newest.restore(values, times)
        for name, tree, firing in rules:
            rule = arrays.tree(tree)[0]
            self._rules[name] = _Followed(rule, Anchor.of(rule), firing={Endpoint(key) for key in firing})
            for leaf in leaves(rule.condition):
                self._readers.file(leaf.selector, name)
        for shard, kept, names, numbers, there in shards:
            self._names[shard] = dict(names)
            self._housing.open(shard, kept)
            for known, name in names:
                self._rules[name].at[shard] = known
            for number, known in zip(array("I", numbers), array("I", there), strict=True):
                self._routes[number][shard] = known
        self._waiting = [Fired(rule, Endpoint(key), fires, at, value) for rule, key, fires, at, value in waiting]
