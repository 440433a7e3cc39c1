"""The alerts of a daemon as its event loop sees them: in a thread beside it, so that no decision waits for matching.

What is asked of the thread is awaited: the message that samples came in counts as read when they were matched.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from mbroker import control
from mbroker.alert_receivers import notifiers
from mbroker.alert_rows import TOPICS, AlertsStatus, labels, number
from mbroker.alerts.alert import Alert
from mbroker.config import AlertsSection, Loaded
from mchannel.event import Event

if TYPE_CHECKING:
    from mbroker.alert_desk import Desk

__all__ = ["Alerting"]

T = TypeVar("T")

_SHORTEST, _LONGEST = 1.0, 60.0  # seconds until alerts that failed are started again
_STEADY = 300.0  # seconds after which a failure is the first one

_log = logging.getLogger(__name__)


class Alerting:
    """What ``[alerts]`` asks for."""

    def __init__(self, loaded: Loaded, say: Callable[[Event], object]) -> None:
        """*say* hears of alerts that begin and end, as events for policies. Needs a running event loop."""
        self._loaded = loaded
        self._say = say
        self._life: _Life | None = None
        self._failure = ""

    async def open(self) -> None:
        """Open the files, if there are to be alerts; raises :exc:`~mbroker.config.ConfigError`."""
        if self._loaded.config.alerts is not None:
            life = _Life(self._loaded, self._announce)
            await life.opened
            self._life = life

    async def run(self) -> None:
        """Keep the alerts alive until cancelled, then close them; nothing to do when there are none."""
        pause, loop = _SHORTEST, asyncio.get_running_loop()
        while (life := self._life) is not None:
            began = loop.time()
            try:
                await asyncio.shield(life.ended)
            except asyncio.CancelledError:
                await self.close()
                raise
            except Exception as error:  # the policies go on
                pause = _SHORTEST if loop.time() - began > _STEADY else min(2 * pause, _LONGEST)
                self._failure = f"alerts failed, and were started again: {error!r:.200}"
                trace = None if isinstance(error, control.Absent) else error
                _log.error("alerts failed; starting them again in %g s: %s", pause, error, exc_info=trace)
            await asyncio.sleep(pause)
            try:
                await self.open()
            except Exception as error:  # as above; the one before stays, to say that it failed
                self._failure = f"alerts failed, and cannot be started again: {error}"

    async def close(self) -> None:
        """Close what is open; idempotent."""
        if self._life is not None:
            await self._life.end()

    @property
    def is_on(self) -> bool:
        """Whether there are alerts."""
        return self._life is not None

    @property
    def status(self) -> AlertsStatus | None:
        """How the alerts are doing; None when there are none."""
        if self._life is None:
            return None
        status = self._life.desk.status
        return attrs.evolve(status, problem=status.problem or self._failure)

    @property
    def answers(self) -> control.Answers:
        """What can be asked."""
        return {topic: partial(self._answer, topic) for topic in TOPICS}

    async def take(self, event: Event) -> Event | None:
        """Match what a publisher sent; return what is to be answered. Raises CodecError."""
        life = self._present()
        return await life.call(life.desk.take(event))

    def check(self, loaded: Loaded) -> None:
        """Raise :exc:`~mbroker.config.ConfigError` when :meth:`reload` cannot take *loaded* over."""
        before, after = self._loaded.config.alerts, loaded.config.alerts
        if before is None or after is None:
            if before is not after:
                raise loaded.error("alerts", reason="to begin or to end with alerts needs a restart of mbrokerd")
            return
        for field in attrs.fields(AlertsSection):
            if field.name != "receivers" and getattr(before, field.name) != getattr(after, field.name):
                raise loaded.error("alerts", field.name, reason="another one needs a restart of mbrokerd")
        notifiers(loaded)

    async def reload(self, loaded: Loaded) -> None:
        """Tell the receivers of *loaded* from now on; it passed :meth:`check`."""
        if self._life is not None and self._loaded.config.alerts != loaded.config.alerts:
            await self._life.call(self._life.desk.reload(loaded))
        self._loaded = loaded

    async def _answer(self, topic: str, value: str) -> Any:
        life = self._present()
        return await life.call(_in_turn(life.desk.answer, topic, value))

    def _present(self) -> _Life:
        if self._life is None:
            raise control.Refused("this broker has no alerts; add [alerts] to the configuration of mbrokerd")
        return self._life

    def _announce(self, alert: Alert) -> None:
        names = labels(alert.key)
        source = names.get("domain") or names.get("host") or self._loaded.config.broker.name
        at = alert.since if alert.until is None else alert.until
        self._say(
            Event(
                f"alert.{alert.state.value}",
                source,
                number(alert.value),
                at / 1000,
                {"id": alert.id, "subscription": alert.enrolment, "severity": alert.severity.value},
            )
        )


async def _in_turn(do: Callable[..., T], *arguments: Any) -> T:
    return do(*arguments)


class _Life:
    """A desk in a thread and an event loop of its own."""

    desk: Desk

    def __init__(self, loaded: Loaded, announce: Callable[[Alert], None]) -> None:
        """Begin; :attr:`opened` tells when the desk is there, :attr:`ended` when it is gone."""
        self._ours = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = self._ours.create_future()
        self.ended: asyncio.Future[None] = self._ours.create_future()
        self._loaded = loaded
        self._announce = announce
        self._is_closing = False
        self._thread = threading.Thread(target=self._live, name="alerts", daemon=True)
        self._thread.start()

    async def call(self, asked: Coroutine[Any, Any, T]) -> T:
        """Return what *asked* returns in the thread; raise :exc:`mbroker.control.Absent` when that ends first."""
        if self._is_closing:
            asked.close()
            raise _gone()
        try:
            answer = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked, self._loop))
        except RuntimeError:  # its loop is closed
            asked.close()
            raise _gone() from None
        await asyncio.wait((answer, self.ended), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done() or answer.cancelled():
            answer.cancel()
            asked.close()  # its thread may have ended before it began
            raise _gone()
        return answer.result()

    async def end(self) -> None:
        """Close the desk and wait until it is; then nothing is open."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)
        await asyncio.wait((self.ended,))

    def _live(self) -> None:
        failure: BaseException | None = None
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # told to whoever waits, in the other thread
            failure = error
        with suppress(RuntimeError):  # nobody is left
            self._ours.call_soon_threadsafe(self._over, failure)

    async def _serve(self) -> None:
        from mbroker.alert_desk import Desk  # noqa: PLC0415 - who has no alerts need not load the matcher

        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        announce, ours = self._announce, self._ours
        self.desk = Desk(self._loaded, lambda alert: ours.call_soon_threadsafe(announce, alert))
        gc.collect()
        gc.freeze()  # what was loaded stays; to look through it for garbage again would stop everything each time
        self._ours.call_soon_threadsafe(self.opened.set_result, None)
        try:
            await self.desk.run(self._stop)
        finally:
            self._is_closing = True
            gc.unfreeze()

    def _over(self, failure: BaseException | None) -> None:
        waiting = self.ended if self.opened.done() else self.opened
        if failure is None:
            waiting.set_result(None)
        else:
            waiting.set_exception(failure)


def _gone() -> control.Absent:
    return control.Absent("the alerts of this broker are being started again; ask again soon")
