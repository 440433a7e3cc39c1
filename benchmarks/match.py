"""``python -m benchmarks.match --json [--quick]``: rules on samples, and what peers make of the same work.

The workload is MAVIS' (section VII): 550 hosts with seven metrics, 60 subscriptions for each metric, of six types, of
which about 2 % hold; and as many of them for 23,714 hosts, which is ten million. Series come in any order. Figures are
of processor time on one core, since neighbours take what is left of the clock; where they disturb even that, the
instruction counts stay. ``--scale`` draws what a sample costs against the number of subscriptions.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Drawing

from benchmarks import match_alerts, match_engine, match_native, match_peers, match_watch
from benchmarks.harness import Sample, Unavailable
from benchmarks.report import Figure, Target, print_report

__all__ = ["TARGETS", "main"]

_SMALL, _LARGE, _EACH = 3_850, 166_000, 60  # series; rules on each of them
_LIKENESS = "0.99"  # correlation of neighbouring samples of a series: what a load or a temperature has
_HOSTS, _RACKS = 23_714, 20

TARGETS = (
    Target("231,000 rules: samples a second", "samples_s_231k", None, 20e6),
    Target("10 million rules: samples a second", "samples_s_10m", None, 5e6),
    Target("10 million rules: resident memory in MB", "rss_mb_10m", None, 512.0, "at most"),
    Target("publisher to subscriber, p99 in ms", "alert_p99_ms", None, 5.0, "at most"),
    Target("whole engine, edges told: samples a second", "engine_samples_s_231k", None, 1e6),
    Target("encoded events in, edges out: samples a second", "end_to_end_samples_s", None, 1e6),
)

_UNITS = {
    "samples_s_231k": "/s",
    "samples_s_10m": "/s",
    "steady_samples_s_231k": "/s",
    "steady_samples_s_10m": "/s",
    "engine_samples_s_231k": "/s",
    "engine_samples_s_10m": "/s",
    "end_to_end_samples_s": "/s",
    "decode_samples_s": "/s",
    "watch_samples_s": "/s",
    "numpy_samples_s_231k": "/s",
    "numpy_samples_s_10m": "/s",
    "rss_mb_10m": "MB",
    "bytes_per_subscription": "B",
    "kernel_bytes_per_subscription": "B",
    "edges_per_sample_231k": "",
    "edges_per_sample_10m": "",
    "steady_edges_per_sample_231k": "",
    "alert_p50_ms": "ms",
    "alert_p99_ms": "ms",
    "insert_p99_us": "us",
    "add_us_10m": "us",
    "group_ns_per_member_sample": "ns",
    "snapshot_s": "s",
    "restore_s": "s",
    "kernel_snapshot_s": "s",
    "kernel_restore_s": "s",
    "prometheus_eval_s": "s",
    "tick_s_231k": "s",
    "volley_missed": "share",
    "volley_taken": "share",
    "volley_ns": "ns/tick",
    "volley_engine_missed": "share",
    "volley_engine_ns": "ns/tick",
    "instructions_231k": "/sample",
}

Found = dict[str, float]


def _native(program: Path, samples: int) -> Found:
    small = match_native.run(program, _SMALL, _EACH, samples)
    large = match_native.run(program, _LARGE, _EACH, samples)
    steady = [match_native.run(program, series, _EACH, samples, _LIKENESS) for series in (_SMALL, _LARGE)]
    return {
        "samples_s_231k": small["samples_s"],
        "samples_s_10m": large["samples_s"],
        "tick_s_231k": _SMALL / small["samples_s"],
        "edges_per_sample_231k": small["edges"],
        "edges_per_sample_10m": large["edges"],
        "steady_samples_s_231k": steady[0]["samples_s"],
        "steady_samples_s_10m": steady[1]["samples_s"],
        "steady_edges_per_sample_231k": steady[0]["edges"],
        "insert_p99_us": large["insert_p99_us"],
        "kernel_bytes_per_subscription": large["bytes_per_rule"],
        "kernel_snapshot_s": large["save_s"],
        "kernel_restore_s": large["load_s"],
        "group_ns_per_member_sample": match_native.run(program, "group", 3000, 30, samples)["ns"],
    }


def _engine(samples: int) -> Found:
    small = match_engine.measured(550, 5, samples)
    large = match_engine.measured(_HOSTS, _RACKS, samples)
    return {
        "engine_samples_s_231k": small["samples_s"],
        "engine_samples_s_10m": large["samples_s"],
        "rss_mb_10m": large["rss_mb"],
        "bytes_per_subscription": large["rss_mb"] * 2**20 / large["rules"],
        "add_us_10m": large["add_us"],
        "snapshot_s": large["save_s"],
        "restore_s": large["load_s"],
    }


def _watch(samples: int) -> Found:
    found = match_watch.measured(samples)
    del found["edges"]
    return found


def _numpy(ticks: int) -> Found:
    return {
        "numpy_samples_s_231k": match_peers.brute_force(_SMALL, _EACH, ticks),
        "numpy_samples_s_10m": match_peers.brute_force(_LARGE, _EACH, max(ticks // 20, 2)),
    }


def _volley(ticks: int) -> Found:
    theirs, ours = match_peers.volley(ticks)
    return {
        "volley_missed": theirs.missed,
        "volley_taken": theirs.taken,
        "volley_ns": theirs.ns,
        "volley_engine_missed": ours.missed,
        "volley_engine_ns": ours.ns,
    }


def _alerts(alerts: int) -> Found:
    sample = match_alerts.told(alerts)
    return {"alert_p50_ms": sample.value, "alert_p99_ms": sample.p99 or math.nan}


def _scale(program: Path, folder: Path, samples: int) -> None:
    """Draw what a sample costs against the number of subscriptions, from a thousand to ten million."""
    counts = [10**3, 10**4, 10**5, 10**6, 10**7]
    ours = [match_native.run(program, max(count // _EACH, 1), _EACH, samples)["ns"] for count in counts]
    theirs = [1e9 / match_peers.brute_force(max(count // _EACH, 1), _EACH, max(2, 10**7 // count)) for count in counts]
    figure: Any = Drawing(figsize=(7, 4), layout="constrained")
    axes: Any = figure.subplots()
    for values, label, marker in ((ours, "guard intervals, any order", "o"), (theirs, "numpy, whole ticks", "s")):
        axes.plot(counts, values, marker=marker, label=label)
    axes.set(xscale="log", yscale="log", xlabel="subscriptions", ylabel="CPU time of a sample in ns")
    axes.set_title(f"{_EACH} subscriptions on each series, six types, windows of 15", fontsize=10)
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend()
    for kind in ("svg", "png"):
        figure.savefig(folder / f"match-scale.{kind}", dpi=120, metadata={"Date": None} if kind == "svg" else None)
    print(f"drawn: {folder / 'match-scale.svg'} and .png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.match", description="What a sample costs, however many rules there are."
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object (always so; for the record)")
    parser.add_argument("--quick", action="store_true", help="one repetition, less samples")
    parser.add_argument("--scale", type=Path, metavar="FOLDER", help="draw cost against subscriptions there, only that")
    options = parser.parse_args(arguments)
    repetitions, samples = (1, 1_000_000) if options.quick else (3, 4_000_000)
    try:
        if options.scale is not None:
            options.scale.mkdir(parents=True, exist_ok=True)
        program = match_native.build()
    except (OSError, Unavailable) as error:
        parser.error(str(error))
    if options.scale is not None:
        _scale(program, options.scale, samples)
        return 0

    parts: Mapping[str, Callable[[], Found]] = {
        "native": lambda: _native(program, samples),
        "numpy": lambda: _numpy(40 if options.quick else 100),
        "engine": lambda: _engine(samples // 2),
        "watch": lambda: _watch(samples // 2),
        "volley": lambda: _volley(samples // 5),
        "instructions": lambda: {"instructions_231k": match_native.instructions(program, 385, _EACH, 200_000)},
        "prometheus": lambda: {"prometheus_eval_s": match_peers.prometheus(_SMALL, _EACH)},
        "alerts": lambda: _alerts(100 if options.quick else 300),
    }
    rounds: list[Found] = []
    missing: dict[str, str] = {}
    for _ in range(repetitions):  # side by side: drift of the machine meets all of them
        found: Found = {}
        for name, part in parts.items():
            try:
                found |= part()
            except Unavailable as error:
                missing[name] = str(error)
        rounds.append(found)
    figures = {
        key: Figure(unit, tuple(Sample(found[key]) if key in found else None for found in rounds))
        for key, unit in _UNITS.items()
    }
    print_report(figures, TARGETS, missing)
    return 0


if __name__ == "__main__":
    sys.exit(main())
