"""The actuators against the kernel's own acpi-cpufreq and cgroup v2, in an emulated PC with p-states.

An ACPI table gives each CPU of the guest the five p-states of the paper's machine, behind an I/O
port that only stores what the driver writes. The host reads that port through QEMU's monitor.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

P_STATES = ((2400, 95000), (2200, 82000), (2000, 70000), (1800, 59000), (1000, 32000))
CPUS = 2
PORT = 0xE0
PYTHON = "/usr/bin/python3"
ROOT = Path(os.environ.get("MCHANNEL_GUEST_ROOT", "/"))  # below which boot/ and lib/modules/ are
TOOLS = ("qemu-system-x86_64", "iasl", "busybox", "cpio", PYTHON)
PACKAGES = "qemu-system-x86 acpica-tools busybox-static cpio python3 linux-image-cloud-amd64"


def kernels() -> list[Path]:
    return sorted(
        kernel for kernel in (ROOT / "boot").glob("vmlinuz-*-amd64") if (modules(kernel) / "acpi-cpufreq.ko").exists()
    )


def modules(kernel: Path) -> Path:
    return ROOT / "lib/modules" / kernel.name.removeprefix("vmlinuz-") / "kernel/drivers/cpufreq"


pytestmark = [
    pytest.mark.verify,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.environ.get("MCHANNEL_VERIFY") != "1", reason="boots a guest: ./dev verify"),
    pytest.mark.skipif(not all(map(shutil.which, TOOLS)) or not kernels(), reason=f"needs apt-get install {PACKAGES}"),
]


def acpi_table(folder: Path) -> Path:
    """Compile a table that says how the CPUs change their p-state."""
    states = ",".join(
        f"Package () {{ {mhz}, {mw}, 10, 10, {number}, {number} }}" for number, (mhz, mw) in enumerate(P_STATES, 1)
    )
    lines = ['DefinitionBlock ("", "SSDT", 2, "MCHNL", "PSTATES", 1) {']
    for cpu in range(CPUS):
        port = f"ResourceTemplate () {{ Register (SystemIO, 8, 0, {PORT + cpu:#x}) }}"
        name = f"\\_SB.CPUS.C{cpu:03X}"
        lines += [
            f"External ({name}, DeviceObj)",
            f"Scope ({name}) {{",
            f"  Name (_PCT, Package () {{ {port}, {port} }})",
            f"  Name (_PSS, Package () {{ {states} }})",
            "  Method (_PPC, 0) { Return (0) }",
            f"  Name (_PSD, Package () {{ Package () {{ 5, 0, {cpu}, 0xFE, 1 }} }})",
            "}",
        ]
    source = folder / "pstates.asl"
    source.write_text("\n".join([*lines, "}"]))
    subprocess.run(["iasl", source.name], cwd=folder, check=True, capture_output=True)
    return source.with_suffix(".aml")


def python_files(program: Path) -> Iterator[tuple[Path, str]]:
    """Yield every file that *program* needs to run under the system's Python, and where it goes."""
    paths = [path for path in sys.path if path]
    find = (
        "import encodings.ascii, importlib.util, json, sys; kept = sys.path[:]; sys.path += json.loads(sys.argv[1])\n"
        "spec = importlib.util.spec_from_file_location('program', sys.argv[2])\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "print(json.dumps([m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)]))"
    )
    command = [PYTHON, "-B", "-S", "-c", find, json.dumps(paths), str(program)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    files = {Path(name) for name in json.loads(found)}
    for file in sorted(files):
        # Longest first: site-packages lies inside other entries of the path.
        bases = sorted((path for path in paths if file.is_relative_to(path)), key=len, reverse=True)
        yield file, str(file)[1:] if file.is_relative_to("/usr") else f"app/{file.relative_to(bases[0])}"
    binaries = [file for file in files if file.suffix == ".so"]
    linked = subprocess.run(["ldd", PYTHON, *binaries], check=True, capture_output=True, text=True).stdout
    for word in sorted({word for word in linked.split() if word.startswith("/") and not word.endswith(":")}):
        yield Path(word), word[1:]
    yield Path(PYTHON).resolve(), PYTHON[1:]


def initramfs(folder: Path, kernel: Path) -> Path:
    tree = folder / "tree"
    program = Path(__file__).with_name("actuators_guest.py")
    files = [(program, "guest.py"), (Path(shutil.which("busybox") or ""), "bin/busybox"), *python_files(program)]
    names = ("acpi-cpufreq.ko", "cpufreq_userspace.ko")
    for source, target in [*files, *((modules(kernel) / name, name) for name in names)]:
        (tree / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, tree / target)
        shutil.copymode(source, tree / target)
    init = tree / "init"
    init.write_text(
        "#!/bin/busybox sh\n"
        "b=/bin/busybox; $b mkdir -p /proc /sys /dev\n"
        "$b mount -t proc none /proc; $b mount -t sysfs none /sys; $b mount -t devtmpfs none /dev\n"
        "$b mount -t cgroup2 none /sys/fs/cgroup\n"
        "for m in /*.ko; do $b insmod $m; done; $b stty -F /dev/ttyS0 -echo\n"
        f"PYTHONPATH=/app /{PYTHON[1:]} -B -S /guest.py </dev/ttyS0 >/dev/ttyS0 2>&1\n"
        "$b poweroff -f\n"
    )
    init.chmod(0o755)
    image = folder / "initramfs"
    listed = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    with image.open("wb") as out:
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=tree, input=listed.encode(), stdout=out, check=True)
    return image


class Monitor:
    """QEMU's monitor: what the hardware holds, which no driver can pretend."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r")
        self._lines.readline()
        self._ask("qmp_capabilities")

    def _ask(self, command: str, **arguments: str) -> Any:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while "return" not in (answer := json.loads(self._lines.readline())):
            assert "error" not in answer, answer
        return answer["return"]

    def mhz(self, cpu: int) -> int:
        """Return the frequency that the driver chose last, 0 before it chose any."""
        shown = self._ask("human-monitor-command", **{"command-line": f"i /b {PORT + cpu:#x}"})
        number = int(shown.split("=")[1], 16)
        return P_STATES[number - 1][0] if 1 <= number <= len(P_STATES) else 0

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the guest told, each time with the hardware's own view of CPU 1."""
    folder = tmp_path_factory.mktemp("guest")
    kernel = kernels()[-1]
    command = ["qemu-system-x86_64", "-machine", "pc", "-accel", "tcg", "-cpu", "Opteron_G3", "-smp", str(CPUS)]
    command += ["-m", "256", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
    command += ["-device", "pc-testdev", "-acpitable", f"file={acpi_table(folder)}"]
    command += ["-kernel", str(kernel), "-initrd", str(initramfs(folder, kernel))]
    command += ["-append", "console=ttyS0 quiet panic=-1", "-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
    told: list[dict[str, Any]] = []
    said: list[str] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as guest:
        assert guest.stdin is not None
        assert guest.stdout is not None
        try:
            for line in guest.stdout:
                said.append(line)
                if line.startswith("@"):
                    with closing(Monitor(folder / "qmp")) as monitor:
                        told.append({**json.loads(line[1:]), "hardware": monitor.mhz(1)})
                    guest.stdin.write("\n")
                    guest.stdin.flush()
        finally:
            guest.kill()
    assert told, "".join(said)
    assert told[-1]["what"] == "end", "".join(said)
    return told


def of(story: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    return [entry for entry in story if entry["what"] == what]


def test_the_driver_is_the_kernels_and_its_p_states_are_found(story: list[dict[str, Any]]) -> None:
    (start,) = of(story, "start")
    assert start["driver"] == "acpi-cpufreq"
    assert start["p_states"] == sorted(mhz for mhz, _ in P_STATES)


def test_every_p_state_is_reached(story: list[dict[str, Any]]) -> None:
    levels = of(story, "level")
    assert len(levels) == 2 * len(P_STATES)
    assert [entry for entry in levels if not entry["done"]] == []


def test_the_hardware_holds_exactly_the_p_state_that_was_pinned(story: list[dict[str, Any]]) -> None:
    pinned = [entry for entry in of(story, "level") if entry["method"] == "userspace"]
    assert [entry["hardware"] for entry in pinned] == [entry["mhz"] for entry in pinned]


def test_the_hardware_never_exceeds_a_cap(story: list[dict[str, Any]]) -> None:
    capped = [entry for entry in of(story, "level") if entry["method"] == "cap"]
    assert all(0 < entry["hardware"] <= entry["mhz"] for entry in capped), capped


def test_closing_gives_back_every_setting(story: list[dict[str, Any]]) -> None:
    assert [entry["same"] for entry in of(story, "closed")] == [True, True]


def test_a_kill_leaves_the_cpus_slow_and_the_next_start_gives_back_every_setting(story: list[dict[str, Any]]) -> None:
    assert [(entry["same"], entry["hardware"]) for entry in of(story, "killed")] == [(False, 1000), (False, 1000)]
    assert [entry["same"] for entry in of(story, "restarted")] == [True, True]


def test_the_kernel_takes_the_quotas_of_version_2_and_slows_the_domain_down(story: list[dict[str, Any]]) -> None:
    slow, fast = of(story, "quota")
    assert slow["version"] == 2
    assert (slow["done"], slow["shown"]) == (True, "2000 10000"), slow["error"]
    assert (fast["done"], fast["shown"]) == (True, "10000 10000"), fast["error"]
    assert 0 < slow["share"] < 0.4
    assert slow["share"] < fast["share"]


def test_the_quota_of_version_2_comes_back_on_close_and_after_a_kill(story: list[dict[str, Any]]) -> None:
    assert [entry["same"] for entry in of(story, "quota closed")] == [True]
    assert [entry["same"] for entry in of(story, "quota killed")] == [False]
    assert [entry["same"] for entry in of(story, "quota restarted")] == [True]
