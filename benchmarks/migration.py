"""``python -m benchmarks.migration --json [--migrations N]``: channels of a guest that moves between two hosts.

Two real libvirt hosts in namespaces, a guest under emulation, a broker of one fleet on each host. Guest
and brokers tell each other 100 numbers a second in both directions while the guest migrates live, there
and back; in the end both sides count. ``reconnect`` is the time from the destination's RESUMED to the
first number heard there, ``guest_pause`` the time from the source's SUSPENDED to that RESUMED; both
hosts share one clock. Over ``tcp`` there is no handoff: the guest dials the same address on every host.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
from rich.console import Console
from rich.progress import Progress

from benchmarks.harness import Sample
from benchmarks.report import Figure, Target, print_report
from tests.system import guest_image, libvirt_guest, libvirt_hosts
from tests.system.brokers import MVM, TCP, BrokerProcess, Talk, brokers, talking
from tests.system.libvirt_guest import PORT, Guest
from tests.system.libvirt_hosts import Host

__all__ = ["TARGETS", "main"]

_INTERVAL = 0.01  # seconds between two numbers, in each direction
_STAY = 1.0  # seconds on a host between two migrations
LANES = {"ivshmem": "1MiB"}
"""Shared memory that every host plugs into the guest."""

ADDRESSES = {"virtio": f"virtio:///{PORT}", "tcp": f"{TCP}?server={MVM}", "ivshmem": f"ivshmem:///{PORT}"}
"""In this order: brokers that are killed at the end leave their memory plugged in, and it cannot travel."""

TARGETS = (
    Target("lost over virtio", "virtio_lost", None, 0, "at most"),
    Target("repeated to the application over virtio", "virtio_repeated", None, 0, "at most"),
    Target("reconnect over virtio, p50 in ms", "virtio_reconnect_ms_p50", None, 50, "at most"),
    Target("lost over ivshmem", "ivshmem_lost", None, 0, "at most"),
    Target("repeated to the application over ivshmem", "ivshmem_repeated", None, 0, "at most"),
    Target("reconnect over ivshmem, p50 in ms", "ivshmem_reconnect_ms_p50", None, 50, "at most"),
    Target("lost over tcp, without handoff", "tcp_lost", None, 0, "at most"),
    Target("CPU of the agent, percent of a core", "virtio_agent_cpu_pct", None, 1, "at most"),
)


class Failed(Exception):
    """A migration did not happen, or a channel did not come back."""


@attrs.define
class Result:
    """What one transport gave."""

    lost: int
    repeated: int
    reconnect_ms: list[float]
    pause_ms: list[float]
    migrations: int
    rebooted: int
    agent_cpu_pct: float


def measure(hosts: tuple[Host, Host], guest: Guest, transport: str, migrations: int, bar: Progress) -> Result:
    """Migrate *guest* there and back so often while numbers travel; raises Failed."""
    task = bar.add_task(transport, total=2 * migrations)
    with (
        TemporaryDirectory(prefix="mchannel-bench-") as folder,
        brokers(hosts, Path(folder), interval=_INTERVAL, lane=LANES.get(transport, "")) as pair,
    ):
        at = dict(zip(hosts, pair, strict=True))
        with talking(guest, ADDRESSES[transport], _INTERVAL, Path(folder)):
            at[guest.host].wait("number", number=50)
            boot, begin = guest.boot_id(), at[guest.host].wait("number")["at"]
            crossings: list[tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]] = []

            def move() -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]:
                source, target = guest.host, hosts[guest.host == hosts[0]]
                if transport in LANES:
                    at[source].tell("share")
                    at[source].wait("shares")
                at[source].tell("migrate", guest.name, target.name)
                crossing = _crossing(at[source], at[target])
                guest.host = target
                at[target].listen(_STAY)
                return crossing

            for _ in range(2 * migrations):
                crossings.append(move())
                bar.advance(task)
            at[guest.host].tell("quiet")  # what was not heard would wait there for the guest's return
            at[guest.host].wait("quiet")
            move()
            talk = Talk(pair)
            end = talk.end(at[guest.host])
            return Result(
                *_counted(talk, end, pair),
                reconnect_ms=[1e3 * (heard["at"] - resumed["at"]) for _, resumed, heard in crossings],
                pause_ms=[1e3 * (resumed["at"] - paused["at"]) for paused, resumed, _ in crossings],
                migrations=len(crossings),
                rebooted=int(guest.boot_id() != boot),
                agent_cpu_pct=100 * float(end["cpu"]) / (end["at"] - begin),
            )


def _crossing(
    source: BrokerProcess, target: BrokerProcess
) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]:
    """Return when the source saw the guest pause, the target saw it run, and the target heard a number of it."""
    resumed = target.wait("event", kind="resumed", timeout=120)
    heard = target.wait("number")
    paused = source.wait("event", kind="leaving")
    result = source.wait("migrated", timeout=120)
    if not result["moved"]:
        raise Failed(f"{result['step']}: {result['reason']}")
    return paused, resumed, heard


def _counted(talk: Talk, end: Mapping[str, Any], pair: Sequence[BrokerProcess]) -> tuple[int, int]:
    """Return how many numbers were lost and repeated, in both directions together."""
    heard = [said["number"] for said in talk.heard()]
    lost = len(set(range(end["number"])) - set(heard))
    repeated = len(heard) - len(set(heard)) + int(end["repeated"])
    for broker in pair:
        broker.tell("sent")
        lost += broker.wait("sent")["number"] - int(end.get(f"from_{broker.host.name}", 0))
    return lost, repeated


@contextmanager
def _testbed() -> Generator[tuple[tuple[Host, Host], Guest]]:
    with TemporaryDirectory(prefix="mchannel-bench-") as folder, libvirt_hosts.hosts() as hosts:
        image = guest_image.image(Path(folder), (*guest_image.PYTHON, *guest_image.ZMQ))
        guest = libvirt_guest.start(hosts[0], image, Path(folder))
        guest.run("true", timeout=120)
        yield hosts, guest


def _figures(transport: str, result: Result) -> dict[str, Figure]:
    def one(value: float) -> tuple[Sample]:
        return (Sample(value),)

    reconnect, pause = sorted(result.reconnect_ms), sorted(result.pause_ms)
    return {
        f"{transport}_lost": Figure("messages", one(result.lost)),
        f"{transport}_repeated": Figure("messages", one(result.repeated)),
        f"{transport}_reconnect_ms_p50": Figure("ms", one(reconnect[len(reconnect) // 2])),
        f"{transport}_reconnect_ms_p99": Figure("ms", one(reconnect[len(reconnect) * 99 // 100])),
        f"{transport}_guest_pause_ms_p50": Figure("ms", one(pause[len(pause) // 2])),
        f"{transport}_agent_cpu_pct": Figure("% of a core", one(result.agent_cpu_pct)),
        f"{transport}_migrations": Figure("", one(result.migrations)),
        f"{transport}_boot_id_changed": Figure("", one(result.rebooted)),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.migration", description="Channels of a guest that moves between two hosts (root)."
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object (always so; for the record)")
    parser.add_argument("--migrations", type=int, default=5, metavar="N", help="there and back, of each transport (5)")
    parser.add_argument("--transport", action="append", choices=sorted(ADDRESSES), help="only these (default: all)")
    options = parser.parse_args(arguments)
    figures: dict[str, Figure] = {}
    missing: dict[str, str] = {}
    try:
        with Progress(console=Console(stderr=True)) as bar, _testbed() as (hosts, guest):
            for transport in options.transport or ADDRESSES:
                try:
                    figures |= _figures(transport, measure(hosts, guest, transport, options.migrations, bar))
                except (Failed, TimeoutError) as error:
                    missing[transport] = str(error)
    except (libvirt_hosts.NoHosts, guest_image.NoPackages) as error:
        missing["testbed"] = str(error)
    print_report(figures, [target for target in TARGETS if target.over in figures], missing)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
