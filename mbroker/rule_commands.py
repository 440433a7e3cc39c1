"""The commands of ``mbroker`` about subscriptions: what there is to watch, and to try, make, list and end them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import attrs
import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, track

from mbroker import alert_rows as rows
from mbroker import control
from mbroker.alert_asking import (
    all_subscriptions,
    ask,
    counted,
    figure,
    lasted,
    moment,
    parsed,
    seconds,
    user,
    warn,
    with_by,
    with_number,
)
from mbroker.exits import Failure, Misuse
from mbroker.options import with_control, with_output
from mbroker.terminal import clean, print_json, print_line, print_table
from mbroker.values import plain

__all__ = ["explain", "import_rules", "metrics", "subscribe", "subscriptions", "unsubscribe"]

_LOOK = 0.1
"""Seconds between two looks at a trial."""


@click.command(
    short_help="Be told when a condition begins and ceases to hold.",
    epilog="""\b
Examples:
  mbroker subscribe 'load > 8 for 2m'
  mbroker subscribe 'mean(cpu{domain="web1"}[30s]) > 0.9 clear < 0.7' \\
      --receiver oncall
  mbroker subscribe 'absent(cpu{domain="web1"}[1m])'
\b
The language: docs/reference/language.md.
What it would have fired on: mbroker explain TEXT""",
)
@click.argument("text")
@click.option("--receiver", "receivers", multiple=True, metavar="NAME", help="Who is told; by default everybody.")
@click.option("--owner", metavar="NAME", default=user, show_default="you", help="Whose subscription it is.")
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
@with_number
@with_by
@with_control
@with_output
def unsubscribe(number: int, by: str, address: str, output: str) -> None:
    """End the subscription NUMBER and its alerts."""
    ask(address, None, "control.unsubscribe", rows.Named(number, by))
    if output == "json":
        print_json({"number": number, "ended": True})
        return
    print_line(f"subscription {number} ended")


@click.command(epilog="\b\nExample:\n  mbroker subscriptions --output json | jq '.[] | select(.firing > 0)'")
@with_control
@with_output
def subscriptions(address: str, output: str) -> None:
    """List the subscriptions, and how many alerts of each fire."""
    found = all_subscriptions(address)
    if output == "json":
        print_json([plain(row) for row in found])
        return
    print_table(
        ("NUMBER", "OWNER", "FIRING", "RECEIVERS", "SUBSCRIPTION"),
        ((str(row.number), row.owner, str(row.firing), ", ".join(row.receivers), row.text) for row in found),
        empty="there are no subscriptions; what there is to watch: mbroker metrics",
    )


@click.command(
    short_help="List the metrics that can be subscribed to.",
    epilog="""\b
Examples:
  mbroker metrics
  mbroker metrics disk.busy_ms --output json""",
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
    if not found.rows:
        print_line("nothing is published yet; start magent run in a guest, or magent host here")
    elif name:
        print_table(("METRIC", "LABELS"), ((row.metric, rows.about(row.labels)) for row in found.rows))
    else:
        print_table(("METRIC", "SERIES"), ((row.metric, str(row.series)) for row in found.rows))
    if found.more:
        print_line(f"and {found.more} more")


@click.command(
    short_help="Try a subscription on the stored past.",
    epilog="""\b
Examples:
  mbroker explain 'mean(load[5m]) > 8 for 2m'
  mbroker explain 'cpu > 0.9' --since 1h --output json""",
)
@click.argument("text")
@click.option("--since", default="24h", show_default=True, metavar="SPAN", help="How much of the past, such as 2h.")
@with_control
@with_output
def explain(text: str, since: str, address: str, output: str) -> None:
    """Show what TEXT would have fired on in the stored past, what it costs, and where it will be matched."""
    wanted = rows.ExplainWanted(str(parsed(text)), seconds("--since", since))
    row = _watched(address, ask(address, int, "control.explain", wanted))
    if output == "json":
        print_json(plain(row))
        return
    told = f"{counted(len(row.alerts) + row.more, 'alert')} in the last {since}"
    print_line(f"{row.text}: {told}, of {row.series} series and {counted(row.samples, 'sample')}")
    if row.oldest is None:
        print_line("the history has none of these series")
    else:
        print_line(f"the history of these series reaches back to {moment(row.oldest)}")
    where = "the publisher, if that saves samples" if row.place == "publisher" else f"the {row.place}"
    print_line(f"cost of a sample: {row.cost}; will be matched by {where}")
    if row.alerts:
        found = ((moment(each.since), lasted(each), rows.about(each.labels), figure(each.value)) for each in row.alerts)
        print_table(("SINCE", "LASTED", "ABOUT", "VALUE"), found)
    if row.more:
        print_line(f"and {row.more} more")
    warn(row.warnings)


def _watched(address: str, number: int) -> rows.ExplainRow:
    """Show the trial's progress until it is over."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        shown = bar.add_task("looking at the past", total=1.0)
        while True:
            task: rows.Task = control.ask(address, rows.Task, "control.explained", str(number))
            bar.update(shown, completed=task.share)
            if task.error:
                raise Failure(task.error)
            if task.result is not None:
                return task.result
            time.sleep(_LOOK)


@attrs.frozen
class _Taken:
    """What became of one rule."""

    group: str
    name: str
    subscriptions: tuple[str, ...]
    numbers: tuple[int, ...]
    notes: tuple[str, ...]
    reason: str


@click.command(
    "import-rules",
    short_help="Subscribe to what alerting rules of Prometheus say.",
    epilog="""\b
Examples:
  mbroker import-rules prometheus.yml --dry-run
  mbroker import-rules rules/node.yml --receiver oncall""",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Show what the rules become; subscribe to nothing.")
@click.option("--receiver", "receivers", multiple=True, metavar="NAME", help="Who is told; by default everybody.")
@click.option("--owner", metavar="NAME", default=user, show_default="you", help="Whose subscriptions they are.")
@with_control
@with_output
def import_rules(file: Path, dry_run: bool, receivers: Sequence[str], owner: str, address: str, output: str) -> None:
    """Subscribe to what the alerting rules of Prometheus in FILE say; tell of those that cannot be taken over.

    FILE holds rules, or names files that do in its rule_files. The exit code is 1 when some were not taken over, 2 when
    FILE cannot be read or holds no rules, and 4 when there is no FILE.
    """
    try:
        from mbroker.alerts.prometheus import RulesError, read_rules  # noqa: PLC0415 - needs what not every host has
    except ModuleNotFoundError as missing:
        raise Failure(f"{missing.name} is missing; install it: pip install 'mchannel[prometheus]'") from None
    file.stat()  # one that is not there is the same to all commands
    try:
        imported = read_rules(file)
    except RulesError as error:
        raise Misuse(str(error)) from None
    taken: list[_Taken] = []
    bar = Console(stderr=True)
    for rule in track(imported, "subscribing", console=bar, disable=dry_run or not sys.stderr.isatty(), transient=True):
        texts = tuple(map(str, rule.subscriptions))
        numbers: list[int] = []
        reason = rule.reason
        try:
            for text in () if dry_run else texts:
                wanted = rows.SubscribeWanted(owner, text, tuple(receivers))
                numbers.append(ask(address, rows.SubscriptionRow, "control.subscribe", wanted).number)
        except control.ControlError as error:
            reason = str(error)
        taken.append(_Taken(rule.group, rule.name, texts, tuple(numbers), rule.notes, reason))
    if output == "json":
        print_json([plain(each) for each in taken])
    else:
        for each in taken:
            _show(each)
    refused = sum(1 for each in taken if each.reason)
    if refused:
        raise Failure(f"{refused} of {counted(len(taken), 'rule')} were not taken over")


def _show(taken: _Taken) -> None:
    name = clean(f"{taken.group}/{taken.name}")
    for text, number in zip(taken.subscriptions, taken.numbers or [0] * len(taken.subscriptions), strict=False):
        print_line(f"{name}: {f'subscription {number}: ' if number else ''}{text}")
    if taken.reason:
        print_line(f"{name}: not taken over: {clean(taken.reason)}")
    warn([f"{name}: {note}" for note in taken.notes])
