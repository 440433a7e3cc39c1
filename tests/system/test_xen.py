"""A guest that is saved, restored, copied and moved on a real Xen, while its agent talks to domain 0.

Xen itself runs emulated, so it takes some minutes: ``./dev test-xen``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.system import guest_image, xen_image

Steps: TypeAlias = Mapping[str, Mapping[str, Any]]

QEMU = "qemu-system-x86_64"
LONGEST = 1500.0
MOVES = (
    "pv: save and restore",
    "pv: save and restore unannounced",
    "pvh: save and restore",
    "pvh: live migration",
    "pvh: live migration unannounced",
)
COPIES = ("pv: save and go on", "pv: announced, then only copied")

pytestmark = [pytest.mark.xen, pytest.mark.timeout(LONGEST + 300)]


@pytest.fixture(autouse=True, scope="module")
def wanted(request: pytest.FixtureRequest) -> None:
    """Run when asked for, by ``-m xen`` or with everything."""
    if "xen" not in request.config.option.markexpr and os.environ.get("MCHANNEL_VERIFY") != "1":
        pytest.skip("boots Xen, emulated: ./dev test-xen")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> xen_image.Machine:
    try:
        return xen_image.machine(tmp_path_factory.mktemp("xen"))
    except guest_image.NoPackages as error:
        pytest.skip(f"Xen is made of Debian 12's packages: {error}")


@pytest.fixture(scope="module")
def steps(machine: xen_image.Machine, tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """What domain 0 says of each step; it runs all of them after one boot."""
    if shutil.which(QEMU) is None:
        pytest.skip("needs apt-get install qemu-system-x86")
    console = tmp_path_factory.mktemp("console") / "console"
    xen = "console=com1 com1=115200,8n1 dom0_mem=640M,max:640M dom0_max_vcpus=1 loglvl=warning guest_loglvl=warning"
    linux = f"{machine.kernel} console=hvc0 quiet panic=5,{machine.initrd}"
    command = [QEMU, "-accel", "tcg", "-cpu", "qemu64,+npt", "-m", "1400", "-nographic", "-nodefaults", "-no-reboot"]
    command += ["-serial", f"file:{console}", "-kernel", str(machine.hypervisor), "-append", xen, "-initrd", linux]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as qemu:
        try:
            qemu.wait(LONGEST)
        finally:
            qemu.kill()
    said = console.read_text(errors="replace")
    found = [json.loads(line[4:]) for line in said.splitlines() if line.startswith("XEN {")]
    assert found, said[-4000:]
    assert found[-1]["step"] == "all", said[-4000:]
    return {step["step"]: step for step in found}


@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_domain_0_and_a_guest_talk(steps: Steps, kind: str) -> None:
    assert steps[f"{kind}: ping"]["answered"] >= 100
    assert len(steps[f"{kind}: ping"]["identity"]) == 36


@pytest.mark.parametrize("what", [*MOVES, *COPIES])
def test_nothing_is_lost_and_nothing_comes_twice(steps: Steps, what: str) -> None:
    step = steps[what]
    assert (step["lost"], step["repeated"], step["error"]) == (0, 0, "")
    assert step["answered"] > steps[f"{what.partition(':')[0]}: ping"]["answered"]


@pytest.mark.parametrize("what", MOVES)
def test_a_guest_that_moved_is_the_same_to_domain_0(steps: Steps, what: str) -> None:
    assert steps[what]["after"] != steps[what]["before"]
    assert steps[what]["boots"] == 1
    assert steps[what]["identity"] == steps[f"{what.partition(':')[0]}: ping"]["identity"]


@pytest.mark.parametrize("what", COPIES)
def test_a_guest_that_was_only_copied_goes_on(steps: Steps, what: str) -> None:
    assert steps[what]["after"] == steps[what]["before"]
    assert steps[what]["boots"] == 1


@pytest.mark.parametrize("what", ["pv: save and restore", "pvh: live migration", "pv: announced, then only copied"])
def test_agents_let_go_when_a_suspend_is_announced(steps: Steps, what: str) -> None:
    assert steps[what]["quiet"]


@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_a_broker_that_comes_back_maps_the_same_ring(steps: Steps, kind: str) -> None:
    step = steps[f"{kind}: another broker"]
    assert step["answered"] >= steps[f"{kind}: end"]["said"] + 100
    assert (step["lost"], step["repeated"], step["boots"], step["error"]) == (0, 0, 1, "")


@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_an_offer_that_nobody_can_use_is_refused_with_one_line(steps: Steps, kind: str) -> None:
    step = steps[f"{kind}: strangers"]
    assert len(step["lines"]) == step["offers"]
    assert all("/evil: refused the offer: " in line for line in step["lines"])
    assert (step["lost"], step["repeated"], step["error"]) == (0, 0, "")


@pytest.mark.usefixtures("machine")
def test_the_same_packages_give_the_same_bytes(tmp_path: Path) -> None:
    fresh = tmp_path / "cache"
    fresh.mkdir()
    (fresh / "debs").symlink_to(guest_image.CACHE / "debs")
    again = xen_image.machine(tmp_path, fresh)
    initrd = again.initrd.read_bytes()
    kept = xen_image.machine(tmp_path)  # once more: the tree may have changed since the machine was made
    pairs = ((kept.hypervisor, again.hypervisor), (kept.kernel, again.kernel))
    assert all(one.read_bytes() == other.read_bytes() for one, other in pairs)
    assert kept.initrd.read_bytes() == initrd
