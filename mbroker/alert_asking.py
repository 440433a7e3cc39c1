"""What the commands about alerts have in common: how they ask, and how they say a time, a value, a warning."""

from __future__ import annotations

import getpass
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs
import click

from mbroker import alert_rows as rows
from mbroker import control
from mbroker.alerts import Subscription, SubscriptionError
from mbroker.alerts.terms import UNITS
from mbroker.exits import Misuse
from mbroker.options import completed_by
from mbroker.terminal import clean, span
from mbroker.values import plain

__all__ = [
    "all_subscriptions",
    "ask",
    "counted",
    "figure",
    "firing",
    "lasted",
    "moment",
    "numbers",
    "parsed",
    "seconds",
    "user",
    "warn",
    "with_by",
    "with_id",
    "with_number",
]

F = TypeVar("F", bound=Callable[..., Any])

_DURATION = re.compile(r"(\d{1,9})(ms|[smhd])")


def ask(address: str, kind: Any, topic: str, wanted: attrs.AttrsInstance) -> Any:
    """Return the daemon's answer, as *kind*, to a question about *wanted*; raises as :func:`mbroker.control.ask`."""
    return control.ask(address, kind, topic, json.dumps(plain(wanted)))


def all_subscriptions(address: str) -> list[rows.SubscriptionRow]:
    """Return the subscriptions that the daemon has, page by page."""
    found: list[rows.SubscriptionRow] = []
    while True:
        after = str(found[-1].number) if found else ""
        some = control.ask(address, tuple[rows.SubscriptionRow, ...], "control.subscriptions", after)
        if not some:
            return found
        found += some


def numbers(address: str) -> list[tuple[str, str]]:
    """Return the numbers of the subscriptions, to be completed, and what they say."""
    return [(str(row.number), row.text) for row in all_subscriptions(address)]


def firing(address: str) -> list[tuple[str, str]]:
    """Return the ids of the alerts that fire, to be completed, and what they are about."""
    found = ask(address, tuple[rows.AlertRow, ...], "control.alerts", rows.AlertsWanted("firing", limit=1000))
    return [(row.id, f"{row.severity}, {rows.about(row.labels)}: {row.text}") for row in found]


def parsed(text: str) -> Subscription:
    """Return the subscription that *text* says; raise Misuse that shows where it is wrong."""
    try:
        return Subscription.parse(text)
    except SubscriptionError as error:
        marked = "\n".join(f"  {clean(line)}" for line in error.marked().split("\n"))
        raise Misuse(f"{error}\n{marked}") from None


def seconds(option: str, text: str) -> float:
    """Return the duration that *text* says, such as ``2h``; raise Misuse."""
    match = _DURATION.fullmatch(text)
    if match is None or not int(match[1]):
        raise Misuse(f"{option} {text}: give a duration such as 90s, 30m, 2h or 7d")
    length = int(match[1]) * UNITS[match[2]] / 1000
    if length > rows.LONGEST:
        raise Misuse(f"{option} {text}: give a year at most, 366d")
    return length


def user() -> str:
    """Return who types the command, also behind sudo."""
    return os.environ.get("SUDO_USER") or getpass.getuser()


def with_by(function: F) -> F:
    """Add ``--by``."""
    return click.option(
        "--by", metavar="NAME", default=user, show_default="you", help="Who does it, for the audit trail."
    )(function)


def with_number(function: F) -> F:
    """Add ``NUMBER``, of a subscription."""
    return click.argument("number", type=click.IntRange(1), shell_complete=completed_by(numbers))(function)


def with_id(function: F) -> F:
    """Add ``ID``, of an alert."""
    return click.argument("id", shell_complete=completed_by(firing))(function)


# -- how it looks


def warn(warnings: Sequence[str]) -> None:
    """Print what the operator should know besides the answer."""
    for warning in warnings:
        click.echo(f"mbroker: warning: {clean(warning)}", err=True)


def moment(at: float) -> str:
    """Return a time of day as people here read it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def lasted(row: rows.AlertRow) -> str:
    """Return how long an alert lasted, or lasts."""
    return span((time.time() if row.until is None else row.until) - row.since)


def counted(count: int, noun: str) -> str:
    """Return how many there are: ``1 alert``, ``2 alerts``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def figure(value: float | None, digits: int = 6) -> str:
    """Return a value for people."""
    return "-" if value is None else f"{value:.{digits}g}"
