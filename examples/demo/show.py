"""What the terminal shows while the demo runs: a live table, or plain lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from examples.demo.alarm import Alarm
from examples.demo.recording import Recording

__all__ = ["Screen"]

_EVERY = 4  # epochs between two plain lines
_BLOCKS = "▁▃▅▆█"


class Screen:
    """Shows the recordings of all policies, the last of which is growing."""

    def __init__(self, p_states: Sequence[int]) -> None:
        self._p_states = p_states
        self._console = Console(stderr=True)
        self._done: list[Recording] = []
        self._said = 0
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def say(self, text: str) -> None:
        """Print a line above the table."""
        self._console.print(text, highlight=False, markup=False)

    def update(self, recording: Recording) -> None:
        """Show what is new of the run that goes on."""
        if self._live is not None:
            self._live.update(self._table(recording), refresh=True)
        elif len(recording.epochs) >= self._said + _EVERY:
            self._said = len(recording.epochs)
            self.say(self._line(recording))

    def finish(self, recording: Recording) -> None:
        """Keep the result of a run that is over."""
        self._done.append(recording)
        self._said = 0
        if self._live is None:
            self.say(f"{self._line(recording)}, over")

    def alarm(self, alarm: Alarm) -> None:
        """Show what became of the subscription."""
        table = Table(title="One subscription on this machine's metrics")
        for heading in ("subscription", "fired", "cleared", "kept", "metrics", "matched"):
            table.add_column(heading, justify="left" if heading == "subscription" else "right")
        numbers = (f"{alarm.fired_s:.2f} s", f"{alarm.cleared_s:.2f} s", *map(str, (alarm.kept, alarm.kept_metrics)))
        table.add_row(alarm.subscription, *numbers, f"{alarm.samples:,}")
        self._console.print(table)

    def _line(self, recording: Recording) -> str:
        summary, last = recording.summary(), recording.epochs[-1] if recording.epochs else None
        now = f"{last.seconds:5.1f} s, {self._p_states[last.level]} MHz" if last else "  0.0 s"
        return f"{recording.name:12} {now}, {summary.requests} requests, {summary.violations} too late"

    def _table(self, present: Recording) -> Table:
        table = Table(title="One server, one load, five policies")
        for heading in ("policy", "speed, epoch by epoch", "MHz", "p99 ms", "requests", "too late", "moves"):
            table.add_column(heading, justify="left" if heading in {"policy", "speed, epoch by epoch"} else "right")
        for recording in (*self._done, present):
            summary, last = recording.summary(), recording.epochs[-1] if recording.epochs else None
            table.add_row(
                recording.name,
                "".join(_BLOCKS[epoch.level * 4 // (len(self._p_states) - 1)] for epoch in recording.epochs),
                str(self._p_states[last.level]) if last else "",
                f"{last.p99_ms:.1f}" if last and last.p99_ms is not None else "",
                f"{summary.requests:,}",
                f"{summary.violations:,}",
                str(summary.transitions),
            )
        return table

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
