"""Events on their way from those who observe to the channel."""

from __future__ import annotations

import asyncio
from collections import deque

import attrs

from mchannel.errors import ChannelTimeout
from mchannel.event import Event

__all__ = ["Labelled", "Outbox"]

_ROOM = 64


@attrs.define(eq=False)
class Outbox:
    """A bounded queue between the recorders, which never wait, and the one task that writes to the channel.

    An event is forgotten only after :meth:`pop`, that is when the channel has taken it.
    """

    _events: deque[Event] = attrs.field(factory=deque[Event], init=False)
    _news: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _refused: int = attrs.field(default=0, init=False)
    """Events that were left out since the last that was popped."""
    _closed: bool = attrs.field(default=False, init=False)

    def __len__(self) -> int:
        """Return how many events wait."""
        return len(self._events)

    def write(self, message: Event, /, timeout: float | None = None) -> None:
        """Take *message*; raises ChannelTimeout at once when too many wait."""
        if len(self._events) >= _ROOM:
            raise ChannelTimeout("reports wait for the channel already")
        self._events.append(message)
        self._news.set()

    async def first(self) -> Event | None:
        """Return the oldest event once there is one; None when there will be none any more.

        It says in its detail how many were left out just before it (``refused``).
        """
        while not self._events and not self._closed:
            self._news.clear()
            await self._news.wait()
        if not self._events:
            return None
        event = self._events[0]
        return attrs.evolve(event, detail={**event.detail, "refused": self._refused}) if self._refused else event

    def pop(self) -> None:
        """Forget the oldest event."""
        self._events.popleft()
        self._refused = 0

    def leave_out(self) -> None:
        """Forget the oldest event, as no channel can take it; the next one tells."""
        self._events.popleft()
        self._refused += 1

    def close(self) -> None:
        """Say that nothing more is written."""
        self._closed = True
        self._news.set()


@attrs.frozen(eq=False)
class Labelled:
    """Writes to an outbox, with the name of the service in each event's detail."""

    outbox: Outbox
    service: str

    def write(self, message: Event, /, timeout: float | None = None) -> None:
        """Take *message*, as the outbox does."""
        if self.service:
            message = attrs.evolve(message, detail={**message.detail, "service": self.service})
        self.outbox.write(message, timeout=timeout)
