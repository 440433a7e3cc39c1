"""What publishers may say, and what becomes of the rest."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Sequence

import pytest

from mbroker.alerts.engine import Engine
from mbroker.alerts.intake import Bounds, Intake
from mbroker.alerts.language import Subscription
from mbroker.alerts.selector import Endpoint, Series
from mchannel.agents.publisher import Publisher
from mchannel.samples import MOST_SAMPLES, MOST_SERIES, Declared, Named, Samples

NOW = 1_700_000_000_000
Names = dict[Series, int]


@pytest.fixture
def names() -> Names:
    """The engine's numbers: from 100, in the order in which series are named."""
    return {}


@pytest.fixture
def paces() -> dict[int, int | None]:
    """The intervals, by the engine's numbers."""
    return {}


@pytest.fixture
def made(names: Names, paces: dict[int, int | None]) -> Callable[..., Intake]:
    def number(series: Series) -> int:
        return names.setdefault(series, 100 + len(names))

    def make(groups: dict[str, Sequence[str]] | None = None, **bounds: float) -> Intake:
        own = Bounds(**bounds)  # type: ignore[arg-type]
        return Intake(("node1",), number, paces.__setitem__, groups=groups, bounds=own)

    return make


def declared(*series: Named, run: int = 1, first: int = 0) -> Declared:
    return Declared(run, first, series)


def samples(*rows: tuple[int, float, int], run: int = 1) -> Samples:
    numbers, values, times = zip(*rows, strict=True) if rows else ((), (), ())
    return Samples(run, array("I", numbers), array("d", values), array("q", times))


def many(count: int) -> Declared:
    return declared(*(Named(f"metric{n}") for n in range(count)))


def passed(intake: Intake, source: str, said: Samples, now: int = NOW) -> list[tuple[int, float, int]]:
    columns = intake.columns(source, said, now)
    return list(zip(columns.numbers, columns.values, columns.times, strict=True))


def as_engine(rows: list[tuple[int, float, int]]) -> list[tuple[int, float, int]]:
    return [(100 + number, value, at) for number, value, at in rows]


def complaints(intake: Intake, now: int = NOW) -> list[str]:
    return list(intake.complaints(now))


CPU = Named("cpu.busy", (("cpu", "0"),))


def test_numbers_of_the_publisher_become_those_of_the_engine(made: Callable[..., Intake]) -> None:
    intake = made()
    intake.declare("web1", declared(CPU, Named("load")), NOW)
    assert passed(intake, "web1", samples((1, 0.5, NOW), (0, 0.9, NOW))) == [(101, 0.5, NOW), (100, 0.9, NOW)]
    assert (intake.refused, intake.asks_again("web1", NOW)) == (0, False)


def test_a_guest_is_known_by_its_channel(made: Callable[..., Intake], names: Names) -> None:
    made().declare("web1", declared(CPU), NOW)
    assert list(names) == [Series("cpu.busy", Endpoint({("cpu", "0"), ("domain", "web1")}))]


def test_a_host_is_known_by_its_channel_and_speaks_of_its_domains(made: Callable[..., Intake], names: Names) -> None:
    made().declare("node1", declared(CPU, Named("domain.cpu", (("domain", "web1"),))), NOW)
    assert [series.endpoint for series in names] == [
        {("cpu", "0"), ("host", "node1")},
        {("domain", "web1"), ("host", "node1")},
    ]


@pytest.mark.parametrize("label", [("host", "node1"), ("host", "node2"), ("domain", "web2"), ("group", "all")])
def test_a_guest_that_speaks_of_others_is_refused_and_told_of(
    made: Callable[..., Intake], names: Names, label: tuple[str, str]
) -> None:
    intake = made()
    intake.declare("web1", declared(Named("load", (label,)), CPU), NOW)
    assert passed(intake, "web1", samples((0, 1.0, NOW), (1, 2.0, NOW))) == [(100, 2.0, NOW)]
    assert [series.metric for series in names] == ["cpu.busy"]
    assert "web1: refused 1 series named after another host, domain or group" in complaints(intake)
    assert not intake.asks_again("web1", NOW), "it would only say the same again"


def test_a_host_that_speaks_of_another_host_is_refused(made: Callable[..., Intake], names: Names) -> None:
    made().declare("node1", declared(Named("load", (("host", "node2"),))), NOW)
    assert not names


def test_groups_are_what_the_operator_says(made: Callable[..., Intake], names: Names) -> None:
    intake = made(groups={"db": ["web1", "web2"], "all": ["web1", "node1"]})
    intake.declare("web1", declared(Named("load")), NOW)
    intake.declare("node1", declared(Named("domain.cpu", (("domain", "web2"),))), NOW)
    assert [series.endpoint for series in names] == [
        {("domain", "web1"), ("group", "db"), ("group", "all")},
        {("domain", "web2"), ("host", "node1"), ("group", "db")},
    ]


def test_an_undeclared_number_is_dropped_and_asked_for_once_in_a_while(made: Callable[..., Intake]) -> None:
    intake = made()
    intake.declare("web1", declared(CPU), NOW)
    assert passed(intake, "web1", samples((0, 1.0, NOW), (7, 2.0, NOW))) == [(100, 1.0, NOW)]
    assert [intake.asks_again("web1", NOW), intake.asks_again("web1", NOW)] == [True, False]
    assert passed(intake, "web1", samples((7, 2.0, NOW))) == []
    assert [intake.asks_again("web1", NOW + 4999), intake.asks_again("web1", NOW + 5000)] == [False, True]


def test_another_life_of_the_publisher_has_other_numbers(made: Callable[..., Intake]) -> None:
    intake = made()
    intake.declare("web1", declared(CPU, Named("load")), NOW)
    intake.declare("web1", declared(Named("load"), run=2), NOW)
    assert passed(intake, "web1", samples((0, 1.0, NOW), run=2)) == [(101, 1.0, NOW)]
    assert passed(intake, "web1", samples((0, 1.0, NOW), run=1)) == [(100, 1.0, NOW)]


def test_what_is_declared_again_in_another_way_is_that_from_then_on(made: Callable[..., Intake]) -> None:
    intake = made()
    intake.declare("web1", declared(CPU), NOW)
    intake.declare("web1", declared(Named("load")), NOW)
    assert passed(intake, "web1", samples((0, 1.0, NOW))) == [(101, 1.0, NOW)]


@pytest.mark.parametrize("wrong", [-3_600_001, 60_001])
@pytest.mark.parametrize("wrong_first", [True, False])
def test_of_samples_that_come_together_the_timely_ones_are_let_through(
    made: Callable[..., Intake], wrong: int, wrong_first: bool
) -> None:
    intake = made(ahead=60, behind=3600)
    intake.declare("web1", many(2), NOW)
    rows = [(0, 1.0, NOW + wrong), (1, 2.0, NOW)]
    assert passed(intake, "web1", samples(*(rows if wrong_first else reversed(rows)))) == [(101, 2.0, NOW)]


def test_times_out_of_range_are_dropped_and_the_rest_passes(made: Callable[..., Intake]) -> None:
    intake = made(ahead=60, behind=3600)
    intake.declare("web1", declared(CPU), NOW)
    rows = [(0, 1.0, NOW + 60_001), (0, 2.0, NOW), (0, 3.0, NOW - 3_600_000), (0, 4.0, NOW - 3_600_001)]
    assert passed(intake, "web1", samples(*rows)) == as_engine(rows[1:3])
    assert passed(intake, "web1", samples((0, 1.0, NOW + 60_000))) == as_engine([(0, 1.0, NOW)])
    assert passed(intake, "web1", samples((0, 5.0, 1 << 62), (0, 6.0, -(1 << 62)))) == []
    told = complaints(intake)
    assert "web1: refused 2 samples from the future; is its clock right?" in told
    assert "web1: refused 2 samples that are too old" in told


def test_nothing_is_after_the_broker_s_clock_and_what_came_with_it_keeps_its_distance(
    made: Callable[..., Intake],
) -> None:
    intake = made()
    intake.declare("web1", declared(CPU, Named("load")), NOW)
    said = samples((0, 1.0, NOW + 2000), (1, 2.0, NOW - 500), (0, 3.0, NOW + 3000), (0, 4.0, NOW - 1000))
    rows = [(0, 1.0, NOW - 1000), (1, 2.0, NOW - 500), (0, 3.0, NOW), (0, 4.0, NOW - 4000)]
    assert passed(intake, "web1", said) == as_engine(rows)
    assert intake.refused == 0


def test_a_clock_ahead_by_more_than_a_second_is_told_of(made: Callable[..., Intake]) -> None:
    intake = made()
    intake.declare("web1", declared(CPU), NOW)
    passed(intake, "web1", samples((0, 1.0, NOW + 1000), (0, 1.0, NOW)))
    assert complaints(intake) == []
    passed(intake, "web1", samples((0, 1.0, NOW + 1000), (0, 1.0, NOW + 1001)))
    assert complaints(intake) == ["web1: took 1 samples from the future as of now; is its clock right?"]


def test_samples_above_the_rate_are_dropped(made: Callable[..., Intake]) -> None:
    intake = made(samples=10)
    intake.declare("web1", declared(CPU), NOW)
    rows = [(0, float(n), NOW - n) for n in range(155)]
    assert passed(intake, "web1", samples(*rows)) == as_engine(rows[:150])
    assert passed(intake, "web1", samples(*rows), NOW + 500) == as_engine(rows[:5])


def test_all_that_a_publisher_kept_while_the_broker_was_away_may_come_at_once(made: Callable[..., Intake]) -> None:
    intake, backlog = made(), Publisher().most
    intake.declare("web1", declared(CPU), NOW)
    for first in range(0, backlog, MOST_SAMPLES):
        some = samples(*[(0, 1.0, NOW)] * min(MOST_SAMPLES, backlog - first))
        assert len(intake.columns("web1", some, NOW)) == len(some)


def test_a_guest_whose_clock_is_ahead_does_not_end_the_patience_of_a_rule_of_others() -> None:
    engine = Engine(NOW)
    engine.add(Subscription.parse("all(load) > 5 for 30s").rule)
    intake = Intake((), engine.number, engine.pace)
    for source in ("web1", "web2"):
        intake.declare(source, declared(Named("load")), NOW)
    begun: list[int] = []
    for now in range(NOW, NOW + 60_000, 1000):
        for source, ahead in (("web1", 0), ("web2", 59_000)):
            came = intake.columns(source, samples((0, 9.0, now + ahead)), now)
            begun += [(now - NOW) // 1000 for _ in engine.push(now, came.numbers, came.values, came.times)]
    assert begun == [30]


def test_series_above_the_limit_are_dropped_for_good(made: Callable[..., Intake], names: Names) -> None:
    intake = made(series=3)
    intake.declare("web1", many(5), NOW)
    rows = [(n, 1.0, NOW) for n in range(5)]
    assert len(passed(intake, "web1", samples(*rows))) == len(names) == 3
    assert not intake.asks_again("web1", NOW)
    assert "web1: refused 2 series above the limit of series" in complaints(intake)


def test_a_new_life_above_the_limit_is_not_asked_for_again(made: Callable[..., Intake]) -> None:
    intake = made(series=2)
    intake.declare("web1", many(2), NOW)
    intake.declare("web1", declared(CPU, run=2), NOW)
    assert passed(intake, "web1", samples((0, 1.0, NOW), run=2)) == []
    assert not intake.asks_again("web1", NOW)


def test_a_limit_of_series_cannot_be_passed_by_new_lives(made: Callable[..., Intake], names: Names) -> None:
    intake = made(series=3)
    for run in range(100):
        intake.declare("web1", declared(Named(f"a{run}"), Named(f"b{run}"), run=run), NOW)
    assert len(names) == 3


def test_new_series_above_their_rate_are_asked_for_later(made: Callable[..., Intake], names: Names) -> None:
    intake = made(new_series=10)
    intake.declare("web1", many(150), NOW)
    assert len(names) == 100
    assert passed(intake, "web1", samples((120, 1.0, NOW))) == []
    assert intake.asks_again("web1", NOW)
    intake.declare("web1", many(150), NOW + 5000)
    assert len(names) == 150


def test_a_hundred_thousand_new_series_a_second_leave_others_unaffected(
    made: Callable[..., Intake], names: Names
) -> None:
    intake = made()
    for run in range(25):
        series = tuple(Named(f"metric{run}", (("n", str(n)),)) for n in range(4000))
        intake.declare("web1", Declared(run, 0, series), NOW + 40 * run)
    assert len(names) <= Bounds().series
    intake.declare("web2", declared(CPU), NOW)
    assert len(passed(intake, "web2", samples((0, 1.0, NOW)))) == 1
    assert {line.partition(":")[0] for line in complaints(intake, NOW + 1000)} == {"web1"}


def test_numbers_far_above_the_limit_take_no_memory(made: Callable[..., Intake]) -> None:
    intake = made(series=10)
    intake.declare("web1", declared(CPU, first=MOST_SERIES - 1), NOW)
    assert passed(intake, "web1", samples((MOST_SERIES - 1, 1.0, NOW), ((1 << 32) - 1, 1.0, NOW))) == []
    assert not intake.asks_again("web1", NOW)
    (origin,) = intake._sources.values()  # pyright: ignore[reportPrivateUsage]
    assert max(map(len, origin.runs.values())) <= 10


def test_what_comes_before_its_declaration_waits_for_it(made: Callable[..., Intake]) -> None:
    intake = made()
    assert passed(intake, "web1", samples((0, 1.0, NOW), (1, 2.0, NOW))) == []
    assert passed(intake, "web1", samples((0, 3.0, NOW + 1))) == []
    assert intake.asks_again("web1", NOW)
    assert intake.declare("web1", declared(Named("load"), run=2), NOW) == []
    waited = intake.declare("web1", declared(CPU), NOW)
    assert [list(columns.values) for columns in waited] == [[1.0], [3.0]]
    assert intake.declare("web1", declared(CPU), NOW) == []
    assert intake.refused == 1


def test_what_waits_for_a_declaration_that_never_comes_is_bounded(made: Callable[..., Intake]) -> None:
    intake = made()
    batch = samples(*[(0, 1.0, NOW)] * 10_000)
    for _ in range(12):
        assert not intake.columns("web1", batch, NOW)
    assert intake.refused == 20_000
    assert sum(map(len, intake.declare("web1", declared(CPU), NOW))) == 100_000
    for _ in range(1000):
        intake.columns("web1", samples(run=7), NOW)
    assert len(intake.declare("web1", declared(CPU, run=7), NOW)) == 256


def test_lives_of_a_publisher_are_forgotten_but_for_the_last(made: Callable[..., Intake]) -> None:
    intake = made()
    for run in range(1000):
        intake.declare("web1", declared(CPU, run=run), NOW)
    (origin,) = intake._sources.values()  # pyright: ignore[reportPrivateUsage]
    assert len(origin.runs) <= 8


def test_refusals_are_told_once_a_minute_and_counted(made: Callable[..., Intake]) -> None:
    intake = made()
    intake.declare("web1", declared(run=1), NOW)

    def refuse(count: int) -> None:
        for _ in range(count):
            passed(intake, "web1", samples((0, 1.0, NOW)))

    assert complaints(intake) == []
    refuse(1)
    assert complaints(intake, NOW + 1) == ["web1: refused 1 samples of series that were not declared"]
    refuse(4)
    assert complaints(intake, NOW + 60_000) == []
    assert complaints(intake, NOW + 60_001) == ["web1: refused 4 samples of series that were not declared"]
    assert complaints(intake, NOW + 180_000) == []
    assert intake.refused == 5


def test_no_samples_are_no_samples(made: Callable[..., Intake]) -> None:
    assert passed(made(), "web1", samples()) == []


def test_a_clock_that_runs_backwards_gives_nothing_away(made: Callable[..., Intake]) -> None:
    intake = made(samples=10)
    intake.declare("web1", declared(CPU), NOW)
    passed(intake, "web1", samples(*[(0, 1.0, NOW)] * 150))
    for now in itertools.chain(range(NOW, NOW - 5000, -1000), range(NOW - 5000, NOW, 1000)):
        passed(intake, "web1", samples(*[(0, 1.0, now)] * 10), now)
    assert intake.refused == 100


def test_a_clock_that_was_set_back_takes_nothing_away(made: Callable[..., Intake]) -> None:
    intake, before = made(samples=10), NOW - 3_600_000
    intake.declare("web1", declared(CPU), NOW)
    assert len(passed(intake, "web1", samples(*[(0, 1.0, NOW)] * 140))) == 140
    assert len(passed(intake, "web1", samples(*[(0, 1.0, before)] * 20), before)) == 10


def test_the_engine_is_told_how_often_a_series_is_read_and_when_that_changes(
    made: Callable[..., Intake], paces: dict[int, int | None]
) -> None:
    intake, load, cpu = made(), Named("load"), Named("cpu")
    intake.declare("web1", Declared(1, 0, (load,), 60_000), NOW)
    intake.declare("web1", declared(cpu, first=1), NOW)
    assert paces == {100: 60_000, 101: None}
    intake.declare("web1", Declared(1, 0, (load, cpu), 30_000), NOW)
    assert paces == {100: 30_000, 101: 30_000}
    intake.declare("web1", declared(load, run=2), NOW)  # such as an agent of an older version
    assert paces == {100: None, 101: 30_000}


def test_nobody_changes_how_often_series_of_others_are_read(
    made: Callable[..., Intake], paces: dict[int, int | None]
) -> None:
    intake = made()
    intake.declare("web1", Declared(1, 0, (Named("load"),), 10_000), NOW)
    intake.declare("web2", Declared(1, 0, (Named("load", (("domain", "web1"),)), Named("load")), 60_000), NOW)
    assert paces == {100: 10_000, 101: 60_000}


def test_what_is_forgotten_counts_no_more_and_is_asked_for_when_it_comes_back(
    made: Callable[..., Intake], names: Names
) -> None:
    intake = made(series=2)
    intake.declare("web1", many(2), NOW)
    intake.declare("web2", many(1), NOW)
    intake.forget([101])
    said = samples((0, 1.0, NOW), (1, 2.0, NOW))
    assert passed(intake, "web1", said) == [(100, 1.0, NOW)]
    assert passed(intake, "web2", samples((0, 1.0, NOW))) == [(102, 1.0, NOW)]
    assert (intake.asks_again("web1", NOW), intake.asks_again("web2", NOW)) == (True, False)
    names.clear()
    names[Series("another", Endpoint())] = 101
    intake.declare("web1", declared(Named("metric0"), Named("new")), NOW)
    assert passed(intake, "web1", said) == [(100, 1.0, NOW), (101, 2.0, NOW)]
    assert complaints(intake, NOW + 60_000) == ["web1: refused 1 samples of series that were not declared"]
