"""The benchmark of the publisher measures the process that it is about."""

from __future__ import annotations

import json

import pytest

from benchmarks import publisher


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    run = publisher.run

    def shortly(_: int) -> dict[str, float]:
        return run(1)

    monkeypatch.setattr(publisher, "run", shortly)


@pytest.mark.usefixtures("once")
def test_the_share_of_a_running_publisher_is_told_beside_its_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert publisher.main(["--json", "--quick"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < told["host_cpu_percent"] < 100
    assert told["host_series"] > 20
    (target,) = told["targets"].values()
    assert target["value"] == told["host_cpu_percent"]
    assert target["bound"] == 1.0
