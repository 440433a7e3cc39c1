"""The rolling history: what was appended is read again, in time order, for a while and whatever dies."""

from __future__ import annotations

import math
import os
import stat
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbroker.alerts.history import History
from mbroker.alerts.sample import Sample
from mbroker.alerts.segment import Segment
from mbroker.alerts.selector import Label, Relation, Selector, Series
from mchannel.errors import JournalError

SERIES = [Series(metric, frozenset({("host", host)})) for metric in ("load", "fan") for host in ("web1", "web2")]
LOAD = Selector("load")
FAN = Selector("fan")
HOUR = 3_600_000
Row: TypeAlias = tuple[int, float, int]
"""A number, a value, a time."""


def put(history: History, rows: Sequence[Row]) -> None:
    """Append rows of number, value and time."""
    numbers, values, times = zip(*rows, strict=True)
    history.append(array("I", numbers), array("d", values), array("q", times))


def seen(history: History, wanted: Selector = LOAD, begin: int = 0, end: int = 1 << 50) -> list[tuple[str, int, float]]:
    return [(dict(s.series.endpoint)["host"], s.at, s.value) for s in history.read(wanted, begin, end)]


def opened(folder: Path, size: int = 1 << 30) -> History:
    history = History(folder, size=size)
    for number, series in enumerate(SERIES):
        history.name(number, series)
    return history


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "history"


@pytest.fixture
def history(folder: Path) -> Iterator[History]:
    with opened(folder) as history:
        yield history


ROWS = [(0, 1.5, 1000), (1, 2.5, 1000), (2, 900.0, 1000), (0, 1.25, 2000), (1, math.pi, 2001), (2, 901.0, 2000)]


@pytest.mark.parametrize("sealed", [False, True])
def test_what_was_appended_is_read_in_time_order(history: History, sealed: bool) -> None:
    put(history, ROWS)
    if sealed:
        history.seal(2001)
    assert seen(history) == [("web1", 1000, 1.5), ("web2", 1000, 2.5), ("web1", 2000, 1.25), ("web2", 2001, math.pi)]
    assert seen(history, Selector("load", (Label("host", Relation.IS, "web2"),))) == [
        ("web2", 1000, 2.5),
        ("web2", 2001, math.pi),
    ]
    assert seen(history, FAN) == [("web1", 1000, 900.0), ("web1", 2000, 901.0)]


@pytest.mark.parametrize("sealed", [False, True])
def test_a_range_holds_its_begin_and_not_its_end(history: History, sealed: bool) -> None:
    put(history, ROWS)
    if sealed:
        history.seal(2001)
    assert [at for _, at, _ in seen(history, LOAD, 1000, 2000)] == [1000, 1000]
    assert [at for _, at, _ in seen(history, LOAD, 1001, 2001)] == [2000]


row = st.tuples(st.integers(0, 3), st.floats(allow_nan=False) | st.integers(0, 9).map(float), st.integers(0, 60))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(row, min_size=1, max_size=8) | st.just("seal") | st.just("restart"), max_size=8))
def test_it_holds_what_a_list_would(tmp_path_factory: pytest.TempPathFactory, steps: list[list[Row] | str]) -> None:
    folder = tmp_path_factory.mktemp("history")
    history = opened(folder)
    expected: list[Sample] = []
    for step in steps:
        if isinstance(step, list):
            put(history, step)
            expected += [Sample(SERIES[number], at, value) for number, value, at in step]
        elif step == "seal":
            history.seal(60)
        else:
            history.close()
            history = opened(folder)
    with history:
        found = list(history.read(LOAD, 10, 50))
        columns = [
            Sample(series, at, value)
            for series, times, values in history.columns(LOAD, 10, 50)
            for at, value in zip(times, values, strict=True)
        ]
    wanted = [sample for sample in expected if sample.series.metric == "load" and 10 <= sample.at < 50]
    assert [sample.at for sample in found] == sorted(sample.at for sample in wanted)
    assert sorted(map(str, found)) == sorted(map(str, wanted))
    assert sorted(map(str, columns)) == sorted(map(str, wanted))
    assert history.problem == ""


def test_values_that_are_no_numbers_are_kept_too(history: History) -> None:
    put(history, [(0, math.inf, 1), (0, -math.inf, 2), (0, -0.0, 3)])
    history.seal(3)
    assert [str(value) for _, _, value in seen(history)] == ["inf", "-inf", "-0.0"]


def test_a_number_that_was_not_named_is_refused(history: History) -> None:
    with pytest.raises(KeyError):
        put(history, [(9, 1.0, 1)])


def test_numbers_may_mean_something_else_after_a_restart(folder: Path) -> None:
    with opened(folder) as history:
        put(history, [(0, 1.0, 1)])
    with History(folder) as history:
        history.name(0, SERIES[3])
        history.name(7, SERIES[0])
        put(history, [(0, 2.0, 2), (7, 3.0, 3)])
        assert seen(history) == [("web1", 1, 1.0), ("web1", 3, 3.0)]
        assert seen(history, FAN) == [("web2", 2, 2.0)]


def test_it_is_due_when_it_holds_an_hour(history: History) -> None:
    put(history, [(0, 1.0, 0), (0, 2.0, HOUR - 1)])
    assert not history.is_due
    put(history, [(0, 3.0, HOUR)])
    assert history.is_due
    history.seal(HOUR)
    assert not history.is_due


def test_samples_are_found_while_they_are_being_sealed(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    put(history, ROWS)
    during: list[object] = []

    def write(*_: object) -> Segment:
        put(history, [(0, 9.0, 3000)])
        during.extend(seen(history, LOAD))
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Segment, "write", write)
    history.seal(3000)
    assert len(during) == 5
    assert len(seen(history)) == 5
    assert "Input/output error" in history.problem
    monkeypatch.undo()
    history.seal(3000)
    assert len(seen(history)) == 5
    assert history.problem == ""


def test_no_sample_is_found_twice_nor_missed_between_two_steps_of_sealing(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(history, ROWS)
    found: list[int] = []

    class Lock:
        """Looks what another thread would see whenever it could."""

        looking = False

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            if not self.looking:
                self.looking = True
                found.append(len(seen(history)))
                self.looking = False

    monkeypatch.setattr(history, "_lock", Lock())
    history.seal(2001)
    assert set(found) == {4}
    assert len(found) > 3


# -- what is forgotten


def test_what_is_older_than_the_span_is_forgotten(folder: Path) -> None:
    with opened(folder) as history:
        for hour in range(30):
            put(history, [(0, float(hour), hour * HOUR)])
            history.seal(hour * HOUR)
        assert [value for *_, value in seen(history)] == [float(hour) for hour in range(5, 30)]
        assert len(list(folder.glob("*.sealed"))) == 25


def test_the_oldest_is_forgotten_when_all_is_too_large(folder: Path) -> None:
    with opened(folder, size=20_000) as history:
        for hour in range(20):
            put(history, [(0, math.sin(hour * 1000 + at), hour * HOUR + at) for at in range(500)])
            history.seal(hour * HOUR)
        assert history.size <= 20_000
        assert sum(file.stat().st_size for file in folder.iterdir()) == history.size
        hours = [at // HOUR for _, at, _ in seen(history)]
        assert hours == [hour for hour in range(min(hours), 20) for _ in range(500)]
        assert 0 < min(hours) < 19


def test_who_takes_most_of_it_loses_the_oldest_before_others_do(folder: Path) -> None:
    with opened(folder, size=40_000) as history:
        for hour in range(20):
            flood = [(0, math.sin(hour * 1000 + at), hour * HOUR + at) for at in range(500)]
            put(history, [*flood, (1, float(hour), hour * HOUR)])
            history.seal(hour * HOUR)
        assert history.size <= 40_000
        assert [value for host, _, value in seen(history) if host == "web2"] == list(range(20))
        hours = [at // HOUR for host, at, _ in seen(history) if host == "web1"]
        assert hours == [hour for hour in range(min(hours), 20) for _ in range(500)]
        assert 0 < min(hours) < 18
        assert history.problem.startswith("the history of web1 is cut short, for it takes most of")
        before = seen(history)
    with opened(folder) as history:
        assert seen(history) == before


def test_of_sources_that_take_as_much_the_oldest_is_forgotten_together(folder: Path) -> None:
    with opened(folder, size=40_000) as history:
        for hour in range(20):
            rows = [(n, math.sin(n + hour * 1000 + at), hour * HOUR + at) for at in range(250) for n in (0, 1)]
            put(history, rows)
            history.seal(hour * HOUR)
        assert history.size <= 40_000
        first, second = ({at // HOUR for host, at, _ in seen(history) if host == name} for name in ("web1", "web2"))
        assert first == second
        assert 0 < min(first) < 19
        assert history.problem == ""


def test_who_found_a_file_before_it_lost_a_source_reads_what_is_left(folder: Path) -> None:
    with opened(folder) as history:
        put(history, ROWS)
        history.seal(3000)
        (path,) = folder.glob("*.sealed")
        before = Segment.open(path)
        after = before.without({1, 2})
        assert after is not None
        assert {number for _, number, _ in before.rows(range(1, 5), 0, 1 << 50)} == {3}
        assert (after.size, after.samples) == (path.stat().st_size, 2)
        assert after.without(after.numbers()) is None


def test_times_that_series_share_weigh_once(tmp_path: Path) -> None:
    times = array("q", (at * at for at in range(500)))
    values = array("d", map(math.sin, range(500)))
    segment = Segment.write(tmp_path / "sealed", [(1, times, values), (2, times, values)])
    weights = segment.weights()
    assert weights[1] > weights[2] > 0
    assert 0.8 * segment.size < sum(weights.values()) < segment.size


def test_a_file_that_cannot_be_written_without_a_source_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with opened(folder, size=40_000) as history:
        monkeypatch.setattr(Segment, "without", full)
        for hour in range(20):
            flood = [(0, math.sin(hour * 1000 + at), hour * HOUR + at) for at in range(500)]
            put(history, [*flood, (1, float(hour), hour * HOUR)])
            history.seal(hour * HOUR)
        assert history.size <= 40_000
        assert min(value for host, _, value in seen(history) if host == "web2") > 0


def test_names_of_series_that_are_gone_are_forgotten(folder: Path) -> None:
    sizes: list[int] = []
    with History(folder) as history:
        for day in range(40):
            for number in range(100):
                history.name(number, Series("load", frozenset({("domain", f"{day}-{number}")})))
            put(history, [(number, 1.0, day * 24 * HOUR) for number in range(100)])
            history.seal(day * 24 * HOUR)
            sizes.append((folder / "names").stat().st_size)
        assert max(sizes) < 40_000 < 40 * sizes[0]
        assert len(list(history.read(LOAD, 0, 1 << 50))) == 200
    with History(folder) as history:
        assert len(list(history.read(LOAD, 0, 1 << 50))) == 200


# -- the files


def test_how_often_series_are_read_outlives_a_restart(folder: Path) -> None:
    with opened(folder) as history:
        history.pace(2, 60_000)
        history.pace(0, None)
        put(history, ROWS)
    with opened(folder) as history:
        assert history.intervals(FAN) == {SERIES[2]: 60_000}
        assert history.intervals(LOAD) == {}


def test_an_interval_that_changes_often_takes_room_once(folder: Path) -> None:
    with opened(folder) as history:
        put(history, ROWS)
        size = history.size
        for interval in range(1000, 2000):
            history.pace(2, interval)
        put(history, [(2, 902.0, 3000)])
        assert history.size < size + 100
        history.seal(3000)
    with opened(folder) as history:
        assert history.intervals(FAN) == {SERIES[2]: 1999}


def test_an_interval_that_is_taken_back_is_no_more(folder: Path) -> None:
    with opened(folder) as history:
        history.pace(2, 60_000)
        put(history, ROWS)
        history.pace(2, None)
        history.seal(3000)
    with opened(folder) as history:
        assert history.intervals(FAN) == {}


def test_only_its_owner_can_read_it(history: History, folder: Path) -> None:
    put(history, ROWS)
    history.seal(2001)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


def test_it_belongs_to_one_process(history: History, folder: Path) -> None:
    put(history, ROWS)
    with pytest.raises(JournalError, match="is open in another process"):
        History(folder)
    assert len(seen(history)) == 4


def test_a_torn_tail_costs_its_last_samples_only(folder: Path) -> None:
    with opened(folder) as history:
        put(history, ROWS)
        put(history, [(0, 9.0, 3000)])
    (live,) = folder.glob("*.live")
    whole = live.read_bytes()
    for torn in range(len(whole) - 43, len(whole)):
        live.write_bytes(whole[:torn])
        with opened(folder) as history:
            assert len(seen(history)) == 4
            assert history.problem == ""
        live.write_bytes(whole)


def test_a_kill_between_sealing_and_forgetting_the_journal_doubles_nothing(folder: Path) -> None:
    with opened(folder) as history:
        put(history, ROWS)
        (live,) = folder.glob("*.live")
        before = live.read_bytes()
        history.seal(2001)
    live.write_bytes(before)
    with opened(folder) as history:
        assert len(seen(history)) == 4
        assert not live.exists()


def test_what_was_not_finished_is_removed(folder: Path) -> None:
    with opened(folder) as history:
        put(history, ROWS)
    (live,) = folder.glob("*.live")
    spare = live.with_suffix(".sealed.new")
    spare.write_bytes(b"half")
    with opened(folder) as history:
        assert len(seen(history)) == 4
        assert not spare.exists()


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_damaged_file_never_raises_and_is_said(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("history")
    with opened(folder) as history:
        put(history, [(number, float(at % 7), at * 1000) for at in range(50) for number in range(4)])
        history.seal(0)
        whole = seen(history)
    (sealed,) = folder.glob("*.sealed")
    content = bytearray(sealed.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    sealed.write_bytes(content)
    with opened(folder) as history:
        found = seen(history)
        assert found == whole or str(sealed) in history.problem
        columns = sum(len(times) for _, times, _ in history.columns(LOAD, 0, 1 << 50))
        assert columns == len(whole) or str(sealed) in history.problem


def test_names_that_cannot_be_trusted_are_refused_in_one_line(folder: Path) -> None:
    for number in range(2):
        with History(folder) as history:
            history.name(0, SERIES[number])
            put(history, [(0, 1.0, number)])
    names = folder / "names"
    content = bytearray(names.read_bytes())
    content[70] ^= 1
    names.write_bytes(content)
    with pytest.raises(JournalError, match=r"^journal .*names is damaged at offset \d+.*move it away$"):
        History(folder)


def test_files_of_names_that_were_moved_away_are_removed(folder: Path) -> None:
    with opened(folder) as history:
        put(history, ROWS)
        history.seal(2001)
    (folder / "names").unlink()
    with opened(folder) as history:
        assert seen(history) == []
        put(history, ROWS)
        assert len(seen(history)) == 4


def test_a_disk_that_refuses_is_said_and_nothing_raised(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    put(history, ROWS)

    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "pwrite", full)
    put(history, [(0, 9.0, 3000)])
    assert "No space left on device" in history.problem
    assert len(seen(history)) == 5
