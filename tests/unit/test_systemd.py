"""The systemd units: what systemd makes of them, and that what the daemon may do is what it needs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mchannel.agents.main import main

UNITS = Path(__file__).resolve().parents[2] / "mbroker/systemd"
UNIT = UNITS / "mbrokerd.service"
SOMEBODY = 65534
NEEDED = {
    "CAP_CHOWN": f"import os; fd = os.memfd_create('lane'); os.fchown(fd, {SOMEBODY}, {SOMEBODY})",
    "CAP_SETGID": f"import os; os.setgroups([]); os.setgid({SOMEBODY})",
    "CAP_SETUID": f"import os; os.setuid({SOMEBODY})",
    "CAP_SYS_NICE": "import os; os.setpriority(os.PRIO_PROCESS, 0, -1)",
    "CAP_SYS_RESOURCE": "from resource import *; setrlimit(RLIMIT_CORE, (0, 0)); setrlimit(RLIMIT_CORE, (0, 1))",
    "CAP_KILL": (
        f"import os, signal, subprocess; p = subprocess.Popen(['sleep', '9'], user={SOMEBODY}); p.terminate(); p.wait()"
    ),
    "CAP_DAC_OVERRIDE": (
        f"import os, tempfile; f = tempfile.mkdtemp(); os.chmod(f, 0); os.chown(f, {SOMEBODY}, {SOMEBODY});"
        " d = os.open(f, os.O_RDONLY); os.close(d); os.rmdir(f)"
    ),
}
"""For each capability what the daemon does with it: a lane that the hypervisor's user may open, policies and
their processes as another user, domains' cgroups."""


def _bounds() -> list[str]:
    (line,) = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)
    return str(line).split()


def test_the_unit_allows_what_is_needed_and_no_more() -> None:
    assert sorted(_bounds()) == sorted(NEEDED)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, and setpriv of util-linux")
@pytest.mark.parametrize("capability", NEEDED)
def test_each_thing_that_the_daemon_does_works_under_the_bounds_of_the_unit(capability: str) -> None:
    if _tried([], NEEDED[capability]):
        pytest.skip(f"this machine does not allow {capability} to its root")
    bounds = ",".join(f"+{each.removeprefix('CAP_').lower()}" for each in _bounds())
    assert _tried(["setpriv", "--no-new-privs", "--bounding-set", f"-all,{bounds}"], NEEDED[capability]) == ""


def _tried(under: list[str], script: str) -> str:
    """Return how *script* failed."""
    command = [*under, sys.executable, "-c", script]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    return done.stderr if done.returncode else ""


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", sorted(UNITS.iterdir()), ids=lambda unit: unit.name)
def test_systemd_has_nothing_to_say_against_a_unit(unit: Path) -> None:
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", sorted(UNITS.iterdir()), ids=lambda unit: unit.name)
def test_a_unit_gives_up_what_no_daemon_of_ours_needs(unit: Path) -> None:
    given_up = {"NoNewPrivileges=yes", "ProtectSystem=strict", "PrivateTmp=yes", "RestrictSUIDSGID=yes", "LimitCORE=0"}
    assert given_up <= set(unit.read_text().splitlines())


def test_the_agent_of_a_host_is_started_as_its_command_line_allows(capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = re.findall(
        r"^ExecStart=/usr/bin/env magent (.*)$", (UNITS / "magent-host.service").read_text(), re.MULTILINE
    )
    with pytest.raises(SystemExit) as end:
        main([*command.replace("%H", "node1").split(), "--config", "/nowhere.toml"])
    assert (end.value.code, capsys.readouterr().err) == (4, "magent: there is no configuration /nowhere.toml\n")
