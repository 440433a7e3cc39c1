"""The example that tries subscriptions on recorded traces."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mbroker.alerts._match", reason="the C is not built here")

HOUSE = Path(__file__).parents[2]


def run(*arguments: str, folder: Path = HOUSE / "examples") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "replay_traces.py"), *arguments]
    return subprocess.run(command, cwd=HOUSE, check=False, capture_output=True, text=True)


def test_each_rule_finds_what_its_trace_was_made_with() -> None:
    said = run().stdout
    assert [line for line in said.splitlines() if not line.startswith(" ")] == [
        "spikes: value > 80: samples 600, alerts 5",
        "drift: mean(value[2h]) > 60 clear < 55: samples 600, alerts 1",
        "gaps: absent(value[20m]): samples 570, alerts 2",
    ]
    assert "  2014-05-15 12:13:20  goes on              60.1757\n" in said


def test_the_traces_are_those_of_the_seed(tmp_path: Path) -> None:
    shutil.copy(HOUSE / "examples/replay_traces.py", tmp_path)
    assert run("--make", folder=tmp_path).returncode == 0
    shipped = {file.name: file.read_bytes() for file in (HOUSE / "examples/traces").iterdir()}
    assert {file.name: file.read_bytes() for file in (tmp_path / "traces").iterdir()} == shipped


def test_a_trace_of_ones_own_is_read(tmp_path: Path) -> None:
    file = tmp_path / "cpu.csv"
    file.write_text("timestamp,value\n2014-02-14 14:30:00,1.5\n2014-02-14 14:35:00,95\n2014-02-14 14:40:00,2e0\n")
    assert run(str(file), "value > 90").stdout == (
        "cpu: value > 90: samples 3, alerts 1\n  2014-02-14 14:35:00  2014-02-14 14:40:00  95\n"
    )


@pytest.mark.parametrize(
    ("text", "rule", "says"),
    [
        ("a,b\n1,2\n3,4\n", "value > 1", "is no CSV file of timestamp,value"),
        ("timestamp,value\n", "value > 1", "is no CSV file of timestamp,value"),
        ("timestamp,value\n2014-02-14 14:30:00\n2014-02-14 14:35:00\n", "value > 1", "is no CSV file of"),
        ("timestamp,value\n2014-02-14 14:30:00,1\n2014-02-14 14:35:00,1\n", "value >", "column 8: expected a number"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, text: str, rule: str, says: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    done = run(str(file), rule)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert says in done.stderr


def test_the_tutorial_shows_what_it_prints() -> None:
    said = run("examples/traces/gaps.csv", "absent(value[20m])").stdout
    assert said in (HOUSE / "docs/tutorial/first-subscription.md").read_text()
