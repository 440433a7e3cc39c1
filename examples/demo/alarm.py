"""A subscription on real metrics of this machine: it fires, what was seen around it is kept, and it clears."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import attrs

import mchannel
from examples.demo.stage import PREFIX, DemoError, end, sweep_folders
from mbroker.alerting import Alerting
from mbroker.broker import Broker
from mbroker.config import load
from mbroker.host import Host
from mbroker.registry import Registry
from mbroker.serve import Node, serve
from mchannel.event import Event

__all__ = ["Alarm", "alarm"]

_CROWD = 400  # threads that sleep: a change that no other program on this machine makes by chance
_WAIT = 15.0  # seconds for each step
_CONFIG = """
[broker]
name = "demo"
state = {state}
[alerts]
interval = 0.5
"""


@attrs.frozen
class Alarm:
    """What became of the subscription."""

    subscription: str
    fired_s: float
    """Seconds from the cause to the alert."""
    cleared_s: float
    """Seconds from its end to the alert's."""
    value: float
    """What was compared when it fired."""
    kept: int
    """Samples that were kept around it."""
    kept_metrics: int
    samples: int
    """Samples that were matched meanwhile."""


async def alarm(wire: str, say: Callable[[str], object]) -> Alarm:
    """Let a crowd of threads come and go, and watch the alert that follows them."""
    sweep_folders(Path(gettempdir()))
    with TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as folder:
        config = Path(folder) / "mbroker.toml"
        config.write_text(_CONFIG.format(state=json.dumps(folder)))
        told: asyncio.Queue[Event] = asyncio.Queue()
        alerting = Alerting(load(config), told.put_nowait)
        await alerting.open()
        running = asyncio.create_task(alerting.run())
        try:
            async with _host(f"{wire}://{folder}/demo", alerting), asyncio.timeout(4 * _WAIT):
                return await _watch(alerting, told, say)
        except TimeoutError:
            raise DemoError("no alert came in time; is this machine overloaded?") from None
        finally:
            running.cancel()
            await asyncio.wait([running])


async def _watch(alerting: Alerting, told: asyncio.Queue[Event], say: Callable[[str], object]) -> Alarm:
    text = f"load.tasks > {_tasks() + _CROWD // 2} keep memory"
    while (status := alerting.status) is None or not status.samples or status.series < 2:  # noqa: ASYNC110 - it counts
        await asyncio.sleep(0.1)
    await _ask(alerting, "subscribe", json.dumps({"owner": "demo", "text": text}))
    say(f"alerts: subscribed to {text}; {_CROWD} threads come")
    gone, began = threading.Event(), time.monotonic()
    crowd = [threading.Thread(target=gone.wait, daemon=True) for _ in range(_CROWD)]
    try:
        for each in crowd:
            each.start()
        fired = await told.get()
        fired_s = time.monotonic() - began
        name, value = str(fired.detail["id"]), fired.value if isinstance(fired.value, float) else 0.0
        say(f"alerts: {fired.topic} after {fired_s:.2f} s, load.tasks is {value:g}; they go")
    finally:
        gone.set()
    left = time.monotonic()
    cleared = await told.get()
    cleared_s = time.monotonic() - left
    while not (seen := await _ask(alerting, "context", name)):  # noqa: ASYNC110 - the next look at the clock takes it
        await asyncio.sleep(0.1)
    kept = sum(each["samples"] for each in seen)
    say(f"alerts: {cleared.topic} after {cleared_s:.2f} s; {kept} samples of {len(seen)} metrics were kept around it")
    status = alerting.status
    assert status is not None
    return Alarm(text, round(fired_s, 3), round(cleared_s, 3), value, kept, len(seen), status.samples)


@asynccontextmanager
async def _host(address: str, alerting: Alerting) -> AsyncGenerator[None]:
    """Let the agent of this host publish to a broker with those alerts."""
    node = Node(Broker(Host("demo")), Registry("demo"))
    node.measured = alerting.take
    async with mchannel.listen_async(address) as listener:
        serving = asyncio.create_task(serve(node, [(listener, "demo")]))
        program = "from mchannel.agents.main import main; main()"
        agent = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, "host", "--address", address, "--interval", "0.2"),
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield
        finally:
            agent.terminate()
            await end(agent)
            serving.cancel()
            await asyncio.wait([serving])


async def _ask(alerting: Alerting, what: str, value: str) -> Any:
    return await alerting.answers[f"control.{what}"](value)


def _tasks() -> int:
    return int(Path("/proc/loadavg").read_text("ascii").split()[3].partition("/")[2])
