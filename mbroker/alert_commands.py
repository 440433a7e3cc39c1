"""The commands of ``mbroker`` about subscriptions and alerts."""

from __future__ import annotations

import getpass
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import click

from mbroker import alert_rows as rows
from mbroker import control
from mbroker.alerts import Subscription, SubscriptionError
from mbroker.alerts.silence import condition
from mbroker.alerts.terms import UNITS
from mbroker.exits import Misuse
from mbroker.options import with_control, with_output
from mbroker.terminal import clean, print_json, print_line, print_table, span
from mbroker.values import plain

__all__ = [
    "alerts",
    "ask",
    "counted",
    "figure",
    "lasted",
    "metrics",
    "moment",
    "named",
    "parsed",
    "seconds",
    "subscribe",
    "subscriptions",
    "unsubscribe",
    "user",
    "warn",
]

F = TypeVar("F", bound=Callable[..., Any])

_BLOCKS = "▁▂▃▄▅▆▇█"
_DURATION = re.compile(r"(\d{1,9})(ms|[smhd])")


def user() -> str:
    """Return who types the command, also behind sudo."""
    return os.environ.get("SUDO_USER") or getpass.getuser()


def with_by(function: F) -> F:
    """Add ``--by``."""
    return click.option("--by", default=user, show_default="you", help="Who does it, for the audit trail.")(function)


def parsed(text: str) -> Subscription:
    """Return the subscription that *text* says; raise Misuse that shows where it is wrong."""
    try:
        return Subscription.parse(text)
    except SubscriptionError as error:
        marked = "\n".join(f"  {clean(line)}" for line in error.marked().split("\n"))
        raise Misuse(f"{error}\n{marked}") from None


@click.command(
    epilog="""\b
Examples:
  mbroker subscribe 'load > 8 for 2m'
  mbroker subscribe 'mean(cpu{domain="web1"}[30s]) > 0.9 clear < 0.7 severity critical keep memory' --receiver oncall
  mbroker subscribe 'absent(broker.heartbeat[1m])'
\b
The language: docs/reference/language.md. What it would have fired on: mbroker explain TEXT"""
)
@click.argument("text")
@click.option("--receiver", "receivers", multiple=True, metavar="NAME", help="Who is told; by default everybody.")
@click.option("--owner", default=user, show_default="you", help="Whose subscription it is.")
@with_control
@with_output
def subscribe(text: str, receivers: Sequence[str], owner: str, address: str, output: str) -> None:
    """Be told once when the condition TEXT begins to hold, and once when it ceases to."""
    wanted = rows.SubscribeWanted(owner, str(parsed(text)), tuple(receivers))
    row: rows.SubscriptionRow = ask(address, rows.SubscriptionRow, "control.subscribe", wanted)
    if output == "json":
        print_json(plain(row))
    else:
        print_line(
            f"subscription {row.number} of {row.owner}, told to {', '.join(row.receivers) or 'nobody'}: {row.text}"
        )
    warn(row.warnings)


@click.command(epilog="\b\nExample:\n  mbroker unsubscribe 7")
@click.argument("number", type=click.IntRange(1))
@with_by
@with_control
def unsubscribe(number: int, by: str, address: str) -> None:
    """End the subscription NUMBER and its alerts."""
    ask(address, None, "control.unsubscribe", rows.Named(number, by))
    print_line(f"subscription {number} ended")


@click.command(epilog="\b\nExample:\n  mbroker subscriptions --output json | jq '.[] | select(.firing > 0)'")
@with_control
@with_output
def subscriptions(address: str, output: str) -> None:
    """List the subscriptions, and how many alerts of each fire."""
    found: list[rows.SubscriptionRow] = []
    while True:
        after = str(found[-1].number) if found else ""
        some = control.ask(address, tuple[rows.SubscriptionRow, ...], "control.subscriptions", after)
        if not some:
            break
        found += some
    if output == "json":
        print_json([plain(row) for row in found])
        return
    print_table(
        ("NUMBER", "OWNER", "FIRING", "RECEIVERS", "SUBSCRIPTION"),
        ((str(row.number), row.owner, str(row.firing), ", ".join(row.receivers), row.text) for row in found),
    )


@click.command(
    epilog="""\b
Examples:
  mbroker metrics
  mbroker metrics disk.busy_ms --output json"""
)
@click.argument("name", default="")
@with_control
@with_output
def metrics(name: str, address: str, output: str) -> None:
    """List the metrics that are published or, with NAME, the series of one: what can be subscribed to."""
    found: rows.MetricRows = control.ask(address, rows.MetricRows, "control.metrics", name)
    if output == "json":
        print_json(plain(found))
        return
    if name:
        print_table(("METRIC", "LABELS"), ((row.metric, named(row.labels)) for row in found.rows))
    else:
        print_table(("METRIC", "SERIES"), ((row.metric, str(row.series)) for row in found.rows))
    if found.more:
        print_line(f"and {found.more} more")


@click.group()
def alerts() -> None:
    """Alerts: what fires, what ended, and who takes care of it."""


@alerts.command(
    "list",
    epilog="""\b
Examples:
  mbroker alerts list
  mbroker alerts list --state all --since 2h
  mbroker alerts list --output json""",
)
@click.option(
    "--state", type=click.Choice(["firing", "resolved", "all"]), default="firing", show_default=True, help="Which ones."
)
@click.option("--subscription", type=click.IntRange(1), metavar="NUMBER", help="Of this subscription only.")
@click.option("--since", metavar="SPAN", help="That began within this time, such as 30m or 2h.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="How many, the newest first."
)
@with_control
@with_output
def list_(state: str, subscription: int | None, since: str | None, limit: int, address: str, output: str) -> None:
    """List alerts."""
    begin = None if since is None else time.time() - seconds("--since", since)
    wanted = rows.AlertsWanted("" if state == "all" else state, subscription, begin, limit)
    found: tuple[rows.AlertRow, ...] = ask(address, tuple[rows.AlertRow, ...], "control.alerts", wanted)
    if output == "json":
        print_json([plain(row) for row in found])
        return
    print_table(
        ("ALERT", "STATE", "SEVERITY", "SINCE", "LASTED", "ABOUT", "VALUE", "ACKNOWLEDGED", "SUBSCRIPTION"),
        (
            (
                row.id,
                row.state,
                row.severity,
                moment(row.since),
                lasted(row),
                named(row.labels),
                figure(row.value),
                row.acknowledged,
                f"{row.subscription}: {row.text or 'withdrawn'}",
            )
            for row in found
        ),
    )


@alerts.command(epilog="\b\nExample:\n  mbroker alerts show 3f0c9a1b2c3d4e5f6a7b")
@click.argument("id")
@with_control
@with_output
def show(id: str, address: str, output: str) -> None:  # noqa: A002 - what everybody calls it
    """Show the alert ID, and what was seen around it."""
    row: rows.AlertRow = control.ask(address, rows.AlertRow, "control.alert", id)
    seen = control.ask(address, tuple[rows.ContextRow, ...], "control.context", id)
    if output == "json":
        print_json({**plain(row), "context": [plain(each) for each in seen]})
        return
    ended = f" until {moment(row.until)}" if row.until is not None else ""
    print_line(f"{row.id}: {row.state}, {row.severity}, since {moment(row.since)}{ended}")
    print_line(f"subscription {row.subscription}: {row.text or 'withdrawn'}")
    print_line(f"about {named(row.labels)}; compared last: {figure(row.value)}")
    print_line(f"acknowledged by {row.acknowledged}" if row.acknowledged else "acknowledged by nobody")
    print_table(
        ("METRIC", "LABELS", "SAMPLES", "LEAST", "MOST", "COURSE"),
        (
            (each.metric, named(each.labels), str(each.samples), figure(each.least), figure(each.most), _course(each))
            for each in seen
        ),
    )


@alerts.command(epilog="\b\nExample:\n  mbroker alerts ack 3f0c9a1b2c3d4e5f6a7b")
@click.argument("id")
@with_by
@with_control
@with_output
def ack(id: str, by: str, address: str, output: str) -> None:  # noqa: A002
    """Say that you take care of the alert ID: nobody else is woken for it."""
    row: rows.AlertRow = ask(address, rows.AlertRow, "control.acknowledge", rows.AcknowledgeWanted(id, by))
    if output == "json":
        print_json(plain(row))
        return
    print_line(f"{row.id}: acknowledged by {row.acknowledged}")


@alerts.command(
    epilog="""\b
Examples:
  mbroker alerts silence domain=web1 --for 2h --why 'new disk'
  mbroker alerts silence 'host=~node[12]' --for 30m --why maintenance"""
)
@click.argument("labels", nargs=-1, required=True)
@click.option("--for", "duration", required=True, metavar="SPAN", help="How long, such as 30m or 2h.")
@click.option("--why", required=True, help="For whoever wonders.")
@with_by
@with_control
@with_output
def silence(labels: Sequence[str], duration: str, why: str, by: str, address: str, output: str) -> None:
    """Tell nobody of alerts that have all LABELS, conditions such as domain=web1, != =~ or !~."""
    try:
        for label in labels:
            condition(label)
        wanted = rows.SilenceWanted(tuple(labels), seconds("--for", duration), by, why)
    except ValueError as error:
        raise Misuse(str(error)) from None
    row: rows.SilenceRow = ask(address, rows.SilenceRow, "control.silence", wanted)
    if output == "json":
        print_json(plain(row))
        return
    print_line(f"silence {row.number} until {moment(row.until)}")


@alerts.command(epilog="\b\nExample:\n  mbroker alerts silences")
@with_control
@with_output
def silences(address: str, output: str) -> None:
    """List the silences that are not over."""
    found = control.ask(address, tuple[rows.SilenceRow, ...], "control.silences")
    if output == "json":
        print_json([plain(row) for row in found])
        return
    print_table(
        ("NUMBER", "UNTIL", "BY", "WHY", "LABELS"),
        ((str(row.number), moment(row.until), row.by, row.why, ", ".join(row.labels)) for row in found),
    )


@alerts.command(epilog="\b\nExample:\n  mbroker alerts unsilence 3")
@click.argument("number", type=click.IntRange(1))
@with_by
@with_control
def unsilence(number: int, by: str, address: str) -> None:
    """End the silence NUMBER."""
    ask(address, None, "control.unsilence", rows.Named(number, by))
    print_line(f"silence {number} ended")


@alerts.command(epilog="\b\nExample:\n  mbroker alerts history --limit 20")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="How many lines.")
@with_control
@with_output
def history(limit: int, address: str, output: str) -> None:
    """Show who did what, and what began, ended and was told: the audit trail, the newest first."""
    found = control.ask(address, tuple[rows.AuditRow, ...], "control.audit", str(limit))
    if output == "json":
        print_json([plain(row) for row in found])
        return
    print_table(("AT", "WHO", "DID", "WHAT"), ((moment(row.at), row.who, row.did, row.what) for row in found))


# -- how it looks


def lasted(row: rows.AlertRow) -> str:
    """Return how long an alert lasted, or lasts."""
    return span((time.time() if row.until is None else row.until) - row.since)


def warn(warnings: Sequence[str]) -> None:
    """Print what the operator should know besides the answer."""
    for warning in warnings:
        click.echo(f"mbroker: warning: {clean(warning)}", err=True)


def moment(at: float) -> str:
    """Return a time of day as people here read it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def named(labels: Mapping[str, str]) -> str:
    """Return labels in one line."""
    return ", ".join(f"{name}={value}" for name, value in labels.items()) or "all"


def counted(count: int, noun: str) -> str:
    """Return how many there are: ``1 alert``, ``2 alerts``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def figure(value: float | None) -> str:
    """Return a value for people."""
    return "-" if value is None else f"{value:.6g}"


def _course(row: rows.ContextRow) -> str:
    """Return how the values went, as a line of blocks."""
    if row.least is None or row.most is None:
        return ""
    extent = (row.most - row.least) or 1.0
    return "".join(_BLOCKS[round((value - row.least) / extent * (len(_BLOCKS) - 1))] for _, value in row.points)


def seconds(option: str, text: str) -> float:
    """Return the duration that *text* says, such as ``2h``; raise Misuse."""
    match = _DURATION.fullmatch(text)
    if match is None or not int(match[1]):
        raise Misuse(f"{option} {text}: give a duration such as 90s, 30m, 2h or 7d")
    return int(match[1]) * UNITS[match[2]] / 1000


def ask(address: str, kind: Any, topic: str, wanted: attrs.AttrsInstance) -> Any:
    """Return the daemon's answer, as *kind*, to a question about *wanted*; raises as :func:`mbroker.control.ask`."""
    return control.ask(address, kind, topic, json.dumps(plain(wanted)))
