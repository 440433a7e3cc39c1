"""On a host: a broker of a fleet that tells agents numbers, and takes note of those that it hears.

Every line that it prints is a JSON object; a word on its input is a command.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from mbroker.fleet.departures import Departure, Departures
from mbroker.fleet.fleet import Fleet, Member
from mbroker.fleet.lanes import Lanes, lane_size
from mbroker.fleet.message import Message, Whereabouts
from mbroker.fleet.mover import Mover
from mbroker.fleet.parked import ParkedFile
from mbroker.fleet.records import RecordFile
from mbroker.fleet.residents import Residents
from mbroker.hypervisor import Hypervisor, connect
from mchannel.aio import AsyncChannel, AsyncListener, listen_async
from mchannel.errors import ChannelClosed, EndOfChannel, MChannelError
from mchannel.event import Event
from mchannel.transport import State
from mchannel.transports.ivshmem import LaneGate

TCP = "tcp"


def say(what: str, **more: Any) -> None:
    print(json.dumps({"what": what, "at": time.monotonic(), **more}), flush=True)


class Numbers:
    """Serves every agent with numbers of its own, which carry this host's name."""

    def __init__(self, name: str, interval: float) -> None:
        self.name = name
        self.interval = interval
        self.sent = 0
        self.telling: dict[AsyncChannel[Event], asyncio.Task[None]] = {}
        self.listener: AsyncListener[Event] | None = None
        """Where the domain that came last comes in."""

    async def welcome(self, listener: AsyncListener[Event], domain: str) -> None:
        say("attend", domain=domain)
        if domain != TCP:
            self.listener = listener
        async with asyncio.TaskGroup() as tasks:
            async for channel in listener:
                tasks.create_task(self.serve(channel))

    async def serve(self, channel: AsyncChannel[Event]) -> None:
        telling = self.telling[channel] = asyncio.create_task(self.tell(channel))
        try:
            while True:
                message = await channel.receive()
                say(
                    message.value.topic,
                    number=message.value.value,
                    redelivered=message.redelivered,
                    **message.value.detail,
                )
        except (EndOfChannel, ChannelClosed):
            pass
        except MChannelError as error:
            say("error", reason=str(error))
        finally:
            telling.cancel()
            del self.telling[channel]

    async def tell(self, channel: AsyncChannel[Event]) -> None:
        due = time.monotonic()
        while True:
            if channel.state is State.OPEN:  # and not to an agent that is elsewhere
                try:
                    await channel.write(Event("number", source=self.name, value=self.sent))
                except MChannelError:
                    return
                self.sent += 1
            due += self.interval
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def share(self) -> None:
        """Wait until the guest's channel goes through memory."""
        while not (self.listener and isinstance(self.listener.gate, LaneGate) and self.listener.gate.sharing):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def quiet(self) -> None:
        """Tell nothing more, and wait until all was heard."""
        for channel, telling in self.telling.items():
            telling.cancel()
            if channel.state is State.OPEN:
                await channel.flush(10)

    async def stop(self) -> None:
        for channel, telling in self.telling.items():
            telling.cancel()
            await channel.write(Event("stop"))


class Liar(Residents):
    """Answers wrongly what the class named by ``LIE`` in the environment asks."""

    async def hear(self, host: str, message: Message) -> Message | None:
        if type(message).__name__ != os.environ.get("LIE"):
            return await super().hear(host, message)
        return Whereabouts("6d636861-6e6e-4c00-9000-0000000000ff", here=False, running=False)  # another domain


async def events(hypervisor: Hypervisor) -> None:
    async with hypervisor.events() as stream:
        async for event in stream:
            say("event", kind=event.kind.value)


async def obey(numbers: Numbers, mover: Mover) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().split():
        match line:
            case ["sent"]:
                say("sent", number=numbers.sent)
            case ["share"]:
                await numbers.share()
                say("shares")
            case ["quiet"]:
                await numbers.quiet()
                say("quiet")
            case ["stop"]:
                await numbers.stop()
            case ["migrate", domain, host]:
                number = await mover.start(domain, host, live=True, timeout=120.0)
                step = ""
                while (result := mover.migration(number).result) is None:
                    if step != (step := mover.migration(number).progress.step):
                        say("step", step=step)
                    await asyncio.sleep(0.02)
                say("migrated", moved=result.moved, host=result.host, step=result.step, reason=result.reason)
            case _:
                say("error", reason=f"no such command: {line}")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--uri", default="qemu:///system")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--keys", type=Path, required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--member", nargs=3, action="append", default=[], metavar=("NAME", "ADDRESS", "HYPERVISOR"))
    parser.add_argument("--tcp", help="an address for agents that dial; they are not handed over")
    parser.add_argument("--tcp-keys", type=Path)
    parser.add_argument("--interval", type=float, default=0.01)
    parser.add_argument("--lane", type=lane_size, metavar="SIZE", help="shared memory for every domain; off: if asked")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=f"%(asctime)s {options.name} %(message)s")
    members = tuple(Member(*each) for each in options.member)
    numbers = Numbers(options.name, options.interval)
    fleet = Fleet(options.name, members, options.listen, {"keys": options.keys})
    async with await connect(options.uri) as hypervisor, asyncio.TaskGroup() as tasks:
        lanes = None if options.lane is None else Lanes(hypervisor, default=options.lane)
        residents = Liar(numbers.welcome, hypervisor, ParkedFile(options.state / "parked"), fleet, lanes=lanes)
        tasks.create_task(residents.run())
        tasks.create_task(events(hypervisor))
        if options.tcp:
            tasks.create_task(numbers.welcome(listen_async(options.tcp, keys=options.tcp_keys), TCP))
        say("ready")
        departures = Departures(RecordFile(options.state / "departures", Departure), hypervisor, fleet)
        await obey(numbers, Mover(hypervisor, fleet, residents, departures, tasks, lanes=lanes))
        raise SystemExit


if __name__ == "__main__":
    asyncio.run(main())
