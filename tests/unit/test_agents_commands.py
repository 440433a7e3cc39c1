"""What a broker may ask of the agent."""

from __future__ import annotations

import asyncio
import math

import pytest

from mchannel.agents.commands import Commands
from mchannel.agents.pace import Pace
from mchannel.errors import CodecError
from mchannel.event import Event, Scalar


@pytest.fixture
def commands() -> Commands:
    return Commands("web1", Pace(2.0), lambda: {"version": "1.2.3"})


@pytest.mark.parametrize("value", [None, 7, 2.5, "x" * 256, b"\x00\xff", True])
def test_a_ping_comes_back(commands: Commands, value: Scalar) -> None:
    assert commands.answer(Event("command.ping", value=value), 5.0) == Event("command.pong", "web1", value, 5.0)


def test_a_ping_that_is_too_long_to_come_back_is_an_error(commands: Commands) -> None:
    answer = commands.answer(Event("command.ping", value="x" * 257), 5.0)
    assert (answer.topic, answer.detail["error"]) == ("command.error", "the value is longer than 256")


def test_describe_tells_what_the_agent_is(commands: Commands) -> None:
    answer = commands.answer(Event("command.describe"), 5.0)
    assert (answer.topic, answer.detail) == ("command.description", {"version": "1.2.3"})


@pytest.mark.parametrize("seconds", [0.05, 1, 3600])
def test_the_interval_of_the_metrics_can_be_changed(commands: Commands, seconds: float) -> None:
    answer = commands.answer(Event("command.interval", value=seconds), 5.0)
    assert (answer.topic, answer.value) == ("command.interval", seconds)
    assert commands.pace is not None
    assert commands.pace.seconds == seconds


@pytest.mark.parametrize("value", [0, 0.049, 3600.1, -1, math.inf, math.nan, "1", b"1", True, None])
def test_an_interval_out_of_bounds_changes_nothing(commands: Commands, value: Scalar) -> None:
    answer = commands.answer(Event("command.interval", value=value), 5.0)
    assert (answer.topic, answer.detail["command"]) == ("command.error", "command.interval")
    assert answer.detail["error"] == "the value must be 0.05 to 3600 seconds"
    assert commands.pace is not None
    assert commands.pace.seconds == 2.0


def test_an_agent_without_metrics_has_no_interval() -> None:
    answer = Commands("web1", None, dict).answer(Event("command.interval", value=1), 5.0)
    assert answer.detail["error"] == "this agent sends no metrics"


@pytest.mark.parametrize("topic", ["command.run", "command.read", "sla.epoch", "", "x" * 1000])
def test_what_is_unknown_is_answered_with_one_error(commands: Commands, topic: str) -> None:
    answer = commands.answer(Event(topic, value="/bin/sh"), 5.0)
    assert (answer.topic, answer.source, answer.value) == ("command.error", "web1", None)
    assert answer.detail["command"] == topic[:64]


def test_what_is_no_event_is_answered_too(commands: Commands) -> None:
    answer = commands.refuse(CodecError("not msgpack " + "x" * 1000), 5.0)
    assert answer.topic == "command.error"
    assert len(str(answer.detail["error"])) == 256


@pytest.mark.parametrize("topic", ["command.ping", "command.describe", "command.nothing"])
def test_an_id_comes_back_in_every_answer(commands: Commands, topic: str) -> None:
    assert commands.answer(Event(topic, detail={"id": 17}), 5.0).detail["id"] == 17


@pytest.mark.parametrize("name", ["x" * 257, (1, 2)])
def test_an_id_that_is_too_long_does_not(commands: Commands, name: Scalar | tuple[Scalar, ...]) -> None:
    assert "id" not in commands.answer(Event("command.ping", detail={"id": name}), 5.0).detail


async def test_a_pace_that_is_changed_begins_anew() -> None:
    pace = Pace(3600.0)
    waiting = asyncio.create_task(pace.wait())
    await asyncio.sleep(0)
    pace.set(0.01)
    await asyncio.wait_for(waiting, 30)


async def test_a_pace_waits() -> None:
    waiting = asyncio.create_task(Pace(3600.0).wait())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    waiting.cancel()
