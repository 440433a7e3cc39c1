"""``magent host`` as its broker and its operator meet it."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

import mchannel
from mchannel.agents.feed import Feed, either, ticks
from mchannel.agents.main import main
from mchannel.agents.publisher import Publisher, Reading
from mchannel.agents.settings import Settings
from mchannel.agents.watching import Source, Watch
from mchannel.errors import MessageTooBig
from mchannel.event import Event
from mchannel.samples import SERIES, Again, Declared, Named, Samples
from mchannel.transport import State

LOAD = Named("load")


@contextmanager
def running(*arguments: str | Path) -> Generator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", "from mchannel.agents.main import main; main()", "host", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


class Heard:
    """What a broker makes of one channel."""

    def __init__(self, channel: mchannel.Channel[Event]) -> None:
        self.channel = channel
        self.names: dict[int, Named] = {}
        self.intervals: dict[Named, int | None] = {}
        self.run = 0

    def interval(self, metric: str, **labels: str) -> int | None:
        """Return how often the series of *metric* with these *labels* is said to be read."""
        wanted = labels.items()
        (found,) = (
            interval
            for named, interval in self.intervals.items()
            if named.metric == metric and wanted <= dict(named.labels).items()
        )
        return found

    def until(self, metric: str) -> float:
        """Return the next value of *metric*."""
        while True:
            event = self.channel.read(timeout=60)
            if event.topic == SERIES:
                declared = Declared.from_event(event)
                self.names.update(enumerate(declared.series, declared.first))
                self.intervals.update(dict.fromkeys(declared.series, declared.interval))
                continue
            samples = Samples.from_event(event)
            self.run = samples.run
            for number, value in zip(samples.numbers, samples.values, strict=True):
                if self.names[number].metric == metric:
                    return value


def test_a_broker_hears_this_host_and_the_domains_of_its_hypervisor(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/b.sock"
    with (
        mchannel.listen(address) as listener,
        running("--address", address, "--interval", "0.2", "--libvirt", "test:///default") as agent,
    ):
        heard = Heard(listener.accept(timeout=60))
        assert heard.channel.peer.name == "host"
        assert 0 <= heard.until("cpu") <= 1
        assert heard.until("domain.running") == 1
        heard.channel.write(Event("nonsense"))
        heard.channel.write(Again(heard.run).to_event())
        heard.names.clear()
        while (event := heard.channel.read(timeout=60)).topic != SERIES:
            pass
        assert Declared.from_event(event).first == 0
        agent.terminate()
        _, said = agent.communicate(timeout=60)
        assert agent.returncode == 0
        assert said.count("cannot be understood") == 1


def test_a_configuration_is_read_again_and_one_that_is_wrong_is_refused(tmp_path: Path) -> None:
    address, config = f"ipc://{tmp_path}/b.sock", tmp_path / "magent.toml"
    plugin = '[[read]]\nkind = "nagios"\nname = "{0}"\ncommand = ["/bin/echo", "|{0}=1"]\ninterval = 0.2\n'
    config.write_text(plugin.format("one"))
    with mchannel.listen(address) as listener, running("--address", address, "--config", config) as agent:
        heard = Heard(listener.accept(timeout=60))
        assert heard.until("nagios.value") == 1
        assert (heard.interval("nagios.value"), heard.interval("read.up", read="one")) == (200, 200)
        config.write_text("[[read]]\n")
        agent.send_signal(signal.SIGHUP)
        heard = Heard(listener.accept(timeout=60))
        assert heard.until("nagios.value") == 1
        config.write_text(plugin.format("one").replace("0.2", "0.5"))
        agent.send_signal(signal.SIGHUP)
        heard = Heard(listener.accept(timeout=60))
        assert heard.until("nagios.value") == 1
        while heard.interval("nagios.value") == 200:
            heard.until("nagios.value")
        assert heard.interval("nagios.value") == 500
        config.write_text("")
        agent.send_signal(signal.SIGHUP)
        assert Heard(listener.accept(timeout=60)).until("load") >= 0
        agent.terminate()
        _, said = agent.communicate(timeout=60)
        assert "goes on with the configuration that it has" in said
        assert "read.0.kind: is missing" in said


def test_once_prints_what_would_be_sent(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "magent.toml"
    config.write_text(
        '[host]\ninterval = 0.1\n[[read]]\nkind = "nagios"\nname = "x"\ncommand = ["/bin/echo", "|\'a b\'=1"]\n'
        '[[read]]\nkind = "ganglia"\nname = "y"\naddress = "127.0.0.1:1"\n'
    )
    main(["host", "--once", "--output", "json", "--config", str(config)])
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"cpu", "filesystem", "nagios.state"} <= {each["metric"] for each in told}
    (value,) = [each for each in told if each["metric"] == "nagios.value"]
    assert value | {"at": 0} == {
        "metric": "nagios.value",
        "labels": {"check": "x", "label": "a b"},
        "value": 1,
        "at": 0,
    }
    assert {each["labels"]["read"]: each["value"] for each in told if each["metric"] == "read.up"} == {
        "host": 1,
        "x": 1,
        "y": 0,
    }
    main(["host", "--once", "--config", str(config)])
    assert 'nagios.value{check="x",label="a b"} 1\n' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--interval", "0"], "is no interval; give 0.05 to 3600 seconds"),
        (["--address", "nonsense"], "nonsense"),
        (["--config", "/nowhere.toml"], "there is no configuration /nowhere.toml"),
    ],
)
def test_bad_options_are_one_clear_line(capsys: pytest.CaptureFixture[str], arguments: list[str], why: str) -> None:
    with pytest.raises(SystemExit):
        main(["host", *arguments])
    assert why in capsys.readouterr().err.splitlines()[-1]


async def test_a_reader_that_fails_or_hangs_is_told_and_is_no_end() -> None:
    async def fail() -> list[Reading]:
        raise ValueError("broken\nin two lines")

    async def hang() -> list[Reading]:
        await asyncio.sleep(60)
        return []

    for read, why in ((fail, "broken in two lines"), (hang, "no answer within 0.01 s")):
        found, said = await Source("x", 1.0, 0.01, read).look()
        assert said == why
        assert found[0] == Reading(Named("read.up", (("read", "x"),)), 0.0)


async def test_an_outage_is_one_line_of_the_log_and_its_end_another(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "magent")
    outcomes = iter(["one", "another", "", "", "one"])

    async def read() -> list[Reading]:
        why = next(outcomes, None)
        if why is None:
            raise asyncio.CancelledError
        if why:
            raise ValueError(why)
        return []

    with pytest.raises(asyncio.CancelledError):
        await Watch(Settings())._watch(Source("x", 0.001, 60.0, read))  # pyright: ignore[reportPrivateUsage]
    assert [record.message for record in caplog.records] == ["x: one", "x: can be read again", "x: one"]


class Narrow:
    """A channel that takes only short messages."""

    state = State.OPEN

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken: list[Event] = []

    async def write(self, message: Event, timeout: float | None = None) -> None:
        if len(mchannel.EventCodec().encode(message)) > self.limit:
            raise MessageTooBig("too big")
        self.taken.append(message)

    async def read(self, timeout: float | None = None) -> Event:
        await asyncio.sleep(60)
        raise AssertionError


async def sent(feed: Feed, channel: Narrow) -> list[Samples]:
    task = asyncio.ensure_future(feed.send(channel))
    while len(feed.publisher):  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0)
    task.cancel()
    return [Samples.from_event(event) for event in channel.taken if event.topic != SERIES]


async def test_what_was_read_while_no_broker_was_there_is_sent_when_one_comes() -> None:
    feed = Feed()
    for value in range(5):
        feed.take([Reading(LOAD, float(value))], 10.0)
    (samples,) = await sent(feed, Narrow(60_000))
    assert list(samples.values) == [0, 1, 2, 3, 4]


async def test_a_channel_that_takes_only_short_messages_gets_short_ones() -> None:
    feed = Feed()
    feed.take([Reading(Named(f"m{n}"), 1.0) for n in range(1000)], 10.0)
    assert sum(map(len, await sent(feed, Narrow(2000)))) == 1000


async def test_a_channel_that_takes_nothing_at_all_is_an_error() -> None:
    feed = Feed()
    feed.take([Reading(LOAD, 1.0)], 10.0)
    with pytest.raises(MessageTooBig):
        await feed.send(Narrow(10))


async def test_loss_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    feed = Feed(Publisher(most=1))
    for _ in range(5):
        feed.take([Reading(LOAD, 1.0), Reading(Named("no name"), 1.0)], 10.0)
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "readings are left out",
        "the broker is away for long",
    ]


async def test_a_busy_process_compares_nothing_for_the_broker_until_it_takes_half_of_what_is_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strained: list[bool] = []
    feed = Feed(most_cpu=0.1)

    def note(_: Publisher, is_strained: bool) -> None:
        strained.append(is_strained)

    monkeypatch.setattr(Publisher, "strain", note)
    now, spent = time.monotonic(), time.process_time()
    for share in (0.05, 0.2, 0.07, 0.04):
        now, spent = now + 10, spent + 10 * share
        feed.measure(now, spent)
    feed.measure(now + 1, spent + 1)  # too short to say
    assert strained == [False, True, True, False]


async def test_what_was_held_back_is_told_as_a_metric_of_the_agent() -> None:
    feed = Feed()
    feed.publisher.withheld = 7
    feed.take([Reading(LOAD, 1.0)], 10.0)
    (samples,) = await sent(feed, Narrow(60_000))
    assert list(samples.values) == [1.0, 7.0]


async def test_either_ends_with_the_first_and_leaves_none_running() -> None:
    ended: list[str] = []

    async def endless() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("endless")

    async def fail() -> None:
        await asyncio.sleep(0)
        raise EOFError

    with pytest.raises(EOFError):
        await either(endless(), fail())
    assert ended == ["endless"]


async def test_ticks_that_come_too_late_are_not_made_up_for() -> None:
    times: list[float] = []
    async for _ in ticks(0.01):
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            await asyncio.sleep(0.1)
        if len(times) == 4:
            break
    assert times[1] - times[0] >= 0.1
    assert times[3] - times[1] >= 0.019
