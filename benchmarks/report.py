"""Figures of many repetitions: medians and spread, and how they stand to what was aimed at."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from statistics import median, quantiles
from typing import Literal

import attrs
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Sample

__all__ = ["Figure", "Target", "Verdict", "print_report"]


@attrs.frozen
class Figure:
    """All repetitions of one case, oldest first; a repetition that failed is None."""

    unit: str
    samples: tuple[Sample | None, ...] = ()

    @property
    def values(self) -> list[float]:
        """The median or rate of each repetition that succeeded."""
        return [sample.value for sample in self.samples if sample is not None]

    @property
    def median(self) -> float | None:
        """The median over the repetitions, None when all failed."""
        return _rounded(median(self.values)) if self.values else None

    @property
    def iqr(self) -> float | None:
        """How far the middle half of the repetitions spreads; None below two."""
        if len(self.values) < 2:
            return None
        low, _, high = quantiles(self.values, n=4, method="inclusive")
        return _rounded(high - low)

    @property
    def p99(self) -> float | None:
        """The median of the repetitions' 99th percentiles, None for a rate."""
        tails = [sample.p99 for sample in self.samples if sample is not None and sample.p99 is not None]
        return _rounded(median(tails)) if tails else None


@attrs.frozen
class Target:
    """What is aimed at: a figure, or how two stand to each other."""

    text: str
    over: str
    """Key of the figure."""
    under: str | None
    """Key of the figure that it is divided by, or None."""
    bound: float
    side: Literal["at least", "at most"] = "at least"

    def judge(self, figures: Mapping[str, Figure]) -> Verdict:
        """Return where *figures* stand. Ratios are those of each repetition, so that drift cancels out."""
        pairs = zip(figures[self.over].samples, figures[self.under or self.over].samples, strict=True)
        ratios = [
            over.value / (1.0 if self.under is None else under.value)
            for over, under in pairs
            if over is not None and under is not None
        ]
        if not ratios:
            return Verdict(self, None, None)
        value = median(ratios)
        return Verdict(self, _rounded(value), value >= self.bound if self.side == "at least" else value <= self.bound)


@attrs.frozen
class Verdict:
    """A target beside what was measured; both None when a part could not be."""

    target: Target
    value: float | None
    reached: bool | None


def print_report(figures: Mapping[str, Figure], targets: Iterable[Target], missing: Mapping[str, str]) -> None:
    """Print tables for people, then one JSON object on the last line."""
    verdicts = [target.judge(figures) for target in targets]
    console = Console()
    table = Table("figure", "median", "p99", "spread (IQR)", "unit", title="Medians over the repetitions")
    for column in table.columns[1:4]:
        column.justify = "right"
    for key, figure in figures.items():
        table.add_row(key, _shown(figure.median), _shown(figure.p99), _shown(figure.iqr), figure.unit)
    console.print(table)
    table = Table("target", "aimed at", "measured", "", title="Targets")
    for verdict in verdicts:
        word = {True: "[green]reached", False: "[red]short", None: "[yellow]not measured"}[verdict.reached]
        aim = f"{verdict.target.side} {verdict.target.bound:,g}"
        table.add_row(verdict.target.text, aim, _shown(verdict.value), word)
    console.print(table)
    for key, reason in missing.items():
        console.print(f"{key}: {reason}", style="yellow", markup=False, highlight=False)
    print(
        json.dumps(
            {
                **{key: figure.median for key, figure in figures.items()},
                "spread": {key: {"p99": figure.p99, "iqr": figure.iqr} for key, figure in figures.items()},
                "targets": {
                    verdict.target.text: {"value": verdict.value, "bound": verdict.target.bound, "met": verdict.reached}
                    for verdict in verdicts
                },
                "missing": dict(missing),
            }
        ),
        flush=True,
    )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3f}" if value < 1000 else f"{value:,.0f}"
