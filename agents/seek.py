"""Waiting for a way to the broker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import attrs

from mchannel.agents.discover import Nothing, Way
from mchannel.agents.notify import sd_notify

__all__ = ["Seek"]

_LOOK_AGAIN = 5.0  # seconds between two looks

_log = logging.getLogger("magent")


@attrs.define(eq=False)
class Seek:
    """Looks for a way to the broker until there is one, and says once which it is, or why there is none."""

    find: Callable[[str], Way | Nothing]
    """Returns the way to take; given the configured address."""
    address: Callable[[], str]
    """Returns the address that is configured now."""
    _said: str = attrs.field(default="", init=False)

    async def __call__(self) -> Way:
        """Return the way as soon as there is one."""
        while True:
            found = self.find(self.address())
            if str(found) != self._said:
                self._said = str(found)
                _log.log(logging.INFO if isinstance(found, Way) else logging.WARNING, "%s", found)
                sd_notify(f"STATUS={found}")
            if isinstance(found, Way):
                return found
            await asyncio.sleep(_LOOK_AGAIN)
