"""``mbroker migrate`` and a daemon that is slow, silent or gone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from mbroker import control
from mbroker.cli import main
from mbroker.fleet import migration
from mbroker.hosting import Begun, DomainRow, LaneRow, MemberRow, MigrationRow

MOVING = MigrationRow(7, "web1", "node2", migration.Progress("move", 3, 0.5))
MOVED = attrs.evolve(MOVING, result=migration.Result("web1", moved=True, host="node2", seconds=2.0))
SILENT = control.Unreachable("the daemon did not answer within 3 s; see its log")


@attrs.define
class Clock:
    """Time that passes only by sleeping."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


Migrate = Callable[..., Result]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("mbroker.fleet_commands.time", made)
    return made


@pytest.fixture
def migrate(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Migrate:
    """Return how ``mbroker migrate`` ends with a daemon that gives these answers, the last for ever."""

    def run(*answers: MigrationRow | BaseException, options: tuple[str, ...] = ()) -> Result:
        asked = iter(answers)
        last: list[MigrationRow | BaseException] = []
        requests: list[str] = []

        def ask(_address: str, _kind: Any, topic: str, value: str = "") -> Any:
            if topic == "control.migrate":
                requests.append(json.loads(value)["request"])
                return Begun(7 if len(requests) == 3 else 0)  # the hypervisor is slow
            clock.sleep(3.0 if isinstance(last and last[0], control.Unreachable) else 0.0)
            answer = _next(asked, last)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        monkeypatch.setattr("mbroker.control.ask", ask)
        result = CliRunner().invoke(main, ["migrate", "web1", "node2", *options])
        assert len(set(requests)) <= 1  # it is asked for again, not for another one
        return result

    return run


def _next(
    asked: Iterator[MigrationRow | BaseException], last: list[MigrationRow | BaseException]
) -> MigrationRow | BaseException:
    last[:] = [next(asked, *last)]
    return last[0]


def test_a_missed_answer_of_the_daemon_does_not_end_the_command(migrate: Migrate) -> None:
    result = migrate(MOVING, SILENT, SILENT, MOVING, MOVED)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "web1 runs on node2" in result.stdout


def test_silence_after_silence_counts_from_the_last_answer(migrate: Migrate) -> None:
    almost = [SILENT] * 17
    assert migrate(*almost, MOVING, *almost, MOVED).exit_code == 0


def test_after_a_minute_of_silence_the_command_ends_as_unreachable(migrate: Migrate, clock: Clock) -> None:
    result = migrate(MOVING, SILENT)
    assert result.exit_code == 3
    assert result.stderr == (
        "mbroker: how web1 to node2 ended is unknown, ask both hosts:"
        " the daemon did not answer within 3 s; see its log\n"
    )
    assert 60 < clock.now < 70


def test_an_interrupted_command_says_that_the_migration_goes_on_and_how_to_look(migrate: Migrate) -> None:
    result = migrate(MOVING, KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr == (
        "mbroker: interrupted; what the daemon has begun goes on: look for web1 here and on node2 by: mbroker domains\n"
    )


@pytest.mark.parametrize("timeout", ["nan", "inf", "0", "-1"])
def test_a_timeout_that_is_no_number_of_seconds_is_wrong_usage_in_one_line(migrate: Migrate, timeout: str) -> None:
    result = migrate(MOVED, options=("--timeout", timeout))
    assert result.exit_code == 2
    assert result.stderr == f"mbroker: --timeout {timeout}: give a number of seconds above 0, such as 300\n"


def test_a_migration_that_the_daemon_forgot_is_a_failure_with_its_reason(migrate: Migrate) -> None:
    result = migrate(MOVING, control.ControlError("no migration has the number 7: this broker was started since"))
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


def test_a_lane_is_told_of_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [LaneRow(done=False), LaneRow(done=True), LaneRow(done=True)]

    def ask(*_: object) -> LaneRow:
        return answers.pop(0)

    monkeypatch.setattr("mbroker.control.ask", ask)
    told = CliRunner().invoke(main, ["lane", "web1", "on", "--output", "json"])
    assert (json.loads(told.stdout), len(answers)) == ({"domain": "web1", "lane": "on"}, 1)
    assert CliRunner().invoke(main, ["lane", "web1", "off"]).stdout == "web1: shared memory is off\n"


def test_a_shell_completes_domains_and_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        "control.domains": (DomainRow("web1", "6d636861", "running", port=True, attended=True),),
        "control.fleet": (MemberRow("node2", "tcp://10.0.0.2:7700", present=True, hypervisor=""),),
    }

    def ask(_address: str, _kind: object, topic: str) -> object:
        return rows[topic]

    monkeypatch.setattr("mbroker.control.ask", ask)
    shell = ShellComplete(main, {}, "mbroker", "_MBROKER_COMPLETE")
    for words, begun, offered, meaning in (
        (["migrate"], "w", "web1", "running, 6d636861"),
        (["migrate", "web1"], "", "node2", "tcp://10.0.0.2:7700"),
        (["lane"], "", "web1", "running, 6d636861"),
    ):
        (found,) = shell.get_completions(words, begun)
        assert (found.value, found.help) == (offered, meaning)
