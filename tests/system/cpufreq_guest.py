"""Runs as the only process of a guest: drives the real acpi-cpufreq through the actuator, talks JSON lines."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from mbroker.action import SetPState
from mbroker.actuators.cpufreq import CpuFreq, Method, available_p_states
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


def main() -> None:
    host = Host("guest", p_states=available_p_states())
    state = Path("/state")
    state.mkdir()

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
    tell("end")


if __name__ == "__main__":
    main()
