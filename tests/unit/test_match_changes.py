"""Rules that come and go while samples arrive: each says what the reference says that knows what is kept."""

from __future__ import annotations

import random
from collections import Counter

import attrs
import pytest

from mbroker.alerts.engine import Engine
from mbroker.alerts.language import Subscription
from mbroker.alerts.reference import Change, History, Kept, Reference, kept
from mbroker.alerts.sample import Sample
from mbroker.alerts.selector import Endpoint, Series
from mbroker.alerts.tree import Comparison, Rule, Spatial, Temporal, leaves
from tests.unit.test_match_engine import RULES, START, by_key, stream


def windows(rule: Rule) -> set[tuple[str, Kept]]:
    """Return what the rule needs of each series of which metric."""
    found: set[tuple[str, Kept]] = set()
    for leaf in leaves(rule.condition):
        if isinstance(leaf, Comparison):
            expression = leaf.expression.member if isinstance(leaf.expression, Spatial) else leaf.expression
            if isinstance(expression, Temporal):
                found.add((leaf.selector.metric, kept(expression)))
    return found


@attrs.define
class World:
    """An engine, a reference for each of its rules, and what is kept for all of them."""

    engine: Engine = attrs.field(factory=lambda: Engine(START))
    now: int = START
    references: dict[int, tuple[Rule, Reference]] = attrs.field(factory=dict[int, tuple[Rule, Reference]])
    known: dict[Series, History] = attrs.field(factory=dict[Series, History])
    users: Counter[tuple[str, Kept]] = attrs.field(factory=Counter[tuple[str, Kept]])

    def add(self, text: str) -> None:
        rule = Subscription.parse(text).rule
        for metric, window in windows(rule):
            if not self.users[metric, window]:
                for series, history in self.known.items():
                    if series.metric == metric:
                        history.begins[window] = len(history.samples)
            self.users[metric, window] += 1
        self.references[self.engine.add(rule)] = rule, Reference(rule, self.now, known=self.known)

    def whole(self, series: Series) -> dict[Kept, int]:
        """Return the windows of a new series that hold it from its first sample on."""
        return {window: 0 for (metric, window), users in self.users.items() if users and metric == series.metric}

    def remove(self, number: int) -> None:
        rule, _ = self.references.pop(number)
        self.engine.remove(number)
        for metric, window in windows(rule):
            self.users[metric, window] -= 1

    def batch(self, now: int, samples: list[Sample]) -> None:
        self.now = now
        wanted = {number: by_key(reference.batch(now, samples)) for number, (_, reference) in self.references.items()}
        edges: dict[int, list[Change]] = {number: [] for number in self.references}
        for fired in self.engine.batch(now, samples):
            edges[fired.rule].append(Change(fired.key, fired.firing, fired.at))
        for number, (rule, _) in self.references.items():
            assert by_key(edges[number]) == wanted[number], (rule, now, samples)
        for sample in samples:
            history = self.known.get(sample.series)
            late = history is not None and history.samples and sample.at <= history.samples[-1][0]
            if sample.value == sample.value and not late:
                history = self.known.setdefault(sample.series, History(now, begins=self.whole(sample.series)))
                history.heard = now
                history.samples.append((sample.at, sample.value))


@pytest.mark.parametrize("seed", range(24))
def test_a_rule_that_is_added_later_knows_what_others_keep(seed: int) -> None:
    dice = random.Random(seed)
    world = World()
    for now, samples in stream(dice, 80):
        if dice.random() < 0.5:
            world.add(dice.choice(RULES))
        if len(world.references) > 6 or (world.references and dice.random() < 0.2):
            world.remove(dice.choice([*world.references]))
        if dice.random() < 0.1:
            world.engine = Engine.load(world.engine.save())
        world.batch(now, samples)


def test_a_window_that_others_keep_is_known_at_once_and_another_begins_empty() -> None:
    world = World()
    series = Series("load", Endpoint({("host", "h1")}))
    world.add("mean(load[3]) > 100")
    for at in range(1, 4):
        world.batch(START + at * 1000, [Sample(series, START + at * 1000, 9.0)])
    shared = world.engine.add(Subscription.parse("max(load[3]) > 5").rule)
    alone = world.engine.add(Subscription.parse("max(load[4]) > 5").rule)
    assert [fired.rule for fired in world.engine.tick(START + 3001)] == [shared]
    edges = [world.engine.batch(START + at * 1000, [Sample(series, START + at * 1000, 9.0)]) for at in range(4, 8)]
    assert [[fired.rule for fired in batch] for batch in edges] == [[], [], [], [alone]]


def test_what_fell_silent_before_a_rule_was_added_does_not_fire_it() -> None:
    engine = Engine(START, interval=1000)
    series = Series("load", Endpoint({("host", "h1")}))
    engine.batch(START, [Sample(series, START, 9.0)])
    engine.tick(START + 3000)
    rule = engine.add(Subscription.parse("load > 5").rule)
    assert engine.tick(START + 3001) == []
    assert [(fired.rule, fired.at) for fired in engine.batch(START + 4000, [Sample(series, START + 4000, 8.0)])] == [
        (rule, START + 4000)
    ]


def test_waiting_goes_on_when_a_series_appears_that_a_rule_missed() -> None:
    engine = Engine(START)
    load, temp = (Series(metric, Endpoint({("host", "h1")})) for metric in ("load", "temp"))
    engine.add(Subscription.parse("load > 5 or temp > 5 for 3s").rule)
    for second in (0, 1, 2):
        assert engine.batch(START + second * 1000, [Sample(load, START + second * 1000, 9.0)]) == []
    assert engine.batch(START + 2500, [Sample(temp, START + 2500, 1.0)]) == []
    edges = engine.batch(START + 3000, [Sample(load, START + 3000, 9.0)])
    assert [(edge.firing, edge.at) for edge in edges] == [(True, START + 3000)]
