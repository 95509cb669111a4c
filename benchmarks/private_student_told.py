"""The price of differential privacy retold: a table a shop."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Rows = Sequence[dict[str, Any]]
_KIND = ("model", "epsilon", "width", "rows", "length", "steps", "sampling", "clip", "learning_rate")
_HEADS = ("model", "epsilon", "width", "rows", "length", "steps", "sampling", "noise", "seeds", "NDCG@10", "HR@10")
_SHARES = ("of most-popular", "of the undistilled", "membership AUC")


def as_markdown(rows: Rows) -> str:
    """A line for each model that was tested, means over seeds; shares are of means."""
    tables = []
    for shop in dict.fromkeys(row["made_from"] for row in rows):
        tested = [row for row in rows if row["made_from"] == shop and not row["validation_only"]]
        if tested:
            tables.append("\n".join(_table(tested)))
    return "\n\n".join(tables)


def _table(rows: Rows) -> list[str]:
    heads = (*_HEADS, *_SHARES)
    lines = [
        f"### {rows[0]['shop']} ({rows[0]['made_from']})",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    popular = [row for row in rows if row["model"] == "most-popular"]
    for kind in dict.fromkeys(tuple(row[name] for name in _KIND) for row in rows):
        some = [row for row in rows if tuple(row[name] for name in _KIND) == kind]
        undistilled = [row for row in rows if row["model"] == "none" and row["width"] == some[0]["width"]]
        aucs = [row["membership_auc"]["value"] for row in some if row["membership_auc"]]
        cells = [f"{value:g}" if isinstance(value, float) else str(value) for value in kind[:7]]
        cells += [f"{some[0]['noise']:.3g}", str(len(some)), _bounded(some, "ndcg_at_10"), _bounded(some, "hr_at_10")]
        cells += [_share(some, popular), _share(some, undistilled), f"{np.mean(aucs):.3f}" if aucs else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mean(rows: Rows, name: str, bound: str = "value") -> float:
    return float(np.mean([row[name][bound] for row in rows]))


def _share(some: Rows, of: Rows) -> str:
    """Of their NDCG@10; nothing of no rows."""
    return f"{_mean(some, 'ndcg_at_10') / _mean(of, 'ndcg_at_10'):.0%}" if of else ""


def _bounded(rows: Rows, name: str) -> str:
    """Of several seeds the means of the bounds: they are over users, not over trainings."""
    value, low, high = (_mean(rows, name, bound) for bound in ("value", "low", "high"))
    return f"{value:.4f} ({low:.4f} to {high:.4f})"
