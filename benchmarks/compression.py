"""What each way to make a student smaller costs and saves, alone and together. `python -m benchmarks.compression --home DIR`

DIR is a home where `recsys nightly` ran: its last night's float student, dataset and soft labels are used as `compress`
used them. Every row is compared with the float student on the same users, of validation and of test, by the paired
bootstrap (two one-sided 95 % bounds). Nothing is chosen here, so the test users decide nothing. Beside what is pruned
stands the control, unpruned and trained on for as long; recovery by soft labels, by hard ones and with rounded weights are
rows of their own.

Rows are appended to --out as they are measured; what is there already is not measured again. The last lines are the
table of docs/compression.md.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from matplotlib.figure import Figure

from recsys.canvas import BLUE, GREEN, INK, ORANGE, PURPLE, SMALL, VERMILION, style
from recsys.compress import fewer
from recsys.dataset import Dataset
from recsys.export import Publication, export
from recsys.graph import Bits, serving_graph
from recsys.losses import Distillation
from recsys.neighbourhood import Opinion
from recsys.prune import Importance, importance, pruned
from recsys.quantize import dequantized, rounded
from recsys.recommender import Recommender
from recsys.recovery import Recovered, Recovery, Retrainer, Retraining
from recsys.runtime import Runtime
from recsys.score_rounding import score_rounded
from recsys.sequence_model import Scorer, ndcg_of
from recsys.soft_labels import Positions, Segment, SoftLabels
from recsys.statistics import paired_ratio
from recsys.student import Student
from tasks.adapters.settings import Settings
from tasks.adapters.store import Store

COLORS = {"float": INK, "bits": BLUE, "control": ORANGE, "pruned": GREEN, "neighbours": PURPLE, "together": VERMILION}
AGAIN = {"soft": "soft labels again", "hard": "hard labels again", "rounded": "rounded in training"}
MARKS = {"": "o", "soft": "s", "hard": "^", "rounded": "D"}


@dataclass(frozen=True)
class Way:
    """One way to make the student smaller. What it leaves alone is as the student has it, in float."""

    kind: str
    table: Bits = 32
    linears: Bits = 32  # and positions
    ffn: float = 1.0
    heads: float = 1.0
    neighbours: float = 1.0
    recovery: Recovered = ""

    @property
    def name(self) -> str:
        """What is done, in words."""
        shares = {"units": self.ffn, "heads": self.heads, "neighbours": self.neighbours}
        said = [f"{what} {share:.0%}" for what, share in shares.items() if share < 1]
        bits = {"table": self.table, "linears": self.linears}
        said += [f"{what} {count} bits" for what, count in bits.items() if count < 32]
        again = [AGAIN[self.recovery]] if self.recovery else []
        return ", ".join(said + again) or "float student"

    @property
    def is_served(self) -> bool:
        """Whether there is a file of it: the published formats round table and linears together."""
        return (self.table == 32) == (self.linears == 32)


def ways(heads: bool, neighbours: bool, distilled: bool) -> Iterator[Way]:
    """The rows of the ablation for a student with several heads or one, with neighbours, with soft labels."""
    recoveries: tuple[Recovered, ...] = ("soft", "hard") if distilled else ("hard",)
    yield Way("float")
    yield from (Way("bits", table=bits) for bits in (8, 4))
    yield Way("bits", linears=8)
    yield from (Way("bits", table=bits, linears=8) for bits in (8, 4))
    yield from (Way("control", recovery=how) for how in recoveries)
    shares = [(0.5, 1.0), (0.25, 1.0), *([(1.0, 0.5)] if heads else [])]
    yield from (Way("pruned", ffn=ffn, heads=kept, recovery=how) for ffn, kept in shares for how in ("", *recoveries))
    yield from (Way("neighbours", neighbours=share) for share in ((0.5, 0.0) if neighbours else ()))
    fewest = 0.5 if heads else 1.0
    for bits in (8, 4):
        yield from (Way("together", bits, 8, recovery=how) for how in recoveries)
        yield Way("together", bits, 8, recovery="rounded")
        for kept in dict.fromkeys((1.0, fewest)):
            yield from (Way("together", bits, 8, 0.25, kept, recovery=how) for how in ("", *recoveries, "rounded"))
        if neighbours:
            yield Way("together", bits, 8, 0.25, fewest, 0.0, recoveries[0])


@dataclass(frozen=True)
class Home:
    """What the last night of a home compressed, and how."""

    student: Student
    digest: str
    dataset: Dataset
    publication: Publication
    recovery: Recovery
    epochs: float

    @classmethod
    def open(cls, folder: Path) -> "Home":
        """From the store alone: the artifact of the last night names all it was made from."""
        store = Store(Settings.from_environment(folder).store)
        head = store.head("last-night")
        if not head:
            raise SystemExit(f"no night has ended in {folder}: run recsys nightly --home {folder} first")
        grid = store.manifest("compress", store.manifest("artifact", head["artifact"]).parents[0])
        digest, of_data, *segments = grid.parents
        config, kept = grid.config["recovery"], store.open("distil", digest)
        dataset = Dataset.load(store.open("build", of_data))
        labels = [store.open("label", segment) for segment in segments]
        positions = Positions.of(dataset.histories, grid.config["length"])
        soft = SoftLabels.open(labels, positions, Segment.load(labels[-1]).labelling)
        best = next(trial for trial in json.loads((kept / "trials.json").read_text()) if trial["best"])
        return cls(
            student=Student.load(kept),
            digest=digest,
            dataset=dataset,
            publication=Publication(
                dataset.catalog, dataset.training_counts(), dataset.repeats, {"student": digest}, Opinion.load(kept)
            ),
            recovery=Recovery(
                dataset.histories, Distillation(
                    soft, best["weight"], best["k"], config["loss"], temperature=best.get("temperature", 1.0)
                ),
                config["learning_rate"], dataset.validation_cases(), config["seed"], best["weight"] > 0,
            ),
            epochs=grid.config["recovery_epochs"] or 1,
        )  # fmt: skip


class Ablation:
    """Makes each way's student once and measures it beside the float student."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.cases = {"validation": home.dataset.validation_cases(), "test": home.dataset.test_cases()}
        scorer = Scorer(home.student, home.student.length, "student", opinion=home.publication.opinion)
        self.float_student = {window: ndcg_of(scorer, cases) for window, cases in self.cases.items()}
        self.smaller: Callable[[float, float, Recovered, Bits], tuple[Student, float]] = cache(self._smaller)
        self._scores: Importance | None = None

    def row(self, way: Way) -> dict[str, object]:
        """One line of the results file."""
        bits: Bits = way.table if way.recovery == "rounded" else 32  # all other training knows of no file
        student, seconds = self.smaller(way.ffn, way.heads, way.recovery, bits)
        student = score_rounded(student, self.home.recovery.histories, way.table)
        publication = fewer(self.home.publication, way.neighbours)
        found = self._served(student, publication, way) if way.is_served else self._by_torch(student, publication, way)
        return {
            "student": self.home.digest, "name": way.name, "recovery_seconds": round(seconds, 1), **asdict(way), **found
        }  # fmt: skip

    def _served(self, student: Student, publication: Publication, way: Way) -> dict[str, object]:
        with TemporaryDirectory() as folder:
            size = export(student, publication, way.table, Path(folder)).model_bytes
            return {"bytes": size, **self._measured(Runtime.open(Path(folder)))}

    def _by_torch(self, student: Student, publication: Publication, way: Way) -> dict[str, object]:
        """Of what has no file: scores from the dequantized weights, and the bytes that its parts have in other files."""
        part = deepcopy(rounded(student, way.linears))
        if way.table != 32:
            part.table.weight.data = dequantized(student.item_table(), way.table)
        scorer = Scorer(part, part.length, "part", opinion=publication.opinion)
        size = len(serving_graph(student, way.table, publication.opinion))
        size += bytes_saved(student) * (1 if way.linears == 32 else -1)
        return {"bytes": size, **self._measured(scorer)}

    def _measured(self, model: Recommender) -> dict[str, object]:
        measured: dict[str, object] = {}
        for window, cases in self.cases.items():
            reached = ndcg_of(model, cases)
            change = paired_ratio(reached, self.float_student[window])
            measured[window] = {"users": len(cases), "ndcg_at_10": float(reached.mean()), "change": asdict(change)}
        return measured

    def _smaller(self, ffn: float, heads: float, recovery: Recovered, bits: Bits) -> tuple[Student, float]:
        """The student pruned and trained on, and what the training took, in seconds."""
        home, student = self.home, self.home.student
        if ffn < 1 or heads < 1:
            again = home.recovery
            self._scores = self._scores or importance(student, again.histories, again.objective, again.seed)
            student = pruned(student, self._scores, ffn, heads)
        if not recovery:
            return student, 0.0
        order, began = (
            Retraining(student, recovery == "hard", bits if recovery == "rounded" else 32),
            time.perf_counter(),
        )
        recovered, _ = Retrainer(home.recovery, home.epochs).trained(order)
        return recovered, time.perf_counter() - began


def bytes_saved(student: Student) -> int:
    """What eight bits save of linears and positions: three bytes an element, less a scale a row."""
    matrices = [w for name, w in student.named_parameters() if w.ndim == 2 and name != "table.weight"]
    return sum(3 * w.numel() - 4 * len(w) for w in matrices)


def as_markdown(rows: Sequence[dict]) -> str:
    """The table of docs/compression.md."""
    whole = rows[0]["bytes"]
    lines = [
        f"{rows[0]['validation']['users']:,} validation users, {rows[0]['test']['users']:,} test users.",
        "",
        "| way | kB | of float | NDCG@10, validation | change | NDCG@10, test | change | recovery s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["name"], f"{row['bytes'] / 1e3:,.0f}", f"{row['bytes'] / whole:.0%}"]
        for window in ("validation", "test"):
            change = row[window]["change"]
            cells += [
                f"{row[window]['ndcg_at_10']:.4f}",
                f"{change['value']:+.1%} ({change['low']:+.1%} to {change['high']:+.1%})",
            ]
        lines.append(f"| {' | '.join(cells)} | {row['recovery_seconds']:.0f} |")
    return "\n".join(lines)


def draw(rows: Sequence[dict], path: Path) -> None:
    """Bytes against the change of NDCG@10 to the float student, with its bounds, one panel a window."""
    with style():
        figure = Figure(figsize=(10, 4.8), layout="constrained", facecolor="white")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, window in zip(panels, ("validation", "test"), strict=True):
            axes.axhline(0, color=INK, linewidth=0.8)
            for row in rows:
                change, mark = row[window]["change"], MARKS[row["recovery"]]
                reach = np.array([[change["value"] - change["low"]], [change["high"] - change["value"]]])
                look = {"color": COLORS[row["kind"]], "markersize": 5, "elinewidth": 0.8, "alpha": 0.85}
                axes.errorbar(row["bytes"] / 1e3, 100 * change["value"], 100 * np.maximum(reach, 0), fmt=mark, **look)
            axes.set_xlabel("kB of model.onnx")
            axes.set_title(f"{row[window]['users']:,} {window} users", loc="left", fontsize=SMALL)
        panels[0].set_ylabel("change of NDCG@10 to the float student, %")
        for kind, color in COLORS.items():
            panels[1].plot([], [], "o", color=color, label=kind)
        for recovery, label in AGAIN.items():
            panels[1].plot([], [], MARKS[recovery], color=INK, fillstyle="none", label=label)
        figure.legend(loc="outside right upper", fontsize=SMALL)
        figure.savefig(path, dpi=130)


def main() -> None:
    """Measures what is not there yet, then tells and draws all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/compression.jsonl"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/compression.png"))
    asked = parser.parse_args()
    home = Home.open(asked.home)
    planned = list(
        ways(max(home.student.shape.heads) > 1, home.publication.opinion is not None, home.recovery.distilled)
    )
    there = read(asked.out, home.digest)
    missing = [way for way in planned if way.name not in there]
    print(f"{len(missing)} of {len(planned)} rows are missing", flush=True)
    ablation = Ablation(home) if missing else None
    for way in missing:
        assert ablation is not None
        there[way.name] = ablation.row(way)
        with asked.out.open("a") as file:
            file.write(json.dumps(there[way.name], sort_keys=True) + "\n")
        print(way.name, flush=True)
    rows = [there[way.name] for way in planned]
    draw(rows, asked.picture)
    print(as_markdown(rows))


def read(out: Path, digest: str) -> dict[str, dict]:
    """The rows of a student that are there already, by name."""
    lines = out.read_text().splitlines() if out.exists() else []
    return {row["name"]: row for row in map(json.loads, lines) if row["student"] == digest}


if __name__ == "__main__":
    main()
