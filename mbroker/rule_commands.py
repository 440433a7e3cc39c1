"""The commands of ``mbroker`` that try subscriptions, and take them over from elsewhere."""

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
from mbroker.alert_commands import ask, counted, figure, lasted, moment, named, parsed, seconds, user, warn
from mbroker.exits import Failure, Misuse
from mbroker.options import with_control, with_output
from mbroker.terminal import clean, print_json, print_line, print_table
from mbroker.values import plain

__all__ = ["explain", "import_rules"]

_LOOK = 0.1
"""Seconds between two looks at a trial."""


@click.command(
    epilog="""\b
Examples:
  mbroker explain 'mean(load[5m]) > 8 for 2m'
  mbroker explain 'cpu > 0.9' --since 1h --output json"""
)
@click.argument("text")
@click.option("--since", default="24h", show_default=True, metavar="SPAN", help="How much of the past, such as 2h.")
@with_control
@with_output
def explain(text: str, since: str, address: str, output: str) -> None:
    """Show what TEXT would have fired on in the stored past, what it costs, and where it can be matched."""
    subscription = parsed(text)
    try:
        wanted = rows.ExplainWanted(str(subscription), seconds("--since", since))
    except ValueError as error:
        raise Misuse(str(error)) from None
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
    print_line(f"cost of a sample: {row.cost}; can be matched by the {row.place}")
    if row.alerts:
        found = ((moment(each.since), lasted(each), named(each.labels), figure(each.value)) for each in row.alerts)
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
    epilog="""\b
Examples:
  mbroker import-rules prometheus.yml --dry-run
  mbroker import-rules rules/node.yml --receiver oncall""",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Show what the rules become; subscribe to nothing.")
@click.option("--receiver", "receivers", multiple=True, metavar="NAME", help="Who is told; by default everybody.")
@click.option("--owner", default=user, show_default="you", help="Whose subscriptions they are.")
@with_control
@with_output
def import_rules(file: Path, dry_run: bool, receivers: Sequence[str], owner: str, address: str, output: str) -> None:
    """Subscribe to what the alerting rules of Prometheus in FILE say; tell of those that cannot be taken over.

    FILE holds rules, or names files that do in its rule_files. The exit code is 1 when some were not taken over, and
    2 when FILE cannot be read or holds no rules.
    """
    try:
        from mbroker.alerts.prometheus import RulesError, read_rules  # noqa: PLC0415 - needs what not every host has
    except ModuleNotFoundError as missing:
        raise Failure(f"{missing.name} is missing; install it: pip install 'mchannel[prometheus]'") from None
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
