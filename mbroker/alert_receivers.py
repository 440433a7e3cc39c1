"""Whoever a configuration says can be told of alerts."""

from __future__ import annotations

from mbroker.alerts.delivery import Notifier
from mbroker.alerts.notifiers import make
from mbroker.alerts.wording import Wording
from mbroker.config import Loaded
from mbroker.values import Invalid

__all__ = ["notifiers"]


def notifiers(loaded: Loaded, wording: Wording | None = None) -> dict[str, Notifier]:
    """Return what tells each receiver of ``[alerts]``; raise :exc:`~mbroker.config.ConfigError`."""
    made: dict[str, Notifier] = {}
    words = wording or Wording(loaded.config.broker.name, lambda _: "")
    for name, section in loaded.config.alerts.receivers.items() if loaded.config.alerts else ():
        try:
            made[name] = make(section.kind, section.options, words)
        except Invalid as error:
            fault = error.faults[0]
            raise loaded.error("alerts", "receivers", name, "options", *fault.path, reason=fault.reason) from None
    return made
