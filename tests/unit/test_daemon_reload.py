"""A reload of the daemon in this process, where its parts can be made to fail."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import uuid
from pathlib import Path

import pytest

from mbroker.alerting import Alerting
from mbroker.config import Loaded, load
from mbroker.daemon import Daemon
from mchannel import Event, open_async


async def test_a_door_lets_agents_in_though_the_alerts_do_not_take_over_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = asyncio.Event()

    async def fail(_: Alerting, __: Loaded) -> None:
        told.set()
        raise RuntimeError("no receivers")

    monkeypatch.setattr(Alerting, "reload", fail)
    monkeypatch.setattr(gc, "freeze", lambda: None)  # the tests after this one have garbage, too
    file, name = tmp_path / "mbroker.toml", uuid.uuid4()
    base = f"[broker]\nname = 'node1'\nstate = '{tmp_path}/state'\ncontrol = 'memory:///{name}-control'\n"
    file.write_text(base)
    daemon = asyncio.create_task(Daemon(load(file)).run())
    try:
        async with asyncio.timeout(20), await open_async(f"memory:///{name}-control"):
            pass  # it serves
        file.write_text(f"{base}[[listen]]\naddress = 'memory:///{name}'\n")
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(20):
            await told.wait()
            async with await open_async(f"memory:///{name}") as agent:
                await agent.write(Event("sla.epoch", value=0.0))
                await agent.flush()
    finally:
        daemon.cancel()
        await asyncio.gather(daemon, return_exceptions=True)
    assert "alerts are not told to the receivers" in caplog.text
    assert "kept the configuration" not in caplog.text
