"""The figure: speed, violations and modelled energy of each policy, like figures 4 to 6 of the M-channels paper."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from examples.demo.load import rate
from examples.demo.recording import Recording
from examples.demo.stage import Load

__all__ = ["draw"]

_COLOURS = ("#555555", "#d55e00", "#0072b2", "#cc79a7", "#009e73")  # told apart by colour-blind readers too
_LOAD = "#e4e4e4"


def draw(recordings: Sequence[Recording], load: Load, p_states: Sequence[int], speed: str, path: Path) -> Path:
    """Draw the runs and return the path of the PNG; the SVG is beside it. *speed* says how the speed was set."""
    figure: Any = Figure(figsize=(12, 7), layout="constrained")
    figure.suptitle(f"A web server's speed under five policies ({speed})", fontsize=13)
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    traces = left.subplots(len(recordings), 1, sharex=True, squeeze=False)[:, 0]
    for axes, recording, colour in zip(traces, recordings, _COLOURS, strict=False):
        _trace(axes, recording, load, p_states, colour)
    traces[0].set_title("Frequency in MHz (grey: load offered)", fontsize=11, loc="left")
    traces[-1].set_xlabel("seconds")
    violations, energy = right.subplots(2, 1, height_ratios=(1.5, 1))
    _violations(violations, recordings, load)
    _energy(energy, recordings)
    for suffix in (".svg", ".png"):
        figure.savefig(path.with_suffix(suffix), dpi=130)
    return path.with_suffix(".png")


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _trace(axes: Any, recording: Recording, load: Load, p_states: Sequence[int], colour: str) -> None:
    low, high = p_states[0] - 150, p_states[-1] + 150
    steps = [load.seconds * step / 400 for step in range(401)]
    shape = [low + rate(min(at / load.seconds, 0.999)) * (high - low) for at in steps]
    axes.fill_between(steps, low, shape, color=_LOAD, linewidth=0)
    at = [0.0, *(epoch.seconds for epoch in recording.epochs)]
    mhz = [p_states[epoch.level] for epoch in recording.epochs]
    axes.step(at, [p_states[-1], *mhz], where="post", color=colour, linewidth=1.8)
    axes.set(xlim=(0, load.seconds), ylim=(low, high), yticks=[p_states[0], p_states[1], p_states[-1]])
    axes.tick_params(labelsize=8)
    axes.set_ylabel(recording.name, color=colour, fontsize=10)
    _plain(axes)


def _violations(axes: Any, recordings: Sequence[Recording], load: Load) -> None:
    ends: list[tuple[float, str, str]] = []
    for recording, colour in zip(recordings, _COLOURS, strict=False):
        total = [0, *accumulate(epoch.violations for epoch in recording.epochs)]
        at = [0.0, *(epoch.seconds for epoch in recording.epochs)]
        axes.plot(at, total, color=colour, linewidth=1.8)
        ends.append((float(total[-1]), recording.name, colour))
    top = max(end for end, _, _ in ends) or 1.0
    below = -top
    for end, name, colour in sorted(ends):  # names beside the ends of their lines, apart from each other
        below = max(end, below + 0.065 * top)
        axes.annotate(
            f"{name} {end:,.0f}",
            (load.seconds, end),
            (load.seconds * 1.02, below),
            color=colour,
            fontsize=9,
            va="center",
        )
    axes.set(xlim=(0, load.seconds), ylim=(0, top * 1.05), xlabel="seconds")
    axes.set_title(f"Requests over {load.hard_ms:g} ms, cumulative", fontsize=11, loc="left")
    _plain(axes)


def _energy(axes: Any, recordings: Sequence[Recording]) -> None:
    names = [recording.name for recording in recordings]
    savings = [recording.summary().energy_saving_pct for recording in recordings]
    bars = axes.barh(names, savings, color=_COLOURS[: len(names)], height=0.65)
    axes.bar_label(bars, [f"{each:.1f} %" for each in savings], padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, max(*savings, 1.0) * 1.15), xlabel="% of the host's energy at top speed, with P = 0.7 + 0.3 fV²")
    axes.set_title("Energy saved, modelled", fontsize=11, loc="left")
    axes.tick_params(axis="y", length=0)
    _plain(axes)
