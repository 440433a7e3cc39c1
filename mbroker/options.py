"""Options that many commands of ``mbroker`` have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["with_control", "with_output"]

F = TypeVar("F", bound=Callable[..., Any])


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
        envvar="MBROKER_CONTROL",
        default="shm:///mbroker",
        show_default=True,
        help="Where mbrokerd answers (broker.control in its configuration; also $MBROKER_CONTROL).",
    )(function)
