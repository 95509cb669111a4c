"""The rows of `benchmarks.growth` as tables and one picture, and the slopes that they come to."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from recsys.canvas import BLUE, GREEN, INK, ORANGE, PURPLE, QUIET, SMALL, VERMILION, style

STEPS = ("validate", "build", "teach", "label", "distil", "compress", "evaluate")
SWEEPS = ("events", "users", "items")
_COLORS = dict(zip(STEPS, (BLUE, GREEN, VERMILION, PURPLE, ORANGE, QUIET, INK), strict=True))
_MARKS = dict(zip(STEPS, "osD^vPX", strict=True))


def swept(rows: Sequence[dict], sweep: str) -> list[dict]:
    """The rows of one sweep, the smallest first."""
    return sorted((row for row in rows if row["sweep"] == sweep), key=lambda row: row[sweep])


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The least-squares slope of log cost against log size: 1 is linear. NaN for fewer than two sizes."""
    if len(sizes) < 2:
        return float("nan")
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(costs, 1e-2)), 1)[0])


def as_markdown(rows: Sequence[dict]) -> str:
    """A table a sweep: seconds and MB of each step, and below them the slopes over the whole sweep and its last two."""
    parts = []
    for sweep in SWEEPS:
        some = swept(rows, sweep)
        if not some:
            continue
        lines = [f"| {sweep} | {' | '.join(STEPS)} | all |", f"|---|{'---|' * (len(STEPS) + 1)}"]
        for row in some:
            cells = [_cell(row["steps"].get(step)) for step in STEPS]
            total = sum(step["seconds"] for step in row["steps"].values())
            peak = max(step["peak_mb"] for step in row["steps"].values())
            lines.append(f"| {row[sweep]:,} | {' | '.join(cells)} | {total:,.0f} s, {peak:,.0f} MB |")
        for name, part in (("slope", some), ("slope of the last two", some[-2:])):
            cells = [f"{_slope(part, sweep, step):.2f}" for step in STEPS]
            whole = slope([r[sweep] for r in part], [sum(s["seconds"] for s in r["steps"].values()) for r in part])
            lines.append(f"| {name} | {' | '.join(cells)} | {whole:.2f} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(cost: dict | None) -> str:
    return f"{cost['seconds']:,.1f} s, {cost['peak_mb']:,.0f} MB" if cost else "-"


def _slope(rows: Sequence[dict], sweep: str, step: str) -> float:
    some = [row for row in rows if step in row["steps"]]
    return slope([row[sweep] for row in some], [row["steps"][step]["seconds"] for row in some])


def draw(rows: Sequence[dict], path: Path) -> None:
    """Seconds above, memory below, one column a sweep; both axes by logarithm."""
    sweeps = [sweep for sweep in SWEEPS if swept(rows, sweep)]
    with style():
        figure = Figure(figsize=(4 * len(sweeps), 7), layout="constrained", facecolor="white")
        panels = figure.subplots(2, len(sweeps), squeeze=False, sharex="col")
        for column, sweep in enumerate(sweeps):
            some = swept(rows, sweep)
            for row, (what, label) in enumerate((("seconds", "seconds"), ("peak_mb", "peak memory, MB"))):
                axes = panels[row][column]
                for step in STEPS:
                    there = [one for one in some if step in one["steps"]]
                    axes.plot(
                        [one[sweep] for one in there],
                        [max(one["steps"][step][what], 1e-2) for one in there],
                        color=_COLORS[step], marker=_MARKS[step], markersize=4, linewidth=1.2, label=step,
                    )  # fmt: skip
                axes.set_xscale("log")
                axes.set_yscale("log")
                for axis in (axes.xaxis, axes.yaxis):
                    axis.set_major_locator(LogLocator(subs=(1, 3)))
                    axis.set_major_formatter(FuncFormatter(_short))
                    axis.set_minor_locator(NullLocator())
                axes.set_xlim(some[0][sweep] / 1.5, some[-1][sweep] * 1.5)
                axes.set_ylabel(label if column == 0 else "")
                axes.set_title(f"{sweep} grow" if row == 0 else "", loc="left", fontsize=10, color=INK)
            panels[1][column].set_xlabel(sweep)
        panels[0][-1].legend(fontsize=SMALL, loc="upper left", bbox_to_anchor=(1, 1))
        figure.savefig(path, dpi=130)


def _short(value: float, position: int) -> str:
    for unit, letter in ((1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"
