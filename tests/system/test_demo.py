"""The demo as a user runs it, shorter: a real server, a real load, and its speed really changed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from mbroker.cgroup import CgroupError, Hierarchy

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "examples.demo"]


def may_limit() -> bool:
    try:
        return os.access(Hierarchy.detect().cpu, os.W_OK) and os.geteuid() == 0
    except CgroupError:
        return False


needs_cgroups = pytest.mark.skipif(not may_limit(), reason="needs root and a cgroup CPU controller")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("demo")
    short = ["--seconds", "11", "--peak", "560", "--output", str(output)]
    done = subprocess.run([*COMMAND, *short], cwd=ROOT, capture_output=True, text=True, timeout=160, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@needs_cgroups
def test_every_policy_meets_the_same_load(whole: dict[str, Any]) -> None:
    requests = [whole[name]["requests"] for name in ("none", "basic", "richer", "utilization", "adaptive")]
    assert min(requests) > 0.9 * max(requests) > 500


@needs_cgroups
def test_without_power_management_the_level_never_moves(whole: dict[str, Any]) -> None:
    assert whole["none"]["transitions"] == 0
    assert set(whole["none"]["levels"]) == {4}
    assert whole["none"]["energy_saving_pct"] == 0


@needs_cgroups
@pytest.mark.parametrize("policy", ["basic", "richer", "utilization", "adaptive"])
def test_a_policy_moves_the_level_down_and_up_again(whole: dict[str, Any], policy: str) -> None:
    if policy == "adaptive" and whole["none"]["violations"] > whole["none"]["requests"] / 50:
        pytest.skip("other work on this machine breaks the promise at full speed, and less speed would be wrong")
    steps = [after - before for before, after in pairwise([4, *whole[policy]["levels"]])]
    assert min(steps) < 0 < max(steps)
    assert whole[policy]["transitions"] >= 2
    assert whole[policy]["energy_saving_pct"] > 0


@needs_cgroups
def test_a_server_at_a_third_of_its_speed_breaks_its_promise(whole: dict[str, Any]) -> None:
    assert whole["utilization"]["violations"] > 0


@needs_cgroups
def test_it_ends_with_a_figure_for_screens_and_one_for_print(whole: dict[str, Any]) -> None:
    figure = Path(whole["figure"])
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in figure.with_suffix(".svg").read_bytes()
    assert whole["energy"] == "modelled"


@needs_cgroups
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    demo = subprocess.Popen([*COMMAND, "--output", str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert demo.stderr is not None
    group = Hierarchy.detect().cpu / f"mchannel-demo-{demo.pid}"
    try:
        late = time.monotonic() + 60
        while len(children := psutil.Process(demo.pid).children()) < 2 and time.monotonic() < late:
            time.sleep(0.05)
        assert group.is_dir()
        assert (group / "cgroup.procs").read_text().split()
        demo.send_signal(number)
        _, said = demo.communicate(timeout=60)
    finally:
        demo.kill()
        demo.wait()
    assert demo.returncode == 130
    assert said.endswith("demo: interrupted; everything was put back\n")
    assert len(children) == 2
    assert not any(child.is_running() for child in children)
    assert not group.exists()


@needs_cgroups
def test_the_group_of_a_killed_demo_is_removed_by_the_next(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = Hierarchy.detect().group(f"mchannel-demo-{ended.pid}")
    left.create()
    short = ["--seconds", "1", "--policies", "none", "--output", str(tmp_path)]
    subprocess.run([*COMMAND, *short], cwd=ROOT, capture_output=True, timeout=60, check=True)
    assert not left.exists()


@pytest.mark.parametrize("wire", ["shm", "ipc"])
def test_a_dry_run_says_so_and_changes_nothing(wire: str, tmp_path: Path) -> None:
    if wire == "shm":
        pytest.importorskip("mchannel._ring")
    short = ["--seconds", "3", "--policies", "utilization", "--dry-run", "--wire", wire, "--output", str(tmp_path)]
    done = subprocess.run([*COMMAND, *short], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "dry run" in done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["speed"], result["wire"]) == ("dry run", wire)
    assert result["utilization"]["transitions"] > 0
    alert = result["alert"]
    assert alert["value"] > int(alert["subscription"].split()[2])
    assert min(alert["fired_s"], alert["cleared_s"]) >= 0
    assert alert["kept_metrics"] > 5
    assert alert["kept"] >= alert["kept_metrics"]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--policies", "nope"], 1, "no policy is called 'nope'"),
        (["--seconds", "0"], 2, "--seconds must be above 0"),
        (["--hard-ms", "3", "--soft-ms", "6"], 2, "--soft-ms must be above 0 and at most --hard-ms"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(arguments: list[str], code: int, text: str) -> None:
    done = subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert text in done.stderr
    assert "Traceback" not in done.stderr
