"""The side of a broker that faces its hypervisor, asked as the command asks it."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from inspect import isawaitable
from pathlib import Path
from typing import Any

import attrs
import pytest

from mbroker import control
from mbroker.broker import Broker
from mbroker.config import HypervisorSection, load
from mbroker.fleet.fleet import Away
from mbroker.fleet.message import Hail, Hailed, Message
from mbroker.host import Host
from mbroker.hosting import Hosting
from mbroker.hypervisor import Hypervisor, HypervisorUnreachable, State
from mbroker.hypervisor.fake import FakeHypervisor, World
from mbroker.registry import Registry
from mbroker.serve import Node
from mchannel import keys
from mchannel.journal import Journal

HOUSE = Path(__file__).resolve().parents[2]
SOON = 20.0
CONFIG = """
[broker]
name = "node1"
state = "{folder}"
[hypervisor]
uri = "fake://node1"
[fleet]
listen = "tcp://127.0.0.1:0"
keys = "{folder}/keys"
[fleet.hosts.node2]
address = "tcp://127.0.0.1:1"
hypervisor = "fake://node2"
"""


@attrs.define(eq=False)
class Asked:
    """A hosting side, and whoever asks it."""

    hosting: Hosting
    world: World
    host: FakeHypervisor
    late: bool = False
    """Whether the hypervisor does not answer yet."""

    async def connect(self, uri: str) -> Hypervisor:
        if self.late:
            raise HypervisorUnreachable(f"{uri} does not answer; is its libvirtd running?")
        return self.host

    async def ask(self, topic: str, value: str = "") -> Any:
        answer: Any = self.hosting.answers[f"control.{topic}"](value)
        return await answer if isawaitable(answer) else answer

    async def migrate(self, domain: str, host: str) -> Any:
        wanted = {"domain": domain, "host": host, "live": True, "timeout": 5.0, "request": f"{domain} to {host}"}
        return await self.ask("migrate", json.dumps(wanted))

    async def attended(self, domain: str) -> None:
        async with asyncio.timeout(SOON):
            while True:
                with suppress(control.Absent):
                    if any(row["uuid"] == domain and row["attended"] for row in await self.ask("domains")):
                        return
                await asyncio.sleep(0.02)


@asynccontextmanager
async def hosting(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str = CONFIG, *, late: bool = False
) -> AsyncGenerator[Asked]:
    keys.new(folder / "keys", "node1")
    (folder / "mbroker.toml").write_text(text.format(folder=folder))
    world = World()
    node = Node(Broker(Host("node1")), Registry("node1", Journal.open(folder / "agents")))
    made = Asked(Hosting(load(folder / "mbroker.toml"), node), world, world.host("node1"), late)
    monkeypatch.setattr("mbroker.hosting.connect", made.connect)
    monkeypatch.setattr("mbroker.hosting._SHORTEST", 0.05)
    for wait in ("SETTLING", "GRACE"):  # for the other host, which never answers
        monkeypatch.setattr(f"mbroker.fleet.custody.{wait}", 0.1)
    running = asyncio.create_task(made.hosting.run())
    try:
        yield made
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        node.registry.close()


async def test_domains_are_listed_with_port_and_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hosting(tmp_path, monkeypatch) as asked:
        web = asked.world.boot(asked.host, "web1")
        asked.world.boot(asked.host, "plain", ports=())
        await asked.attended(web)
        rows = await asked.ask("domains")
    assert [(row["name"], row["port"], row["attended"]) for row in rows] == [
        ("plain", False, False),
        ("web1", True, True),
    ]


async def test_a_domain_that_runs_twice_is_listed_with_its_other_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hosting(tmp_path, monkeypatch) as asked:
        web = asked.world.boot(asked.host, "web1")
        await asked.attended(web)
        monkeypatch.setattr("mbroker.fleet.mover.Mover.twice", {web: "node2"})
        (row,) = await asked.ask("domains")
    assert row["state"] == "running, also on node2"


async def test_a_hypervisor_that_comes_late_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hosting(tmp_path, monkeypatch, late=True) as asked:
        web = asked.world.boot(asked.host, "web1")
        await asyncio.sleep(0.1)
        for topic in ("domains", "migration"):
            with pytest.raises(control.Absent, match="fake://node1 does not answer; is its libvirtd running"):
                await asked.ask(topic, "1")
        with pytest.raises(control.Absent):
            await asked.migrate("web1", "node2")
        asked.late = False
        await asked.attended(web)


async def test_a_hypervisor_that_stays_away_is_looked_for_ever_more_rarely_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def sleep(pause: float) -> None:
        pauses.append(pause)
        if len(pauses) == 8:
            raise InterruptedError

    async def connect(_: str) -> Hypervisor:
        raise HypervisorUnreachable("it does not answer")

    (tmp_path / "mbroker.toml").write_text(CONFIG.partition("[fleet]")[0].format(folder=tmp_path))
    made = Hosting(load(tmp_path / "mbroker.toml"), Node(Broker(Host("node1")), Registry("node1")))
    monkeypatch.setattr("mbroker.hosting.connect", connect)
    with monkeypatch.context() as patch:
        patch.setattr("asyncio.sleep", sleep)
        with pytest.raises(InterruptedError):
            await made.run()
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize(
    ("domain", "host", "kind", "says"),
    [
        ("web1", "mars", control.NoSuchThing, "mars is no host of this fleet; known are node2"),
        ("nobody", "node2", control.NoSuchThing, "nobody"),
        (
            "plain",
            "node2",
            control.Refused,
            "<channel type='unix'><target type='virtio' name='org.mchannel.0'/></channel>",
        ),
    ],
)
async def test_a_migration_that_cannot_be_is_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    domain: str,
    host: str,
    kind: type[control.Refused],
    says: str,
) -> None:
    async with hosting(tmp_path, monkeypatch) as asked:
        await asked.attended(asked.world.boot(asked.host, "web1"))
        asked.world.boot(asked.host, "plain", ports=())
        with pytest.raises(control.Refused, match=re.escape(says)) as refused:
            await asked.migrate(domain, host)
    assert type(refused.value) is kind
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "value", ["", "x", "{}", '{"domain": "web1"}', '{"domain": "web1", "host": "node2", "timeout": -1}']
)
async def test_a_malformed_question_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    async with hosting(tmp_path, monkeypatch) as asked:
        await asked.attended(asked.world.boot(asked.host, "web1"))
        with pytest.raises(control.Refused):
            await asked.ask("migrate", value)
        with pytest.raises(control.Refused):
            await asked.ask("migration", value)


async def test_a_migration_that_a_slow_hypervisor_delays_is_asked_for_again_and_begun_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mbroker.hosting._SLOW", 0.05)
    async with hosting(tmp_path, monkeypatch) as asked:
        await asked.attended(asked.world.boot(asked.host, "web1"))
        asked.host.hang()
        assert (await asked.migrate("web1", "node2"))["number"] == 0
        assert (await asked.migrate("web1", "node2"))["number"] == 0
        monkeypatch.setattr("mbroker.hosting._SLOW", SOON)
        asked.host.answer()
        number = (await asked.migrate("web1", "node2"))["number"]
        assert number
        assert (await asked.migrate("web1", "node2"))["number"] == number


async def test_a_migration_is_followed_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hosting(tmp_path, monkeypatch) as asked:
        web = asked.world.boot(asked.host, "web1")
        await asked.attended(web)
        number = (await asked.migrate("web1", "node2"))["number"]
        async with asyncio.timeout(SOON):
            while (row := await asked.ask("migration", str(number)))["result"] is None:  # noqa: ASYNC110 - as the command
                await asyncio.sleep(0.02)
    assert (row["name"], row["destination"]) == ("web1", "node2")
    assert (row["result"]["moved"], row["result"]["step"]) == (False, "expect")  # nobody is at that address
    assert asked.host.halves[web].state is State.RUNNING


@attrs.define(eq=False)
class Turned:
    """Stands for :class:`~mbroker.fleet.lanes.Lanes`: what was wished, and when it may be done."""

    wishes: list[str] = attrs.field(factory=list[str])
    may_end: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def on(self, _domain: str) -> None:
        self.wishes.append("on")
        await self.may_end.wait()

    async def off(self, _domain: str) -> None:
        self.wishes.append("off")
        await self.may_end.wait()


@asynccontextmanager
async def turning(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[tuple[Turned, Callable[[str, bool], Awaitable[bool]]]]:
    """Yield what is wished, and how to wish: for a domain, and whether it is done."""
    turned = Turned()
    monkeypatch.setattr("mbroker.fleet.lanes.Lanes.turn_on", turned.on)
    monkeypatch.setattr("mbroker.fleet.lanes.Lanes.turn_off", turned.off)
    monkeypatch.setattr("mbroker.hosting._SLOW", 0.05)
    async with hosting(folder, monkeypatch) as asked:
        await asked.attended(asked.world.boot(asked.host, "web1"))

        async def wish(domain: str, on: bool) -> bool:
            row = await asked.ask("lane", json.dumps({"domain": domain, "on": on}))
            return bool(row["done"])

        yield turned, wish


async def test_a_lane_that_takes_long_is_asked_for_again_and_begun_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with turning(tmp_path, monkeypatch) as (turned, wish):
        assert not await wish("web1", True)
        monkeypatch.setattr("mbroker.hosting._SLOW", SOON)
        turned.may_end.set()
        assert await wish("web1", True)
    assert turned.wishes == ["on"]


async def test_a_lane_is_begun_anew_once_its_end_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with turning(tmp_path, monkeypatch) as (turned, wish):
        turned.may_end.set()
        assert await wish("web1", True)
        turned.may_end.clear()
        assert not await wish("web1", True)
        await asyncio.sleep(0.3)  # longer than ends are remembered: the first one's is not the second one's
        assert not await wish("web1", True)
    assert turned.wishes == ["on", "on"]


async def test_an_end_that_nobody_was_told_is_no_answer_after_another_wish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with turning(tmp_path, monkeypatch) as (turned, wish):
        assert not await wish("web1", True)  # and whoever asked is gone
        assert not await wish("web1", False)
        monkeypatch.setattr("mbroker.hosting._SLOW", SOON)
        turned.may_end.set()
        assert await wish("web1", False)
        assert await wish("web1", True)
    assert turned.wishes == ["on", "off", "on"]


async def test_an_end_that_nobody_was_told_is_forgotten_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with turning(tmp_path, monkeypatch) as (turned, wish):
        assert not await wish("web1", True)
        turned.may_end.set()
        await asyncio.sleep(0.5)
        assert await wish("web1", True)
    assert turned.wishes == ["on", "on"]


async def test_without_the_sections_the_commands_say_what_to_add(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hosting(tmp_path, monkeypatch, '[broker]\nname = "node1"\nstate = "{folder}"\n') as asked:
        with pytest.raises(control.Refused, match=r"add \[hypervisor\] to the configuration"):
            await asked.ask("domains")
        with pytest.raises(control.Refused, match=r"add \[fleet\] to the configuration"):
            await asked.ask("fleet")


async def test_the_fleet_is_listed_with_version_and_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer: list[Hailed] = []

    async def ask(_self: object, host: str, question: Message, *_: object) -> Hailed:
        assert (host, question) == ("node2", Hail())
        if not answer:
            raise Away("node2 did not answer")
        return attrs.evolve(answer[0], unix=answer[0].unix + time.time())

    async with hosting(tmp_path, monkeypatch) as asked:
        monkeypatch.setattr("mbroker.fleet.fleet.Fleet.ask", ask)
        (row,) = await asked.ask("fleet")
        assert (row["name"], row["present"], row["version"], row["ahead"]) == ("node2", False, "", 0.0)
        answer.append(Hailed("7.7", 90.0))
        (row,) = await asked.ask("fleet")
        assert row["version"] == "7.7"
        assert row["ahead"] == pytest.approx(90, abs=30)


def refusal(folder: Path, uri: str, **environment: str) -> tuple[int, str]:
    """Start the daemon in vain; return its exit code and the log."""
    file = folder / "mbroker.toml"
    file.write_text(
        f'[broker]\nname = "node1"\nstate = "{folder}"\ncontrol = "ipc:///node1"\n[hypervisor]\nuri = "{uri}"\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "mbroker.daemon", "--config", file],
        env={"PATH": "/usr/bin:/bin", "MCHANNEL_RUNTIME_DIR": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def test_without_libvirts_binding_the_daemon_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "libvirt.py").write_text("raise ModuleNotFoundError('No module named libvirt', name='libvirt')\n")
    code, log = refusal(tmp_path, "qemu:///system", PYTHONPATH=str(tmp_path))
    assert code == 2
    assert log.count("\n") == 1
    assert "hypervisor.uri: libvirt's Python binding is missing: apt install" in log


def test_a_uri_that_will_never_work_ends_the_daemon_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("libvirt")
    code, log = refusal(tmp_path, f"test://{tmp_path}/none.xml")
    assert code == 2, log
    (line,) = (line for line in log.splitlines() if line.startswith("mbrokerd: "))  # libvirt's parser warns too
    assert line.startswith(f"mbrokerd: {tmp_path}/mbroker.toml: hypervisor.uri: test://{tmp_path}/none.xml: ")
    assert "Traceback" not in log


def test_the_example_of_a_fleet_is_good_and_is_what_the_documentation_shows() -> None:
    config = load(HOUSE / "examples/fleet.toml").config
    assert config.fleet is not None
    assert set(config.fleet.hosts) == {"node2"}
    page = (HOUSE / "docs/howto/migration.md").read_text()
    assert "```{literalinclude} ../../examples/fleet.toml\n" in page
    assert "```{literalinclude} ../../examples/domain.xml\n" in page
    port = attrs.fields(HypervisorSection).port.default
    assert f"<target type='virtio' name='{port}'/>" in (HOUSE / "examples/domain.xml").read_text()
