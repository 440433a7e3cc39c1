"""mbrokerd with alerts, driven as publishers, operators and receivers would."""

from __future__ import annotations

import asyncio
import errno
import gc
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner, Result

import mchannel
from mbroker import control
from mbroker.alerting import Alerting
from mbroker.alerts.book import BookError
from mbroker.alerts.engine_host import LostError
from mbroker.cli import main
from mbroker.config import ConfigError, load
from mchannel import Event
from mchannel.errors import CodecError
from mchannel.event import Detail
from mchannel.samples import Again, Declared, Named, Samples

CONFIG = """
[broker]
name = "node1"
state = "{folder}/state"
[[listen]]
address = "shm:///node1"
[[listen]]
address = "shm:///web1"
[[listen]]
address = "shm:///web2"
[alerts]
interval = 0.5
[alerts.receivers.oncall]
kind = "webhook"
options = {{ url = "http://127.0.0.1:{port}/" }}
group_wait = 0
group_interval = 0
retry_first = 0.1
rate = 100
"""


class _Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.told += [(alert["status"], alert["fingerprint"]) for alert in said["alerts"]]  # type: ignore[attr-defined]
        time.sleep(self.server.thinks)  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@attrs.define
class Plant:
    """A daemon, a webhook that its alerts reach, and a host's agent."""

    folder: Path
    manager: socket.socket
    hook: http.server.ThreadingHTTPServer
    running: list[subprocess.Popen[bytes]] = attrs.field(factory=list["subprocess.Popen[bytes]"])
    daemon: subprocess.Popen[bytes] | None = None

    @property
    def told(self) -> list[tuple[str, str]]:
        """What the webhook heard: states and ids of alerts."""
        return self.hook.told  # type: ignore[attr-defined,no-any-return]

    @property
    def config(self) -> Path:
        return self.folder / "mbroker.toml"

    @property
    def noted(self) -> int:
        """How many deliveries the running daemon has written down; killed before, it tells one again."""
        count: int = self.ask("status")["alerts"]["delivered"]
        return count

    def start(self) -> None:
        pytest.importorskip("mchannel._ring")
        self.daemon = self._run("mbroker.daemon", "--config", str(self.config))
        self.expect("READY=1")

    def publish(self) -> None:
        """Start the agent of this host."""
        self._run("mchannel.agents.main", "host", "--address", "shm:///node1", "--interval", "0.2", run="main()")

    def _run(self, module: str, *arguments: str, run: str = "") -> subprocess.Popen[bytes]:
        program = ["-c", f"from {module} import main; {run}"] if run else ["-m", module]
        with (self.folder / f"{module}.log").open("ab") as log:
            environment = {**os.environ, "NOTIFY_SOCKET": str(self.folder / "notify") if not run else ""}
            made = subprocess.Popen([sys.executable, *program, *arguments], stderr=log, stdout=log, env=environment)
        self.running.append(made)
        return made

    def expect(self, word: str) -> None:
        while word not in self.manager.recv(4096).decode():
            pass

    def end(self, number: signal.Signals) -> None:
        assert self.daemon
        self.daemon.send_signal(number)
        self.daemon.wait(30)

    def close(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.hook.shutdown()
        self.hook.server_close()

    @property
    def log(self) -> str:
        return (self.folder / "mbroker.daemon.log").read_text()

    def ask(self, *arguments: str) -> Any:
        """Return what a command prints as JSON."""
        result = run(*arguments, "--output", "json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="alerts-"))
    monkeypatch.setenv("MCHANNEL_RUNTIME_DIR", str(made / "run"))
    monkeypatch.delenv("MBROKER_CONTROL", raising=False)
    monkeypatch.setattr("mbroker.control._PATIENCE", 30.0)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def plant(folder: Path) -> Generator[Plant]:
    hook = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hook)
    hook.told, hook.thinks = [], 0.0  # type: ignore[attr-defined]
    threading.Thread(target=hook.serve_forever, daemon=True).start()
    (folder / "mbroker.toml").write_text(CONFIG.format(folder=folder, port=hook.server_address[1]))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        manager.settimeout(30)
        lent = Plant(folder, manager, hook)
        yield lent
        lent.close()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


class Crowd:
    """Threads that make this machine's number of tasks grow."""

    def __init__(self, count: int) -> None:
        self._gone = threading.Event()
        self._threads = [threading.Thread(target=self._gone.wait, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        self._gone.set()
        for thread in self._threads:
            thread.join()


@attrs.define
class Publisher:
    """A publisher of a test, speaking for itself."""

    channel: mchannel.Channel[Event]
    run: int = 1
    _last: int = 0

    def declare(self, *names: Named) -> None:
        self.channel.write(Declared(self.run, 0, names).to_event(), timeout=10)

    def say(self, number: int, value: float, ahead: float = 0.0) -> None:
        self._last = now = max(self._last + 1, round((time.time() + ahead) * 1000))  # no two in one millisecond
        said = Samples(self.run, array("I", [number]), array("d", [value]), array("q", [now]))
        self.channel.write(said.to_event(), timeout=10)

    def flush(self) -> None:
        self.channel.flush(timeout=20)


# -- the whole way


def test_a_metric_of_this_machine_is_told_once_when_it_begins_and_once_when_it_ends(plant: Plant) -> None:
    plant.start()
    plant.publish()
    until(lambda: plant.ask("status")["alerts"]["samples"] > 100)
    tasks = int(Path("/proc/loadavg").read_text().split()[3].split("/")[1])
    made = plant.ask("subscribe", f"load.tasks > {tasks + 300} keep memory", "--owner", "ann")
    assert (made["owner"], made["receivers"], made["warnings"]) == ("ann", ["oncall"], [])
    crowd = Crowd(600)
    try:
        until(lambda: plant.told)
        (alert,) = plant.ask("alerts", "list")
        assert (alert["labels"], alert["subscription"]) == ({"host": "node1"}, made["number"])
        assert alert["value"] > tasks + 300
    finally:
        crowd.leave()
    until(lambda: len(plant.told) == 2)
    assert plant.told == [("firing", alert["id"]), ("resolved", alert["id"])]
    until(
        lambda: {"load.tasks", "memory"} <= {s["metric"] for s in plant.ask("alerts", "show", alert["id"])["context"]}
    )
    assert plant.ask("alerts", "list") == []
    plant.end(signal.SIGTERM)
    assert (plant.daemon and plant.daemon.returncode, "Traceback" in plant.log) == (0, False), plant.log


def end_amid_an_alert(plant: Plant, ends: signal.Signals, when: Callable[[], object]) -> None:
    """Have an alert begin, end the daemon *when* that is true, start it again, and have the alert end."""
    plant.start()
    plant.ask("subscribe", "load > 1")
    with mchannel.open("shm:///web1", timeout=20) as channel:
        publisher = Publisher(channel)
        publisher.declare(Named("load"))
        publisher.say(0, 2.0)
        until(when)
        plant.end(ends)
        plant.start()
        publisher.say(0, 3.0)
        publisher.flush()
        assert channel.read(timeout=20).topic == "metrics.again"
        publisher.declare(Named("load"))
        publisher.say(0, 0.5)
        until(lambda: len(plant.told) > 1)


def test_a_killed_daemon_tells_nothing_twice_and_loses_nothing(plant: Plant) -> None:
    end_amid_an_alert(plant, signal.SIGKILL, lambda: plant.noted)
    assert [state for state, _ in plant.told] == ["firing", "resolved"]
    assert len({name for _, name in plant.told}) == 1


def test_a_daemon_that_is_ended_while_a_receiver_thinks_tells_it_nothing_twice(plant: Plant) -> None:
    plant.hook.thinks = 0.5  # type: ignore[attr-defined]
    end_amid_an_alert(plant, signal.SIGTERM, lambda: plant.told)
    assert [state for state, _ in plant.told] == ["firing", "resolved"]


def test_a_publisher_that_misbehaves_leaves_the_others_alone(plant: Plant) -> None:
    plant.start()
    plant.ask("subscribe", "load > 1")
    with mchannel.open("shm:///web1", timeout=20) as bad, mchannel.open("shm:///web2", timeout=20) as good:
        liar, honest = Publisher(bad), Publisher(good)
        honest.declare(Named("load"))
        liar.declare(Named("load", (("domain", "web2"),)), Named("load"), Named("load", (("host", "node1"),)))
        for number in (0, 2, 7, 1 << 31):
            liar.say(number, 9.0)
        liar.say(1, 9.0, ahead=3600)
        garbles: tuple[Detail, ...] = ({"run": -1}, {"numbers": b"123"}, {"run": 1, "numbers": b"1", "values": b""}, {})
        for garbage in garbles:
            bad.write(Event("metrics.samples", detail=garbage), timeout=10)
            bad.write(Event("metrics.series", value=0, detail=garbage), timeout=10)
        liar.flush()
        honest.say(0, 2.0)
        until(lambda: plant.told)
    (alert,) = plant.ask("alerts", "list")
    assert alert["labels"] == {"domain": "web2"}
    assert plant.ask("status")["malformed"] == 8
    until(lambda: plant.ask("status")["alerts"]["refused"] == 7)
    until(lambda: "web1: refused " in plant.log)
    assert "web2: refused" not in plant.log


def test_a_reload_changes_who_is_told_and_refuses_the_rest(plant: Plant) -> None:
    plant.start()
    text = plant.config.read_text()
    plant.config.write_text(text + '[alerts.receivers.second]\nkind = "stdout"\ngroup_wait = 0\n')
    assert plant.daemon
    plant.daemon.send_signal(signal.SIGHUP)
    plant.expect("RELOADING=1")
    plant.expect("READY=1")
    made = plant.ask("subscribe", "broker.heartbeat > 0")
    assert made["receivers"] == ["oncall", "second"]
    until(lambda: plant.told)
    until(lambda: "FIRING warning: broker.heartbeat > 0 at host=node1" in plant.log)
    plant.config.write_text(text.replace("interval = 0.5", "interval = 5"))
    plant.daemon.send_signal(signal.SIGHUP)
    plant.expect("RELOADING=1")
    plant.expect("READY=1")
    assert "alerts.interval: another one needs a restart of mbrokerd" in plant.ask("status")["problem"]
    assert len(plant.ask("subscriptions")) == 1


# -- the thread, without a process


@pytest.fixture
async def alerting(folder: Path) -> Any:
    file = folder / "mbroker.toml"
    file.write_text(CONFIG.format(folder=folder, port=9))
    said: list[Event] = []
    made = Alerting(load(file), said.append)
    await made.open()
    running = asyncio.create_task(made.run())
    yield made, said
    running.cancel()
    await asyncio.wait([running])


async def ask(alerting: Alerting, topic: str, **wanted: object) -> Any:
    return await alerting.answers[topic](json.dumps(wanted))


def event(value: float, number: int = 0) -> Event:
    now = round(time.time() * 1000)
    said = Samples(1, array("I", [number]), array("d", [value]), array("q", [now])).to_event()
    return attrs.evolve(said, source="web1")


async def test_alerts_are_events_for_policies(alerting: tuple[Alerting, list[Event]]) -> None:
    made, said = alerting
    row = await ask(made, "control.subscribe", owner="ann", text="load > 1 severity critical")
    assert await made.take(attrs.evolve(Declared(1, 0, (Named("load"),)).to_event(), source="web1")) is None
    assert await made.take(event(2.0)) is None
    await asyncio.sleep(0.01)
    assert await made.take(event(0.0)) is None
    await asyncio.sleep(0.01)
    assert [(each.topic, each.source, each.value) for each in said] == [
        ("alert.firing", "web1", 2.0),
        ("alert.resolved", "web1", 0.0),
    ]
    assert said[0].detail["subscription"] == row["number"]
    assert said[0].detail["severity"] == "critical"


@pytest.fixture
async def synced(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set whenever the log of the book is synced."""
    loop, found, sync = asyncio.get_running_loop(), asyncio.Event(), os.fdatasync

    def note(fd: int) -> None:
        sync(fd)
        if Path(f"/proc/self/fd/{fd}").readlink().name == "book.db-wal":
            loop.call_soon_threadsafe(found.set)

    monkeypatch.setattr("os.fdatasync", note)
    return found


async def test_an_alert_is_on_disk_soon_after_it_was_told(
    synced: asyncio.Event, alerting: tuple[Alerting, list[Event]]
) -> None:
    made, said = alerting
    await ask(made, "control.subscribe", owner="ann", text="load > 1")
    await made.take(attrs.evolve(Declared(1, 0, (Named("load"),)).to_event(), source="web1"))
    async with asyncio.timeout(60):
        await synced.wait()  # what a predecessor may have left
        synced.clear()
        await made.take(event(2.0))
        await synced.wait()
    assert [each.topic for each in said] == ["alert.firing"]


async def test_no_snapshot_is_written_while_the_book_is_not_on_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = folder / "mbroker.toml"
    file.write_text(CONFIG.format(folder=folder, port=9))
    made = Alerting(load(file), lambda _: None)
    await made.open()
    running = asyncio.create_task(made.run())
    await ask(made, "control.subscribe", owner="ann", text="load > 1")
    await made.take(attrs.evolve(Declared(1, 0, (Named("load"),)).to_event(), source="web1"))

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("os.fdatasync", fail)
    await made.take(event(2.0))
    running.cancel()
    await asyncio.wait([running])
    assert "cannot sync" in caplog.text
    assert files(folder, "engine.snapshot*") == []


def files(folder: Path, pattern: str) -> list[Path]:
    return list(folder.rglob(pattern))


async def test_whose_series_are_not_known_is_asked_for_them(alerting: tuple[Alerting, list[Event]]) -> None:
    made, _ = alerting
    assert await made.take(event(2.0)) == Again(1).to_event()


async def test_what_was_loaded_is_no_work_for_the_garbage_collector(alerting: tuple[Alerting, list[Event]]) -> None:
    assert gc.get_freeze_count() > 0
    await alerting[0].close()
    assert gc.get_freeze_count() == 0


async def test_samples_that_are_none_are_the_sender_s_fault(alerting: tuple[Alerting, list[Event]]) -> None:
    made, _ = alerting
    with pytest.raises(CodecError):
        await made.take(Event("metrics.samples", source="web1", detail={"run": 1}))


async def test_a_publisher_waits_while_the_book_cannot_be_written(
    alerting: tuple[Alerting, list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, said = alerting
    await ask(made, "control.subscribe", owner="ann", text="load > 1")
    await made.take(attrs.evolve(Declared(1, 0, (Named("load"),)).to_event(), source="web1"))

    def full(*_: object) -> None:
        raise BookError("the disk is full; make room")

    with monkeypatch.context() as patched:
        patched.setattr("mbroker.alerts.book.Book.record", full)
        taken = asyncio.create_task(made.take(event(2.0)))
        assert await asyncio.wait([taken], timeout=1.5) == (set(), {taken})
        assert (await ask_subscriptions(made))[0]["text"] == "load > 1"
    async with asyncio.timeout(20):
        assert await taken is None
    assert [each.topic for each in said] == ["alert.firing"]


async def test_alerts_that_fail_begin_again_from_their_files(
    alerting: tuple[Alerting, list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = alerting
    monkeypatch.setattr("mbroker.alerting._SHORTEST", 0.05)
    await ask(made, "control.subscribe", owner="ann", text="load > 1")

    def fail(_: object) -> None:
        raise MemoryError("the matcher ran out of memory; restore its last snapshot")

    with monkeypatch.context() as patched:
        patched.setattr("mbroker.alert_desk.Desk._tick", fail)
        refusals = [refusal async for refusal in refusals_of(made) if refusal]
    assert "ask again soon" in refusals[0]
    there: list[dict[str, Any]] = []
    for _ in range(600):
        with suppress(control.Absent):
            there = await ask_subscriptions(made)
            if made.status is not None:
                break
        await asyncio.sleep(0.05)
    assert [row["text"] for row in there] == ["load > 1"]
    assert made.status is not None
    assert "ran out of memory" in made.status.problem


@pytest.mark.parametrize("lost_at", ["samples", "tick", "enrol"])
async def test_alerts_whose_engines_are_lost_begin_again_from_the_last_snapshot(
    lost_at: str,
    alerting: tuple[Alerting, list[Event]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made, _ = alerting
    monkeypatch.setattr("mbroker.alerting._SHORTEST", 0.05)
    await ask(made, "control.subscribe", owner="ann", text="load > 1")
    await made.take(attrs.evolve(Declared(1, 0, (Named("load"),)).to_event(), source="web1"))

    def lose(*_: object) -> None:
        raise LostError("shard 3 is lost")

    with monkeypatch.context() as patched:
        patched.setattr(f"mbroker.alerts.watch.Watch.{lost_at}", lose)
        while not any("starting them again" in each.getMessage() for each in caplog.records):
            with suppress(control.Absent):
                await made.take(event(2.0))
                await ask(made, "control.subscribe", owner="ann", text="load > 2")
            await asyncio.sleep(0.05)
    (said,) = [each for each in caplog.records if "starting them again" in each.getMessage()][:1]
    assert "shard 3 is lost" in said.getMessage()
    assert said.exc_info is None
    assert not files(folder, "engine.snapshot"), "what engines missed is not taken for seen"
    for _ in range(400):
        if await asks(made):
            break
        await asyncio.sleep(0.05)
    assert made.status is not None
    assert "shard 3 is lost" in made.status.problem


@pytest.mark.parametrize("what", ["history.History", "keeper.Keeper"])
async def test_what_is_not_kept_is_in_the_status_and_in_the_log(
    what: str,
    alerting: tuple[Alerting, list[Event]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made, _ = alerting
    monkeypatch.setattr("mbroker.alert_desk._TICK", 0.02)
    monkeypatch.setattr("mbroker.alert_desk._MINUTE", 50)

    class Crowded:
        @property
        def problem(self) -> str:
            return "too much of web1"

        @problem.setter
        def problem(self, _: str) -> None:
            pass

    monkeypatch.setattr(f"mbroker.alerts.{what}.problem", Crowded.problem, raising=False)
    for _ in range(400):
        if made.status and made.status.problem and "too much of web1" in caplog.messages:
            break
        await asyncio.sleep(0.02)
    assert made.status is not None
    assert made.status.problem == "too much of web1"
    assert "too much of web1" in caplog.messages


async def asks(alerting: Alerting) -> bool:
    """Tell whether alerts answer."""
    with suppress(control.Absent):
        return bool(await ask_subscriptions(alerting))
    return False


async def refusals_of(alerting: Alerting) -> AsyncIterator[str]:
    """Ask again and again; yield why it was refused, or nothing when it was answered, until it was refused."""
    for _ in range(600):
        try:
            await ask_subscriptions(alerting)
            yield ""
        except control.Absent as absent:
            yield str(absent)
            return
        await asyncio.sleep(0.05)


async def ask_subscriptions(alerting: Alerting) -> Any:
    return await alerting.answers["control.subscriptions"]("")


async def test_windows_live_through_an_orderly_restart(folder: Path) -> None:
    file = folder / "mbroker.toml"
    file.write_text(CONFIG.format(folder=folder, port=9))
    said: list[Event] = []
    for life in range(2):
        made = Alerting(load(file), said.append)
        await made.open()
        if not life:
            await ask(made, "control.subscribe", owner="ann", text="mean(load[3]) > 8")
        await made.take(attrs.evolve(Declared(1, 0, (Named("load"),)).to_event(), source="web1"))
        for _ in range(2):
            await made.take(event(9.0))
            await asyncio.sleep(0.01)
        await made.close()
        shutil.rmtree(folder / "state/alerts/history")
    assert [each.topic for each in said] == ["alert.firing"]


async def test_a_series_that_is_read_seldom_is_not_silent_after_a_restart_without_a_snapshot(folder: Path) -> None:
    file = folder / "mbroker.toml"
    file.write_text(CONFIG.format(folder=folder, port=9))
    said: list[Event] = []
    for life in range(2):
        made = Alerting(load(file), said.append)
        await made.open()
        running = asyncio.create_task(made.run())
        if not life:
            await ask(made, "control.subscribe", owner="ann", text="load > 1 nodata clear")
            declared = Declared(1, 0, (Named("load"),), interval=3_600_000).to_event()
            await made.take(attrs.evolve(declared, source="web1"))
            an_hour_ago = array("q", [round(time.time() * 1000) - 3_600_000])
            old = Samples(1, array("I", [0]), array("d", [9.0]), an_hour_ago).to_event()
            await made.take(attrs.evolve(old, source="web1"))
        await asyncio.sleep(3.5)  # until it is known what ended meanwhile
        running.cancel()
        await asyncio.wait([running])
        for image in files(folder, "engine.snapshot"):
            image.unlink()
    assert [each.topic for each in said] == ["alert.firing"]


async def test_what_keeps_watch_over_the_alerts_notices_that_a_part_ended(
    alerting: tuple[Alerting, list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = alerting

    def broken(*_: object) -> None:
        raise LookupError("not there")

    monkeypatch.setattr("mbroker.alerts.keeper.Keeper.due", broken)
    while made.status is None or "not there" not in made.status.problem:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("[alerts]", "[x]"), "unknown key"),
        (('kind = "webhook"', 'kind = "pigeon"'), "alerts.receivers.oncall.kind: must be one of stdout, webhook"),
        (("http://127.0.0.1", "http://example.org"), "must begin with https"),
        (("interval = 0.5", "interval = 0"), "alerts.interval: must be >= 0.1"),
        (("[alerts]", "[alerts]\ngroups = { 'a b' = [] }"), "alerts.groups.a b: must be a name"),
        (
            ("[alerts]", "[alerts]\noffload = true\nlate = 1"),
            "alerts.offload: cannot go with late: a publisher compares",
        ),
        (("[alerts]", "[alerts]\nbounds = { series = 0 }"), "alerts.bounds.series: must be >= 1"),
    ],
)
def test_a_wrong_configuration_is_told_by_its_key(folder: Path, change: tuple[str, str], says: str) -> None:
    file = folder / "mbroker.toml"
    file.write_text(CONFIG.format(folder=folder, port=9).replace(*change))
    result = run("check-config", str(file))
    assert (result.exit_code, says in result.stderr) == (2, True), result.stderr


async def test_a_folder_that_cannot_be_used_is_told_by_its_key(folder: Path) -> None:
    file = folder / "mbroker.toml"
    (folder / "state").mkdir()
    (folder / "state/alerts").write_text("")
    file.write_text(CONFIG.format(folder=folder, port=9))
    with pytest.raises(ConfigError, match=r"alerts.folder: .*File exists"):
        await Alerting(load(file), lambda _: None).open()


async def test_a_broker_without_alerts_says_so(folder: Path) -> None:
    file = folder / "mbroker.toml"
    file.write_text('[broker]\nname = "node1"\n')
    made = Alerting(load(file), lambda _: None)
    await made.open()
    await made.run()
    assert (made.is_on, made.status) == (False, None)
    with pytest.raises(control.Refused, match=r"this broker has no alerts; add \[alerts\]"):
        await ask(made, "control.alerts")


def test_the_example_of_the_tutorial_is_a_good_configuration() -> None:
    house = Path(__file__).parents[2]
    assert run("check-config", str(house / "examples/alerts.toml")).exit_code == 0
    assert "examples/alerts.toml" in (house / "docs/tutorial/first-subscription.md").read_text()
