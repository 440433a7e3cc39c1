from __future__ import annotations

from pathlib import Path

from mbroker.action import Action, SetFrequency, SetPState
from mbroker.actuator import Actuator
from mbroker.actuators.dryrun import DryRun
from mbroker.host import Host


def test_everything_is_done_and_said_to_be_a_dry_run(tmp_path: Path) -> None:
    actuator = DryRun(host=Host("h"), state=tmp_path)
    assert isinstance(actuator, Actuator)
    actions: list[Action] = [SetFrequency("web1", level=1), SetPState((0,), 4)]
    outcomes = [actuator.apply(action) for action in actions]
    assert [outcome.done for outcome in outcomes] == [True, True]
    assert [outcome.actual for outcome in outcomes] == [
        "dry run: 1800 MHz, nothing was changed",
        "dry run: 2400 MHz, nothing was changed",
    ]
    assert list(actuator.actions) == actions


def test_nothing_is_written_and_nothing_is_restored(tmp_path: Path) -> None:
    actuator = DryRun(host=Host("h"), state=tmp_path)
    actuator.apply(SetFrequency("web1", level=1))
    assert actuator.restore() == []
    actuator.close()
    assert list(tmp_path.iterdir()) == []
