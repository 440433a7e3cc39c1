"""The benchmark of the history measures what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import history


def test_what_bytes_of_chance_take_is_what_they_are(tmp_path: Path) -> None:
    size, *times = history.run(history.noise(), 2, 200, tmp_path / "history")
    assert size > 6.5
    assert all(spent > 0 for spent in times)


def test_metrics_of_hosts_take_far_less(tmp_path: Path) -> None:
    size, *_ = history.run(history.host(), 2, 600, tmp_path / "history")
    assert size < 2


def test_every_key_is_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> tuple[float, float, float, float]:
        return 0.5, 1.0, 2.0, 3.0

    monkeypatch.setattr(history, "run", run)
    assert history.main(["--quick"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    figures = ("bytes_per_sample", "append_ns", "seal_ns", "read_ns")
    assert {f"{kind}_{figure}" for kind in ("host", "noise") for figure in figures} <= set(found)
