"""What a broker may ask of the agent, and the answers. A command runs no program and reads no file of its choice.

=====================  ==========================================  ======================================
asked                  does                                        answered
=====================  ==========================================  ======================================
``command.ping``       nothing                                     ``command.pong`` with the same value
``command.describe``   nothing                                     ``command.description``
``command.interval``   metrics come every ``value`` seconds        ``command.interval`` with the value
anything else          nothing                                     ``command.error``
=====================  ==========================================  ======================================

Each is answered by one event; an ``id`` in its detail stands in the answer's too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import attrs

from mchannel.agents.pace import Pace
from mchannel.agents.settings import LONGEST_INTERVAL, SHORTEST_INTERVAL
from mchannel.errors import CodecError
from mchannel.event import Detail, Event, Scalar

__all__ = ["Commands"]

Echo: TypeAlias = "Scalar | tuple[Scalar, ...]"

_SHOWN = 64  # characters of an unknown topic
_ECHO = 256  # bytes or characters that come back


@attrs.frozen(eq=False)
class Commands:
    """Answers for the domain *source*."""

    source: str
    pace: Pace | None
    """Interval of the metrics; None when there are none."""
    describe: Callable[[], Detail]
    """Returns what ``command.describe`` tells."""

    def answer(self, command: Event, now: float) -> Event:
        """Do what *command* asks, and return the answer; *now* in Unix seconds."""
        try:
            topic, value, detail = self._answer(command)
        except ValueError as error:
            topic, value, detail = "command.error", None, {"command": command.topic[:_SHOWN], "error": str(error)}
        if "id" in command.detail and _is_short(command.detail["id"]):
            detail = {**detail, "id": command.detail["id"]}
        return Event(topic, self.source, value, now, detail)

    def refuse(self, error: CodecError, now: float) -> Event:
        """Return the answer to what is no event at all."""
        return Event("command.error", self.source, None, now, {"command": "", "error": str(error)[:_ECHO]})

    def _answer(self, command: Event) -> tuple[str, Scalar, Detail]:
        match command.topic:
            case "command.ping":
                if not _is_short(command.value):
                    raise ValueError(f"the value is longer than {_ECHO}")
                return "command.pong", command.value, {}
            case "command.describe":
                return "command.description", None, self.describe()
            case "command.interval":
                return command.topic, self._set_interval(command.value), {}
            case _:
                raise ValueError("unknown; known are command.ping, command.describe and command.interval")

    def _set_interval(self, value: Scalar) -> float:
        if self.pace is None:
            raise ValueError("this agent sends no metrics")
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not SHORTEST_INTERVAL <= value <= LONGEST_INTERVAL
        ):
            raise ValueError(f"the value must be {SHORTEST_INTERVAL:g} to {LONGEST_INTERVAL:g} seconds")
        self.pace.set(float(value))
        return self.pace.seconds


def _is_short(value: Echo) -> bool:
    return len(value) <= _ECHO if isinstance(value, str | bytes) else not isinstance(value, tuple)
