"""The house itself: its door, its packaging and its front page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from mbroker.config import load
from mchannel.address import Address
from mchannel.transport import find_scheme

HOUSE = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]
GROUPS = {"console_scripts": PROJECT["scripts"], **PROJECT["entry-points"]}
DECLARED = [EntryPoint(name, value, group) for group, points in GROUPS.items() for name, value in points.items()]


def python(code: str) -> str:
    """Return what a fresh interpreter prints for *code*."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("point", DECLARED, ids=lambda point: f"{point.group}:{point.name}")
def test_every_declared_entry_point_is_installed_and_loads(point: EntryPoint) -> None:
    (installed,) = entry_points(group=point.group, name=point.name)
    assert installed.value == point.value
    assert callable(installed.load()) or point.group == "mchannel.transports"


def test_every_folder_of_modules_is_packaged() -> None:
    config = tomllib.loads((HOUSE / "pyproject.toml").read_text())
    folders = {
        str(Path(root).relative_to(HOUSE)).replace("/", ".")
        for top in ("mchannel", "mbroker")
        for root, _, files in os.walk(HOUSE / top, followlinks=True)
        if any(file.endswith(".py") for file in files)
    }
    assert folders == set(config["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("module", ["mchannel", "mchannel.agents.main"])
def test_a_guest_needs_no_extra(module: str) -> None:
    extras = {re.split(r"\W", need)[0] for needs in PROJECT["optional-dependencies"].values() for need in needs}
    loaded = python(f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})").split()
    assert not (extras - {"mchannel"} | {"mbroker"}) & set(loaded)


def test_the_core_loads_no_transport_before_it_is_asked_for() -> None:
    loaded = python("import sys, mchannel; print(*sys.modules)").split()
    assert not [name for name in loaded if name == "zmq" or name.startswith("mchannel.transports.")]


def test_the_door_opens_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run([HOUSE / "dev", "help"], cwd=tmp_path, check=True, capture_output=True, text=True)
    for verb in ("demo", "test", "check", "bench", "docs", "verify"):
        assert f"./dev {verb}" in done.stdout


def test_an_unknown_verb_is_one_clear_line() -> None:
    done = subprocess.run([HOUSE / "dev", "tset"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "dev: no such verb: tset; try ./dev help\n")


def test_an_old_python_is_one_clear_line(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(
        [HOUSE / "dev", "check"], check=False, capture_output=True, text=True, env={**os.environ, "PYTHON": str(old)}
    )
    assert done.returncode == 1
    assert done.stderr == f"dev: Python 3.11 or newer is needed, {old} is Python 3.9.2; set PYTHON to a newer one\n"


def test_the_readme_shows_the_examples_as_they_are() -> None:
    readme = (HOUSE / "README.md").read_text()
    shown = re.findall(r"<!-- (examples/\w+\.py) -->\n```python\n(.*?)```", readme, re.DOTALL)
    assert [name for name, _ in shown] == [f"examples/hello_{part}.py" for part in ("broker", "agent", "policy")]
    for name, text in shown:
        assert text == (HOUSE / name).read_text()


@pytest.mark.parametrize("scheme", ["shm", "ipc"])
def test_the_hello_examples_talk_over_any_local_address(scheme: str, tmp_path: Path) -> None:
    find_scheme(Address.parse(f"{scheme}:///web1"))
    env = {**os.environ, "MCHANNEL_RUNTIME_DIR": str(tmp_path)}

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(HOUSE / "examples" / name), f"{scheme}:///web1"]
        return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    with start("hello_broker.py") as broker, start("hello_agent.py") as agent:
        try:
            assert agent.communicate(timeout=60)[0] == ""
            said, _ = broker.communicate(timeout=60)
        finally:
            broker.kill()
            agent.kill()
    assert said.splitlines() == [
        "0.0",
        "0.03 SetFrequency(domain='web1', step=0, level=2) SetPState(cpus=(0,), level=2)",
        "0.4 SetFrequency(domain='web1', step=0, level=3) SetPState(cpus=(0,), level=3)",
        "0.0",
    ]


def test_the_hello_policy_climbs_and_then_tells() -> None:
    run = subprocess.run(
        [sys.executable, HOUSE / "examples/hello_policy.py"], check=True, capture_output=True, text=True
    )
    quiet, climbs, tells = run.stdout.splitlines()
    assert quiet == "0.0 []"
    assert "level=4" in climbs
    assert "Notify" in tells
    assert "level" not in tells


def test_the_configuration_that_the_guide_shows_is_accepted() -> None:
    assert load(HOUSE / "examples/mbroker.toml").config.listen[0].fixed_domain == "web1"
