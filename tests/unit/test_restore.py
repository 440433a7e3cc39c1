from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from mbroker.actuators.originals import Originals, boot_id, write_value
from mbroker.restore import main


@pytest.fixture
def control(tmp_path: Path) -> Path:
    """A setting of this machine that holds 10 and was set to 20 by a broker that was killed."""
    control = tmp_path / "setting"
    control.write_text("10\n")
    if (child := os.fork()) == 0:
        try:
            originals = Originals(tmp_path / "some.originals", boot=boot_id())
            originals.keep("web1", {control: "10"})
            write_value(control, "20")
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert control.read_text() == "20"
    return control


def test_what_a_killed_broker_changed_is_put_back(tmp_path: Path, control: Path) -> None:
    assert main(["--state", str(tmp_path)]) == 0
    assert control.read_text() == "10"


def test_a_second_run_leaves_later_changes_alone(tmp_path: Path, control: Path) -> None:
    main(["--state", str(tmp_path)])
    control.write_text("30")
    assert main(["--state", str(tmp_path)]) == 0
    assert control.read_text() == "30"


def test_a_living_broker_is_not_disturbed(tmp_path: Path, control: Path, capsys: pytest.CaptureFixture[str]) -> None:
    living = Originals(tmp_path / "some.originals", boot=boot_id())
    assert main(["--state", str(tmp_path)]) == 1
    assert "is open in another process" in capsys.readouterr().err
    assert control.read_text() == "20"
    living.close()


def test_an_original_that_cannot_be_put_back_is_named_and_kept(
    tmp_path: Path, control: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(file: Path, _: str) -> None:
        raise PermissionError(1, "Operation not permitted", str(file))

    with monkeypatch.context() as patch:
        patch.setattr("mbroker.actuators.originals.write_value", refuse)
        assert main(["--state", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"cannot write '10' to {control}: Operation not permitted\n"
    assert main(["--state", str(tmp_path)]) == 0
    assert control.read_text() == "10"


def test_a_damaged_journal_is_named_and_the_others_are_restored(
    tmp_path: Path, control: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "another.originals").write_bytes(b"garbage")
    assert main(["--state", str(tmp_path)]) == 1
    assert "another.originals is damaged at offset 0" in capsys.readouterr().err
    assert control.read_text() == "10"


def test_nothing_to_restore_is_fine(tmp_path: Path) -> None:
    assert main(["--state", str(tmp_path)]) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_missing_directory_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--state", str(tmp_path / "missing")])
    assert left.value.code == 2
    assert "is no directory" in capsys.readouterr().err
