"""One policy's run: a server in its control group, the load, and a broker between the agent and the group's quota."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import attrs
import psutil

import mchannel
from examples.demo.recording import Recording
from mbroker.actuator import Actuator
from mbroker.actuators.cpu_bandwidth import CpuBandwidth
from mbroker.actuators.dryrun import DryRun
from mbroker.broker import Broker
from mbroker.cgroup import Cgroup, CgroupError, Hierarchy
from mbroker.host import Domain, Host
from mbroker.plugins import make_policy
from mbroker.registry import EPOCH, Registry
from mbroker.serve import Node, serve
from mbroker.usage import UsageMeter

__all__ = ["DOMAIN", "PREFIX", "DemoError", "Load", "Place", "control_group", "end", "play", "sweep_folders"]

DOMAIN = "web1"
_ROOT = Path(__file__).parents[2]
PREFIX = "mchannel-demo-"
_GRACE = 20.0  # seconds to start, to answer what is still waiting, and to end


class DemoError(Exception):
    """The demo cannot go on; one line says why."""


@attrs.frozen
class Load:
    """What comes to the server, the same for every policy."""

    seconds: float
    peak: float
    """Requests per second at the highest plateau."""
    iterations: int
    """Mean work of a request."""
    seed: int
    hard_ms: float
    soft_ms: float


@attrs.frozen
class Place:
    """Where the server runs."""

    cpu: int
    group: Cgroup | None
    """Its control group, None for a dry run."""
    wire: str
    """The scheme of the channel between its agent and the broker; nothing else depends on it."""


@contextmanager
def control_group() -> Generator[tuple[Cgroup | None, str]]:
    """Make a control group for the server, and remove it afterwards; without the right to, None and why."""
    try:
        hierarchy = Hierarchy.detect()
        _sweep(hierarchy)
        group = hierarchy.group(f"{PREFIX}{os.getpid()}")
        group.create()
        _favour(group)
    except (CgroupError, OSError) as error:
        yield None, str(error)
        return
    try:
        yield group, ""
    finally:
        _remove(group)


def _favour(group: Cgroup) -> None:
    """Give the group the greatest weight: what neighbours do on this CPU should not look like a violation."""
    name, weight = ("cpu.shares", "262144") if group.hierarchy.version == 1 else ("cpu.weight", "10000")
    (group.folder / name).write_text(weight)


def _sweep(hierarchy: Hierarchy) -> None:
    """Remove the groups of demos that were killed; their servers ended with them."""
    for folder in hierarchy.cpu.glob(f"{PREFIX}*"):
        pid = re.fullmatch(rf"{PREFIX}(\d+)", folder.name)
        if pid and not psutil.pid_exists(int(pid[1])):
            with suppress(OSError):  # it may be of a demo in another pid namespace
                hierarchy.group(folder.name).remove()


def sweep_folders(parent: Path) -> None:
    """Remove this user's folders of demos that were killed."""
    for folder in parent.glob(f"{PREFIX}*-*"):
        pid = re.fullmatch(rf"{PREFIX}(\d+)-\w+", folder.name)
        with suppress(OSError):  # its owner may be removing it at this moment
            if pid and not psutil.pid_exists(int(pid[1])) and folder.lstat().st_uid == os.geteuid():
                shutil.rmtree(folder)


def _remove(group: Cgroup) -> None:
    for _ in range(100):
        with suppress(OSError):  # the kernel takes its time to let go of a process that has ended
            return group.remove()
        time.sleep(0.02)
    return group.remove()


async def play(policy: str, load: Load, place: Place, watch: Callable[[Recording], object]) -> Recording:
    """Run *policy* under *load*; call *watch* about every epoch. Everything is put back on the way out."""
    recording = Recording(policy)
    host = Host("demo", domains={DOMAIN: Domain(DOMAIN, Host("demo").top, (place.cpu,))})
    broker = Broker(host, [make_policy(policy, {}), recording])
    sweep_folders(Path(gettempdir()))
    with TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as folder:
        actuator = _actuator(host, place.group, Path(folder))
        try:
            address = f"{place.wire}://{folder}/{DOMAIN}"
            async with mchannel.listen_async(address) as listener, _server(address, load, place) as (started, port):
                node = Node(broker, Registry("demo"), [actuator], usage=_usage(place.group, started))
                serving = asyncio.create_task(serve(node, [(listener, DOMAIN)]))
                try:
                    async with asyncio.timeout(load.seconds + _GRACE):
                        await _under_load(await port, load, recording, watch)
                        await end(started)  # the agent says goodbye while the broker still listens
                except TimeoutError:
                    raise DemoError(f"{policy}: the load did not end in time; is this machine overloaded?") from None
                finally:
                    serving.cancel()
                    await asyncio.wait([serving], timeout=_GRACE)
                if node.traffic.failed:
                    raise DemoError(f"{node.traffic.failed} changes of speed failed; the log says why")
        finally:
            actuator.close()
    return recording


async def _under_load(port: int, load: Load, recording: Recording, watch: Callable[[Recording], object]) -> None:
    await asyncio.sleep(EPOCH - time.time() % EPOCH)  # each run starts with an epoch
    recording.start = round(time.time() / EPOCH) * EPOCH
    arguments = [str(each) for each in (port, load.seconds, load.peak, load.iterations, load.seed)]
    client = await _start("load", *arguments)
    with suppress(PermissionError):  # requests that come late come in bursts, which look like a slow server
        os.sched_setscheduler(client.pid, os.SCHED_RR, os.sched_param(1))
    try:
        answer = asyncio.create_task(client.communicate())
        while not answer.done():
            await asyncio.wait([answer], timeout=EPOCH)
            watch(recording)
        told, _ = answer.result()
    finally:
        await end(client)
    if not told or not json.loads(told)["answered"]:
        raise DemoError("the server answered no request")


@asynccontextmanager
async def _server(
    address: str, load: Load, place: Place
) -> AsyncGenerator[tuple[asyncio.subprocess.Process, asyncio.Task[int]]]:
    """Start the server, which says its port once the broker has answered it."""
    server = await _start("server", address, str(load.hard_ms), str(load.soft_ms))

    async def port() -> int:
        assert server.stdout is not None
        try:
            return int(await asyncio.wait_for(server.stdout.readline(), _GRACE))
        except (TimeoutError, ValueError):
            raise DemoError("the server did not start; its messages are above") from None

    try:
        os.sched_setaffinity(server.pid, {place.cpu})
        if place.group is not None:
            place.group.add(server.pid)
        yield server, asyncio.create_task(port())
    finally:
        await end(server)


async def _start(module: str, *arguments: str) -> asyncio.subprocess.Process:
    """Start a module of the demo in a session of its own: Ctrl-C is for this process, which ends the others."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"examples.demo.{module}",
        *arguments,
        cwd=_ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )


async def end(process: asyncio.subprocess.Process) -> None:
    """Let *process* end by itself, at the end of its input; kill it when it does not."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), 2)
    except (TimeoutError, asyncio.CancelledError):
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _actuator(host: Host, group: Cgroup | None, state: Path) -> Actuator:
    if group is None:
        return DryRun(host=host, state=state)
    return CpuBandwidth(host=host, state=state, cgroups={DOMAIN: str(group.path)})


def _usage(group: Cgroup | None, server: asyncio.subprocess.Process) -> UsageMeter:
    if group is not None:
        return UsageMeter({DOMAIN: group.usage}, quota=True)
    process = psutil.Process(server.pid)

    def seconds() -> float:
        try:
            times = process.cpu_times()
        except psutil.Error as error:
            raise OSError(str(error)) from None
        return times.user + times.system

    return UsageMeter({DOMAIN: seconds})
