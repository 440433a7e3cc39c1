"""``magent run`` as its broker and its operator meet it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import pytest

import mchannel
from mchannel import Channel, Event
from mchannel.agents.main import main
from mchannel.errors import ChannelTimeout, EndOfChannel
from mchannel.samples import SAMPLES, SERIES, Again, Declared, Named, Samples

FORMAT = "$msec $status $request_time"
CONFIG = '[[sla]]\nlog = "{log}"\nformat = "{format}"\nservice = "shop"\n[metrics]\ninterval = 0.2\n'


@attrs.frozen
class Agent:
    """A running ``magent run``."""

    process: subprocess.Popen[str]
    manager: socket.socket

    def told(self) -> str:
        """Return what it tells its service manager next, apart from its status."""
        while (word := self.manager.recv(4096).decode()).startswith("STATUS="):
            pass
        return word

    def stop(self) -> str:
        """End it, and return what it logged."""
        self.process.terminate()
        _, err = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return err


@contextmanager
def running(*arguments: str | Path, folder: Path) -> Generator[Agent]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        manager.settimeout(60)
        process = subprocess.Popen(
            [sys.executable, "-c", "from mchannel.agents.main import main; main()", "run", *map(str, arguments)],
            env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield Agent(process, manager)
        finally:
            process.kill()
            process.communicate()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "access.log"
    path.touch()
    return path


@pytest.fixture
def config(tmp_path: Path, log: Path) -> Path:
    path = tmp_path / "magent.toml"
    path.write_text(CONFIG.format(log=log, format=FORMAT))
    return path


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/broker.sock"


def accept(listener: mchannel.Listener[Event], count: int = 3) -> dict[str, Channel[Event]]:
    channels = [listener.accept(timeout=60) for _ in range(count)]
    return {channel.peer.name: channel for channel in channels}


def request(log: Path, seconds: float) -> None:
    with log.open("a") as file:
        file.write(f"{time.time():.3f} 200 {seconds:.3f}\n")


def until(channel: Channel[Event], topic: str) -> Event:
    while (event := channel.read(timeout=60)).topic != topic:
        pass
    return event


def rest(channel: Channel[Event]) -> Iterator[Event]:
    with suppress(EndOfChannel, ChannelTimeout):
        while True:
            yield channel.read(timeout=10)


def violations(events: Iterator[Event] | list[Event]) -> list[object]:
    return [event.detail["hard"] for event in events if event.value]


def test_a_broker_meets_three_streams(tmp_path: Path, config: Path, log: Path, address: str) -> None:
    with (
        mchannel.listen(address) as listener,
        running("--config", config, "--address", address, folder=tmp_path) as agent,
    ):
        channels = accept(listener)
        assert channels.keys() == {"sla", "metrics", "commands"}
        assert agent.told() == "READY=1"
        request(log, 0.007)
        epoch = channels["sla"].read(timeout=60)
        while not epoch.value:
            epoch = channels["sla"].read(timeout=60)
        assert (epoch.topic, epoch.detail["hard"], epoch.detail["service"]) == ("sla.epoch", 1, "shop")
        assert 0 <= float(until(channels["metrics"], "metrics.memory").value or 0) <= 1
        channels["commands"].write(Event("command.ping", value=7))
        assert channels["commands"].read(timeout=60).value == 7
        channels["commands"].write(Event("command.describe", detail={"id": 1}))
        told = channels["commands"].read(timeout=60).detail
        assert told["streams"] == ("commands", "metrics", "sla")
        assert (told["id"], told["interval"], told["kernel"]) == (1, 0.2, os.uname().release)


def test_a_broker_that_fell_behind_is_told_of_every_group(config: Path, address: str, tmp_path: Path) -> None:
    with mchannel.listen(address) as listener, running("--config", config, "--address", address, folder=tmp_path):
        channels = accept(listener)
        with suppress(ChannelTimeout):
            channels["commands"].read(timeout=2)  # meanwhile several rounds of the metrics arrive
        told = {channels["metrics"].read(timeout=60).topic for _ in range(20)}
        assert told >= {"metrics.cpu", "metrics.memory", SERIES, SAMPLES}


def test_commands_cannot_be_misused_and_the_agent_goes_on(tmp_path: Path, address: str) -> None:
    with mchannel.listen(address, mchannel.RawCodec()) as listener:
        empty = tmp_path / "magent.toml"
        empty.write_text("[metrics]\nenabled = false\n")
        with running("--config", empty, "--address", address, folder=tmp_path):
            channel = listener.accept(timeout=60)
            codec = mchannel.EventCodec()
            channel.write(b"\xc1 no event")
            channel.write(codec.encode(Event("command.run", value="/bin/sh")))
            channel.write(codec.encode(Event("command.ping")))
            answers = [codec.decode(channel.read(timeout=60)) for _ in range(3)]
            assert [answer.topic for answer in answers] == ["command.error", "command.error", "command.pong"]


def test_the_interval_of_the_metrics_is_changed_by_command(tmp_path: Path, config: Path, address: str) -> None:
    config.write_text("[metrics]\ninterval = 3600\n")
    with mchannel.listen(address) as listener, running("--config", config, "--address", address, folder=tmp_path):
        channels = accept(listener, 2)
        first = until(channels["metrics"], "metrics.cpu")
        channels["commands"].write(Event("command.interval", value=0.1))
        assert channels["commands"].read(timeout=60).value == 0.1
        assert until(channels["metrics"], "metrics.cpu").at > first.at


def test_metrics_are_told_as_samples_too_and_declared_when_asked_for(tmp_path: Path, address: str) -> None:
    config = tmp_path / "magent.toml"
    config.write_text("[metrics]\ninterval = 0.2\n[commands]\nenabled = false\n")
    with mchannel.listen(address) as listener, running("--config", config, "--address", address, folder=tmp_path):
        channel = listener.accept(timeout=60)
        channel.write(Again(Samples.from_event(until(channel, SAMPLES)).run).to_event())
        names: dict[int, Named] = {}
        while Named("memory") not in names.values():  # newer messages may displace a declaration: it is asked for again
            event = channel.read(timeout=60)
            if event.topic == SERIES:
                declared = Declared.from_event(event)
                names.update(enumerate(declared.series, declared.first))
            elif event.topic == SAMPLES:
                channel.write(Again(Samples.from_event(event).run).to_event())
        memory = next(number for number, named in names.items() if named == Named("memory"))
        samples = Samples.from_event(until(channel, SAMPLES))
        assert 0 <= samples.values[samples.numbers.index(memory)] <= 1


def test_a_log_that_comes_later_is_read_from_its_start(tmp_path: Path, config: Path, log: Path, address: str) -> None:
    log.unlink()
    with mchannel.listen(address) as listener, running("--config", config, "--address", address, folder=tmp_path):
        channel = accept(listener)["sla"]
        request(log, 0.007)
        while not (event := channel.read(timeout=60)).value:
            pass
        assert event.detail["hard"] == 1


def test_the_end_reports_what_was_counted(tmp_path: Path, config: Path, log: Path, address: str) -> None:
    with (
        mchannel.listen(address) as listener,
        running("--config", config, "--address", address, folder=tmp_path) as agent,
    ):
        channel = accept(listener)["sla"]
        first = channel.read(timeout=60)
        request(log, 0.007)
        agent.process.terminate()
        events = [first, *rest(channel)]
        _, err = agent.process.communicate(timeout=60)
        assert (agent.process.returncode, "not acknowledged" in err) == (0, False)
    assert violations(events) == [1]


def test_the_end_does_not_wait_long_for_a_broker_that_is_gone(
    tmp_path: Path, config: Path, log: Path, address: str
) -> None:
    with running("--config", config, "--address", address, folder=tmp_path) as agent:
        with mchannel.listen(address) as listener:
            accept(listener)["sla"].read(timeout=60)
        request(log, 0.007)
        assert "magent: the broker has not acknowledged all reports" in agent.stop()


def test_a_broker_that_comes_back_goes_on_with_all_streams(
    tmp_path: Path, config: Path, log: Path, address: str
) -> None:
    with running("--config", config, "--address", address, folder=tmp_path):
        with mchannel.listen(address) as listener:
            accept(listener)["sla"].read(timeout=60)
        request(log, 0.007)
        with mchannel.listen(address) as listener:
            channels = accept(listener)
            while not (event := channels["sla"].read(timeout=60)).value:
                pass
            assert event.detail["hard"] == 1
            until(channels["metrics"], "metrics.cpu")
            channels["commands"].write(Event("command.ping", value=7))
            assert channels["commands"].read(timeout=60).value == 7


def test_sighup_changes_what_the_file_changes_and_no_more(
    tmp_path: Path, config: Path, log: Path, address: str
) -> None:
    other = tmp_path / "other.log"
    other.touch()
    with (
        mchannel.listen(address) as listener,
        running("--config", config, "--address", address, folder=tmp_path) as agent,
    ):
        channels = accept(listener)
        assert agent.told() == "READY=1"
        config.write_text(config.read_text() + f'[[sla]]\nlog = "{other}"\nformat = "{FORMAT}"\n')
        agent.process.send_signal(signal.SIGHUP)
        assert (agent.told(), agent.told()) == ("RELOADING=1", "READY=1")
        request(other, 0.007)
        request(log, 0.008)
        services: set[object] = set()
        while len(services) < 2:
            event = channels["sla"].read(timeout=60)
            services |= {event.detail.get("service")} if event.value else set()
        assert services == {"shop", None}


def test_a_faulty_configuration_keeps_the_one_in_force(tmp_path: Path, config: Path, address: str) -> None:
    with (
        mchannel.listen(address) as listener,
        running("--config", config, "--address", address, folder=tmp_path) as agent,
    ):
        channels = accept(listener)
        assert agent.told() == "READY=1"
        config.write_text("[metrics]\ninterval = 0\n")
        agent.process.send_signal(signal.SIGHUP)
        assert (agent.told(), agent.told()) == ("RELOADING=1", "READY=1")
        assert channels["sla"].read(timeout=60).topic == "sla.epoch"
        assert "magent: goes on with the configuration that it has: " in agent.stop()


def test_a_daemon_without_a_way_waits_and_says_once_what_to_add(tmp_path: Path, config: Path) -> None:
    with running("--config", config, folder=tmp_path) as agent:
        status, ready = sorted((agent.manager.recv(4096).decode() for _ in range(2)), reverse=True)
        err = agent.stop()
    assert err.count("add to the domain's devices: <channel type='unix'>") == 1
    assert (status[:22], ready) == ("STATUS=no virtio port ", "READY=1")


def run(*arguments: str | Path) -> int:
    """Return the exit status of ``magent run`` in this process."""
    try:
        main(["run", *map(str, arguments)])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 99
    return 0


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["--config", "DIR/missing.toml"], 4, "there is no configuration"),
        (["--config", "DIR"], 2, "Is a directory"),
        (["--config", "FILE"], 2, "metrics.intervall: unknown key; did you mean interval?"),
        (["--dry-run", "--address", "nonsense"], 2, "'nonsense' is not an address"),
        (["--dry-run"], 3, "add to the domain's devices: <channel"),
        (["--surprise"], 2, "unrecognized arguments: --surprise"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_a_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, line: str
) -> None:
    (tmp_path / "magent.toml").write_text("[metrics]\nintervall = 5\n")
    names = {"DIR/missing.toml": tmp_path / "missing.toml", "DIR": tmp_path, "FILE": tmp_path / "magent.toml"}
    assert run(*(names.get(argument, argument) for argument in arguments)) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert line in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_dry_run_prints_what_would_be_sent(tmp_path: Path, config: Path, log: Path, address: str) -> None:
    options = ("--config", config, "--address", address, "--dry-run", "--output", "json")
    with running(*options, folder=tmp_path) as agent:
        assert agent.told() == "READY=1"
        request(log, 0.007)
        assert agent.process.stdout is not None
        events: list[Event] = []
        while not any(event.topic == "sla.epoch" and event.value for event in events):
            events.append(Event(**json.loads(agent.process.stdout.readline())))
        agent.process.terminate()
        agent.process.communicate(timeout=60)
    assert "metrics.cpu" in {event.topic for event in events}


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert "magent run --config ./magent.toml --address" in capsys.readouterr().out
