"""``mbrokerd``: one broker as a service. Start, reload, stop; the work is done in :mod:`mbroker.serve`."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

try:
    import click

    from mbroker.values import plain
except ModuleNotFoundError as missing:
    sys.exit(f"mbrokerd needs {missing.name} and other packages of a host; install them: pip install 'mchannel[host]'")

from mbroker import control, logs, notify
from mbroker.alerting import Alerting
from mbroker.config import ConfigError, Loaded, load
from mbroker.exits import exit_of
from mbroker.hosting import Hosting
from mbroker.registry import Registry, host_identity
from mbroker.serve import Node
from mbroker.setup import Setup, close_actuators, prepared
from mchannel.aio import AsyncListener
from mchannel.errors import MChannelError
from mchannel.event import Event
from mchannel.journal import Journal

__all__ = ["Daemon", "main"]

_log = logging.getLogger("mbrokerd")


class Daemon:
    """A node made from a configuration, and made over when that changes."""

    def __init__(self, loaded: Loaded) -> None:
        """Open the registry; the rest of *loaded* waits for :meth:`run`.

        Raises :exc:`~mbroker.config.ConfigError` when the folder of journals cannot be used.
        """
        state = loaded.config.broker.state
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._host_id = host_identity(state)
            journal = Journal.open(state / "agents.journal")
        except (OSError, MChannelError) as error:
            raise loaded.error("broker", "state", reason=error) from None
        self._path = loaded.path
        self._first = loaded
        self._since = time.time()
        self._problem = ""
        self._alerting: Alerting | None = None
        self._setup = Setup.nothing(loaded)
        self._node = Node(self._setup.broker, Registry(self._host_id, journal))

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, reload at SIGHUP; then put back what was changed.

        Raises :exc:`~mbroker.config.ConfigError` when the configuration cannot be put to work.
        """
        loop, stop, reload = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, reload.set)
        try:
            await self._adopt(self._first)
            hosting = Hosting(self._first, self._node)
            await hosting.open()
            alerting = self._alerting = Alerting(self._first, lambda event: self._node.take(event))
            await alerting.open()
            if alerting.is_on:
                self._node.measured = alerting.take
            answers = {**self._answers(), **hosting.answers, **alerting.answers}
            with _listening(self._first) as questions:
                async with asyncio.TaskGroup() as tasks:
                    background = [
                        tasks.create_task(hosting.run()),
                        tasks.create_task(alerting.run()),
                        tasks.create_task(self._node.beat()),
                        tasks.create_task(control.answer(questions, answers)),
                        tasks.create_task(_live()),
                        tasks.create_task(self._reload_when(reload, tasks)),
                    ]
                    self._welcome(tasks)
                    gc.collect()
                    gc.freeze()  # what is there now stays, and need not be looked through again for garbage
                    notify.sd_notify("READY=1")
                    _log.info("serving %s at %d addresses", self._node.broker.host.name, len(self._setup.doors))
                    await stop.wait()
                    notify.sd_notify("STOPPING=1")
                    for door in self._setup.doors.values():
                        door.leave()
                    for task in background:
                        task.cancel()
        finally:
            if self._alerting is not None:
                await self._alerting.close()
            self.close()

    def close(self) -> None:
        """Put everything back; what cannot be is said in the log and tried again at the next start. Idempotent."""
        close_actuators(self._node.actuators)
        self._setup.close()
        self._node.registry.close()

    async def _reload_when(self, asked: asyncio.Event, tasks: asyncio.TaskGroup) -> None:
        while True:
            await asked.wait()
            asked.clear()
            notify.reloading()
            try:
                loaded = load(self._path)
                await self._adopt(loaded)
            except ConfigError as error:
                self._problem = f"the configuration in force is older than {self._path}: {error}"
                _log.error("kept the configuration that was in force: %s", error)
            except Exception as error:  # a running broker does not end because of a file
                self._problem = f"{self._path} was not taken over: {error!r}"
                _log.exception("kept the configuration that was in force")
            else:
                _log.info("took over the configuration in %s", self._path)
                self._welcome(tasks)
                self._problem = await self._change_receivers(loaded)
            notify.sd_notify("READY=1")

    async def _adopt(self, loaded: Loaded) -> None:
        """Put *loaded* to work: all of it, or, raising :exc:`~mbroker.config.ConfigError`, nothing.

        What may fail comes first (prepare all beside what is in force, change the actuators), then what
        cannot: swap, and let go of what was replaced.
        """
        node, present = self._node, self._setup
        for name in ("state", "control"):
            if getattr(present.config.broker, name) != getattr(loaded.config.broker, name):
                raise loaded.error("broker", name, reason="another one needs a restart of mbrokerd")
        for name in ("hypervisor", "fleet"):
            if getattr(self._first.config, name) != getattr(loaded.config, name):
                raise loaded.error(name, reason="a change needs a restart of mbrokerd")
        if self._alerting is not None:
            self._alerting.check(loaded)
        async with prepared(loaded, present) as setup:
            if not setup.same_machine(present):
                self._change_actuators(setup)
        if setup.same_machine(present):
            host = setup.broker.host
            for domain in host.domains:
                host = host.with_level(domain, node.broker.host.level(domain))
            setup.broker.observe(host)
        node.broker, node.usage, self._setup = setup.broker, setup.usage, setup
        present.let_go(setup)

    async def _change_receivers(self, loaded: Loaded) -> str:
        """Have alerts told to the receivers of *loaded*, which is in force; return what is wrong with that."""
        try:
            if self._alerting is not None:
                await self._alerting.reload(loaded)
        except Exception as error:  # the rest of the broker works on
            _log.exception("alerts are not told to the receivers in %s", self._path)
            return f"alerts are not told to the receivers in {self._path}: {error!r}"
        return ""

    def _change_actuators(self, setup: Setup) -> None:
        """Put the actuators of *setup* in the place of those in force.

        One that cannot be made is found out before the clock is touched. When those in force cannot let
        go, or a journal is damaged, they come back, with every domain at its top.
        """
        node, state = self._node, self._setup.config.broker.state
        if node.actuators:
            setup.try_actuators()
        try:
            for actuator in node.actuators:
                actuator.restore()
        except Exception as error:  # also an actuator of others must not take the broker along
            node.broker.observe(node.broker.host.at_top())  # some are at the top again
            raise setup.loaded.error("actuators", reason=f"those in force could not restore: {error}") from None
        close_actuators(node.actuators)  # which lets go of the journals of originals that the new ones open
        node.actuators = ()
        try:
            node.actuators = setup.make_actuators(state)
        except ConfigError as error:
            node.broker.observe(node.broker.host.at_top())
            try:
                node.actuators = self._setup.make_actuators(state)
            except ConfigError as lost:
                raise ConfigError((*error.lines, *lost.lines, "nothing acts on this host now")) from None
            raise

    def _welcome(self, tasks: asyncio.TaskGroup) -> None:
        """Let agents in where none were let in yet."""
        for place, door in self._setup.doors.items():
            if door.task is None:
                door.task = tasks.create_task(self._node.welcome(door.listener, place.fixed_domain))

    def _answers(self) -> control.Answers:
        return {
            "control.status": lambda _: plain(self._status()),
            "control.agents": lambda after: control.page(self._node.registry.agents(), after),
        }

    def _status(self) -> control.Status:
        node, setup = self._node, self._setup
        host, stats, traffic = node.broker.host, node.broker.stats, node.traffic
        return control.Status(
            broker=host.name,
            host_id=self._host_id,
            version=version("mchannel"),
            pid=os.getpid(),
            since=self._since,
            config=str(self._path),
            p_states=host.p_states,
            domains=tuple(
                control.DomainStatus(domain.name, domain.level, host.p_states[domain.level], domain.cpus)
                for domain in host.domains.values()
            ),
            policies=node.broker.reports(time.monotonic()),
            actuators=tuple(setup.config.actuators),
            listening=tuple(str(door.listener.address) for door in setup.doors.values()),
            agents=len(node.registry.agents()),
            events=stats.events,
            actions=stats.actions,
            over_budget=stats.over_budget,
            malformed=traffic.malformed,
            refused=traffic.refused,
            failed=traffic.failed,
            problem=self._problem or node.registry.problem,
            alerts=self._alerting.status if self._alerting else None,
        )


@contextmanager
def _listening(loaded: Loaded) -> Generator[AsyncListener[Event]]:
    """Listen for questions; ConfigError when that is not possible."""
    try:
        listener = control.listen(loaded.config.broker.control)
    except MChannelError as error:
        raise loaded.error("broker", "control", reason=error) from None
    try:
        yield listener
    finally:
        listener.close()


async def _live() -> None:
    """Show the service manager that the event loop turns."""
    interval = notify.watchdog_interval()
    while interval:
        notify.sd_notify("WATCHDOG=1")
        await asyncio.sleep(interval)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  mbroker check-config /etc/mbroker/mbroker.toml
  mbrokerd --config /etc/mbroker/mbroker.toml
  systemctl reload mbrokerd""",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=Path("/etc/mbroker/mbroker.toml"),
    show_default=True,
    help="Configuration; mbroker.d/*.toml beside it is merged into it.",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.version_option(package_name="mchannel")
def main(config: Path, log_level: str) -> None:
    """Host policies: take events from agents, decide, and act on this host.

    SIGHUP reads the configuration again; a bad one leaves everything as it is. SIGTERM ends and
    puts back every speed that was changed.
    """
    logs.set_up(log_level)
    try:
        asyncio.run(Daemon(load(config)).run())
    except ConfigError as error:
        for line in error.lines:
            click.echo(f"mbrokerd: {line}", err=True)
        sys.exit(exit_of(error))


if __name__ == "__main__":
    main()
