"""Originals of control files: what is recorded before the first write, and when anew."""

from __future__ import annotations

from pathlib import Path

from mbroker.actuators.originals import Originals, write_value


def begun_anew(file: Path, value: str) -> None:
    """Put another file in the place of *file*, as a driver does that is loaded again."""
    new = file.with_suffix(".new")
    new.write_text(value)
    new.rename(file)


def test_an_original_that_is_known_is_not_recorded_again(tmp_path: Path) -> None:
    file = tmp_path / "setting"
    file.write_text("10")
    originals = Originals(tmp_path / "some.originals", boot="b")
    originals.keep("web1", {file: "10"})
    write_value(file, "20")
    originals.keep("web1", {file: "20"})
    originals.close()
    assert file.read_text() == "10"


def test_a_file_that_began_anew_has_an_original_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "setting"
    file.write_text("10")
    originals = Originals(tmp_path / "some.originals", boot="b")
    originals.keep("web1", {file: "10"})
    begun_anew(file, "30")
    originals.keep("web1", {file: "30"})
    write_value(file, "20")
    originals.close()
    assert file.read_text() == "30"


def test_a_file_that_began_anew_is_not_given_the_original_of_another(tmp_path: Path) -> None:
    file = tmp_path / "setting"
    file.write_text("10")
    originals = Originals(tmp_path / "some.originals", boot="b")
    originals.keep("web1", {file: "10"})
    begun_anew(file, "30")
    originals.close()
    assert file.read_text() == "30"
