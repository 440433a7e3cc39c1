"""A kill or an error at each system call on chosen files, injected by strace."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from .points import WHOLE, Check, Report, Seed, Violation, judged, spread

__all__ = ["RUN", "Fault", "enumerate_syscalls", "strace_missing"]

Fault: TypeAlias = Literal["signal=SIGKILL", "error=EIO", "error=ENOSPC"]

_CALLS = "openat,flock,pwrite64,write,fsync,fdatasync,ftruncate,rename,unlink"

RUN = """
import importlib, os, pathlib, sys
module, name, folder = sys.argv[1:]
acks = os.open(folder + ".acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
program = getattr(importlib.import_module(module), name)
program(pathlib.Path(folder), lambda text: os.write(acks, f"{text}\\n".encode()))
"""


def strace_missing() -> str:
    """Return why system calls cannot be injected here; empty when they can."""
    if shutil.which("strace") is None:
        return "strace is not installed: apt-get install strace"
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip().partition("\n")[0] if tried.returncode else ""


def enumerate_syscalls(
    program: str,
    check: Check,
    *,
    files: Sequence[str],
    folder: Path,
    seed: Seed = lambda _: None,
    faults: Sequence[Fault] = ("signal=SIGKILL",),
    most: int | None = None,
    first: bool = False,
) -> Report:
    """Run *program* (``package.module:function``) once for each system call on *files* and each fault.

    *files* are names in the directory; ``""`` is the directory itself. *seed* fills it first. An
    error may be handled by the program or end it: the check looks at what is left either way.
    *most* bounds the points of each fault unless MCHANNEL_VERIFY=1; *first* ends at the first violation.
    """
    counts = _counted(program, folder / "whole", files, seed)
    calls = [(call, number) for call, count in counts.items() for number in range(1, count + 1)]
    violations: list[Violation] = []
    points = 0
    for fault in faults:
        for index in spread(range(len(calls)), None if WHOLE else most):
            if first and violations:
                break
            call, number = calls[index]
            work = folder / f"{fault}-{call}-{number}"
            acked = _run(program, work, files, seed, f"{call}:{fault}:when={number}")
            violations += judged(check, work, acked, f"{fault} at {call} {number}")
            points += 1
    return Report(points, tuple(violations))


def _run(program: str, work: Path, files: Sequence[str], seed: Seed, fault: str = "") -> list[str]:
    work.mkdir(parents=True)
    seed(work)
    paths = [option for name in files for option in ("-P", str(work / name))]
    inject = ["-e", f"inject={fault}"] if fault else []
    log, acks = Path(f"{work}.strace"), Path(f"{work}.acks")
    # Not with --seccomp-bpf, which is faster but drops the signal.
    command = ["strace", "-f", "-q", "-o", str(log), "-e", f"trace={_CALLS}", *paths, *inject]
    command += [sys.executable, "-B", "-c", RUN, *program.split(":"), str(work)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    expected = "killed by SIGKILL" if "SIGKILL" in fault else "(INJECTED)" if fault else "exited with 0"
    if expected not in log.read_text():
        raise RuntimeError(f"{program} did not run as before: no {expected!r} at {fault or 'no fault'}; {done.stderr}")
    return acks.read_text().splitlines() if acks.exists() else []


def _counted(program: str, work: Path, files: Sequence[str], seed: Seed) -> Counter[str]:
    _run(program, work, files, seed)
    calls = re.findall(r"^(?:\d+\s+)?(\w+)\(", Path(f"{work}.strace").read_text(), re.MULTILINE)
    if not calls:
        raise RuntimeError(f"{program} touched none of {files} under strace")
    return Counter(calls)
