"""``mbroker doctor``: looks at a host before it is trusted with channels, and says what to do.

Each check is a function that returns findings and raises nothing for what it finds. None changes the host.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import click

from mbroker import control, xen_doctor
from mbroker.cgroup import Hierarchy
from mbroker.config import Config, ConfigError, FleetSection, Loaded, NoSuchFile, load
from mbroker.exits import Exit
from mbroker.findings import Finding, Verdict
from mbroker.hosting import MemberRow
from mbroker.hypervisor import DomainInfo, HypervisorError, NoSuchPort, connect, is_xen
from mbroker.options import with_output
from mbroker.setup import faults
from mbroker.terminal import print_json, print_table
from mbroker.values import plain
from mchannel import keys
from mchannel.address import Address
from mchannel.errors import KeyFileError, MChannelError

__all__ = ["Finding", "Verdict", "doctor", "examine"]

_CONFIG = Path("/etc/mbroker/mbroker.toml")
_PATIENCE = 15.0
"""Seconds that a hypervisor has to answer."""
_CLOCK = 1.0
"""Seconds by which two clocks may differ before it is worth a word."""


def software() -> Iterator[Finding]:
    """Say what runs here."""
    words = f"mchannel {version('mchannel')}, Python {platform.python_version()}"
    try:
        from mchannel.transports.zmq import library_version  # noqa: PLC0415 - its absence is a finding

        words += f", libzmq {library_version()}"
    except ImportError as error:
        yield Finding("software", Verdict.FAIL, f"libzmq cannot be used: {error}", "pip install 'mchannel[host]'")
    if find_spec("mchannel._ring") is None:
        remedy = "build it with gcc and python3-dev: pip install --force-reinstall mchannel"
        yield Finding("software", Verdict.FAIL, "the C ring is missing, so shm:// does not work", remedy)
    yield Finding("software", Verdict.OK, words)


def configuration(named: Path | None) -> tuple[Loaded | None, list[Finding]]:
    """Read the configuration; a fault is a finding each. Raises NoSuchFile when what was *named* is not there."""
    path = named or _CONFIG
    try:
        loaded = load(path)
        lines = faults(loaded)
    except ConfigError as error:
        if named and isinstance(error, NoSuchFile):
            raise
        loaded, lines = None, error.lines
    remedy = f"write it, then: mbroker check-config {path}"
    found = [Finding("config", Verdict.FAIL, line, remedy) for line in lines]
    return loaded, found or [Finding("config", Verdict.OK, f"{path} is good")]


def quotas() -> Finding:
    """Look for the control groups by which CPU time is limited."""
    try:
        hierarchy = Hierarchy.detect()
    except OSError as error:
        return Finding("cgroup", Verdict.WARN, f"CPU time cannot be limited: {error}", "needed only for cpu_bandwidth")
    return Finding("cgroup", Verdict.OK, f"CPU time can be limited by cgroup version {hierarchy.version}")


def key_files(name: str, fleet: FleetSection) -> Iterator[Finding]:
    """Look at this host's own key, and at those of its fleet."""
    folder = fleet.keys or keys.default_folder()
    where = f" --folder {folder}" if fleet.keys else ""
    try:
        own, known = keys.own(folder), keys.trusted(folder)
    except KeyFileError as error:
        meaning, _, remedy = str(error).partition("; ")
        if isinstance(error, keys.NoSuchKey):
            remedy = f"make this host's own: mbroker keys new {name}{where}"
        yield Finding("keys", Verdict.FAIL, meaning, remedy or f"look at {folder}")
        return
    if own.name != name:
        meaning = f"the key in {folder} is called {own.name}, and this broker {name}"
        yield Finding("keys", Verdict.FAIL, meaning, "set broker.name to the name of the key, or make a new key")
    for member in fleet.hosts:
        if member not in known:
            remedy = f"run there: mbroker keys show; and with what it prints here: mbroker keys trust {member}{where}"
            yield Finding("keys", Verdict.FAIL, f"the key of {member} is not trusted", remedy)
    yield Finding("keys", Verdict.OK, f"this host is {own.name}, {own.public.fingerprint[:19]}...")


async def hypervisor(uri: str) -> tuple[tuple[DomainInfo, ...], list[Finding]]:
    """Connect to the hypervisor of this host, and return its domains."""
    try:
        async with asyncio.timeout(_PATIENCE), await connect(uri) as connected:
            domains = tuple(await connected.domains())
            what = await asyncio.to_thread(_versions, uri)
    except TimeoutError:
        return (), [_unreachable("hypervisor", uri, f"{uri} does not answer within {_PATIENCE:g} s")]
    except HypervisorError as error:
        return (), [_unreachable("hypervisor", uri, str(error))]
    return domains, [Finding("hypervisor", Verdict.OK, f"{uri}: {what}, {len(domains)} domains")]


def ports(domains: tuple[DomainInfo, ...], port: str) -> Iterator[Finding]:
    """See that each domain that runs has its port, and that this user may open it."""
    for domain in domains:
        if not domain.state.active:
            continue
        try:
            path = domain.port(port).path
        except NoSuchPort as error:
            meaning, _, remedy = str(error).partition("; ")
            yield Finding("domain", Verdict.WARN, f"{meaning}: its agents find nobody", remedy)
            continue
        if not Path(path).exists():
            meaning = f"the socket {path} of {domain.name} is not here"
            yield Finding("domain", Verdict.FAIL, meaning, "run on the host of the domain, where mbrokerd runs")
        elif not os.access(path, os.R_OK | os.W_OK):
            meaning = f"this user may not open {path} of {domain.name}"
            yield Finding("domain", Verdict.FAIL, meaning, "run mbrokerd, and this, as root or as libvirt-qemu's group")
        else:
            yield Finding("domain", Verdict.OK, f"{domain.name} has the port {port}")


def xen(domains: tuple[DomainInfo, ...]) -> list[Finding]:
    """See that channels from guests of Xen can end here, and which there are."""
    found = list(xen_doctor.domain_0())
    if all(each.verdict is Verdict.OK for each in found):
        found += xen_doctor.offers(domains)
    return found


async def destinations(fleet: FleetSection) -> list[Finding]:
    """See that domains can be moved to each host of the fleet, as far as its hypervisor goes."""

    async def look(name: str, uri: str | None) -> Finding:
        if uri is None:
            remedy = f'set fleet.hosts.{name}.hypervisor, such as "qemu+tls://{name}/system"'
            return Finding(
                "fleet", Verdict.WARN, f"no domain can be moved to {name}: its hypervisor is not given", remedy
            )
        try:
            async with asyncio.timeout(_PATIENCE), await connect(uri):
                return Finding("fleet", Verdict.OK, f"the hypervisor of {name} answers at {uri}")
        except TimeoutError:
            return _unreachable("fleet", uri, f"{uri} does not answer within {_PATIENCE:g} s")
        except HypervisorError as error:
            return _unreachable("fleet", uri, str(error))

    return list(await asyncio.gather(*(look(name, each.hypervisor) for name, each in fleet.hosts.items())))


def members(config: Config) -> Iterator[Finding]:
    """Ask the daemon of this host for the others."""
    mine = version("mchannel")
    try:
        rows: tuple[MemberRow, ...] = control.ask(config.broker.control, tuple[MemberRow, ...], "control.fleet")
    except MChannelError as error:
        yield Finding(
            "fleet", Verdict.WARN, f"the other brokers were not asked: {error}", "start mbrokerd, run this again"
        )
        return
    for row in rows:
        if not row.version:
            remedy = f"start mbrokerd there; open {Address.parse(row.address).port}/tcp; see its log for refused keys"
            yield Finding("fleet", Verdict.FAIL, f"the broker of {row.name} does not answer at {row.address}", remedy)
        elif row.version != mine:
            meaning = f"{row.name} runs mchannel {row.version}, and this host {mine}"
            yield Finding("fleet", Verdict.WARN, meaning, "install the same version, then restart mbrokerd")
        elif abs(row.ahead) > _CLOCK:
            meaning = f"the clock of {row.name} is {abs(row.ahead):.1f} s {'ahead' if row.ahead > 0 else 'behind'}"
            yield Finding("fleet", Verdict.WARN, meaning, "run chrony or another NTP client on both hosts")
        else:
            yield Finding("fleet", Verdict.OK, f"the broker of {row.name} answers, runs {mine}, and has the same time")


async def examine(named: Path | None = None, uri: str | None = None) -> tuple[Finding, ...]:
    """Make all checks of the host that the *named* configuration describes; *uri* goes before its hypervisor.

    Raises NoSuchFile when it is not there. That of the system, which is taken when none is named, may be missing.
    """
    loaded, found = configuration(named)
    config = loaded.config if loaded else Config()
    section, fleet = config.hypervisor, config.fleet
    found = [*software(), *found, quotas()]
    uri = uri or (section.uri if section else None)
    if uri is None:
        remedy = '[hypervisor] uri = "qemu:///system" in the configuration, or --uri'
        found.append(Finding("hypervisor", Verdict.WARN, "no hypervisor was named: no domain is attended to", remedy))
    else:
        domains, more = await hypervisor(uri)
        found += more
        if is_xen(uri):
            found += await asyncio.to_thread(xen, domains)
        else:
            found += ports(domains, section.port if section else "org.mchannel.0")
    if fleet is not None:
        found += key_files(config.broker.name, fleet)
        found += await destinations(fleet)
        found += await asyncio.to_thread(lambda: list(members(config)))
    return tuple(found)


def _unreachable(check: str, uri: str, why: str) -> Finding:
    meaning, _, remedy = why.rpartition("; ")
    if not meaning:
        meaning, remedy = why, ""
    return Finding(check, Verdict.FAIL, meaning, remedy or f"try: virsh -c {uri} list")


def _versions(uri: str) -> str:
    """Return what the hypervisor is made of; raises HypervisorError."""
    from mbroker.hypervisor.libvirt_link import open_connection, plainly  # noqa: PLC0415 - an extra

    try:
        binding = version("libvirt-python")
    except PackageNotFoundError:
        binding = "of unknown version"
    connection = open_connection(uri)
    with plainly(uri):
        kind, numbers = connection.getType(), (connection.getLibVersion(), connection.getVersion())
        connection.close()
    library, emulator = (f"{each // 1_000_000}.{each // 1000 % 1000}.{each % 1000}" for each in numbers)
    return f"libvirt {library} (binding {binding}), {kind} {emulator}"


@click.command(
    short_help="Check this host, and say what to do.",
    epilog="""\b
Examples:
  mbroker doctor
  mbroker doctor --output json | jq '.[] | select(.verdict != "ok")'
  mbroker doctor --uri xen:///system
\b
Exit codes: 0 when nothing failed, 1 otherwise; 4 when the FILE that was named
is not there.""",
)
@click.option(
    "--uri", metavar="URI", help="The hypervisor of this host.  [default: hypervisor.uri in the configuration]"
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"The configuration of mbrokerd here.  [default: {_CONFIG}]",
)
@with_output
def doctor(uri: str | None, config: Path | None, output: str) -> None:
    """Check this host for channels and migrations, and say what to do; nothing is changed."""
    found = asyncio.run(examine(config, uri))
    if output == "json":
        print_json(plain(found))
    else:
        print_table(
            ("CHECK", "", "WHAT IT MEANS", "WHAT TO DO"),
            ((each.check, each.verdict.value, each.meaning, each.remedy) for each in found),
        )
    if any(each.verdict is Verdict.FAIL for each in found):
        sys.exit(Exit.FAILED)
