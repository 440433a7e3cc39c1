"""Where a configuration says that samples are matched."""

from __future__ import annotations

from mbroker.alerts.growth import Growth
from mbroker.alerts.process_host import ProcessHost
from mbroker.alerts.workers import InBroker, Matching, Workers
from mbroker.config import EngineSite, Loaded

__all__ = ["matching"]


def matching(loaded: Loaded) -> Matching:
    """Return what makes and keeps engines as ``[alerts]`` says; raise :exc:`~mbroker.config.ConfigError`."""
    shards = loaded.config.alerts.shards if loaded.config.alerts else None
    if shards is None:
        return InBroker()
    growth = Growth(least=shards.engines, most=shards.limit)
    if shards.on is EngineSite.PROCESSES:
        return Workers(ProcessHost, growth)
    try:
        from mbroker.alerts.ray_host import RayHost, connect  # noqa: PLC0415 - few have Ray
    except ImportError:
        reason = "Ray is not installed; install it by: pip install 'mchannel[ray]'"
        raise loaded.error("alerts", "shards", "on", reason=reason) from None
    try:
        connect()
    except ConnectionError:
        reason = "this host is in no Ray cluster; begin one by: ray start --head"
        raise loaded.error("alerts", "shards", "on", reason=reason) from None
    return Workers(RayHost, growth)
