from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from mbroker.logs import Lines, Sparse


def record(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("mbroker", logging.WARNING, __file__, 1, message, arguments, None)


def test_a_guest_cannot_forge_lines_or_steer_the_terminal() -> None:
    line = Lines("%(levelname)s %(message)s").format(record("%s", "web1\nERROR all is lost\x1b[2J"))
    assert line == "WARNING web1\\x0aERROR all is lost\\x1b[2J"


def test_one_subject_logs_a_few_lines_of_a_kind_a_minute() -> None:
    now = [0.0]
    sparse = Sparse(limit=2, seconds=60.0, clock=lambda: now[0])
    assert [sparse.filter(record("%s: bad event", "web1")) for _ in range(5)] == [True, True, False, False, False]
    assert sparse.filter(record("%s: bad event", "db")), "another agent"
    assert sparse.filter(record("%s: came back", "web1")), "another kind"
    now[0] = 61.0
    later = record("%s: bad event", "web1")
    assert sparse.filter(later)
    assert later.getMessage() == "web1: bad event (3 more like this were held back)"


def test_what_is_remembered_about_subjects_is_bounded() -> None:
    sparse = Sparse(limit=1)
    assert [sparse.filter(record("%s: x", "first")) for _ in range(2)] == [True, False]
    for number in range(2000):
        sparse.filter(record("%s: x", number))
    assert sparse.filter(record("%s: x", "first")), "it was forgotten"


def test_lines_for_the_journal_begin_with_their_priority() -> None:
    assert Lines("%(message)s", priorities=True).format(record("hot")) == "<4>hot"


@pytest.mark.parametrize(("environment", "begin"), [({"JOURNAL_STREAM": "8:1"}, "<4>x: "), ({}, "20")])
def test_logs_go_to_standard_error_as_its_reader_wants_them(environment: dict[str, str], begin: str) -> None:
    code = "import logging; from mbroker import logs; logs.set_up('info'); logging.getLogger('x').warning('%s', 1)"
    clean = {name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    assert done.stderr.startswith(begin)
    assert done.stderr.count("\n") == 1
