"""``mbroker`` about alerts, before a book and a matcher that are real."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from rich.cells import cell_len
from rich.console import Console

from mbroker import control
from mbroker.alert_answers import Answers
from mbroker.alert_asking import moment
from mbroker.alert_trials import Trials
from mbroker.alerts.book import Book
from mbroker.alerts.history import History
from mbroker.alerts.keeper import AROUND, Keeper
from mbroker.alerts.watch import Settings, Watch
from mbroker.cli import main
from mbroker.values import build
from mchannel.samples import Declared, Named, Samples

NOW = 1_700_000_000_000
RULES = """
groups:
- name: node
  rules:
  - {alert: High, expr: load > 8, labels: {severity: critical}}
  - {alert: Odd, expr: "topk(3, load) > 8"}
  - {record: some, expr: load}
"""


@attrs.define
class Daemon:
    watch: Watch
    book: Book
    keeper: Keeper
    now: int = NOW
    receivers: tuple[str, ...] = ("oncall", "mail")

    def say(self, value: float, metric: str = "load", source: str = "web1") -> None:
        self.now += 1000
        names = ("load", "memory")
        self.watch.declare(source, Declared(1, 0, tuple(map(Named, names))), self.now)
        columns = array("I", [names.index(metric)]), array("d", [value]), array("q", [self.now])
        self.keeper.add(self.watch.samples(source, Samples(1, *columns), self.now), self.now)
        while (due := self.keeper.due(self.now)) is not None:
            self.keeper.keep(due, self.keeper.look(due, self.now), self.now)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    with Book(tmp_path / "book.db") as book, History(tmp_path / "history") as history:
        watch = Watch(Settings("node1", broadest=2, longest=4096), book, history, NOW)

        def subscription(number: int) -> Any:
            found = watch.enrolment(number)
            return found and found.subscription

        made = Daemon(watch, book, Keeper(book, history, subscription))
        answers = Answers(
            watch, book, Trials(history, 10_000), lambda: made.receivers, lambda _: None, lambda: made.now
        )

        def ask(_: str, kind: Any, topic: str, value: str = "") -> Any:
            try:
                return build(kind, json.loads(json.dumps(answers.answer(topic, value))))
            except control.NoSuchThing:
                raise
            except control.Refused as refused:  # as it arrives
                raise control.ControlError(str(refused)) from None

        monkeypatch.setattr("mbroker.control.ask", ask)
        monkeypatch.setattr("time.time", lambda: made.now / 1000)
        yield made


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def json_of(*arguments: str) -> Any:
    result = run(*arguments, "--output", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def failure(*arguments: str) -> tuple[int, str]:
    result = run(*arguments)
    assert result.stdout == ""
    return result.exit_code, result.stderr


def test_a_subscription_is_made_listed_and_ended(daemon: Daemon) -> None:
    daemon.say(1)
    made = run("subscribe", "load  >  8 for 2m", "--receiver", "mail", "--owner", "ann")
    assert (made.exit_code, made.stdout) == (0, "subscription 1 of ann, told to mail: load > 8 for 2m\n")
    run("subscribe", "memory > 9", "--owner", "bob")
    assert [(row["number"], row["owner"], row["receivers"]) for row in json_of("subscriptions")] == [
        (1, "ann", ["mail"]),
        (2, "bob", ["oncall", "mail"]),
    ]
    assert run("unsubscribe", "1").stdout == "subscription 1 ended\n"
    assert [row["number"] for row in json_of("subscriptions")] == [2]
    assert failure("unsubscribe", "1") == (4, "mbroker: there is no subscription 1\n")


@pytest.mark.usefixtures("daemon")
def test_a_syntax_error_shows_its_column() -> None:
    assert failure("subscribe", "mean(load[5m)] > 8") == (
        2,
        "mbroker: column 13: expected ']', found ')'\n  mean(load[5m)] > 8\n              ^\n",
    )
    assert json_of("subscriptions") == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("subscribe", "load > nan"), 2, "column 8: expected a number, found 'nan'"),
        (("subscribe", "load > 1e999"), 2, "column 8: 1e999 is beyond the range of a double"),
        (
            ("subscribe", "mean(load[400d]) > 1"),
            2,
            "column 11: a duration may last from 1ms to 366d, not 400d",
        ),
        (
            ("subscribe", 'mean(load{domain="web1"}[86400]) > 1'),
            1,
            "a window of load has 86400 samples, and a window may have 4096",
        ),
        (("subscribe", 'load{group="x"} > 1'), 1, "there is no group x; name its members in [alerts.groups]"),
        (("subscribe", "load > 1"), 1, "load with these labels is 3 series, and one comparison may follow 2"),
        (
            ("subscribe", 'load{domain="web1"} > 1', "--receiver", "x"),
            4,
            "there is no receiver x; there is mail, oncall",
        ),
        (("explain", "load >"), 2, "column 7: expected a number"),
        (("explain", "load > 1", "--since", "long"), 2, "--since long: give a duration"),
        (("alerts", "show", "abc"), 4, "there is no alert abc"),
        (("alerts", "ack", "abc"), 4, "there is no alert abc"),
        (("alerts", "silence", "web1", "--for", "1h", "--why", "x"), 2, "'web1' is no condition on a label"),
        (("alerts", "silence", "domain=~(", "--for", "1h", "--why", "x"), 2, "not a pattern that RE2 accepts"),
        (("alerts", "silence", "domain=web1", "--for", "soon", "--why", "x"), 2, "--for soon: give a duration such as"),
        (("alerts", "silence", "domain=web1", "--for", "400d", "--why", "x"), 2, "--for 400d: give a year at most"),
        (("alerts", "list", "--since", "0s"), 2, "--since 0s: give a duration"),
        (("explain", "load{domain='web1'} > 1", "--since", "400d"), 2, "--since 400d: give a year at most"),
        (("alerts", "list", "--since", "400d"), 2, "--since 400d: give a year at most"),
        (("alerts", "list", "--subscription", "77"), 4, "there is no subscription 77"),
        (("alerts", "list", "--subscription", "9" * 20), 4, "there is nothing that has so large a number"),
        (("unsubscribe", "9" * 20), 4, "there is nothing that has so large a number"),
        (("alerts", "unsilence", "9" * 20), 4, "there is nothing that has so large a number"),
        (("alerts", "unsilence", "3"), 4, "there is no silence 3"),
        (("alerts", "list", "--since", "-1h"), 2, "--since -1h: give a duration"),
        (("import-rules", "/nonexistent.yml"), 4, "/nonexistent.yml: No such file or directory"),
        (("deadman", "--config", "/nonexistent.toml"), 4, "/nonexistent.toml: cannot be read"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(
    daemon: Daemon, arguments: tuple[str, ...], code: int, says: str
) -> None:
    for n in range(3):
        daemon.say(0, source=f"web{n}")
    exit_code, line = failure(*arguments)
    assert (exit_code, line.startswith("mbroker: "), says in line) == (code, True, True), line
    assert "Traceback" not in line
    assert (json_of("subscriptions"), json_of("alerts", "silences"), json_of("alerts", "history")) == ([], [], [])


def test_what_is_not_there_yet_is_a_warning(daemon: Daemon) -> None:
    daemon.say(1)
    daemon.receivers = ()
    made = run("subscribe", "laod > 8")
    assert (made.exit_code, made.stderr.splitlines()) == (
        0,
        [
            "mbroker: warning: no metric is called laod yet; did you mean load?",
            "mbroker: warning: nobody is told, as there are no receivers; name some in [alerts.receivers]",
        ],
    )


def test_alerts_are_listed_shown_and_acknowledged(daemon: Daemon) -> None:
    run("subscribe", "load > 8 severity critical")
    daemon.say(7, "memory")
    daemon.say(9)
    (alert,) = json_of("alerts", "list")
    assert (alert["state"], alert["severity"], alert["labels"], alert["value"]) == (
        "firing",
        "critical",
        {"domain": "web1"},
        9.0,
    )
    assert json_of("alerts", "ack", alert["id"], "--by", "ann")["acknowledged"] == "ann"
    daemon.say(1)
    assert json_of("alerts", "list") == []
    assert [row["id"] for row in json_of("alerts", "list", "--state", "resolved")] == [alert["id"]]
    daemon.now += AROUND
    shown = json_of("alerts", "show", alert["id"])
    assert (shown["acknowledged"], shown["until"]) == ("ann", NOW / 1000 + 3)
    seen = {each["metric"]: [value for _, value in each["points"]] for each in shown["context"]}
    assert seen == {"memory": [7.0], "load": [9.0, 1.0]}
    text = run("alerts", "show", alert["id"]).stdout
    assert f"{alert['id']}: resolved, critical, since " in text
    assert "acknowledged by ann" in text


def test_the_course_of_a_metric_is_short_and_its_peaks_stay(daemon: Daemon) -> None:
    run("subscribe", "load > 8")
    for n in range(100):
        daemon.say(9 if n == 50 else n % 3)
    daemon.now += AROUND
    (alert,) = json_of("alerts", "list", "--state", "all")
    (line,) = (line for line in run("alerts", "show", alert["id"]).stdout.splitlines() if line.startswith("load "))
    course = line.split()[-1]
    assert 8 <= len(course) <= 16
    assert course.count("█") == 1
    assert "domain=web1" not in line  # as the alert


def test_at_most_60_samples_of_a_series_are_shown(daemon: Daemon) -> None:
    run("subscribe", "load > 8")
    for n in range(119):
        daemon.say(9 if n == 118 else 1)
    daemon.now += AROUND
    (alert,) = json_of("alerts", "list", "--state", "all")
    (load,) = (each for each in json_of("alerts", "show", alert["id"])["context"] if each["metric"] == "load")
    assert (load["samples"], len(load["points"])) == (119, 60)


def test_the_beginning_of_an_id_names_its_alert(daemon: Daemon) -> None:
    run("subscribe", "load > 8")
    daemon.say(9)
    (alert,) = json_of("alerts", "list")
    begun = alert["id"][:4]
    assert json_of("alerts", "show", begun)["id"] == alert["id"]
    assert [each["metric"] for each in json_of("alerts", "show", alert["id"])["context"]] == ["load"]
    assert json_of("alerts", "ack", begun, "--by", "ann")["acknowledged"] == "ann"
    assert alert["id"][:8] in run("alerts", "list").stdout
    hint = "see: mbroker alerts list --state all"
    for wrong in (alert["id"][:3], alert["id"][1:], f"{alert['id']}0", "%", f"{begun[:3]}%"):
        assert failure("alerts", "show", wrong) == (4, f"mbroker: there is no alert {wrong}; {hint}\n")


def test_a_beginning_that_several_ids_have_lists_them(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def alike(enrolment: int, *_: object) -> str:
        return f"abcdef{enrolment:014x}"

    monkeypatch.setattr("mbroker.alerts.edges.alert_id", alike)
    run("subscribe", "load > 8 severity critical")
    run("subscribe", "load > 7")
    daemon.say(9)
    first, second = sorted(row["id"] for row in json_of("alerts", "list"))
    code, line = failure("alerts", "ack", "abcd")
    assert (code, line.count("\n")) == (1, 1)
    assert line.startswith("mbroker: several alerts begin with abcd: ")
    assert all(f"{each} (domain=web1)" in line for each in (first, second))
    listed = run("alerts", "list").stdout
    assert first in listed
    assert second in listed


def test_alerts_are_chosen_by_subscription_time_and_number(daemon: Daemon) -> None:
    run("subscribe", "load > 8")
    run("subscribe", "load > 9")
    daemon.say(10)
    assert [row["subscription"] for row in json_of("alerts", "list", "--subscription", "2")] == [2]
    assert len(json_of("alerts", "list", "--limit", "1")) == 1
    daemon.now += 3_600_000
    assert (len(json_of("alerts", "list", "--since", "2h")), json_of("alerts", "list", "--since", "30m")) == (2, [])


def test_metrics_and_their_series_are_listed(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.say(1)
    daemon.say(1, source="web2")
    listed = {row["metric"]: row["series"] for row in json_of("metrics")["rows"]}
    assert listed == {"broker.heartbeat": 1, "load": 2, "memory": 2}
    assert [row["labels"] for row in json_of("metrics", "load")["rows"]] == [{"domain": "web1"}, {"domain": "web2"}]
    monkeypatch.setattr("mbroker.alert_answers._SERIES", 1)
    assert json_of("metrics", "load")["more"] == 1
    assert "and 2 more\n" in run("metrics").stdout
    assert failure("metrics", "laod") == (4, "mbroker: no metric is called laod yet; did you mean load?\n")


@pytest.mark.usefixtures("daemon")
def test_a_silence_is_made_listed_and_ended() -> None:
    made = json_of("alerts", "silence", "domain=web1", "host!=", "--for", "2h", "--why", "new disk", "--by", "ann")
    assert (made["number"], made["labels"], made["until"]) == (1, ["domain=web1", "host!="], NOW / 1000 + 7200)
    assert [(row["by"], row["why"]) for row in json_of("alerts", "silences")] == [("ann", "new disk")]
    assert run("alerts", "unsilence", "1").stdout == "silence 1 ended\n"
    assert json_of("alerts", "silences") == []


def test_what_a_silence_mutes_is_told(daemon: Daemon) -> None:
    run("subscribe", "load > 8")
    for source in ("web1", "web2", "web3"):
        daemon.say(9, source=source)
    said = run("alerts", "silence", "domain=web1", "--for", "2h", "--why", "new disk").stdout
    assert said.startswith("silence 1 of domain=web1 until ")
    assert "\nit mutes 1 of 3 alerts that fire; to end it: mbroker alerts unsilence 1\n" in said


@pytest.mark.parametrize("label", ["domain=~web.*", "domain!=web9", "group="])
def test_a_silence_of_more_than_half_of_what_is_watched_is_to_be_meant(daemon: Daemon, label: str) -> None:
    run("subscribe", "load > 8")
    for source in ("web1", "web2", "web3"):
        daemon.say(9, source=source)
    silence = ("alerts", "silence", label, "--for", "2h", "--why", "new disk")
    code, line = failure(*silence)
    assert (code, line.count("\n")) == (2, 1)
    assert line.endswith(" endpoints that are watched, and 3 of 3 alerts that fire; add --yes if you mean it\n")
    assert json_of("alerts", "silences") == []
    assert json_of(*silence, "--yes")["labels"] == [label]


def test_a_silence_takes_the_labels_of_an_alert_that_is_named(daemon: Daemon) -> None:
    run("subscribe", "load > 8")
    run("subscribe", "all(load) > 8")
    for source in ("web1", "web2", "web3"):
        daemon.say(9, source=source)
    ids = {row["labels"].get("domain", ""): row["id"] for row in json_of("alerts", "list")}
    options = ("--for", "2h", "--why", "new disk")
    assert json_of("alerts", "silence", ids["web1"][:6], *options)["labels"] == ["domain=web1"]
    code, line = failure("alerts", "silence", ids[""], *options)
    assert (code, "is about all and has no labels; name some" in line) == (1, True)
    assert failure("alerts", "silence", "0000", *options)[0] == 4
    assert len(json_of("alerts", "silences")) == 1


def test_what_is_ended_is_told_to_programs_too(daemon: Daemon) -> None:
    daemon.say(1)
    run("subscribe", "load > 8")
    json_of("alerts", "silence", "domain=web9", "--for", "2h", "--why", "new disk")
    assert json_of("unsubscribe", "1") == json_of("alerts", "unsilence", "1") == {"number": 1, "ended": True}


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(
    ("arguments", "next_step"),
    [
        (("alerts", "list"), "mbroker alerts list --state all"),
        (("alerts", "list", "--state", "all"), "mbroker subscriptions"),
        (("alerts", "silences"), "mbroker alerts silence --help"),
        (("subscriptions",), "mbroker metrics"),
    ],
)
def test_where_there_is_nothing_to_list_the_next_step_is_named(arguments: tuple[str, ...], next_step: str) -> None:
    listed = run(*arguments)
    assert (listed.exit_code, listed.stdout.count("\n")) == (0, 1)
    assert len(listed.stdout) <= 80
    assert next_step in listed.stdout
    assert json_of(*arguments) == []


def completed(*words: str) -> dict[str, str]:
    """Return what a shell offers for the last of *words*, and what it says about each."""
    found = ShellComplete(main, {}, "mbroker", "_MBROKER_COMPLETE").get_completions(list(words[:-1]), words[-1])
    return {item.value: item.help or "" for item in found}


def test_a_shell_completes_alerts_subscriptions_and_silences(daemon: Daemon) -> None:
    run("subscribe", "load > 8")
    run("subscribe", "memory > 8")
    daemon.say(9)
    daemon.say(1, source="web2")
    json_of("alerts", "silence", "domain=web1", "--for", "2h", "--why", "new disk", "--yes")
    (alert,) = (row["id"] for row in json_of("alerts", "list"))
    firing = {alert: "warning, domain=web1: load > 8"}
    assert completed("alerts", "show", "") == completed("alerts", "ack", alert[:3]) == firing
    assert completed("alerts", "silence", alert[:3]) == firing
    assert completed("alerts", "show", "x") == {}
    assert completed("unsubscribe", "2") == {"2": "memory > 8"}
    assert completed("alerts", "list", "--subscription", "1") == {"1": "load > 8"}
    assert completed("alerts", "unsilence", "") == {"1": "domain=web1: new disk"}


def test_a_shell_is_offered_nothing_where_no_daemon_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def absent(address: str, *_: object) -> None:
        asked.append(address)
        raise control.Unreachable("nobody")

    monkeypatch.setattr("mbroker.control.ask", absent)
    assert completed("alerts", "show", "--control", "shm:///other", "") == completed("unsubscribe", "") == {}
    assert asked == ["shm:///other", "shm:///mbroker"]


def test_on_a_terminal_of_80_columns_each_alert_is_a_line(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    run("subscribe", "load > 8 clear < 1.25 severity critical keep memory")
    for source in ("web1", "web2"):
        daemon.say(9, source=source)
    piped = run("alerts", "list").stdout
    assert "severity critical" in piped
    assert "\x1b" not in piped
    monkeypatch.setattr("mbroker.terminal._console", lambda: Console(width=80, force_terminal=True, no_color=True))
    shown = run("alerts", "list").stdout.splitlines()
    assert len(shown) == 3
    assert max(map(cell_len, map(strip, shown))) <= 80
    assert all("1: load >" in line and strip(line).rstrip().endswith("…") for line in shown[1:])


def strip(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", line)


def test_the_audit_trail_says_who_did_what(daemon: Daemon) -> None:
    run("subscribe", "load > 8", "--owner", "ann")
    daemon.say(9)
    run("unsubscribe", "1", "--by", "bob")
    did = [(row["who"], row["did"]) for row in json_of("alerts", "history")]
    assert set(did[:2]) == {("bob", "withdrew"), ("", "ended")}
    assert did[2:] == [("", "began"), ("ann", "enrolled")]


def test_a_subscription_is_tried_on_the_past_before_it_is_made(daemon: Daemon) -> None:
    for value in (1, 9, 9, 1, 9):
        daemon.say(value)
    tried = json_of("explain", "load > 8", "--since", "1h")
    assert [(row["since"] - NOW / 1000, row["until"] and row["until"] - NOW / 1000) for row in tried["alerts"]] == [
        (2, 4),
        (5, None),
    ]
    assert (tried["series"], tried["samples"], tried["cost"], tried["place"]) == (1, 5, "newest value", "broker")
    assert json_of("subscriptions") == []
    assert tried["oldest"] == NOW / 1000 + 1
    text = run("explain", "load > 8", "--since", "100d").stdout
    assert "2 alerts in the last 100d" in text
    assert f"the history of these series reaches back to {moment(NOW / 1000 + 1)}" in text
    assert ": 1 alert in" in run("explain", "max(load[2]) > 8", "--since", "1h").stdout
    assert "newest value" in text
    nothing = run("explain", "laod > 8")
    assert (nothing.exit_code, "0 alerts" in nothing.stdout, "did you mean load?" in nothing.stderr) == (0, True, True)
    assert "the history has none of these series" in nothing.stdout


@pytest.mark.parametrize("text", ["groups: [", "groups: 7", "some: thing"])
def test_a_file_that_holds_no_rules_is_misuse(tmp_path: Path, text: str) -> None:
    pytest.importorskip("promql_parser")
    file = tmp_path / "rules.yml"
    file.write_text(text)
    exit_code, line = failure("import-rules", str(file), "--dry-run")
    assert (exit_code, str(file) in line) == (2, True)


@pytest.mark.usefixtures("daemon")
def test_rules_of_prometheus_are_taken_over_but_for_those_that_cannot_be(tmp_path: Path) -> None:
    pytest.importorskip("promql_parser")
    file = tmp_path / "rules.yml"
    file.write_text(RULES)
    dry = run("import-rules", str(file), "--dry-run")
    assert (dry.exit_code, dry.stderr.splitlines()[-1]) == (1, "mbroker: 2 of 3 rules were not taken over")
    assert "node/Odd: not taken over: the aggregation topk has no counterpart" in dry.stdout
    assert json_of("subscriptions") == []
    assert run("import-rules", str(file), "--owner", "ann").exit_code == 1
    assert [(row["owner"], row["text"]) for row in json_of("subscriptions")] == [
        ("ann", "load > 8 nodata clear severity critical")
    ]


def test_what_comes_from_publishers_cannot_steer_the_terminal(daemon: Daemon) -> None:
    daemon.watch.declare("web1", Declared(1, 0, (Named("load", (("disk", "\x9b31mx"),)),)), NOW)
    run("subscribe", "load > 8")
    columns = array("I", [0]), array("d", [9.0]), array("q", [NOW])
    daemon.watch.samples("web1", Samples(1, *columns), NOW)
    for table in (run("alerts", "list"), run("alerts", "history"), run("subscriptions")):
        assert table.exit_code == 0
        assert "\x9b" not in table.stdout
