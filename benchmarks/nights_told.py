"""Nights retold: the figure of docs/images/nights.png and the section of docs/results.md."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recsys.canvas import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, QUIET, SMALL, VERMILION, style

_BANDS = ("#dbe9f6", "#fbe6d4", "#d9efe4", "#f4e1ee", "#fdf1cf")
_DECISIONS = {"PROMOTE": ("^", GREEN), "HOLD": ("o", ORANGE), "REJECT": ("X", VERMILION), "NO CHANGE": ("s", BLUE)}

_EFFORTS = {"seconds": "wall seconds", "cpu_seconds": "CPU seconds"}


def draw(rows: Sequence[dict], path: Path) -> None:
    """Four panels over the nights: who was champion, quality at the gate, quality afterwards, seconds and disk."""
    with style():
        figure = Figure(figsize=(11, 11.5), layout="constrained", facecolor="white")
        heights = {"height_ratios": [0.9, 2, 2, 1.6]}
        above, gate, after, below = figure.subplots(4, 1, sharex=True, gridspec_kw=heights)
        _champions(above, rows)
        names = {"teacher": QUIET, "artifact": VERMILION, "neighbours": BLUE, "most-popular": PURPLE}
        for name, color in names.items():
            _line(gate, rows, [row["ndcg"].get(name) for row in rows], name, color)
        gate.set_ylabel("NDCG@10")
        gate.set_title("Tonight's candidate on the gate's test users", loc="left", fontsize=10, color=INK)
        for name, color in {"champion": GREEN, "neighbours": BLUE, "most_popular": PURPLE}.items():
            rates = [row["served"] and row["served"]["hit_rate"][name] for row in rows]
            _line(after, rows, rates, name.replace("_", "-"), color)
        after.set_ylabel("hit rate@10")
        after.set_title(
            "The champion's lists on the days that followed, which nobody had seen", loc="left", fontsize=10
        )
        _effort(below, rows)
        for axes in (gate, after):
            axes.margins(y=0.1)
            axes.set_ylim(bottom=0)
            axes.legend(ncols=4, loc="lower right", bbox_to_anchor=(1, 1.0), fontsize=SMALL)
        below.set_xticks(
            [row["night"] for row in rows], [row["as_of"][5:] for row in rows], rotation=90, fontsize=SMALL
        )
        below.set_xlabel("night, by its as-of day")
        figure.savefig(path, dpi=130)


def as_markdown(rows: Sequence[dict], options: Sequence[str]) -> str:
    """A heading, the command, what the nights say, and a table with a line a night."""
    warm = [row for row in rows[1:] if not row["new_teacher"]]
    decisions = {name: sum(row["decision"] == name for row in rows) for name in _DECISIONS}
    told = ", ".join(f"{count} {name}" for name, count in decisions.items() if count)
    lines = [
        f"### {len(rows)} nights",
        f"`python -m benchmarks.nights {' '.join(options)}`: {told}. Home at the end: {rows[-1]['home_bytes'] / 1e6:,.0f} MB.",
    ]
    if warm:
        shares = [f"{median(w[of] for w in warm) / rows[0][of]:.0%} of its {name}" for of, name in _EFFORTS.items()]
        lines.append(
            f"A night with a fresh teacher took {median(w['seconds'] for w in warm):.0f} s (median), the first "
            f"{rows[0]['seconds']:.0f} s: {', '.join(shares)}; the longest {max(w['seconds'] for w in warm):.0f} s."
        )
    served = [row["served"] for row in rows if row["served"] and row["served"]["users"]]
    if served:
        users = np.array([each["users"] for each in served])
        means = {
            name: float(np.average([s["hit_rate"][name] for s in served], weights=users))
            for name in served[0]["hit_rate"]
        }
        figures = ", ".join(f"{name.replace('_', '-')} {mean:.4f}" for name, mean in means.items())
        ahead = sum(each["hit_rate"]["champion"] > each["hit_rate"]["neighbours"] for each in served)
        lines.append(
            f"Hit rate@10 on the days that followed, weighted by users: {figures}; the champion was ahead of the "
            f"neighbours after {ahead} of {len(served)} nights. The windows overlap: these nights are not independent."
        )
    lines += [
        "",
        "| as of | verdict | champion | artifact | neighbours | popular | test users | hits later: champion | neighbours | popular | users | s | MB | new teacher |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"]
    return "\n".join([*lines, *map(_table_row, rows), ""])


def _table_row(row: dict) -> str:
    quality = [_number(row["ndcg"].get(name)) for name in ("artifact", "neighbours", "most-popular")]
    served = row["served"]
    later = [_number(served and served["hit_rate"][name]) for name in ("champion", "neighbours", "most_popular")]
    remark = f" ({row['remark']})" if row["remark"] else ""
    cells = [row["as_of"], row["decision"] + remark, row["champion"] or "-", *quality, f"{row['test_users']:,}", *later]
    cells += [served["users"] if served else "-", f"{row['seconds']:.0f}", f"{row['home_bytes'] / 1e6:.0f}"]
    return "| " + " | ".join(str(cell) for cell in [*cells, "yes" if row["new_teacher"] else ""]) + " |"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _champions(axes: Axes, rows: Sequence[dict]) -> None:
    """A band for each reign, a mark for each verdict."""
    start = 0
    for place, row in enumerate(rows):
        if place + 1 == len(rows) or rows[place + 1]["champion"] != row["champion"]:
            left, right = rows[start]["night"] - 0.5, row["night"] + 0.5
            if row["champion"]:
                axes.axvspan(left, right, color=_BANDS[row["champion"] % len(_BANDS)], lw=0)
            label = f"v{row['champion']}" if row["champion"] else "none"
            axes.text((left + right) / 2, 0.72, label, ha="center", va="center", fontsize=SMALL, color=INK)
            start = place + 1
    for decision, (mark, color) in _DECISIONS.items():
        nights = [row["night"] for row in rows if row["decision"] == decision]
        if nights:
            axes.plot(nights, [0.3] * len(nights), mark, color=color, label=decision, markersize=6)
    for row in rows:
        if "rolled back" in row["remark"]:
            axes.annotate("rollback", (row["night"], 0.3), (row["night"], 0.02), ha="center", fontsize=SMALL, color=INK)
        elif row["remark"]:
            axes.annotate("forced", (row["night"], 0.3), (row["night"], 0.02), ha="center", fontsize=SMALL, color=INK)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.grid(False)
    axes.set_title("Champion, and each night's verdict", loc="left", fontsize=10)
    axes.legend(ncols=4, loc="lower right", bbox_to_anchor=(1, 1.0), fontsize=SMALL)


def _line(axes: Axes, rows: Sequence[dict], values: Sequence[float | None], name: str, color: str) -> None:
    points = [float("nan") if value is None else value for value in values]
    axes.plot([row["night"] for row in rows], points, "o-", color=color, label=name, markersize=3.5, linewidth=1.6)


def _effort(axes: Axes, rows: Sequence[dict]) -> None:
    """Seconds as bars, those of a new teacher in another colour; the home's size as a line on its own scale."""
    for new, color, label in ((True, ORANGE, "new teacher"), (False, FAINT, "teacher reused")):
        some = [row for row in rows if row["new_teacher"] is new]
        axes.bar([row["night"] for row in some], [row["seconds"] for row in some], color=color, label=label)
    axes.set_ylabel("seconds")
    axes.set_title("What a night takes, and how large the home is", loc="left", fontsize=10)
    disk = axes.twinx()
    disk.plot([row["night"] for row in rows], [row["home_bytes"] / 1e6 for row in rows], color=INK, label="home, MB")
    disk.set_ylabel("MB")
    disk.set_ylim(bottom=0)
    disk.grid(False)
    handles = [(*axes.get_legend_handles_labels(),), (*disk.get_legend_handles_labels(),)]
    axes.legend(
        handles[0][0] + handles[1][0],
        handles[0][1] + handles[1][1],
        ncols=3,
        loc="lower right",
        bbox_to_anchor=(1, 1.0),
        fontsize=SMALL,
    )
