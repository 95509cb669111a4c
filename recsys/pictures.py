"""The pictures of a report: which numbers of a story each of them shows, and how. Names are clipped."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import offset_copy

from recsys.canvas import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    QUIET,
    SMALL,
    VERMILION,
    Picture,
    canvas,
    picture,
    style,
)
from recsys.story import CurvePoint, Estimate, GridPoint, ModelRow, Role, SliceRow, Story, TrialRow
from recsys.wording import milliseconds, percent, plain, present, size

MOST_TRIALS = 12
"""So many of the best are drawn, and the best undistilled one in any case."""

_MARKS: dict[Role, tuple[str, str]] = {
    "teacher": (BLUE, "s"),
    "student": (ORANGE, "D"),
    "artifact": (VERMILION, "o"),
    "champion": (GREEN, "^"),
    "baseline": (QUIET, "x"),
}
_BELOW: tuple[Role, ...] = ("student", "champion")
"""Labelled below their marks."""


@dataclass(frozen=True)
class _Cost:
    name: str
    of: Callable[[ModelRow], float | None]
    unit: Callable[[float | None], str]


@dataclass(frozen=True)
class _Line:
    label: str | None
    points: tuple[CurvePoint, ...]
    color: str
    dashes: str = "-"
    width: float = 2.0


@dataclass(frozen=True)
class _Bar:
    label: str
    change: Estimate
    color: str
    hollow: bool


def quality_against_size(story: Story) -> Picture | None:
    """NDCG@10 with bounds against bytes, teacher to student to artifact; None without sizes."""
    return _quality_against("size", story, _Cost("size on disk", lambda model: model.bytes, size))


def quality_against_latency(story: Story) -> Picture | None:
    """NDCG@10 with bounds against the p99 latency of one request; None without latencies."""
    return _quality_against("latency", story, _Cost("p99 of one request", lambda model: model.p99_ms, milliseconds))


@style()
def learning_curves(story: Story) -> Picture | None:
    """Validation NDCG@10 by epoch of the teacher and of each trial; None without epochs."""
    lines = _curves(story)
    if not lines:
        return None
    figure, axes = canvas(3.2, "NDCG@10 on the validation users")
    for line in lines:
        epochs = [point.epoch for point in line.points]
        values = [point.validation_ndcg or 0.0 for point in line.points]
        alone = "o" if len(epochs) == 1 else ""
        axes.plot(epochs, values, line.dashes, color=line.color, linewidth=line.width, marker=alone, label=line.label)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", handlelength=1.8)
    return picture(figure, "curves", f"Learning curves of {len(lines)} models: NDCG@10 by epoch.")


@style()
def trials(story: Story) -> Picture | None:
    """Validation NDCG@10 of every trial that got that far, best first, the undistilled student among them."""
    rows = _drawn_trials(story)
    if not rows:
        return None
    figure, axes = canvas(0.9 + 0.3 * len(rows), "NDCG@10 on the validation users")
    for y, trial in enumerate(rows):
        _draw_trial(axes, y, trial)
    axes.set_yticks(range(len(rows)), [_trial_bar(trial) for trial in rows])
    axes.set_xlim(0, 1.25 * (rows[0].validation_ndcg or 0.8))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    seen = "; ".join(f"{_trial_bar(trial)} {trial.validation_ndcg:.4f}" for trial in rows)
    return picture(figure, "trials", f"NDCG@10 of the trials: {seen}.")


def slices(story: Story) -> Picture | None:
    """Relative change of NDCG@10 on each slice with its bounds, and the loss that is tolerated."""
    return _bars("slices", "Change of NDCG@10", [_slice_bar(row) for row in story.slices], -story.slice_max_loss)


def grid(story: Story) -> Picture | None:
    """Relative change of NDCG@10 of each point of the grid, largest first, and the loss tolerated."""
    points = sorted(story.grid, key=lambda point: (-point.bytes, -point.keep_ffn))
    title = "Change of NDCG@10 to the float student"
    return _bars("grid", title, [_point_bar(point) for point in points], -story.grid_max_loss)


@style()
def _quality_against(name: str, story: Story, cost: _Cost) -> Picture | None:
    placed = [
        (model, x, y)
        for model in story.models
        if model.role != "baseline" and present(x := cost.of(model)) and x > 0 and present(y := _ndcg(model).value)
    ]
    if not placed:
        return None
    figure, axes = canvas(3.7, "NDCG@10 on the test users")
    chain = [(x, y) for role in ("teacher", "student", "artifact") for m, x, y in placed if m.role == role]
    if chain:
        axes.plot(*zip(*chain, strict=True), color=FAINT, linewidth=5, solid_capstyle="round", zorder=1)
    for model in story.models:
        if model.role == "baseline" and present(level := _ndcg(model).value):
            _draw_level(axes, plain(model.name, 30), level)
    below = sorted((x, model.role) for model, x, _ in placed if model.role in _BELOW)
    # Two labels below part from each other: the left one ends at its mark, the right one begins there.
    sides = {below[0][1]: "right", below[1][1]: "left"} if len(below) == 2 else {}
    for model, x, _ in placed:
        _draw_model(figure, axes, model, x, sides.get(model.role, "center"))
    _cost_axis(axes, [x for _, x, _ in placed], cost)
    axes.set_ylim(0, 1.16 * max(_ndcg(model).high or _ndcg(model).value or 0 for model in story.models) or 1)
    seen = "; ".join(f"{plain(m.name, 30)} {y:.4f} at {cost.unit(x)}" for m, x, y in placed)
    return picture(figure, name, f"NDCG@10 against {cost.name}: {seen}.")


def _ndcg(model: ModelRow) -> Estimate:
    return model.estimate("ndcg_at_10")


def _drawn(estimate: Estimate) -> tuple[float, float, float]:
    """Value, low and high of an estimate that has a value; a bound that is absent is the value."""
    value = estimate.value or 0.0
    low, high = (bound if present(bound) else value for bound in (estimate.low, estimate.high))
    return value, low, high


def _draw_model(figure: Figure, axes: Axes, model: ModelRow, x: float, align: str) -> None:
    """A mark with its bounds; the label above, or below for those that stand close to another."""
    color, shape = _MARKS[model.role]
    quality, below = _ndcg(model), model.role in _BELOW
    shift = offset_copy(axes.transData, figure, x=7 if model.role == "champion" else 0, units="points")
    value, low, high = _drawn(quality)
    axes.plot([x, x], [low, high], color=color, linewidth=1.8, transform=shift)
    axes.plot(x, value, shape, color=color, markersize=9, transform=shift, markeredgecolor="white")
    axes.annotate(
        model.role,
        (x, low if below else high),
        (7 if model.role == "champion" else 0, -6 if below else 6),
        textcoords="offset points",
        ha=align,
        va="top" if below else "bottom",
        fontweight="bold" if model.role == "artifact" else "normal",
    )


def _draw_level(axes: Axes, label: str, level: float) -> None:
    """A model that costs next to nothing: a dotted line across."""
    axes.axhline(level, color=QUIET, linewidth=1, linestyle=(0, (1, 2.5)))
    axes.annotate(
        label,
        (1, level),
        (-2, -3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=SMALL,
        color=QUIET,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
    )


def _cost_axis(axes: Axes, costs: Sequence[float], cost: _Cost) -> None:
    """A logarithmic axis, wide enough for the labels, with about five round ticks."""
    low, high = math.log10(min(costs)), math.log10(max(costs))
    room = 0.22 * max(high - low, 0.5)
    low, high = low - room, high + room
    steps = (1, 2, 5) if high - low < 1.7 else (1, 3) if high - low < 2.6 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    axes.set_xscale("log")
    axes.set_xlim(10**low, 10**high)
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= math.log10(tick) <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _round(cost.unit(x))))
    axes.set_xlabel(f"{cost.name}, logarithmic")


def _round(text: str) -> str:
    """The text of a round number without its idle zeros: "1.00 MB" -> "1 MB"."""
    return re.sub(r"\.0+(?!\d)|(\.\d*?)0+(?!\d)", r"\1", text)


def _curves(story: Story) -> list[_Line]:
    """First what stays in the background, last what the eye should find."""
    drawn = _drawn_trials(story)
    lines = [_Line(None, trial.curve, FAINT, width=1.2) for trial in drawn if not _noted(story, trial)]
    lines += [_Line("teacher", story.teacher_curve, BLUE)] if story.teacher_curve else []
    for trial in sorted((one for one in drawn if _noted(story, one)), key=lambda trial: trial.best):
        color = VERMILION if trial.best else PURPLE
        lines.append(_Line(_trial_label(trial), trial.curve, color, "-" if trial.best else "--"))
    kept = [replace(line, points=tuple(p for p in line.points if present(p.validation_ndcg))) for line in lines]
    return [line for line in kept if line.points]


def _drawn_trials(story: Story) -> list[TrialRow]:
    """The best of the trials, best first, and with them the best undistilled one."""
    told = [trial for trial in story.trials if present(trial.validation_ndcg)]
    told.sort(key=lambda trial: (-(trial.validation_ndcg or 0.0), trial.number))
    return [trial for rank, trial in enumerate(told) if rank < MOST_TRIALS or _noted(story, trial)]


def _noted(story: Story, trial: TrialRow) -> bool:
    return trial.best or trial is story.undistilled


def _trial_label(trial: TrialRow) -> str:
    if trial.best:
        return "best student" + (", undistilled" if trial.undistilled else "")
    return "undistilled student" if trial.undistilled else f"weight {trial.weight:.2f}, K {trial.k}"


def _trial_bar(trial: TrialRow) -> str:
    dropout = "" if trial.dropout is None else f", dropout {trial.dropout:g}"
    return f"{trial.number}: width {trial.width}{dropout}, {_trial_label(trial).replace(' student', '')}"


def _draw_trial(axes: Axes, y: int, trial: TrialRow) -> None:
    value = trial.validation_ndcg or 0.0
    color = VERMILION if trial.best else PURPLE if trial.undistilled else QUIET
    axes.plot([0, value], [y, y], color=color, linewidth=1.4, alpha=0.5)
    axes.plot(value, y, "o" if trial.best else "D" if trial.undistilled else ".", color=color, markersize=7)
    axes.annotate(f"{value:.4f}", (value, y), (8, 0), textcoords="offset points", va="center", fontsize=SMALL)


def _slice_bar(row: SliceRow) -> _Bar:
    color = {"pass": BLUE, "unproven": ORANGE, "fail": VERMILION}[row.outcome]
    return _Bar(f"{plain(row.name, 26)}", row.change, color, hollow=row.outcome != "pass")


def _point_bar(point: GridPoint) -> _Bar:
    shares = "/".join(percent(share, digits=0) for share in (point.keep_ffn, point.keep_heads, point.keep_neighbours))
    label = f"{shares}, {point.table_bits} bit: {size(point.bytes)}"
    color = {"chosen": VERMILION, "larger": BLUE, "refused": QUIET}[point.outcome]
    return _Bar(label, point.change, color, hollow=point.outcome == "refused")


@style()
def _bars(name: str, title: str, bars: Sequence[_Bar], limit: float) -> Picture | None:
    """One bar a row, the first on top: value, bounds, a line at no change and one at the tolerated loss."""
    bars = [bar for bar in bars if present(bar.change.value)]
    if not bars:
        return None
    figure, axes = canvas(1.05 + 0.3 * len(bars), title)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.axvline(limit, color=VERMILION, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(
        f"limit {_change_tick(limit, None)}",
        (limit, -0.75),
        (-4, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=SMALL,
        color=VERMILION,
    )
    for y, bar in enumerate(bars):
        _draw_bar(axes, y, bar)
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axes.set_ylim(len(bars) - 0.4, -1.1)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(_change_tick))
    seen = "; ".join(f"{bar.label} {percent(bar.change.value, signed=True)}" for bar in bars)
    return picture(figure, name, f"{title}: {seen}.")


def _change_tick(value: float, _position: int | None) -> str:
    return percent(value, signed=True, digits=0 if abs(value * 100 - round(value * 100)) < 1e-9 else 1)


def _draw_bar(axes: Axes, y: int, bar: _Bar) -> None:
    value, low, high = _drawn(bar.change)
    axes.plot([low, high], [y, y], color=bar.color, linewidth=2, solid_capstyle="butt")
    face = "white" if bar.hollow else bar.color
    axes.plot(value, y, "o", color=bar.color, markerfacecolor=face, markersize=7, markeredgewidth=1.6)
