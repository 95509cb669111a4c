"""What each loss from the teacher, its weight and K are worth: students of one fixed teacher and its stored labels.

    python -m benchmarks.distillation --data DIR/SHOP [--home DIR] [--widths 16 32] [--losses none topk_tail ...]
        [--weights .5 .9] [--kept 10 50] [--temperatures 1 2] [--dropouts .2] [--seeds 0 1] [--epochs 15]
        [--preset quick] [--split temporal]

The teacher and the labels are those of the last night of --home; where no night has ended, one is run first. Each
student is one row of the result, written as soon as it is known; rows that are there are not run again. Epochs are
chosen on validation users; test users are scored once a row. `none` is the student without distillation. For `hidden`
the teacher labels once more, with its states, into a folder of its own.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Self

from benchmarks.distillation_told import DROPOUT, as_markdown, draw
from benchmarks.one_night import recsys
from recsys.config import SearchConfig, SoftLossName
from recsys.dataset import Dataset
from recsys.decoder import DecoderShape
from recsys.evaluate import evaluate
from recsys.labeller import labeller
from recsys.losses import HIDDEN, Distillation
from recsys.sequence_model import Scorer, ranking_validator
from recsys.soft_labels import SEGMENT, Positions, Segment, SoftLabels, write_segment
from recsys.soft_losses import SOFT_LOSSES
from recsys.student import Student
from recsys.teacher_scores import TeacherHead
from recsys.teachers import load_teacher
from recsys.training import Schedule, device, fit
from tasks import computing
from tasks.adapters.settings import Settings
from tasks.adapters.store import Manifest, Store
from tasks.last_night import HEAD, LastNight

NONE = "none"
LOSSES: tuple[SoftLossName, ...] = (*SOFT_LOSSES, HIDDEN)
SECONDS_A_POSITION = 6e-5
"""Of one epoch on one core, width 32, until a row of this shop has been measured."""


@dataclass(frozen=True)
class Cell:
    """One student: what sets it apart."""

    width: int  # D
    loss: str  # of recsys/soft_losses.py, or none
    weight: float  # a; 0: none
    k: int  # soft labels used
    seed: int
    temperature: float = 1.0  # of hidden
    dropout: float = DROPOUT


@dataclass(frozen=True)
class Lesson:
    """What all students learn from and are judged on."""

    shop: str
    dataset: Dataset
    labels: SoftLabels
    length: int  # L, the most items that are read
    teacher: Path  # folder
    made_from: str  # the beginning of the digests of dataset and teacher

    @classmethod
    def of(cls, shop: str, store: Store) -> Self:
        """Of the last night of a home."""
        night = LastNight.of(store).dataset
        found = [Manifest.read(path) for path in (store.root / "objects" / "label").glob("*.json")]
        labels = [one for one in found if one is not None and one.parent_digests[1] == night]
        newest = max(labels, key=lambda one: store.made_at("label", one.digest) or 0)
        teacher, _, *earlier = newest.parent_digests
        segments = [store.open("label", digest) for digest in (*earlier, newest.digest)]
        dataset, length = Dataset.load(store.open("build", night)), int(newest.config["length"])
        joined = SoftLabels.open(
            segments, Positions.of(dataset.histories, length), Segment.load(segments[-1]).labelling
        )
        return cls(shop, dataset, joined, length, store.open("teach", teacher), f"{night[:12]} {teacher[:12]}")

    def with_states(self, folder: Path) -> Self:
        """Labels of the same teacher that keep its states, written into the folder if it has none."""
        labelling, positions = (
            replace(self.labels.labelling, states=True),
            Positions.of(self.dataset.histories, self.length),
        )
        teacher = labeller(load_teacher(self.teacher), labelling.teacher_bits)
        if not (folder / SEGMENT).exists():
            write_segment(teacher.model, labelling, positions, [], folder, opinion=teacher.opinion)
        head = TeacherHead.of(teacher.model, teacher.opinion)
        return replace(self, labels=SoftLabels.open([folder], positions, labelling, head))

    @property
    def positions(self) -> int:
        """P, trained on in an epoch."""
        return int((self.labels.rows >= 0).sum())


def main() -> None:
    """Runs what is asked for and not yet there, and tells all."""
    asked = _arguments()
    settings = Settings.from_environment(asked.home)
    if Store(settings.store).head(HEAD) is None:
        _night(asked)
    computing.use(settings)
    lesson = Lesson.of(asked.data.name, Store(settings.store))
    rows = [json.loads(line) for line in asked.out.open()] if asked.out.exists() else []
    there = {_identity(row) for row in rows}
    cells = [c for c in _cells(asked, lesson) if _identity(_row(lesson, c, asked.epochs)) not in there]
    minutes = _minutes(lesson, cells, rows, asked.epochs)
    print(f"{len(cells)} students of {lesson.positions:,} positions, about {minutes:.0f} minutes", flush=True)
    if not any(row["loss"] == "teacher" and row["made_from"] == lesson.made_from for row in rows):
        _append(asked.out, rows, _teacher(lesson))
    folder = asked.home / "labels-with-states" / lesson.made_from.replace(" ", "-")
    hidden = lesson.with_states(folder) if any(cell.loss == HIDDEN for cell in cells) else lesson
    for cell in cells:
        learnt = hidden if cell.loss == HIDDEN else lesson
        _append(asked.out, rows, {**_row(lesson, cell, asked.epochs), **_student(learnt, cell, asked.epochs)})
    draw(rows, asked.picture)
    print(as_markdown(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--home", type=Path, default=Path("build/distillation"))
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--losses", nargs="+", choices=[NONE, *LOSSES], default=[NONE, *LOSSES])
    parser.add_argument("--weights", type=float, nargs="+", default=[0.5, 0.9])
    parser.add_argument("--kept", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1, 2])
    parser.add_argument("--dropouts", type=float, nargs="+", default=[DROPOUT])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=SearchConfig().epochs)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--split", default="temporal")
    parser.add_argument("--out", type=Path, default=Path("docs/distillation.jsonl"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/distillation.png"))
    return parser.parse_args()


def _night(asked: argparse.Namespace) -> None:
    words = ["nightly", "--preset", asked.preset, "--split", asked.split]
    recsys(asked.home, *words, "--events", asked.data / "events.parquet", "--items", asked.data / "items.parquet")


def _cells(asked: argparse.Namespace, lesson: Lesson) -> Iterator[Cell]:
    """Seed by seed, so that a run that is cut short has every loss; K is nothing to the first rank alone, nor to all."""
    most = lesson.labels.labelling.top_k
    kept = sorted({min(k, most) for k in asked.kept})
    for seed, width, dropout, loss in product(asked.seeds, asked.widths, asked.dropouts, asked.losses):
        if loss == NONE:
            yield Cell(width, NONE, 0.0, 0, seed, dropout=dropout)
            continue
        ks = {"hard_label": [1], HIDDEN: [most]}.get(loss, kept)
        for weight, k, T in product(asked.weights, ks, asked.temperatures if loss == HIDDEN else (1.0,)):
            yield Cell(width, loss, weight, k, seed, T, dropout)


def _row(lesson: Lesson, cell: Cell, epochs: int) -> dict[str, Any]:
    return {"shop": lesson.shop, "made_from": lesson.made_from, "epochs": epochs, **asdict(cell)}


def _identity(row: dict[str, Any]) -> tuple[object, ...]:
    names = ("made_from", "epochs", "width", "loss", "weight", "k", "seed")
    return (*(row.get(name) for name in names), row.get("temperature", 1.0), row.get("dropout", DROPOUT))


def _minutes(lesson: Lesson, cells: Sequence[Cell], rows: Sequence[dict[str, Any]], epochs: int) -> float:
    """From the rows of this shop that were measured, or from a guess."""
    seconds = [row["seconds"] / row["epochs"] for row in rows if row["shop"] == lesson.shop and row["epochs"]]
    an_epoch = median(seconds) if seconds else SECONDS_A_POSITION * lesson.positions
    return len(cells) * epochs * an_epoch / 60


def _append(out: Path, rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        file.write(json.dumps(row, sort_keys=True) + "\n")
    rows.append(row)
    print(json.dumps(row, sort_keys=True), flush=True)


def _teacher(lesson: Lesson) -> dict[str, Any]:
    """The teacher that labelled, as it labelled: the row all students are held against."""
    began, model = time.monotonic(), load_teacher(lesson.teacher)
    row = _row(lesson, Cell(model.model.item_table().shape[1], "teacher", 0.0, 0, 0), 0)
    tested = _tested(lesson, model.scorer("teacher"))
    return {**row, "validation_ndcg": None, **tested, "seconds": round(time.monotonic() - began, 1)}


def _student(lesson: Lesson, cell: Cell, epochs: int) -> dict[str, Any]:
    """A student, trained as the search trains one, and scored on the test users once."""
    began, knobs = time.monotonic(), SearchConfig()
    shape = DecoderShape.of(lesson.dataset.catalog.items, cell.width, 1, lesson.length)
    student = Student.untrained(shape, cell.dropout, cell.seed).to(device())
    objective = Distillation(lesson.labels, cell.weight, cell.k)
    if cell.loss != NONE:
        loss = next(name for name in LOSSES if name == cell.loss)
        objective = Distillation(lesson.labels, cell.weight, cell.k, loss, temperature=cell.temperature)
    trained = fit(
        student,
        lesson.dataset.histories,
        lesson.length,
        Schedule(epochs, knobs.learning_rate, cell.seed),
        objective,
        ranking_validator(student, lesson.dataset.validation_cases()),
    )
    best = max(trained, key=lambda epoch: epoch.validation_ndcg)
    tested = _tested(lesson, Scorer(student, lesson.length, "student"))
    measured = {"validation_ndcg": best.validation_ndcg, "best_epoch": best.number, **tested}
    return {**measured, "seconds": round(time.monotonic() - began, 1)}


def _tested(lesson: Lesson, model: Scorer) -> dict[str, float]:
    report = evaluate(model, lesson.dataset.test_cases(), lesson.dataset, 0)
    return {name: float(report.metrics[name].mean()) for name in ("ndcg_at_10", "hr_at_10")}


if __name__ == "__main__":
    main()
