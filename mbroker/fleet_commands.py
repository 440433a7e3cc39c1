"""The commands of ``mbroker`` about domains, the fleet, and migrations."""

from __future__ import annotations

import json
import math
import secrets
import sys
import time

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from mbroker import control
from mbroker.exits import Failure, Interrupted, Misuse
from mbroker.fleet.migration import Result
from mbroker.hosting import Begun, DomainRow, LaneRow, LaneWanted, MemberRow, MigrationRow, Wanted
from mbroker.options import completed_by, with_control, with_output
from mbroker.terminal import print_json, print_line, print_table, span
from mbroker.values import plain

__all__ = ["domains", "fleet", "lane", "migrate"]

_LOOK = 0.25
"""Seconds between two looks at a migration."""
_SILENCE = 60.0
"""Seconds without an answer of the daemon after which nobody looks any more."""


@click.command(
    short_help="List the domains of this host.",
    epilog="\b\nExamples:\n  mbroker domains\n  mbroker domains --output json",
)
@with_control
@with_output
def domains(address: str, output: str) -> None:
    """List the domains of this host, and whether their channels are attended to."""
    rows: tuple[DomainRow, ...] = control.ask(address, tuple[DomainRow, ...], "control.domains")
    if output == "json":
        print_json(plain(rows))
        return
    print_table(
        ("DOMAIN", "UUID", "STATE", "PORT", "ATTENDED"),
        ((row.name, row.uuid, row.state, _yes(row.port), _yes(row.attended)) for row in rows),
        empty="there are no domains on this host",
    )


@click.command(
    short_help="List the other hosts of the fleet.",
    epilog="\b\nExamples:\n  mbroker fleet\n  mbroker fleet --output json",
)
@with_control
@with_output
def fleet(address: str, output: str) -> None:
    """List the other hosts of the fleet, and whether their brokers answer."""
    rows: tuple[MemberRow, ...] = control.ask(address, tuple[MemberRow, ...], "control.fleet")
    if output == "json":
        print_json(plain(rows))
        return
    print_table(
        ("HOST", "ADDRESS", "PRESENT", "VERSION", "HYPERVISOR"),
        ((row.name, row.address, _yes(row.present), row.version, row.hypervisor or "not given") for row in rows),
        empty="no other host is configured",
    )


def _domains(address: str) -> list[tuple[str, str]]:
    found = control.ask(address, tuple[DomainRow, ...], "control.domains")
    return [(row.name, f"{row.state}, {row.uuid}") for row in found]


def _hosts(address: str) -> list[tuple[str, str]]:
    found = control.ask(address, tuple[MemberRow, ...], "control.fleet")
    return [(row.name, row.address) for row in found]


@click.command(
    short_help="Move a domain to another host of the fleet.",
    epilog="""\b
Examples:
  mbroker migrate web1 host2
  mbroker migrate web1 host2 --no-live --timeout 600
\b
An interrupted command (exit code 130) leaves the migration to the daemon;
see: mbroker domains""",
)
@click.argument("domain", shell_complete=completed_by(_domains))
@click.argument("host", shell_complete=completed_by(_hosts))
@click.option("--live/--no-live", default=True, show_default=True, help="Let the domain run while it is copied.")
@click.option(
    "--timeout",
    type=float,
    metavar="SECONDS",
    default=300.0,
    show_default=True,
    help="When it is called off, and the domain stays.",
)
@with_control
@with_output
def migrate(domain: str, host: str, live: bool, timeout: float, address: str, output: str) -> None:
    """Move DOMAIN, a name or UUID, to HOST of the fleet; its channels go on there."""
    if not 0 < timeout < math.inf:
        raise Misuse(f"--timeout {timeout:g}: give a number of seconds above 0, such as 300")
    wanted = Wanted(domain, host, live, timeout, secrets.token_hex(8))
    try:
        result = _watched(address, _begun(address, wanted), f"{domain} to {host}")
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; what the daemon has begun goes on: look for {domain} here and on {host} by: mbroker domains"
        ) from None
    if output == "json":
        print_json(plain(result))
    elif not result.reason:
        print_line(f"{domain} runs on {result.host}, after {span(result.seconds)}")
    if not result.moved or result.reason:
        where = f"it is on {result.host}" if result.host else "where it is could not be found out; ask both hosts"
        raise Failure(f"{domain}: {result.step}: {result.reason}; {where}")


@click.command(
    short_help="Plug shared memory into a domain, or take it out.",
    epilog="""\b
Examples:
  mbroker lane web1 on
  mbroker lane web1 off && virsh migrate --live web1 qemu+tls://host2/system
\b
A domain cannot be migrated while it has shared memory. "mbroker migrate"
takes it out by itself and plugs it in again; before any other program
migrates or saves the domain, turn it off.""",
)
@click.argument("domain", shell_complete=completed_by(_domains))
@click.argument("state", type=click.Choice(["on", "off"]))
@with_control
@with_output
def lane(domain: str, state: str, address: str, output: str) -> None:
    """Plug shared memory for its channels into DOMAIN, a name or UUID, or take it out."""
    wanted = json.dumps(plain(LaneWanted(domain, state == "on")))
    while True:
        row: LaneRow = control.ask(address, LaneRow, "control.lane", wanted)
        if row.done:
            break
    if output == "json":
        print_json({"domain": domain, "lane": state})
    else:
        print_line(f"{domain}: shared memory is {state}")


def _begun(address: str, wanted: Wanted) -> int:
    """Return the number of the migration, once the daemon knows that it can be."""
    while True:
        row: Begun = control.ask(address, Begun, "control.migrate", json.dumps(plain(wanted)))
        if row.number:
            return row.number


def _watched(address: str, number: int, what: str) -> Result:
    """Show the migration's progress until it ends; raises Unreachable after a minute without an answer."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=1.0)
        heard = time.monotonic()
        while True:
            try:
                row: MigrationRow = control.ask(address, MigrationRow, "control.migration", str(number))
            except control.Unreachable as error:
                if time.monotonic() - heard > _SILENCE:
                    raise control.Unreachable(f"how {what} ended is unknown, ask both hosts: {error}") from None
                bar.update(task, description=f"{what}: waiting for the daemon")
            else:
                heard = time.monotonic()
                bar.update(task, completed=row.progress.copied, description=f"{what}: {row.progress.step}")
                if row.result is not None:
                    return row.result
            time.sleep(_LOOK)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
