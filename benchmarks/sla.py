"""``python -m benchmarks.sla --json [--quick]``: from a violation in the agent to the action applied.

Two processes and all that lies between them: the agent's recorder closes an epoch with a violation and
writes its event into a channel over shared memory; the broker, asleep until then, reads it, asks a
policy, and applies the new p-state by the dry-run actuator. Both read the same monotonic clock.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

import mchannel
from benchmarks.harness import Sample, Unavailable, together, two_cpus
from benchmarks.report import Figure, Target, print_report
from mbroker.action import Action, SetFrequency, SetPState
from mbroker.actuator import Outcome
from mbroker.actuators.dryrun import DryRun
from mbroker.broker import Broker, Budget
from mbroker.host import Domain, Host
from mbroker.policies.sla_dvfs import Basic
from mbroker.registry import Registry
from mbroker.serve import Node, serve
from mchannel.agents.meter import EPOCH
from mchannel.agents.sla import Recorder

__all__ = ["TARGETS", "decide", "main", "violate"]

_DOMAIN = "web1"
_WARM = 20  # violations that come before those that count
_PAUSE = 2e-3  # seconds between two violations, in which the broker falls asleep

TARGETS = (
    Target(
        "violation in the agent to action applied, p99 in us", "violation_to_action_p99_us", None, 1000.0, "at most"
    ),
)


@attrs.define
class _Stamped:
    """The dry run, and when each change of speed was applied."""

    dry: DryRun
    then: Callable[[], object]
    """Called after each."""
    applied: list[int] = attrs.field(factory=list[int])
    handles: tuple[type[Action], ...] = (SetFrequency, SetPState)

    def apply(self, action: Action) -> Outcome:
        outcome = self.dry.apply(action)
        if isinstance(action, SetFrequency):
            self.applied.append(time.monotonic_ns())
            self.then()
        return outcome

    def restore(self) -> list[Outcome]:
        return self.dry.restore()

    def close(self) -> None:
        self.dry.close()


def decide(address: str, violations: int, beside: Connection, _: Connection) -> None:
    """Be the broker until the agent says that it is over; then tell when each action was applied."""
    host = Host("bench", domains={_DOMAIN: Domain(_DOMAIN, 0)})
    broker = Broker(host, [Basic()], budget=Budget(rate=1e6, burst=violations))
    # Back to the slowest p-state after each violation, so that the next has an effect too.
    stamped = _Stamped(DryRun(host=host, state=Path(address)), lambda: loop.call_soon(broker.observe, host))
    node = Node(broker, Registry("bench"), [stamped])
    loop = asyncio.new_event_loop()

    async def run() -> None:
        done = asyncio.Event()
        loop.add_reader(beside.fileno(), done.set)
        async with mchannel.listen_async(address) as listener:
            serving = asyncio.create_task(serve(node, [(listener, _DOMAIN)]))
            await done.wait()
            loop.remove_reader(beside.fileno())
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving

    loop.run_until_complete(run())
    loop.close()
    beside.send(stamped.applied)


def violate(address: str, violations: int, beside: Connection, report: Connection) -> None:
    """Be the agent: violate the SLA so often, and report how long it took, on the whole and within the agent."""
    now = time.time() // EPOCH * EPOCH
    happened: list[int] = []
    written: list[int] = []
    with mchannel.open(address, name="sla") as channel:
        recorder = Recorder(channel, source=_DOMAIN, clock=lambda: now)
        for _ in range(violations):
            for milliseconds in (1, 2, 4, 8):  # two of four are late: far more than 1 %
                recorder.observe(milliseconds / 1000)
            time.sleep(_PAUSE)
            now += EPOCH
            happened.append(time.monotonic_ns())
            recorder.tick()
            written.append(time.monotonic_ns())
            channel.flush(5)  # several at once would be more steps than there are p-states
    beside.send(None)
    applied: list[int] = beside.recv()
    if len(applied) != violations:
        raise Unavailable(f"{violations} violations, {len(applied)} actions")
    report.send(
        (
            _sample(done - start for start, done in zip(happened, applied, strict=True)),
            _sample(done - start for start, done in zip(happened, written, strict=True)),
        )
    )


def _sample(nanoseconds: Iterable[int]) -> Sample:
    times = sorted(list(nanoseconds)[_WARM:])
    return Sample(times[len(times) // 2] / 1e3, times[len(times) * 99 // 100] / 1e3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sla", description="From a violation in the agent to the action applied."
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object (always so; for the record)")
    parser.add_argument("--quick", action="store_true", help="some seconds instead of a quarter of a minute")
    parser.add_argument("--realtime", action="store_true", help="keep neighbours off the two CPUs meanwhile (root)")
    options = parser.parse_args(arguments)
    repetitions, violations = (3, 300) if options.quick else (7, 1000)
    cpus = two_cpus(parser, realtime=options.realtime)

    rounds: list[tuple[Sample, Sample] | None] = []
    missing: dict[str, str] = {}
    for _ in range(repetitions):
        with TemporaryDirectory(prefix="mchannel-bench-") as folder:
            address = f"shm://{folder}/{_DOMAIN}"
            roles = [functools.partial(role, address, violations + _WARM) for role in (decide, violate)]
            try:
                rounds.append(together(roles[0], roles[1], cpus))
            except Unavailable as error:
                missing[_DOMAIN] = str(error)
                rounds.append(None)
    whole = [round_ and round_[0] for round_ in rounds]
    figures = {
        "violation_to_action_p50_us": Figure("us", tuple(whole)),
        "violation_to_action_p99_us": Figure("us", tuple(each and Sample(each.p99 or math.nan) for each in whole)),
        "agent_p50_us": Figure("us", tuple(round_ and round_[1] for round_ in rounds)),
    }
    print_report(figures, TARGETS, missing)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
