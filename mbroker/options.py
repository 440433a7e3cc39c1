"""Options that many commands of ``mbroker`` have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, TypeVar

import click
from click.shell_completion import CompletionItem

from mbroker.terminal import clean
from mchannel.errors import MChannelError

__all__ = ["completed_by", "with_control", "with_output"]

F = TypeVar("F", bound=Callable[..., Any])

Complete: TypeAlias = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

_CONTROL = "shm:///mbroker"


def with_output(function: F) -> F:
    """Add ``--output``."""
    return click.option(
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="For people or programs.",
    )(function)


def with_control(function: F) -> F:
    """Add ``--control``."""
    return click.option(
        "--control",
        "address",
        metavar="ADDRESS",
        envvar="MBROKER_CONTROL",
        default=_CONTROL,
        show_default=True,
        help="Where mbrokerd answers (broker.control in its configuration; also $MBROKER_CONTROL).",
    )(function)


def completed_by(find: Callable[[str], Iterable[tuple[str, str]]]) -> Complete:
    """Return what completes a word from those that *find* gets of the daemon at an address, each with its meaning."""

    def complete(ctx: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
        try:
            found = list(find(ctx.params.get("address") or _CONTROL))
        except MChannelError:
            return []  # a shell has no place to say why
        return [CompletionItem(word, help=clean(meaning)) for word, meaning in found if word.startswith(begun)]

    return complete
