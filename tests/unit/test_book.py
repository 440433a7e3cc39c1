"""The book of alerts: what it knows, whom it wants told, what it keeps and what it forgets."""

from __future__ import annotations

import errno
import math
import os
import sqlite3
import stat
import subprocess
import sys
from array import array
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from mbroker.action import Severity
from mbroker.alerts import Subscription, context
from mbroker.alerts.alert import Alert, Notice, State
from mbroker.alerts.book import Book, BookError, Edge, NotThere
from mbroker.alerts.database import Database
from mbroker.alerts.sample import Sample
from mbroker.alerts.schema import SCRIPTS
from mbroker.alerts.selector import Label, Relation, Series
from mbroker.alerts.terms import DAY

RULE = Subscription.parse("load > 8 severity critical keep fan")
WEB1 = frozenset({("host", "web1"), ("group", "a"), ("group", "b")})
WEB2 = frozenset({("host", "web2")})
WEB3 = frozenset({("host", "web3")})


def begins(at: int, key: frozenset[tuple[str, str]] = WEB1, enrolment: int = 1) -> Edge:
    return Edge(enrolment, key, firing=True, at=at, value=9.0)


def ends(at: int, key: frozenset[tuple[str, str]] = WEB1, enrolment: int = 1) -> Edge:
    return Edge(enrolment, key, firing=False, at=at, value=2.0)


def notices(book: Book) -> list[Notice]:
    """Return what all receivers are to be told, oldest first."""
    news = [each for name in book.receivers() for each in book.news(name)]
    return [notice for _, notice in sorted(news, key=lambda each: each[0])]


def packed(*samples: Sample) -> bytes:
    return context.packed((one.series, array("q", [one.at]), array("d", [one.value])) for one in samples)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "alerts" / "book"


@pytest.fixture
def book(path: Path) -> Iterator[Book]:
    with Book(path) as book:
        book.enrol("ada", RULE, ["mail", "pager"], 100)
        yield book


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were synced."""
    synced: list[str] = []
    sync = os.fdatasync

    def note(fd: int) -> None:
        sync(fd)
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)

    monkeypatch.setattr(os, "fdatasync", note)
    return synced


# -- subscriptions


def test_a_subscription_is_there_after_a_restart(path: Path) -> None:
    with Book(path) as book:
        made = book.enrol("ada", RULE, ["mail", "mail"], 100)
    with Book(path) as book:
        assert book.enrolments() == [made]
    assert (made.number, made.owner, made.subscription, made.receivers, made.made) == (1, "ada", RULE, ("mail",), 100)


def test_the_number_of_a_withdrawn_subscription_is_not_used_again(book: Book) -> None:
    book.withdraw(1, "ada", 200)
    book.trim(300)
    assert book.enrolments() == []
    assert book.enrol("eve", RULE, [], 400).number == 2


def test_withdrawing_ends_its_alerts_and_tells_so(book: Book) -> None:
    (alert,) = book.record([begins(150)], 150)
    book.told(notices(book), 160)
    book.withdraw(1, "ada", 200)
    assert book.alert(alert.id).until == 200
    assert [notice.id for notice in notices(book)] == [
        (alert.id, State.RESOLVED, "mail"),
        (alert.id, State.RESOLVED, "pager"),
    ]


def test_edges_of_a_withdrawn_subscription_are_left_out(book: Book) -> None:
    book.withdraw(1, "ada", 200)
    assert book.record([begins(250), begins(250, enrolment=7)], 250) == []


@pytest.mark.parametrize("number", [2, -1])
def test_withdrawing_what_is_not_there(book: Book, number: int) -> None:
    with pytest.raises(NotThere, match=f"^there is no subscription {number}$"):
        book.withdraw(number, "ada", 200)


def test_a_withdrawn_subscription_cannot_be_withdrawn_again(book: Book) -> None:
    book.record([begins(150)], 150)
    book.withdraw(1, "ada", 200)
    assert book.enrolment(1).subscription == RULE
    with pytest.raises(NotThere):
        book.withdraw(1, "ada", 201)


# -- alerts


def test_alerts_are_found_by_how_their_ids_begin_those_that_fire_first(book: Book) -> None:
    first, second = book.record([begins(100), begins(200, WEB2)], 200)
    book.record([ends(300, WEB2)], 300)
    assert [alert.id for alert in book.alerts_named("")] == [first.id, second.id]
    assert len(book.alerts_named("", limit=1)) == 1
    for alert in (first, second):
        assert [found.id for found in book.alerts_named(alert.id[:4])] == [alert.id]
        assert [found.id for found in book.alerts_named(alert.id)] == [alert.id]
        assert book.alerts_named(alert.id[1:]) == book.alerts_named(f"{alert.id}0") == []


def test_of_alerts_whose_ids_begin_so_the_newest_come_first_and_those_that_are_over_last(book: Book) -> None:
    endpoints = [frozenset({("host", name)}) for name in "abcd"]
    made = book.record([begins(100 + n, endpoint) for n, endpoint in enumerate(endpoints)], 200)
    book.record([ends(300 + n, endpoints[n]) for n in (0, 3)], 310)
    named = [alert.id for alert in book.alerts_named("")]
    assert named == [made[n].id for n in (2, 1, 3, 0)]


def test_an_alert_begins_and_ends(book: Book) -> None:
    (begun,) = book.record([begins(150)], 160)
    assert begun == Alert(begun.id, 1, WEB1, Severity.CRITICAL, 150, None, 9.0)
    assert book.alerts() == [begun]
    (ended,) = book.record([ends(170)], 180)
    assert ended == attrs.evolve(begun, until=170, value=2.0)
    assert book.alert(begun.id) == ended


def test_an_edge_that_is_said_again_after_a_kill_changes_nothing(book: Book) -> None:
    history = [begins(150), ends(170), begins(180), begins(150, WEB2)]
    book.record(history, 200)
    book.resume(0)
    before = (book.alerts(), notices(book), book.audit())
    for edge in (begins(150), ends(170), begins(180), begins(190), ends(10, WEB1 | WEB2), begins(150, WEB2)):
        assert book.record([edge], 210) == []
    assert (book.alerts(), notices(book), book.audit()) == before


@given(
    st.lists(st.integers(-1, 3), max_size=8),
    st.integers(0, 8),
    st.integers(1, 8),
)
@example([0, 0, 0, 1, 0], 0, 1)
def test_edges_recorded_again_up_to_the_last_leave_everything_as_it_was(steps: list[int], start: int, cut: int) -> None:
    edges: list[Edge] = []
    at = 1000
    for number, step in enumerate(steps):
        at += step  # perhaps by a clock that is behind the one of the edge before
        edges.append((ends if number % 2 else begins)(at))
    seen = {(edge.firing, edge.at) for edge in edges}
    assume(min(steps, default=0) >= 0 or len(seen) == len(edges))
    with TemporaryDirectory(dir="/dev/shm") as folder, Book(Path(folder, "book")) as book:  # a disk would be slow
        book.enrol("ada", RULE, ["mail"], 0)
        for begin in range(0, len(edges), cut):
            book.record(edges[begin : begin + cut], at)
        before = (book.alerts(), set(notices(book)))
        book.resume(0)
        book.record(edges[start:], at + 5)
        assert (book.alerts(), set(notices(book))) == before
        if len(seen) == len(edges):
            assert len(book.alerts(State.FIRING)) == len(edges) % 2
            assert len(book.alerts()) == (len(edges) + 1) // 2


def test_what_ends_and_begins_in_one_moment_goes_on(book: Book) -> None:
    (alert,) = book.record([begins(150), ends(150), begins(150)], 150)
    assert book.alerts(State.FIRING) == [alert]
    assert {notice.alert.state for notice in notices(book)} == {State.FIRING}
    (ended,) = book.record([ends(160)], 160)
    assert ended.until == 160


def test_an_end_that_is_said_again_does_not_end_what_began_after_it(book: Book) -> None:
    book.record([begins(150), ends(170)], 180)
    (again,) = book.record([begins(190)], 190)
    book.resume(180)
    assert book.record([ends(170)], 200) == []
    assert book.alerts(State.FIRING) == [again]


def test_an_end_at_the_time_of_an_earlier_one_is_an_end(book: Book) -> None:
    book.record([begins(1), ends(100), begins(105)], 200)
    (over,) = book.record([ends(100)], 200)
    assert (over.since, over.until, book.alerts(State.FIRING)) == (105, 105, [])


def test_what_began_before_is_said_again_only_if_nobody_saw_what_followed(book: Book) -> None:
    book.record([begins(1), ends(100), begins(105)], 199)
    book.resume(200)
    (over,) = book.record([ends(100)], 200)
    assert (over.since, over.until) == (105, 105)


def test_a_begin_at_the_time_of_an_earlier_one_is_another_alert(book: Book) -> None:
    first, *others = [book.record(edges, 200)[-1] for edges in ([begins(150), ends(170)], [begins(150), ends(180)])]
    (third,) = book.record([begins(150)], 200)
    assert len({alert.id for alert in (first, *others, third)}) == 3
    assert book.alerts(State.FIRING) == [third]
    assert sum(notice.alert.state is State.FIRING for notice in notices(book)) == 6
    before = (book.alerts(), notices(book))
    book.resume(0)
    assert book.record([begins(150), ends(170), begins(150), ends(180), begins(150)], 210) == []
    assert (book.alerts(), notices(book)) == before


def test_what_is_said_again_is_expected_once(book: Book) -> None:
    book.record([begins(150), ends(170)], 200)
    book.resume(0)
    assert book.record([begins(150), ends(170)], 210) == []
    assert [alert.since for alert in book.record([begins(150)], 220)] == [150]


def test_what_is_new_at_a_place_is_followed_by_nothing_that_was_said(book: Book) -> None:
    book.record([begins(150), ends(170)], 200)
    book.resume(0)
    (fresh,) = book.record([begins(160)], 210)
    assert [alert.id for alert in book.record([ends(170)], 220)] == [fresh.id]


def test_what_could_not_be_recorded_is_still_known_as_said(book: Book) -> None:
    book.record([begins(150), ends(170)], 200)
    before = book.alerts()
    book.resume(0)
    with pytest.raises(OverflowError):
        book.record([begins(150), ends(170), begins(1 << 70, WEB2)], 210)
    assert book.record([begins(150), ends(170)], 220) == []
    assert book.alerts() == before


def test_what_begins_in_the_moment_of_an_end_may_end_in_it(book: Book) -> None:
    book.record([begins(150), ends(170), begins(170)], 180)
    (over,) = book.record([ends(170)], 180)
    assert (over.since, over.until, book.alerts(State.FIRING)) == (170, 170, [])


def test_an_end_by_a_clock_that_is_behind_is_an_end(book: Book) -> None:
    book.record([begins(150)], 150)
    (alert,) = book.record([ends(140)], 151)
    assert (alert.since, alert.until) == (150, 150)


def test_a_value_may_be_missing_or_infinite(book: Book) -> None:
    (alert,) = book.record([Edge(1, WEB1, firing=True, at=1)], 1)
    assert math.isnan(book.alert(alert.id).value)
    book.record([Edge(1, WEB1, firing=False, at=2, value=math.inf)], 2)
    assert book.alert(alert.id).value == math.inf


def test_alerts_are_found_by_state_subscription_and_time(book: Book) -> None:
    book.enrol("eve", RULE, [], 100)
    book.record([begins(150), ends(170), begins(180), begins(160, WEB2, 2)], 200)
    assert [alert.since for alert in book.alerts()] == [180, 160, 150]
    assert [alert.since for alert in book.alerts(State.FIRING)] == [180, 160]
    assert [alert.since for alert in book.alerts(State.RESOLVED)] == [150]
    assert [alert.since for alert in book.alerts(enrolment=1, since=151)] == [180]
    assert [alert.since for alert in book.alerts(limit=1)] == [180]


def test_the_first_who_acknowledges_is_remembered(book: Book) -> None:
    (alert,) = book.record([begins(150)], 150)
    assert book.acknowledge(alert.id, "ada", 160).acknowledged == "ada"
    assert book.acknowledge(alert.id, "eve", 170).acknowledged == "ada"
    assert notices(book)[0].alert.acknowledged == "ada"
    with pytest.raises(NotThere, match=r"^there is no alert 123$"):
        book.acknowledge("123", "ada", 160)


# -- notices


def test_each_receiver_is_to_be_told_of_begin_and_end(book: Book) -> None:
    (alert,) = book.record([begins(150), ends(170)], 170)
    begin = attrs.evolve(alert, until=None, value=9.0)
    assert notices(book) == [
        Notice(begin, "mail"),
        Notice(begin, "pager"),
        Notice(alert, "mail"),
        Notice(alert, "pager"),
    ]


def test_what_was_told_is_not_to_be_told_again(book: Book) -> None:
    book.record([begins(150)], 150)
    mail, pager = notices(book)
    book.told([mail], 160)
    book.told([mail], 170)
    assert notices(book) == [pager]
    assert [entry.at for entry in book.audit() if entry.did == "told"] == [160]


def test_a_postponed_notice_says_when_it_is_due_and_how_often_telling_failed(book: Book) -> None:
    book.record([begins(150)], 150)
    mail, pager = notices(book)
    book.postpone(mail, 500, "connection refused")
    assert notices(book) == [attrs.evolve(mail, attempts=1, due=500), pager]
    book.postpone(mail, 600)
    assert [(notice.attempts, notice.due) for notice in notices(book)] == [(1, 600), (0, 0)]


def test_news_come_in_order_and_each_once(book: Book) -> None:
    begun = book.record([begins(150, key) for key in (WEB1, WEB2, WEB3)], 150)
    (first, one), (second, two) = book.news("mail", 0, 2)
    ((third, three),) = book.news("mail", second, 2)
    assert first < second < third
    assert [notice.alert for notice in (one, two, three)] == begun
    assert book.news("mail", third) == []
    assert book.receivers() == ["mail", "pager"]


def test_what_comes_later_has_a_higher_number_whatever_was_taken_back(book: Book) -> None:
    book.record([begins(150), ends(150)], 170)
    highest = book.news("pager")[-1][0]
    book.record([begins(150)], 180)  # it goes on: its end is taken back
    assert len(book.news("pager")) == 1
    book.record([ends(190)], 190)
    assert [notice.alert.until for _, notice in book.news("pager", highest)] == [190]


def test_what_waits_of_some_alerts_is_found_by_their_ids(book: Book) -> None:
    one, two, three = book.record([begins(150, key) for key in (WEB1, WEB2, WEB3)], 150)
    book.record([ends(170)], 170)
    book.told([notice for notice in notices(book) if notice.alert.id == two.id], 180)
    found = book.untold("mail", [three.id, two.id, one.id, "none"])
    assert [notice.id for notice in found] == [
        (one.id, State.FIRING, "mail"),
        (three.id, State.FIRING, "mail"),
        (one.id, State.RESOLVED, "mail"),
    ]


def test_what_is_found_of_some_alerts_costs_the_same_however_much_waits(tmp_path: Path) -> None:
    steps: list[int] = []
    for waiting in (100, 10_000):
        with Book(tmp_path / str(waiting) / "book.sqlite") as book:
            number = book.enrol("ada", RULE, ["mail"], 100).number
            edges = [Edge(number, frozenset({("host", f"h{each}")}), True, 150, 9.0) for each in range(waiting)]
            alerts = book.record(edges, 150)
            connection, taken = book._database._connection, 0  # pyright: ignore[reportPrivateUsage]

            def count() -> int:
                nonlocal taken
                taken += 1
                return 0

            connection.set_progress_handler(count, 1)  # after every instruction of SQLite's machine
            after = book.news("mail", 0, 50)[-1][0]
            assert len(book.news("mail", after, 50)) == 50
            assert len(book.untold("mail", [alert.id for alert in alerts[:50]])) == 50
            assert book.receivers() == ["mail"]
            connection.set_progress_handler(None, 1)
            steps.append(taken)
    assert steps[1] <= 1.1 * steps[0]


def test_a_refused_notice_is_let_go_and_audited(book: Book) -> None:
    (alert,) = book.record([begins(150)], 150)
    mail, pager = notices(book)
    book.refuse([mail], 160, "no such mailbox")
    assert notices(book) == [pager]
    assert (book.audit(1)[0].did, book.audit(1)[0].what) == ("refused", f"mail: {alert.id} firing: no such mailbox")
    assert book.deliveries(alert.id)[0].error == "no such mailbox"


def test_deliveries_say_what_became_of_the_notices(book: Book) -> None:
    (alert,) = book.record([begins(150)], 150)
    mail, pager = notices(book)
    book.postpone(pager, 100, "timed out")
    book.told([pager], 160)
    book.postpone(mail, 500, "connection refused")
    said = [(one.receiver, one.told, one.attempts, one.error) for one in book.deliveries(alert.id)]
    assert said == [("mail", None, 1, "connection refused"), ("pager", 160, 1, "")]


# -- silences and the audit trail


def test_a_silence_mutes_alerts_with_its_labels_while_it_lasts(book: Book) -> None:
    label = Label("host", Relation.MATCHES, "web.*")
    silence = book.silence([label], 200, 300, "ada", "new fans", 100)
    assert book.silences(150) == [silence]
    assert [silence.mutes(WEB1, now) for now in (199, 200, 299, 300)] == [False, True, True, False]
    assert not silence.mutes(frozenset({("host", "db")}), 250)
    assert book.silences(300) == []


def test_a_silence_can_be_ended(book: Book) -> None:
    silence = book.silence([Label("host", Relation.IS, "web1")], 200, 300, "ada", "", 100)
    book.unsilence(silence.number, "eve", 250)
    assert book.silences(250) == []
    with pytest.raises(NotThere, match="there is no silence 1, or it is over"):
        book.unsilence(silence.number, "eve", 260)


def test_a_silence_of_everything_or_of_the_past_is_refused(book: Book) -> None:
    with pytest.raises(ValueError, match="labels must be 1 to 16"):
        book.silence([], 200, 300, "ada", "", 100)
    for since, until in ((200, 200), (50, 100)):
        with pytest.raises(ValueError, match="must end after it begins, and after now"):
            book.silence([Label("host", Relation.IS, "web1")], since, until, "ada", "", 100)
    assert book.silences(0) == []


def test_the_audit_trail_says_who_did_what_and_when(book: Book) -> None:
    (alert,) = book.record([begins(150)], 150)
    book.told(notices(book)[:1], 160)
    book.acknowledge(alert.id, "ada", 170)
    book.silence([Label("host", Relation.IS, "web1")], 200, 300, "ada", "new fans", 180)
    book.withdraw(1, "eve", 190)
    assert [(entry.at, entry.who, entry.did) for entry in reversed(book.audit())] == [
        (100, "ada", "enrolled"),
        (150, "", "began"),
        (160, "", "told"),
        (170, "ada", "acknowledged"),
        (180, "ada", "silenced"),
        (190, "eve", "withdrew"),
        (190, "", "ended"),
    ]
    assert book.audit(2)[1].what == "1"
    assert book.audit(3)[2].what == "1: host=web1 until 1970-01-01T00:00:00.300Z: new fans"


# -- context


def test_what_was_seen_around_an_alert_is_kept(book: Book) -> None:
    (alert,) = book.record([begins(150)], 150)
    load, fan = (Series(metric, WEB1) for metric in ("load", "fan"))
    book.keep(alert.id, State.FIRING, packed(Sample(load, 140, 7.5)), 150)
    again = packed(Sample(load, 140, 7.5), Sample(fan, 145, 900.0), Sample(load, 150, 9.0))
    book.keep(alert.id, State.FIRING, again, 160)
    book.keep(alert.id, State.RESOLVED, packed(Sample(load, 150, 9.0), Sample(fan, 170, math.pi)), 170)
    assert book.kept(alert.id) == {State.FIRING: 160, State.RESOLVED: 170}
    assert [(sample.series.metric, sample.at, sample.value) for sample in book.context(alert.id)] == [
        ("load", 140, 7.5),
        ("fan", 145, 900.0),
        ("load", 150, 9.0),
        ("fan", 170, math.pi),
    ]


def test_the_context_of_an_alert_that_is_not_there(book: Book) -> None:
    with pytest.raises(NotThere):
        book.context("123")
    with pytest.raises(NotThere):
        book.keep("123", State.FIRING, packed(), 0)


# -- retention


def test_an_alert_is_forgotten_when_its_time_is_over(book: Book) -> None:
    (alert,) = book.record([begins(150), ends(170)], 170)
    book.keep(alert.id, State.FIRING, packed(Sample(Series("load", WEB1), 140, 7.5)), 150)
    book.told(notices(book), 180)
    assert book.trim(170 + DAY - 1) == 0
    assert book.trim(170 + DAY) == 1
    assert (book.alerts(), book.deliveries(alert.id), book.kept(alert.id)) == ([], [], {})


def test_a_subscription_says_how_long_its_alerts_are_kept(book: Book) -> None:
    book.enrol("eve", Subscription.parse("load > 8 expire 1m"), [], 100)
    book.record([begins(150, enrolment=2), ends(170, enrolment=2)], 170)
    assert book.trim(60_170) == 1


@pytest.mark.parametrize("size", [1, 1 << 30])
def test_what_fires_or_is_still_to_be_told_is_never_forgotten(path: Path, size: int) -> None:
    with Book(path, size=size) as book:
        book.enrol("ada", RULE, ["mail"], 100)
        book.record([begins(150), ends(170), begins(150, WEB2)], 170)
        book.told(notices(book)[1:2], 180)
        assert book.trim(170 + 9 * DAY) == 0
        assert len(book.alerts()) == 2


def test_a_book_that_is_too_large_forgets_the_oldest_first(path: Path) -> None:
    limit = 700_000
    with Book(path, size=limit) as book:
        book.enrol("ada", RULE, [], 100)
        edges = [edge(1000 + number) for number in range(4000) for edge in (begins, ends)]
        book.record(edges, 9000)
        assert book.trim(9000) > 0
        assert (path.stat().st_size <= limit, book.problem) == (True, "")
        left = [alert.since for alert in book.alerts(limit=9999)]
        assert left == list(range(4999, 4999 - len(left), -1))
        assert 0 < len(left) < 4000


def test_a_book_that_cannot_get_smaller_says_so(path: Path) -> None:
    with Book(path, size=1000) as book:
        book.trim(100)
        assert f"{path} has" in book.problem
        assert "more than 1000" in book.problem


def test_the_audit_trail_is_bounded(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbroker.alerts.book._AUDITED", 3)
    book.record([begins(150), ends(170), begins(180), ends(190)], 200)
    book.trim(200)
    assert [entry.did for entry in book.audit()] == ["ended", "began", "ended"]


# -- the file


@pytest.mark.usefixtures("book")
def test_only_its_owner_can_read_it(path: Path) -> None:
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


def test_what_is_to_survive_a_power_cut_is_committed_so(path: Path) -> None:
    database = Database(path, SCRIPTS)
    pragmas = ("journal_mode", "synchronous", "locking_mode", "foreign_keys")

    def found() -> list[object]:
        return [database.read(f"PRAGMA {pragma}")[0][0] for pragma in pragmas]

    with database.change():
        assert found() == ["wal", 2, "exclusive", 1]
    with database.change_unsynced():
        assert found() == ["wal", 1, "exclusive", 1]
    database.close()


def test_what_an_older_version_made_is_kept(path: Path) -> None:
    told = "INSERT INTO notice (alert, state, receiver, attempts, due, told) VALUES (?, 'firing', ?, 3, 400, ?)"
    with closing(Database(path, SCRIPTS[:1])) as database, database.change() as write:
        write("INSERT INTO enrolment VALUES (1, 'ada', ?, '[]', 100, NULL)", RULE.to_json())
        write("INSERT INTO alert VALUES ('1', 1, '[]', 'warning', 150, NULL, NULL, 9.0, '', 0)")
        write(told, "1", "mail", None)
        write(told, "1", "pager", 160)
    with Book(path) as book:
        ((number, notice),) = book.news("mail")
        assert (number, notice.id, notice.attempts, notice.due) == (1, ("1", State.FIRING, "mail"), 3, 400)
        assert [one.told for one in book.deliveries("1")] == [None, 160]
        book.withdraw(1, "ada", 200)  # which adds no notice, for it had no receivers
        assert book.receivers() == ["mail"]


def test_what_was_done_is_synced_once(book: Book, syncs: list[str]) -> None:
    book.record([begins(100)], 110)
    assert syncs == []
    book.sync()
    book.sync()
    assert syncs == ["book-wal"]


def test_a_predecessor_that_was_killed_left_something_to_sync(path: Path, syncs: list[str]) -> None:
    Book(path).close()
    with Book(path) as book:
        book.sync()
        assert syncs == ["book-wal"]


def test_after_a_sync_that_failed_the_log_is_not_relied_on(
    book: Book, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    book.record([begins(100)], 110)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        with pytest.raises(BookError, match=rf"^cannot sync {path}: Input/output error; look into the kernel's log$"):
            book.sync()
    log = path.with_name("book-wal")
    before = log.stat().st_size
    book.record([ends(120)], 130)  # copies the log into the file, and begins it anew
    assert 0 < log.stat().st_size < before
    (alert,) = book.alerts()
    assert (alert.since, alert.until) == (100, 120)


@pytest.mark.usefixtures("book")
def test_it_belongs_to_one_process(path: Path) -> None:
    with pytest.raises(BookError, match=f"^cannot open {path}: it is open in another process; stop that one first$"):
        Book(path)


@pytest.mark.usefixtures("book")
def test_it_still_does_when_the_same_process_tried_again(path: Path) -> None:
    with pytest.raises(BookError):
        Book(path)
    script = f"import sqlite3; sqlite3.connect({str(path)!r}, timeout=0).execute('SELECT * FROM alert')"
    other = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert "database is locked" in other.stderr


def test_a_newer_form_is_refused(path: Path) -> None:
    Book(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(BookError, match=r"a newer version of this program made it \(form 99, known are up to 2\)"):
        Book(path)


def test_the_file_of_another_program_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE photo (name)")
    database.close()
    content = path.read_bytes()
    with pytest.raises(BookError, match="it was made by another program; move it away"):
        Book(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"no database", b"\0" * 5000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_what_is_no_database_is_refused_in_one_line(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(BookError, match=r"^cannot open .*(damaged|another program)[^\n]*$"):
        Book(path)


def test_a_damaged_page_is_found_when_it_is_opened(path: Path) -> None:
    with Book(path) as book:
        book.enrol("ada", RULE, [], 100)
        book.record([begins(at) for at in range(1)], 100)
        book.record([edge(1000 + number) for number in range(300) for edge in (begins, ends)], 9000)
    content = bytearray(path.read_bytes())
    assert len(content) > 15 * 4096
    content[9 * 4096 : 10 * 4096] = b"\xa5" * 4096
    path.write_bytes(content)
    with pytest.raises(
        BookError, match=r"^cannot open .*: it is damaged; move it away, or restore it from a copy[^\n]*$"
    ):
        Book(path)


def test_a_link_in_its_place_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BookError, match=f"^cannot open {path}: "):
        Book(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BookError, match="cannot open"):
        Book(tmp_path / "file" / "book")


def test_a_full_disk_changes_nothing_and_is_said_in_one_line(path: Path) -> None:
    database = Database(path, SCRIPTS)
    database.read("PRAGMA max_page_count = 30")

    def fill() -> None:
        with database.change() as write:
            for number in range(300):
                write("INSERT INTO audit (at, who, did, what) VALUES (?, '', '', ?)", number, "x" * 1000)

    with pytest.raises(BookError, match=r"^cannot write .*: the disk is full; make room$"):
        fill()
    assert database.read("SELECT count(*) FROM audit") == [(0,)]
    with database.change() as write:
        write("INSERT INTO audit (at, who, did, what) VALUES (1, '', '', '')")
    database.close()


def test_what_fails_half_way_was_not_begun(path: Path) -> None:
    database = Database(path, SCRIPTS)

    def fail() -> None:
        with database.change() as write:
            write("INSERT INTO audit (at, who, did, what) VALUES (1, '', '', '')")
            raise NotThere

    with pytest.raises(NotThere):
        fail()
    assert database.read("SELECT count(*) FROM audit") == [(0,)]
    database.close()
