"""A configuration put to work: policies that decide, addresses that are listened at, counters that are read.

A setup is prepared whole beside the one in force, from which it takes over what did not change, with
its state; or it is not prepared at all. Only its actuators wait for the moment of the switch, as a
machine has one clock to set: until then they are tried out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from mbroker.actuator import Actuator
from mbroker.actuators.cpufreq import available_p_states
from mbroker.alert_receivers import notifiers
from mbroker.broker import Broker, Hosted
from mbroker.cgroup import Hierarchy
from mbroker.config import Config, ConfigError, Isolation, ListenSection, Loaded, PolicySection
from mbroker.host import Domain, Host
from mbroker.isolation import IsolatedPolicy, IsolationError
from mbroker.plugins import PluginError, check_actuator, find, make_actuator, make_policy
from mbroker.usage import UsageMeter
from mchannel.aio import AsyncListener, listen_async
from mchannel.errors import MChannelError
from mchannel.event import Event
from mchannel.transport import Wishes

__all__ = ["Door", "Setup", "close_actuators", "faults", "prepared"]

_START_POLICY = 10.0  # seconds

_log = logging.getLogger(__name__)


@attrs.define(eq=False)
class Door:
    """An address that is listened at."""

    listener: AsyncListener[Event]
    task: asyncio.Task[None] | None = None
    """What lets agents in; None until somebody does."""

    def shut(self) -> None:
        """Say goodbye to the agents, and listen no more; idempotent."""
        if self.task is None:
            self.listener.close()
        else:
            self.task.cancel()
            self.task.add_done_callback(lambda _: self.listener.close())

    def leave(self) -> None:
        """Listen no more, without goodbye: agents look for the successor of this process."""
        self.listener.close()
        if self.task:
            self.task.cancel()


@attrs.frozen(eq=False)
class Setup:
    """A configuration put to work, but for its actuators."""

    loaded: Loaded
    broker: Broker
    usage: UsageMeter
    policies: Mapping[str, Hosted]
    doors: Mapping[ListenSection, Door]

    @classmethod
    def nothing(cls, loaded: Loaded) -> Setup:
        """Return what is in force before anything of *loaded* is, but for its ``[broker]``."""
        empty = attrs.evolve(loaded, config=Config(loaded.config.broker))
        return cls(empty, Broker(Host(loaded.config.broker.name)), UsageMeter({}), {}, {})

    @property
    def config(self) -> Config:
        """What it was made from."""
        return self.loaded.config

    def same_machine(self, other: Setup) -> bool:
        """Tell whether the actuators of both, and what they work on, are the same."""
        ours, theirs = (
            (config.actuators, config.host, config.domains, config.broker.name)
            for config in (self.config, other.config)
        )
        return ours == theirs

    def make_actuators(self, state: Path) -> tuple[Actuator, ...]:
        """Make the actuators, with their journals in *state*.

        Raises :exc:`~mbroker.config.ConfigError`; then those that were made are closed again.
        """
        cgroups = {name: domain.cgroup for name, domain in self.config.domains.items() if domain.cgroup}
        made: list[Actuator] = []
        for name, section in self.config.actuators.items():
            entry, host = section.actuator or name, self.broker.host
            try:
                made.append(make_actuator(entry, section.options, host=host, state=state, cgroups=cgroups))
            except (PluginError, OSError, MChannelError) as error:
                close_actuators(made)
                key = error.key if isinstance(error, PluginError) else ()
                raise self.loaded.error("actuators", name, *key, reason=error) from None
        return tuple(made)

    def try_actuators(self) -> None:
        """Raise :exc:`~mbroker.config.ConfigError` when an actuator cannot be made; those in force work on."""
        try:
            with TemporaryDirectory(prefix="mbrokerd-") as state:
                close_actuators(self.make_actuators(Path(state)))
        except OSError as error:
            raise self.loaded.error("actuators", reason=f"cannot be tried out: {error}") from None

    def let_go(self, successor: Setup) -> None:
        """Close what *successor*, which is in force now, did not take over."""
        for name, hosted in self.policies.items():
            if successor.policies.get(name) is not hosted:
                _close_policy(hosted)
        for place, door in self.doors.items():
            if place not in successor.doors:
                door.shut()

    def close(self) -> None:
        """Close everything, without goodbye to agents; idempotent."""
        for hosted in self.policies.values():
            _close_policy(hosted)
        for door in self.doors.values():
            door.leave()


@asynccontextmanager
async def prepared(loaded: Loaded, present: Setup) -> AsyncGenerator[Setup]:
    """Lend the setup of *loaded* beside the *present* one; when the block raises, what is new in it is closed.

    Every domain runs at its top in it. Raises :exc:`~mbroker.config.ConfigError` when *loaded* cannot be
    put to work.
    """
    with ExitStack() as undo:
        policies: dict[str, Hosted] = {}
        for name, section in loaded.config.policies.items():
            if present.config.policies.get(name) == section:
                policies[name] = present.policies[name]
                continue
            policies[name] = await _host_policy(loaded, name, section)
            undo.callback(_close_policy, policies[name])
        try:
            broker = Broker(_host(loaded.config), policies.values(), budget=loaded.config.broker.budget)
        except TypeError as error:
            raise loaded.error("policies", reason=error) from None
        doors: dict[ListenSection, Door] = {}
        for index, place in enumerate(loaded.config.listen):
            if place in present.doors:
                doors[place] = present.doors[place]
                continue
            doors[place] = Door(_listen(loaded, index, place, present))
            undo.callback(doors[place].leave)
        yield Setup(loaded, broker, _usage(loaded), policies, doors)
        undo.pop_all()


def faults(loaded: Loaded) -> tuple[str, ...]:
    """Return what is wrong with the names and options of policies and actuators; nothing is started.

    A policy for a process of its own is not imported here.
    """
    found: list[ConfigError] = []
    host = _host(loaded.config)
    for name, policy in loaded.config.policies.items():
        entry = policy.policy or name
        try:
            if policy.isolation is Isolation.PROCESS:
                find("policy", entry)
            else:
                make_policy(entry, policy.options)
        except PluginError as error:
            found.append(loaded.error("policies", name, *error.key, reason=error))
    for name, actuator in loaded.config.actuators.items():
        try:
            check_actuator(actuator.actuator or name, actuator.options, host)
        except PluginError as error:
            found.append(loaded.error("actuators", name, *error.key, reason=error))
    try:
        notifiers(loaded)
    except ConfigError as error:
        found.append(error)
    return tuple(line for error in found for line in error.lines)


def close_actuators(actuators: Iterable[Actuator]) -> None:
    """Close every one; what cannot be restored is said in the log and tried again at the next start."""
    for actuator in actuators:
        try:
            actuator.close()
        except Exception as error:  # one that fails must not keep the others from restoring
            _log.error("%s could not restore: %s", type(actuator).__name__, error)


def _host(config: Config) -> Host:
    """Return the host as configured, every domain at top speed."""
    host = Host(config.broker.name)
    with suppress(OSError):
        if states := config.host.p_states or available_p_states():
            host = attrs.evolve(host, p_states=states)
    domains = {name: Domain(name, host.top, section.cpus) for name, section in config.domains.items()}
    return attrs.evolve(host, domains=domains)


async def _host_policy(loaded: Loaded, name: str, section: PolicySection) -> Hosted:
    entry = section.policy or name
    try:
        if section.isolation is Isolation.NONE:
            return Hosted(make_policy(entry, section.options), name, section.host_wide, entry=entry)
        policy = await _isolated(find("policy", entry).value, section)
    except PluginError as error:
        raise loaded.error("policies", name, *error.key, reason=error) from None
    except IsolationError as error:
        raise loaded.error("policies", name, reason=error) from None
    return Hosted(policy, name, section.host_wide, trusted=False, entry=entry)


async def _isolated(target: str, section: PolicySection) -> IsolatedPolicy:
    """Return the policy in its process, ready to decide; after a cancellation there is no process."""
    memory = section.memory_mib << 20
    policy = IsolatedPolicy(target, section.options, deadline=section.deadline, memory=memory, wait=None)
    try:
        await asyncio.to_thread(policy.wait, _START_POLICY)
    except BaseException:
        policy.close()
        raise
    return policy


def _close_policy(hosted: Hosted) -> None:
    if isinstance(hosted.policy, IsolatedPolicy):
        hosted.policy.close()


def _listen(loaded: Loaded, index: int, place: ListenSection, present: Setup) -> AsyncListener[Event]:
    if any(place.address == other.address for other in present.doors):
        raise loaded.error("listen", index, reason=f"other options for {place.address} need a restart of mbrokerd")
    wishes: Wishes = {"max_message": place.max_message, "insecure": place.insecure, "name": "mbrokerd"}
    if place.keys:
        wishes["keys"] = place.keys
    try:
        return listen_async(place.address, **wishes)
    except MChannelError as error:
        raise loaded.error("listen", index, "address", reason=error) from None


def _usage(loaded: Loaded) -> UsageMeter:
    config = loaded.config
    groups = {name: section.cgroup for name, section in config.domains.items() if section.cgroup}
    if not groups:
        return UsageMeter({})
    try:
        hierarchy = Hierarchy.detect()
        counters = {name: hierarchy.group(path).usage for name, path in groups.items()}
    except OSError as error:
        raise loaded.error("domains", reason=error) from None
    sections = (each for name, each in config.actuators.items() if (each.actuator or name) == "cpu_bandwidth")
    quota = next(sections, None)
    return UsageMeter(counters, quota=quota is not None, cpus=quota.options.get("cpus", {}) if quota else {})
