"""The agent inside an application: it measures, and never makes the application wait."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import asyncio
import io
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from mchannel.agents.cpu import GuestCpu, ProcessCpu
from mchannel.agents.sla import MeasuredBody, Recorder, Sla
from mchannel.errors import ChannelBroken, ChannelTimeout, CodecError, MessageTooBig
from mchannel.event import Event

FORKS = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # 3.12, with threads
START = 1_700_000_000.0


@attrs.define
class Pipe:
    """A channel whose reader can stop reading."""

    events: list[Event] = attrs.field(factory=list[Event])
    error: Exception | None = None

    def write(self, message: Event, /, timeout: float | None = None) -> None:
        if self.error is not None:
            raise self.error
        self.events.append(message)


@attrs.define
class Clock:
    now: float = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recorder(pipe: Pipe, clock: Clock) -> Recorder:
    """Return a recorder for which all time is that of *clock*."""
    return Recorder(pipe, source="web1", clock=clock, timer=clock, utilization=lambda: 0.5)


def report(recorder: Recorder, pipe: Pipe, clock: Clock) -> Event:
    """Return the report of the present epoch."""
    clock.now = clock.now // 0.5 * 0.5 + 0.5
    recorder.tick()
    return pipe.events[-1]


def test_a_request_is_measured_while_its_block_runs(recorder: Recorder, pipe: Pipe, clock: Clock) -> None:
    with recorder.request():
        clock.now += 0.25
    event = report(recorder, pipe, clock)
    assert (event.source, event.detail["requests"], event.detail["p99_ms"]) == ("web1", 1, 250.0)


async def test_a_request_is_measured_while_an_async_block_runs(recorder: Recorder, pipe: Pipe, clock: Clock) -> None:
    async with recorder.request():
        clock.now += 0.125
    assert report(recorder, pipe, clock).detail["p99_ms"] == 125.0


def test_a_request_that_fails_is_counted_and_the_error_goes_on(recorder: Recorder, pipe: Pipe, clock: Clock) -> None:
    with pytest.raises(ZeroDivisionError), recorder.request():
        raise ZeroDivisionError
    assert report(recorder, pipe, clock).detail["requests"] == 1


async def test_a_request_that_is_cancelled_is_counted(recorder: Recorder, pipe: Pipe, clock: Clock) -> None:
    async def serve() -> None:
        async with recorder.request():
            await asyncio.sleep(60)

    task = asyncio.create_task(serve())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert report(recorder, pipe, clock).detail["requests"] == 1


def test_utilisation_goes_with_every_report(recorder: Recorder, pipe: Pipe, clock: Clock) -> None:
    assert report(recorder, pipe, clock).detail["utilization"] == 0.5


def test_reports_wait_while_the_channel_is_full_and_come_in_order(recorder: Recorder, pipe: Pipe, clock: Clock) -> None:
    pipe.error = ChannelTimeout("full")
    for _ in range(5):
        clock.now += 0.5
        recorder.tick()
    pipe.error = None
    report(recorder, pipe, clock)
    assert [event.at - START for event in pipe.events] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]


def test_a_minute_of_reports_is_kept_and_what_is_dropped_is_said(recorder: Recorder, pipe: Pipe, clock: Clock) -> None:
    pipe.error = ChannelTimeout("full")
    for _ in range(150):
        clock.now += 0.5
        recorder.tick()
    pipe.error = None
    report(recorder, pipe, clock)
    assert len(pipe.events) == 120
    dropped = [event.detail.get("dropped", 0) for event in pipe.events]
    assert pipe.events[0].at == START + 16.0  # 31 of 151 reports are gone
    assert sum(count for count in dropped if isinstance(count, int)) == 30  # the last is not said yet


def test_a_broken_channel_is_logged_once_until_it_works_again(
    recorder: Recorder, pipe: Pipe, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        pipe.error = ChannelBroken("gone")
        for _ in range(3):
            clock.now += 0.5
            recorder.tick()
        pipe.error = None
        clock.now += 0.5
        recorder.tick()
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert len(pipe.events) == 8


@pytest.mark.parametrize("error", [CodecError("no event"), MessageTooBig("too long")])
def test_an_event_that_can_never_be_sent_is_counted_and_keeps_nothing_back(
    clock: Clock, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    class Choosy(Pipe):
        def write(self, message: Event, /, timeout: float | None = None) -> None:
            if "odd" in message.detail:
                raise error
            super().write(message)

    pipe = Choosy()
    recorder = Recorder(pipe, clock=clock, utilization=lambda: None)
    for odd in (False, True, True, False, True, False):
        if odd:
            recorder.note("odd")
        report(recorder, pipe, clock)
    assert [event.at - START for event in pipe.events] == [0.5, 2.0, 3.0]
    assert [event.detail.get("refused") for event in pipe.events] == [None, 1, 1]
    assert recorder.waiting == 0
    assert [record.getMessage() for record in caplog.records] == [
        f"a report is left out, as no broker can take it: {error}"
    ]


def test_observing_never_waits_for_a_channel_that_blocks(clock: Clock) -> None:
    blocked, release = threading.Event(), threading.Event()

    class Stuck(Pipe):
        def write(self, message: Event, /, timeout: float | None = None) -> None:
            blocked.set()
            assert release.wait(60)

    recorder = Recorder(Stuck(), clock=clock)
    clock.now += 0.5
    ticking = threading.Thread(target=recorder.tick)
    ticking.start()
    assert blocked.wait(60)
    recorder.observe(0.001)  # would hang if the channel's lock were the meter's
    release.set()
    ticking.join()


def test_threads_lose_no_request(recorder: Recorder, pipe: Pipe, clock: Clock) -> None:
    def serve() -> None:
        for _ in range(5000):
            recorder.observe(0.007)

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    event = report(recorder, pipe, clock)
    assert (event.detail["requests"], event.detail["hard"]) == (20000, 20000)


def test_the_thread_reports_by_itself_and_close_reports_the_rest() -> None:
    pipe = Pipe()
    with Sla(pipe, source="web1") as sla:
        deadline = time.monotonic() + 60
        while not pipe.events and time.monotonic() < deadline:
            time.sleep(0.01)
        sla.observe(0.007)
    hard = [event.detail["hard"] for event in pipe.events]
    assert len(hard) >= 2
    assert hard.count(1) == 1


def test_the_thread_survives_an_error_of_a_reading(caplog: pytest.LogCaptureFixture) -> None:
    calls = list[None]()

    def broken() -> float:
        calls.append(None)
        if len(calls) == 1:
            raise RuntimeError("no such counter")
        return 0.5

    pipe = Pipe()
    with Sla(pipe, utilization=broken):
        deadline = time.monotonic() + 60
        while not pipe.events and time.monotonic() < deadline:
            time.sleep(0.01)
    assert pipe.events
    assert "goes on" in caplog.text


@FORKS
def test_a_forked_child_can_count_but_does_not_write_to_the_channel_of_its_parent(
    recorder: Recorder, pipe: Pipe, clock: Clock
) -> None:
    child = os.fork()
    if child == 0:
        try:
            recorder.observe(0.007)
            clock.now += 0.5
            recorder.tick()
            os._exit(len(pipe.events))
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@FORKS
def test_a_child_that_was_forked_while_its_parent_writes_reports_nothing_and_waits_for_nothing(clock: Clock) -> None:
    blocked, release = threading.Event(), threading.Event()

    class Stuck(Pipe):
        def write(self, message: Event, /, timeout: float | None = None) -> None:
            blocked.set()
            assert release.wait(60)

    recorder = Recorder(Stuck(), clock=clock, utilization=lambda: None)
    clock.now += 0.5
    ticking = threading.Thread(target=recorder.tick)
    ticking.start()
    assert blocked.wait(60)
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(20)
            recorder.tick()
            recorder.flush(0.0)
            os._exit(0)
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    release.set()
    ticking.join()


@FORKS
def test_a_fork_waits_until_nobody_counts(recorder: Recorder) -> None:
    with recorder._lock:
        forked = threading.Event()

        def fork() -> None:
            child = os.fork()
            if child == 0:
                os._exit(recorder._lock.locked())
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            forked.set()

        thread = threading.Thread(target=fork)
        thread.start()
        assert not forked.wait(0.05)
    thread.join()
    assert forked.is_set()


Environ = dict[str, Any]


def wsgi(recorder: Recorder, body: Callable[[], Iterable[bytes]]) -> MeasuredBody:
    def app(_environ: Environ, _start_response: Callable[..., Any]) -> Iterable[bytes]:
        return body()

    return recorder.wsgi(app)({}, lambda *_: None)


def test_wsgi_counts_until_the_body_is_used_up(recorder: Recorder, pipe: Pipe, clock: Clock) -> None:
    def body() -> Iterator[bytes]:
        for chunk in (b"a", b"b"):
            clock.now += 0.0625
            yield chunk

    assert list(wsgi(recorder, body)) == [b"a", b"b"]
    clock.now += 0.125
    assert report(recorder, pipe, clock).detail["p99_ms"] == 125.0


def test_wsgi_counts_until_an_unfinished_body_is_closed_and_closes_it(
    recorder: Recorder, pipe: Pipe, clock: Clock
) -> None:
    file = io.BytesIO(b"line\nline\n")
    body = wsgi(recorder, lambda: file)
    next(iter(body))
    clock.now += 0.25
    body.close()
    assert file.closed
    event = report(recorder, pipe, clock)
    assert (event.detail["requests"], event.detail["p99_ms"]) == (1, 250.0)


def test_wsgi_counts_an_application_that_raises(recorder: Recorder, pipe: Pipe, clock: Clock) -> None:
    def fails() -> Iterable[bytes]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        wsgi(recorder, fails)
    assert report(recorder, pipe, clock).detail["requests"] == 1


@pytest.mark.parametrize("closes", [False, True])
def test_wsgi_counts_a_body_that_raises_once_whether_the_server_closes_it_or_not(
    recorder: Recorder, pipe: Pipe, clock: Clock, closes: bool
) -> None:
    def fails() -> Iterator[bytes]:
        yield b"a"
        raise ZeroDivisionError

    body = wsgi(recorder, fails)
    with pytest.raises(ZeroDivisionError):
        list(body)
    if closes:
        body.close()
    assert report(recorder, pipe, clock).detail["requests"] == 1


Message = MutableMapping[str, Any]


async def nothing() -> Message:
    return {"type": "http.request"}


async def test_asgi_counts_until_the_last_byte_and_not_what_follows(
    recorder: Recorder, pipe: Pipe, clock: Clock
) -> None:
    sent = list[Message]()

    async def send(message: Message) -> None:
        clock.now += 0.0625
        sent.append(message)

    async def app(_scope: Message, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"b"})
        clock.now += 0.125  # a background task

    await recorder.asgi(app)({"type": "http"}, nothing, send)
    assert len(sent) == 3
    event = report(recorder, pipe, clock)
    assert (event.detail["requests"], event.detail["p99_ms"]) == (1, 187.5)


async def test_asgi_counts_an_application_that_raises(recorder: Recorder, pipe: Pipe, clock: Clock) -> None:
    async def app(*_: Any) -> None:
        raise ZeroDivisionError

    async def send(message: Message) -> None: ...

    with pytest.raises(ZeroDivisionError):
        await recorder.asgi(app)({"type": "http"}, nothing, send)
    assert report(recorder, pipe, clock).detail["requests"] == 1


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_asgi_measures_nothing_but_http(recorder: Recorder, pipe: Pipe, clock: Clock, kind: str) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None: ...

    async def send(message: Message) -> None: ...

    await recorder.asgi(app)({"type": kind}, nothing, send)
    assert report(recorder, pipe, clock).detail["requests"] == 0


def test_the_guest_is_busy_when_it_is_not_idle(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 ...\n")
    cpu = GuestCpu(stat)
    stat.write_text("cpu  110 0 110 740 120 0 0 20 0 0\ncpu0 ...\n")
    assert cpu() == pytest.approx(0.4)  # 10 user, 10 system, 20 stolen of 100; 60 idle or waiting for a disk


@pytest.mark.parametrize("text", ["", "intr 1", "cpu x", "cpu 1 2", "cpu 1 2 3 4"])
def test_a_reading_that_cannot_be_had_is_none(tmp_path: Path, text: str) -> None:
    stat = tmp_path / "stat"
    cpu = GuestCpu(stat)
    assert cpu() is None
    stat.write_text(text)
    assert cpu() is None
    assert cpu() is None


def test_a_process_that_computes_is_busier_than_one_that_sleeps() -> None:
    cpu = ProcessCpu()
    time.sleep(0.05)
    asleep, end = cpu(), time.process_time() + 0.05
    while time.process_time() < end:
        pass
    busy = cpu()
    assert asleep is not None
    assert busy is not None
    assert 0.0 <= asleep < busy <= 1.0
