"""What an entry point must be before it is put to work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from mbroker.cli import main
from mbroker.config import load
from mbroker.plugins import PluginError, load_class, make_policy
from mbroker.setup import faults

Install = Callable[[str], None]

DECIDE = "    def decide(self, event, host): return ()"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Install]:
    """Install a policy called ``odd``, in a module with the text given."""
    site = tmp_path / "site"
    (site / "odd-1.0.dist-info").mkdir(parents=True)
    (site / "odd-1.0.dist-info" / "METADATA").write_text("Name: odd\nVersion: 1.0\n")
    (site / "odd-1.0.dist-info" / "entry_points.txt").write_text("[mbroker.policies]\nodd = odd_policy:Odd\n")

    def begin(text: str) -> None:
        (site / "odd_policy.py").write_text(text)
        monkeypatch.setattr(sys, "path", [str(site), *sys.path])

    yield begin
    sys.modules.pop("odd_policy", None)


BAD = {
    "no topics": f"class Odd:\n{DECIDE}",
    "a list of topics": f"class Odd:\n    topics = ['sla.']\n{DECIDE}",
    "topics that are no texts": f"class Odd:\n    topics = (1,)\n{DECIDE}",
    "topics that raise": f"class Odd:\n    @property\n    def topics(self): return 1 / 0\n{DECIDE}",
    "no decide": "class Odd:\n    topics = ('sla.',)",
    "a decide that is no method": "class Odd:\n    topics = ('sla.',)\n    decide = 3",
    "a function": "def Odd(): pass",
    "no class": "Odd = 3",
    "a module that ends the process": "import sys\nsys.exit(0)",
    "a module that says why in two lines": "raise ImportError('first\\nsecond')",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_what_is_no_policy_is_one_line(install: Install, tmp_path: Path, text: str) -> None:
    install(text)
    with pytest.raises(PluginError, match=r"\Apolicy odd .+\Z") as refused:
        make_policy("odd", {})
    file = tmp_path / "mbroker.toml"
    file.write_text("[policies.odd]\n")
    assert faults(load(file)) == (f"{file}: policies.odd: {refused.value}",)


def test_what_is_no_policy_is_not_replayed(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(BAD["a list of topics"])
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"topic": "sla.epoch"}\n')
    with pytest.raises(SystemExit) as ended:
        main(["replay", "--policy", "odd", str(trace)])
    assert ended.value.code == 1
    why = "TypeError: its topics must be a tuple of topic prefixes, not ['sla.']"
    assert capsys.readouterr().err == f"mbroker: policy odd cannot be asked: {why}\n"


def test_a_class_of_others_is_found_by_its_entry_point(install: Install) -> None:
    install(f"class Odd:\n    topics = ()\n{DECIDE}")
    assert load_class("policy", "odd").__name__ == "Odd"
    assert make_policy("odd", {}).topics == ()
