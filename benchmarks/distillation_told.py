"""Students of one teacher retold: docs/images/distillation.png and a table, mean and range over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recsys.canvas import BLUE, GREEN, INK, ORANGE, PURPLE, QUIET, SMALL, VERMILION, style

Rows = Sequence[dict[str, Any]]
DROPOUT = 0.2
"""Of rows that name none."""
_LOOKS = (("o", BLUE), ("s", VERMILION), ("^", GREEN), ("D", ORANGE), ("v", PURPLE), ("P", INK), ("X", QUIET))


@dataclass(frozen=True)
class Spread:
    """A metric over seeds."""

    mean: float
    low: float
    high: float
    seeds: int

    @classmethod
    def of(cls, rows: Rows, metric: str) -> "Spread | None":
        """None of no rows."""
        values = [row[metric] for row in rows]
        return cls(sum(values) / len(values), min(values), max(values), len(values)) if values else None

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (f" ({self.low:.4f} to {self.high:.4f})" if self.seeds > 1 else "")


def _students(rows: Rows) -> list[dict[str, Any]]:
    return [{**row, "loss": _loss(row)} for row in rows if row["loss"] != "teacher"]


def _loss(row: dict[str, Any]) -> str:
    """At another temperature than 1, or another dropout than DROPOUT, it is another loss."""
    T, dropout = row.get("temperature", 1), row.get("dropout", DROPOUT)
    name = f"{row['loss']} at T {T:g}" if T != 1 else str(row["loss"])
    return f"{name} at dropout {dropout:g}" if dropout != DROPOUT else name


def _groups(rows: Rows) -> list[str]:
    """What may not be compared with each other: shop, night, number of epochs."""
    return list(dict.fromkeys(_group(row) for row in _students(rows)))


def _group(row: dict[str, Any]) -> str:
    return f"{row['shop']} ({row['made_from']}), {row['epochs']} epochs"


def _some(rows: Rows, **wanted: object) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _teacher(rows: Rows, of: dict[str, Any]) -> dict[str, Any] | None:
    return next((row for row in rows if row["loss"] == "teacher" and row["made_from"] == of["made_from"]), None)


def draw(rows: Rows, path: Path) -> None:
    """A panel a shop and width: NDCG@10 by loss, a mark for each weight and K, a bar over the seeds."""
    groups, students = _groups(rows), _students(rows)
    there = [(g, w) for g in groups for w in sorted({row["width"] for row in students if _group(row) == g})]
    if not there:
        return
    looks = sorted({_weighing(row) for row in students if row["loss"] != "none"})
    path.parent.mkdir(parents=True, exist_ok=True)
    with style():
        lines = -(-len(there) // 2)
        figure = Figure(figsize=(12.5, 3.6 * lines), layout="constrained", facecolor="white")
        panels = figure.subplots(lines, 2, squeeze=False).ravel()
        for (group, width), axes in zip(there, panels, strict=False):
            some = [row for row in students if _group(row) == group and row["width"] == width]
            _panel(axes, some, looks, _teacher(rows, some[0]))
            axes.set_title(f"{some[0]['shop']}, width {width}", loc="left", fontsize=10, color=INK)
            axes.set_ylabel("test NDCG@10, mean and range over seeds")
        for axes in panels[len(there) :]:
            axes.set_axis_off()
        drawn = {label: mark for axes in panels for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(drawn.values(), drawn.keys(), loc="outside right upper", fontsize=SMALL)
        figure.savefig(path, dpi=130)


def _weighing(row: dict[str, Any]) -> tuple[float, int]:
    return row["weight"], row["k"]


def _panel(axes: Axes, rows: Rows, looks: list[tuple[float, int]], teacher: dict[str, Any] | None) -> None:
    losses = [loss for loss in dict.fromkeys(row["loss"] for row in rows) if loss != "none"]
    here = [look for look in looks if any(_weighing(row) == look for row in rows)]
    for place, (weight, k) in enumerate(here):
        mark, color = _LOOKS[looks.index((weight, k)) % len(_LOOKS)]
        for at, loss in enumerate(losses):
            spread = Spread.of(_some(rows, loss=loss, weight=weight, k=k), "ndcg_at_10")
            if spread:
                reach = [[spread.mean - spread.low], [spread.high - spread.mean]]
                x = at + 0.12 * (place - (len(here) - 1) / 2)
                axes.errorbar(x, spread.mean, reach, fmt=mark, color=color, label=f"a {weight:g}, K {k}", markersize=5)
    undistilled = Spread.of(_some(rows, loss="none"), "ndcg_at_10")
    if undistilled:
        axes.axhspan(undistilled.low, undistilled.high, color="#e4e7eb", lw=0)
        axes.axhline(undistilled.mean, color=QUIET, label="no distillation")
    if teacher:
        axes.axhline(teacher["ndcg_at_10"], color=QUIET, linestyle="--", label="teacher")
    names = [loss.replace("_", "\n", 1).replace(" at ", "\nat ") for loss in losses]
    axes.set_xticks(range(len(losses)), names, fontsize=SMALL)
    axes.set_xlim(-0.5, max(len(losses), 3) - 0.5)


def as_markdown(rows: Rows) -> str:
    """A heading and a table a shop and night: a line for each loss, weight and K, a pair of columns a width."""
    return "\n\n".join(
        _table([row for row in _students(rows) if _group(row) == group], rows) for group in _groups(rows)
    )


def _table(some: Rows, rows: Rows) -> str:
    widths = sorted({row["width"] for row in some})
    heads = [f"width {width}, {metric}" for width in widths for metric in ("NDCG@10", "HR@10")]
    lines = [f"### {_group(some[0])}", ""]
    teacher = _teacher(rows, some[0])
    if teacher:
        figures = f"NDCG@10 {teacher['ndcg_at_10']:.4f}, HR@10 {teacher['hr_at_10']:.4f}"
        lines += [f"Teacher: {figures}. Mean (range) over seeds, test users.", ""]
    lines += [f"| loss | a | K | seeds | {' | '.join(heads)} |", "|---|---|---|---|" + "---|" * len(heads)]
    for loss, weight, k in dict.fromkeys((row["loss"], row["weight"], row["k"]) for row in some):
        same = _some(some, loss=loss, weight=weight, k=k)
        cells = [
            str(Spread.of(_some(same, width=width), metric) or "-")
            for width in widths
            for metric in ("ndcg_at_10", "hr_at_10")
        ]
        seeds = "; ".join(str(len(_some(same, width=width))) for width in widths)
        lines.append(f"| {loss} | {weight:g} | {k} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines)
