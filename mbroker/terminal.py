"""What ``mbroker`` prints: tables for people, JSON for programs, and nothing that could steer a terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, cast

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["abandon_output", "clean", "numbers", "print_json", "print_line", "print_table", "span"]

_WIDE = 200  # columns where there is no terminal to ask
_NARROW = 12  # columns of what is cut, at least
_GAP = 2  # columns between two of a table


def print_json(value: object) -> None:
    """Print plain data."""
    click.echo(json.dumps(cast("Any", value), indent=2))


def print_line(text: str, style: str = "") -> None:
    """Print a paragraph, wrapped where the terminal ends."""
    _console().print(Text(text, style=style))


def print_table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, cut: bool = False, empty: str | None = None
) -> None:
    """Print *rows* below their *heads*, without lines; what is last in a row ends where a terminal does, if *cut*.

    Without rows it says what *empty* says; the heads alone when that is None.
    """
    console = _console()
    cells = [[Text(clean(cell)) for cell in row] for row in rows]
    if not cells and empty is not None:
        print_line(empty)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    room = console.width
    for place, head in enumerate(heads):
        if cut and console.is_terminal and place == len(heads) - 1:
            table.add_column(head, no_wrap=True, overflow="ellipsis", max_width=max(room, _NARROW))
        else:
            table.add_column(head, overflow="fold")
            room -= max([len(head), *(row[place].cell_len for row in cells)]) + _GAP
    for row in cells:
        table.add_row(*row)
    console.print(table)


def clean(text: str) -> str:
    """Return *text* without what could steer a terminal."""
    return "".join(each if each.isprintable() else "?" for each in text)


def span(seconds: float) -> str:
    """Return a time span as people say it, such as ``12 min``; less than nothing is nothing."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.1f} s"


def numbers(each: Iterable[int]) -> str:
    """Return numbers as a list for people."""
    return ",".join(map(str, each))


def abandon_output() -> None:
    """Let what could not be printed go, or the interpreter would complain again at its end."""
    with suppress(OSError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)


def _console() -> Console:
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDE)
