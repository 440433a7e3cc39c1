"""``python -m examples.demo``: one web server under a varying load, and five policies that set its speed in turn.

All of it is real: requests over HTTP on loopback, the SLA agent inside the server, a channel over shared
memory, the broker's serve loop, and the server's CPU quota as its p-states where this machine lets it.
Only energy is modelled. Then a subscription on this machine's own metrics fires and clears. Ends with a figure,
and one JSON object as the last line of stdout.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs

from examples.demo.alarm import alarm
from examples.demo.figure import draw
from examples.demo.recording import Recording
from examples.demo.server import work
from examples.demo.show import Screen
from examples.demo.stage import DOMAIN, DemoError, Load, Place, control_group, play
from mbroker.host import Host
from mbroker.plugins import PluginError, find

POLICIES = ("none", "basic", "richer", "utilization", "adaptive")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit code: 0 done, 1 failed, 2 usage, 130 interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not 0 < options.seconds <= 600 or not 0 < options.peak <= 5000 or not 0 < options.work_ms <= 100:
        parser.error("--seconds must be above 0 and at most 600, --peak 5000, --work-ms 100")
    if not 0 < options.soft_ms <= options.hard_ms:
        parser.error("--soft-ms must be above 0 and at most --hard-ms")
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        for name in options.policies:
            find("policy", name)
        return asyncio.run(_main(options))
    except (PluginError, DemoError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("demo: interrupted; everything was put back", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./dev demo", description="One server, one load, five policies.")
    parser.add_argument("--seconds", type=float, default=13.0, help="for each policy; default %(default)g")
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), metavar="NAME", help="default: all five")
    parser.add_argument("--peak", type=float, default=440.0, help="requests per second in the burst")
    parser.add_argument("--work-ms", type=float, default=1.4, help="mean CPU time of a request, at top speed")
    parser.add_argument("--hard-ms", type=float, default=30.0, help="a request over it is a violation; the paper: 6")
    parser.add_argument("--soft-ms", type=float, default=15.0, help="the paper: 3")
    parser.add_argument("--wire", choices=("shm", "ipc"), help="of the channel; default: shm, where the C ring is here")
    parser.add_argument("--seed", type=int, default=1, help="of the load")
    parser.add_argument("--dry-run", action="store_true", help="change no speed, also where that is possible")
    parser.add_argument("--output", type=Path, default=Path("build/demo"), help="folder of the figure")
    return parser


async def _main(options: argparse.Namespace) -> int:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cpus[:-1]) or set(cpus))  # the last one is the server's
    iterations = _calibrate(options.work_ms / 1000)
    load = Load(options.seconds, options.peak, iterations, options.seed, options.hard_ms, options.soft_ms)
    host, recordings = Host("demo"), list[Recording]()
    with Screen(host.p_states) as screen, control_group() as (found, reason):
        group = None if options.dry_run else found
        speed = "dry run" if group is None else "CPU quota as p-states"
        why = f": {reason}" if reason else ""
        wire = options.wire or ("shm" if find_spec("mchannel._ring") else "ipc")
        screen.say(
            f"{DOMAIN} on CPU {cpus[-1]}, {speed}{why}; p-states {', '.join(map(str, host.p_states))} MHz; {wire}://"
        )
        screen.say(f"violations: over {load.hard_ms:g} ms (hard) and {load.soft_ms:g} ms (soft); the paper has 6 and 3")
        for policy in options.policies:
            recording = await play(policy, load, Place(cpus[-1], group, wire), screen.update)
            screen.finish(recording)
            recordings.append(recording)
        alert = await alarm(wire, screen.say)
    screen.alarm(alert)
    options.output.mkdir(parents=True, exist_ok=True)
    figure = draw(recordings, load, host.p_states, speed, options.output / "demo")
    print(json.dumps({**_result(recordings, load, figure, speed, wire), "alert": attrs.asdict(alert)}), flush=True)
    return 0


def _calibrate(seconds: float) -> int:
    """Return how many iterations of work take *seconds* of CPU time here."""
    probe, best = 2000, float("inf")
    for _ in range(20):
        start = time.thread_time()
        work(probe)
        best = min(best, time.thread_time() - start)
    return max(1, round(probe * seconds / best))


def _result(recordings: Sequence[Recording], load: Load, figure: Path, speed: str, wire: str) -> dict[str, Any]:
    return {
        **{recording.name: attrs.asdict(recording.summary()) for recording in recordings},
        "energy": "modelled",
        "speed": speed,
        "wire": wire,
        "hard_ms": load.hard_ms,
        "soft_ms": load.soft_ms,
        "seconds": load.seconds,
        "figure": str(figure),
    }


if __name__ == "__main__":
    sys.exit(main())
