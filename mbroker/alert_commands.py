"""The commands of ``mbroker`` about alerts: what fires, who takes care of it, and who is not to be woken."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import click

from mbroker import alert_rows as rows
from mbroker import control
from mbroker.alert_asking import ask, counted, figure, firing, lasted, moment, numbers, seconds, with_by, with_id
from mbroker.alerts.silence import condition
from mbroker.exits import Misuse
from mbroker.options import completed_by, with_control, with_output
from mbroker.terminal import print_json, print_line, print_table, span
from mbroker.values import plain

__all__ = ["alerts"]

_BLOCKS = "▁▂▃▄▅▆▇█"
_LONG = 16  # blocks in a course, at most


def _silences(address: str) -> list[tuple[str, str]]:
    found = control.ask(address, tuple[rows.SilenceRow, ...], "control.silences")
    return [(str(row.number), f"{', '.join(row.labels)}: {row.why}") for row in found]


@click.group(
    epilog="""\b
Examples:
  mbroker alerts list
  mbroker alerts show 3f0c9a1b
  mbroker alerts ack 3f0c9a1b
\b
They come from subscriptions; see: mbroker subscribe --help"""
)
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
@click.option(
    "--subscription",
    type=click.IntRange(1),
    metavar="NUMBER",
    help="Of this subscription only.",
    shell_complete=completed_by(numbers),
)
@click.option("--since", metavar="SPAN", help="That began within this time, such as 30m or 2h.")
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    metavar="N",
    default=100,
    show_default=True,
    help="How many, the newest first.",
)
@with_control
@with_output
def list_(state: str, subscription: int | None, since: str | None, limit: int, address: str, output: str) -> None:
    """List the alerts that fire or, with --state, those that ended."""
    begin = None if since is None else time.time() - seconds("--since", since)
    wanted = rows.AlertsWanted("" if state == "all" else state, subscription, begin, limit)
    found: tuple[rows.AlertRow, ...] = ask(address, tuple[rows.AlertRow, ...], "control.alerts", wanted)
    if output == "json":
        print_json([plain(row) for row in found])
        return
    if found:
        _print_list(found, ended=state != "firing")
        if len(found) == limit:
            print_line(f"these are the newest {limit}; more: --limit")
    elif state == "firing":
        print_line("no alert fires; those that ended: mbroker alerts list --state all")
    else:
        print_line("there are no such alerts; what they come from: mbroker subscriptions")


@alerts.command(
    short_help="Show an alert, and what was seen around it.",
    epilog="\b\nExamples:\n  mbroker alerts show 3f0c9a1b\n  mbroker alerts show 3f0c9a1b --output json",
)
@with_id
@with_control
@with_output
def show(id: str, address: str, output: str) -> None:  # noqa: A002 - what everybody calls it
    """Show the alert ID, and what was seen around it; the beginning of an id will do."""
    row: rows.AlertRow = control.ask(address, rows.AlertRow, "control.alert", id)
    seen = control.ask(address, tuple[rows.ContextRow, ...], "control.context", row.id)
    if output == "json":
        print_json({**plain(row), "context": [plain(each) for each in seen]})
        return
    ended = f" until {moment(row.until)}" if row.until is not None else ""
    print_line(f"{row.id}: {row.state}, {row.severity}, since {moment(row.since)}{ended}")
    print_line(f"subscription {row.subscription}: {row.text or 'withdrawn'}")
    print_line(f"about {rows.about(row.labels)}; compared last: {figure(row.value)}")
    print_line(f"acknowledged by {row.acknowledged}" if row.acknowledged else "acknowledged by nobody")
    print_table(
        ("METRIC", "LEAST", "MOST", "COURSE", "LABELS"),
        (
            (each.metric, figure(each.least, 4), figure(each.most, 4), _course(each), _besides(each, row))
            for each in seen
        ),
        cut=True,
    )


@alerts.command(
    short_help="Say that you take care of an alert.",
    epilog="\b\nExample:\n  mbroker alerts ack 3f0c9a1b",
)
@with_id
@with_by
@with_control
@with_output
def ack(id: str, by: str, address: str, output: str) -> None:  # noqa: A002
    """Say that you take care of the alert ID: nobody else is woken for it; the beginning of an id will do."""
    row: rows.AlertRow = ask(address, rows.AlertRow, "control.acknowledge", rows.AcknowledgeWanted(id, by))
    if output == "json":
        print_json(plain(row))
        return
    print_line(f"{row.id}: acknowledged by {row.acknowledged}")


@alerts.command(
    short_help="Tell nobody of some alerts for a while.",
    epilog="""\b
Examples:
  mbroker alerts silence domain=web1 --for 2h --why 'new disk'
  mbroker alerts silence 3f0c9a1b --for 1d --why 'the new fan comes tomorrow'
  mbroker alerts silence 'host=~node[12]' --for 30m --why maintenance""",
)
@click.argument("labels", nargs=-1, required=True, shell_complete=completed_by(firing))
@click.option("--for", "duration", required=True, metavar="SPAN", help="How long, such as 30m or 2h.")
@click.option("--why", required=True, help="For whoever wonders.")
@click.option("--yes", is_flag=True, help="Also when that mutes more than half of all that is watched.")
@with_by
@with_control
@with_output
def silence(labels: Sequence[str], duration: str, why: str, yes: bool, by: str, address: str, output: str) -> None:
    """Tell nobody of alerts that have all LABELS, conditions such as domain=web1, != =~ or !~.

    The id of an alert, or its beginning, stands for the labels of that alert.
    """
    length = seconds("--for", duration)
    try:
        for label in labels:
            if not rows.is_id(label):
                condition(label)
    except ValueError as error:
        raise Misuse(str(error)) from None
    muted: rows.MutedRow = control.ask(address, rows.MutedRow, "control.muted", json.dumps(labels))
    if not yes and 2 * muted.endpoints > muted.all_endpoints:
        raise Misuse(
            f"that mutes {muted.endpoints} of {counted(muted.all_endpoints, 'endpoint')} that are watched, and "
            f"{_muted(muted)}; add --yes if you mean it"
        )
    wanted = rows.SilenceWanted(muted.labels, length, by, why)
    row: rows.SilenceRow = ask(address, rows.SilenceRow, "control.silence", wanted)
    if output == "json":
        print_json(plain(row))
        return
    print_line(f"silence {row.number} of {', '.join(row.labels)} until {moment(row.until)}")
    print_line(f"it mutes {_muted(muted)}; to end it: mbroker alerts unsilence {row.number}")


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
        empty="nothing is silenced; how to: mbroker alerts silence --help",
    )


@alerts.command(epilog="\b\nExample:\n  mbroker alerts unsilence 3")
@click.argument("number", type=click.IntRange(1), shell_complete=completed_by(_silences))
@with_by
@with_control
@with_output
def unsilence(number: int, by: str, address: str, output: str) -> None:
    """End the silence NUMBER."""
    ask(address, None, "control.unsilence", rows.Named(number, by))
    if output == "json":
        print_json({"number": number, "ended": True})
        return
    print_line(f"silence {number} ended")


@alerts.command(
    short_help="Show who did what, and what began, ended and was told.",
    epilog="\b\nExample:\n  mbroker alerts history --limit 20",
)
@click.option(
    "--limit", type=click.IntRange(1, 1000), metavar="N", default=100, show_default=True, help="How many lines."
)
@with_control
@with_output
def history(limit: int, address: str, output: str) -> None:
    """Show who did what, and what began, ended and was told: the audit trail, the newest first."""
    found = control.ask(address, tuple[rows.AuditRow, ...], "control.audit", str(limit))
    if output == "json":
        print_json([plain(row) for row in found])
        return
    print_table(
        ("AT", "WHO", "DID", "WHAT"),
        ((moment(row.at), row.who, row.did, row.what) for row in found),
        empty="nothing happened yet",
    )


def _muted(muted: rows.MutedRow) -> str:
    return f"{muted.firing} of {counted(muted.all_firing, 'alert')} that {'fires' if muted.all_firing == 1 else 'fire'}"


def _print_list(found: Sequence[rows.AlertRow], *, ended: bool) -> None:
    """Print a table of alerts, one line each on a terminal; *ended*: some of them may have."""
    ids = {row.id for row in found}
    length = next(length for length in range(8, 21) if len({each[:length] for each in ids}) == len(ids))
    heads = ["ALERT", "SEVERITY", "SINCE", "VALUE", "ABOUT", "ACK BY", "SUBSCRIPTION"]
    cells = [
        [
            row.id[:length],
            row.severity,
            f"{span(time.time() - row.since)} ago",
            figure(row.value),
            rows.about(row.labels),
            row.acknowledged,
            f"{row.subscription}: {row.text or 'withdrawn'}",
        ]
        for row in found
    ]
    if ended:
        heads.insert(3, "LASTED")
        for row, line in zip(found, cells, strict=True):
            line.insert(3, "goes on" if row.until is None else lasted(row))
    print_table(heads, cells, cut=True)


def _besides(each: rows.ContextRow, alert: rows.AlertRow) -> str:
    """Return the labels of a series that the alert has not as well."""
    return ", ".join(f"{name}={value}" for name, value in each.labels.items() if alert.labels.get(name) != value)


def _course(row: rows.ContextRow) -> str:
    """Return how the values went, as a short line of blocks: each is as high as the highest that it stands for."""
    if row.least is None or row.most is None:
        return ""
    values = [value for _, value in row.points]
    share = -(-len(values) // _LONG)
    peaks = [max(values[first : first + share]) for first in range(0, len(values), share)]
    extent = (row.most - row.least) or 1.0
    return "".join(_BLOCKS[round((value - row.least) / extent * (len(_BLOCKS) - 1))] for value in peaks)
