"""Runs in a guest of its own: drives acpi-cpufreq and cgroup v2 through the actuators, talks JSON lines."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from mbroker.action import SetFrequency, SetPState
from mbroker.actuators.cpu_bandwidth import CpuBandwidth
from mbroker.actuators.cpufreq import CpuFreq, Method, available_p_states
from mbroker.cgroup import Hierarchy
from mbroker.host import Host

CPUFREQ = Path("/sys/devices/system/cpu/cpufreq")
METHODS: tuple[Method, ...] = ("cap", "userspace")
SETTINGS = ("scaling_governor", "scaling_min_freq", "scaling_max_freq", "scaling_setspeed")


def tell(what: str, **facts: object) -> None:
    """Say something; the host looks at the hardware before it lets us go on."""
    print("@" + json.dumps({"what": what, **facts}), flush=True)
    sys.stdin.readline()


def settings() -> dict[str, str]:
    return {f"{p.name}/{n}": (p / n).read_text().strip() for p in sorted(CPUFREQ.glob("policy*")) for n in SETTINGS}


def cpufreq(state: Path) -> None:
    host = Host("guest", p_states=available_p_states())

    def start(method: Method) -> CpuFreq:
        return CpuFreq(host=host, state=state, method=method)

    driver = (CPUFREQ / "policy0/scaling_driver").read_text().strip()
    before = settings()
    tell("start", driver=driver, p_states=host.p_states)
    for method in METHODS:
        actuator = start(method)
        for level in range(len(host.p_states)):
            outcome = actuator.apply(SetPState((1,), level))
            tell("level", method=method, mhz=host.p_states[level], done=outcome.done, error=outcome.error)
        actuator.close()
        tell("closed", method=method, same=settings() == before)
    for method in METHODS:
        if (child := os.fork()) == 0:
            start(method).apply(SetPState((0, 1), 0))
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        tell("killed", method=method, same=settings() == before)
        start(method).close()
        tell("restarted", method=method, same=settings() == before)


def cpu_bandwidth(state: Path) -> None:
    hierarchy = Hierarchy.detect()
    group = hierarchy.group("machine/web1")
    group.create()
    limit = group.folder / "cpu.max"
    before = limit.read_text()
    host = Host("guest", p_states=(480, 2400))

    def start() -> CpuBandwidth:
        return CpuBandwidth(host=host, state=state, cgroups={"web1": "machine/web1"})

    if (busy := os.fork()) == 0:
        while True:
            pass
    group.add(busy)
    actuator = start()
    for level in (0, 1):
        outcome = actuator.apply(SetFrequency("web1", level=level))
        used, at = group.usage(), time.monotonic()
        time.sleep(1)
        share = (group.usage() - used) / (time.monotonic() - at)
        shown = limit.read_text().strip()
        tell("quota", version=hierarchy.version, done=outcome.done, error=outcome.error, share=share, shown=shown)
    actuator.close()
    tell("quota closed", same=limit.read_text() == before)
    if (child := os.fork()) == 0:
        start().apply(SetFrequency("web1", level=0))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    tell("quota killed", same=limit.read_text() == before)
    start().close()
    tell("quota restarted", same=limit.read_text() == before)
    os.kill(busy, signal.SIGKILL)
    os.waitpid(busy, 0)


def main() -> None:
    state = Path("/state")
    state.mkdir()
    cpufreq(state)
    cpu_bandwidth(state)
    tell("end")


if __name__ == "__main__":
    main()
