"""``mbrokerd``: one broker as a service. Start, reload, stop; the work is done in :mod:`mbroker.serve`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import attrs

from mbroker import control, logs, notify
from mbroker.actuator import Actuator
from mbroker.actuators.cpufreq import available_p_states
from mbroker.broker import Broker, Hosted
from mbroker.cgroup import CgroupError, Hierarchy
from mbroker.config import Config, ConfigError, Isolation, ListenSection, PolicySection, load
from mbroker.host import Domain, Host
from mbroker.isolation import IsolatedPolicy, IsolationError
from mbroker.plugins import PluginError, find, make_actuator, make_policy
from mbroker.registry import Registry, host_identity
from mbroker.serve import Node
from mbroker.usage import UsageMeter
from mbroker.values import plain
from mchannel.aio import AsyncListener, listen_async
from mchannel.errors import MChannelError
from mchannel.event import Event
from mchannel.journal import Journal
from mchannel.transport import Wishes

try:
    import click
except ModuleNotFoundError:
    sys.exit("mbrokerd needs the packages of a host; install them: pip install 'mchannel[host]'")

__all__ = ["Daemon", "StartError", "main"]

_START_POLICY = 10.0  # seconds

_log = logging.getLogger("mbrokerd")


class StartError(Exception):
    """The daemon cannot start, or not take over a new configuration; each line says why."""


@attrs.define
class _Door:
    """An address that is listened at."""

    listener: AsyncListener[Event]
    task: asyncio.Task[None] | None = None


class Daemon:
    """A node made from a configuration, and made over when that changes."""

    def __init__(self, path: Path) -> None:
        """Prepare to run with the configuration at *path*."""
        self._path = path
        self._since = time.time()
        self._config = Config()
        self._policies: dict[str, tuple[PolicySection, Hosted]] = {}
        self._doors: dict[ListenSection, _Door] = {}
        self._host_id = ""
        self._problem = ""

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, reload at SIGHUP; then restore what the actuators changed.

        Raises :exc:`StartError` when the configuration cannot be put to work; nothing is left changed.
        """
        loop, stop, reload = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, reload.set)
        config = _load(self._path)
        node = self._make_node(config)
        try:
            await self._adopt(node, config)
            with _listening(self._path, config.broker.control) as questions:
                async with asyncio.TaskGroup() as tasks:
                    background = [
                        tasks.create_task(node.beat()),
                        tasks.create_task(control.answer(questions, self._answers(node))),
                        tasks.create_task(_live()),
                        tasks.create_task(self._reload_when(reload, node, tasks)),
                    ]
                    self._welcome(node, tasks)
                    notify.sd_notify("READY=1")
                    _log.info("serving %s at %d addresses", config.broker.name, len(self._doors))
                    await stop.wait()
                    notify.sd_notify("STOPPING=1")
                    self._leave(background)
        finally:
            self._close(node)

    async def _reload_when(self, asked: asyncio.Event, node: Node, tasks: asyncio.TaskGroup) -> None:
        while True:
            await asked.wait()
            asked.clear()
            notify.reloading()
            try:
                await self._adopt(node, _load(self._path))
                self._welcome(node, tasks)
                self._problem = ""
                _log.info("took over the configuration in %s", self._path)
            except StartError as error:
                self._problem = f"the configuration in force is older than {self._path}: {error}"
                _log.error("kept the configuration that was in force: %s", error)
            except Exception as error:  # a running broker does not end because of a file
                self._problem = f"{self._path} was not taken over: {error!r}"
                _log.exception("kept the configuration that was in force")
            notify.sd_notify("READY=1")

    def _make_node(self, config: Config) -> Node:
        state = config.broker.state
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._host_id = host_identity(state)
            journal = Journal.open(state / "agents.journal")
        except (OSError, MChannelError) as error:
            raise StartError(f"{self._path}: broker.state: {error}") from None
        self._config = Config(config.broker)  # nothing of the rest is in force yet
        return Node(Broker(Host(config.broker.name)), Registry(self._host_id, journal))

    async def _adopt(self, node: Node, config: Config) -> None:
        """Put *config* to work: all of it, or, raising :exc:`StartError`, nothing.

        What may fail comes first (make the policies, open the doors, change the actuators), then what
        cannot: swap, and let go of what was replaced.
        """
        old, host = self._config, _picture(config)
        if (old.broker.state, old.broker.control) != (config.broker.state, config.broker.control):
            raise StartError(f"{self._path}: broker: another state or control needs a restart of mbrokerd")
        with ExitStack() as undo:
            policies = await self._make_policies(config, undo)
            broker = self._make_broker(config, host, policies)
            opened = self._open_doors(config, undo)
            usage = _usage(config)
            self._change_actuators(node, old, config, host)
            undo.pop_all()
        if _same_machine(old, config):
            for domain in host.domains:
                host = host.with_level(domain, node.broker.host.level(domain))
            broker.observe(host)
        replaced = [held for name, held in self._policies.items() if policies.get(name) is not held]
        left = [place for place in self._doors if place not in config.listen]
        node.broker, node.usage, self._policies, self._config = broker, usage, policies, config
        for _, hosted in replaced:
            _close_policy(hosted)
        for place in left:
            self._shut(self._doors.pop(place))
        self._doors |= opened

    async def _make_policies(self, config: Config, undo: ExitStack) -> dict[str, tuple[PolicySection, Hosted]]:
        """Return the policies of *config*: those in force where nothing changed, with their state."""
        policies: dict[str, tuple[PolicySection, Hosted]] = {}
        for name, section in config.policies.items():
            if (held := self._policies.get(name)) and held[0] == section:
                policies[name] = held
                continue
            hosted = await self._host_policy(name, section)
            undo.callback(_close_policy, hosted)
            policies[name] = (section, hosted)
        return policies

    def _make_broker(self, config: Config, host: Host, policies: dict[str, tuple[PolicySection, Hosted]]) -> Broker:
        try:
            return Broker(host, [hosted for _, hosted in policies.values()], budget=config.broker.budget)
        except TypeError as error:
            raise StartError(f"{self._path}: policies: {error}") from None

    def _open_doors(self, config: Config, undo: ExitStack) -> dict[ListenSection, _Door]:
        """Listen where nobody listened yet."""
        opened: dict[ListenSection, _Door] = {}
        for place in config.listen:
            if place not in self._doors:
                opened[place] = _Door(self._open(place))
                undo.callback(opened[place].listener.close)
        return opened

    def _welcome(self, node: Node, tasks: asyncio.TaskGroup) -> None:
        """Let agents in where none were let in yet."""
        for place, door in self._doors.items():
            if door.task is None:
                door.task = tasks.create_task(node.welcome(door.listener, place.fixed_domain))

    async def _host_policy(self, name: str, section: PolicySection) -> Hosted:
        entry = section.policy or name
        try:
            if section.isolation is Isolation.NONE:
                return Hosted(make_policy(entry, section.options), name, section.host_wide)
            policy = IsolatedPolicy(
                find("policy", entry).value,
                section.options,
                deadline=section.deadline,
                memory=section.memory_mib << 20,
                wait=None,
            )
            await asyncio.to_thread(policy.wait, _START_POLICY)
        except (PluginError, IsolationError) as error:
            raise StartError(f"{self._path}: policies.{name}: {error}") from None
        return Hosted(policy, name, section.host_wide, trusted=False)

    def _open(self, section: ListenSection) -> AsyncListener[Event]:
        if any(section.address == other.address for other in self._doors):
            raise StartError(f"{self._path}: listen: other options for {section.address} need a restart of mbrokerd")
        wishes: Wishes = {"max_message": section.max_message, "insecure": section.insecure, "name": "mbrokerd"}
        if section.keys:
            wishes["keys"] = section.keys
        try:
            return listen_async(section.address, **wishes)
        except MChannelError as error:
            raise StartError(f"{self._path}: listen: {section.address}: {error}") from None

    def _change_actuators(self, node: Node, old: Config, new: Config, host: Host) -> None:
        """Put the actuators of *new* in the place of those in force, or bring those back."""
        if _same_machine(old, new):
            return
        try:
            for actuator in node.actuators:
                actuator.restore()
        except Exception as error:  # also an actuator of others must not take the broker along
            node.broker.observe(_picture(old))  # some are at the top again
            raise StartError(f"{self._path}: actuators: those in force could not restore: {error}") from None
        _close_actuators(node.actuators)  # which lets go of the journals of originals that the new ones open
        node.actuators = ()
        try:
            node.actuators = self._make_actuators(new, host)
        except StartError as error:
            node.broker.observe(_picture(old))
            try:
                node.actuators = self._make_actuators(old, _picture(old))
            except StartError as lost:
                raise StartError(f"{error}\n{lost}; nothing acts on this host now") from None
            raise

    def _make_actuators(self, config: Config, host: Host) -> tuple[Actuator, ...]:
        cgroups = {name: domain.cgroup for name, domain in config.domains.items() if domain.cgroup}
        made: list[Actuator] = []
        for name, section in config.actuators.items():
            try:
                entry = section.actuator or name
                made.append(
                    make_actuator(entry, section.options, host=host, state=config.broker.state, cgroups=cgroups)
                )
            except (PluginError, OSError, MChannelError) as error:
                _close_actuators(made)
                raise StartError(f"{self._path}: actuators.{name}: {error}") from None
        return tuple(made)

    def _answers(self, node: Node) -> control.Answers:
        return {
            "control.status": lambda _: plain(self._status(node)),
            "control.agents": lambda after: control.page(node.registry.agents(), after),
        }

    def _status(self, node: Node) -> control.Status:
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
            actuators=tuple(self._config.actuators),
            listening=tuple(str(door.listener.address) for door in self._doors.values()),
            agents=len(node.registry.agents()),
            events=stats.events,
            actions=stats.actions,
            over_budget=stats.over_budget,
            malformed=traffic.malformed,
            refused=traffic.refused,
            failed=traffic.failed,
            problem=self._problem or node.registry.problem,
        )

    def _shut(self, door: _Door) -> None:
        """Say goodbye to the agents at an address that is listened at no more."""
        if door.task:
            door.task.cancel()
            door.task.add_done_callback(lambda _: door.listener.close())

    def _leave(self, background: list[asyncio.Task[None]]) -> None:
        """Leave without goodbye: agents look for the successor of this process."""
        for door in self._doors.values():
            door.listener.close()
            if door.task:
                door.task.cancel()
        for task in background:
            task.cancel()

    def _close(self, node: Node) -> None:
        """Put everything back; what cannot be is said in the log and tried again at the next start."""
        _close_actuators(node.actuators)
        for _, hosted in self._policies.values():
            _close_policy(hosted)
        for door in self._doors.values():
            door.listener.close()
        node.registry.close()


@contextmanager
def _listening(path: Path, address: str) -> Generator[AsyncListener[Event]]:
    """Listen for questions; StartError when that is not possible."""
    try:
        listener = control.listen(address)
    except MChannelError as error:
        raise StartError(f"{path}: broker.control: {error}") from None
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


def _load(path: Path) -> Config:
    try:
        return load(path)
    except ConfigError as error:
        raise StartError("\n".join(error.lines)) from None


def _picture(config: Config) -> Host:
    """Return the host as configured, every domain at top speed."""
    host = Host(config.broker.name)
    with suppress(OSError):
        if states := config.host.p_states or available_p_states():
            host = attrs.evolve(host, p_states=states)
    domains = {name: Domain(name, host.top, section.cpus) for name, section in config.domains.items()}
    return attrs.evolve(host, domains=domains)


def _same_machine(old: Config, new: Config) -> bool:
    """Tell whether what the actuators work on is the same."""
    return (old.actuators, old.host, old.domains, old.broker.name) == (
        new.actuators,
        new.host,
        new.domains,
        new.broker.name,
    )


def _usage(config: Config) -> UsageMeter:
    groups = {name: section.cgroup for name, section in config.domains.items() if section.cgroup}
    if not groups:
        return UsageMeter({})
    try:
        hierarchy = Hierarchy.detect()
        counters = {name: hierarchy.group(path).usage for name, path in groups.items()}
    except CgroupError as error:
        raise StartError(f"domains: {error}") from None
    names = {section.actuator or name for name, section in config.actuators.items()}
    return UsageMeter(counters, quota="cpu_bandwidth" in names)


def _close_actuators(actuators: Iterable[Actuator]) -> None:
    """Close every one; what cannot be restored is said in the log and tried again at the next start."""
    for actuator in actuators:
        try:
            actuator.close()
        except Exception as error:  # one that fails must not keep the others from restoring
            _log.error("%s could not restore: %s", type(actuator).__name__, error)


def _close_policy(hosted: Hosted) -> None:
    if isinstance(hosted.policy, IsolatedPolicy):
        hosted.policy.close()


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
        asyncio.run(Daemon(config).run())
    except StartError as error:
        for line in str(error).splitlines():
            click.echo(f"mbrokerd: {line}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
