"""``mbroker deadman``: the process that tells people when the broker itself falls silent."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click

from mbroker import logs, notify
from mbroker.alert_receivers import notifiers
from mbroker.alerts.deadman import guard
from mbroker.config import AlertsSection, Loaded, load

__all__ = ["deadman"]


@click.command(
    short_help="Tell people when mbrokerd falls silent.",
    epilog="""\b
Example:
  mbroker deadman --config /etc/mbroker/mbroker.toml
\b
It needs [alerts.deadman] there. Let the service manager start it beside
mbrokerd, and again when it ends.""",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    default=Path("/etc/mbroker/mbroker.toml"),
    show_default=True,
    help="The configuration of the mbrokerd that is watched.",
)
def deadman(config: Path) -> None:
    """Tell people when mbrokerd falls silent, and when it is back, until SIGTERM."""
    loaded = load(config)
    alerts = loaded.config.alerts
    if alerts is None or alerts.deadman is None:
        raise loaded.error("alerts", "deadman", reason="is missing; name its receivers there")
    logs.set_up("info")
    asyncio.run(_guard(loaded, alerts))


async def _guard(loaded: Loaded, alerts: AlertsSection) -> None:
    section = alerts.deadman
    assert section is not None
    told = notifiers(loaded)
    manners = {name: alerts.receivers[name] for name in section.receivers}
    watching = asyncio.create_task(
        guard(section, loaded.config.broker.name, manners, {name: told[name] for name in section.receivers})
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, watching.cancel)
    notify.sd_notify("READY=1")
    await asyncio.wait([watching])
    if not watching.cancelled():
        watching.result()
