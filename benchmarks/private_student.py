"""What differential privacy would cost: students that learn from clicks alone by user-level DP-SGD, epsilon by epsilon.

    python -m benchmarks.private_student --data DIR/SHOP [--home DIR] [--widths 16 32] [--rows ids texts]
        [--epsilons 1 4 8 16 64] [--seeds 0] [--steps 60] [--sampling .1] [--clip 1] [--learning-rate .01]
        [--length 32] [--validation-only] [--preset quick] [--split temporal]

The dataset is that of the last night of --home; where no night has ended, one is run first. Labels, neighbours, warm start and
the popular items of the artifact have all read private data, so a private student has none of them. Public are the catalog and
the items' texts: its item rows are learnt (`ids`), or a linear map of the texts (`texts`). Beside it: the student as the night trains it without
distillation (`none`), the private loop without noise (`clipped`), most-popular with and without noise, and neighbours.

A row is written as soon as it is known; rows that are there are not made again. Several values of --steps, --sampling, --clip and
--learning-rate are all tried; with --validation-only the test users are not looked at, and a course is chosen by what is told then.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.distillation import Lesson
from benchmarks.dp_accountant import noise_for
from benchmarks.dp_sgd import Course, PrivateStudent, UserLines, train
from benchmarks.one_night import recsys
from benchmarks.private_student_told import as_markdown
from recsys.baselines import MostPopular, Neighbours
from recsys.config import SearchConfig, TextConfig
from recsys.decoder import DecoderShape
from recsys.evaluate import evaluate
from recsys.item_text import TextEncoder, cached_vectors, whitened
from recsys.membership import Suspects, attack
from recsys.presets import PRESETS
from recsys.recommender import Recommender
from recsys.sequence_model import Scorer, ranking_validator
from recsys.statistics import mean_interval, paired_ratio
from recsys.student import Student
from recsys.training import HardLabels, Schedule, fit
from tasks import computing
from tasks.adapters.settings import Settings
from tasks.adapters.store import Store
from tasks.last_night import HEAD

MOST_DELTA = 1e-5
"""Delta is this, or a tenth of one user's share where that is smaller."""


@dataclass(frozen=True)
class Cell:
    """One model: what sets it apart. What it has no use for is 0 or empty."""

    model: str  # none, clipped, private, most-popular, private-popular, neighbours
    epsilon: float = 0.0
    width: int = 0  # D
    rows: str = ""  # ids or texts
    seed: int = 0
    steps: int = 0
    sampling: float = 0.0
    clip: float = 0.0
    learning_rate: float = 0.0
    length: int = 0  # newest positions of a user that are learnt from, and read


@dataclass(frozen=True)
class School:
    """What all models learn from and are judged on."""

    lesson: Lesson
    knobs: SearchConfig
    cache: Path

    def lines(self, length: int) -> UserLines:
        """What the users did, the newest positions of each."""
        return UserLines.of(self.lesson.dataset.histories, length)

    @cached_property
    def texts(self) -> np.ndarray:
        """(N, T), whitened as the teacher has them."""
        config = TextConfig()
        return whitened(cached_vectors(TextEncoder(config), self.lesson.dataset.catalog, self.cache), config.dims)

    @cached_property
    def suspects(self) -> Suspects:
        """Whom the membership attack of every night asks about."""
        return Suspects.of(self.lesson.dataset)

    @cached_property
    def peers(self) -> dict[str, Recommender]:
        """The baselines of the night."""
        dataset = self.lesson.dataset
        near = Neighbours(dataset.histories, dataset.catalog.items)
        return {"most-popular": MostPopular(dataset.training_counts()), "neighbours": near}

    @cached_property
    def of_peers(self) -> dict[str, np.ndarray]:
        """(C,) NDCG@10 of each test user, by baseline."""
        return {name: self.metrics(model)["ndcg_at_10"] for name, model in self.peers.items()}

    @property
    def users(self) -> int:
        """U, who have something to learn from. How many they are is taken for public."""
        return int((self.lesson.dataset.histories.train_end > 1).sum())

    @property
    def delta(self) -> float:
        """Of all private models."""
        return min(MOST_DELTA, 0.1 / self.users)

    def noise(self, cell: Cell) -> float:
        """What its epsilon asks, in units of the clip."""
        return noise_for(cell.epsilon, cell.sampling, cell.steps, self.delta) if cell.epsilon else 0.0

    def metrics(self, model: Recommender) -> dict[str, np.ndarray]:
        """(C,) of each test user, by name."""
        return dict(evaluate(model, self.lesson.dataset.test_cases(), self.lesson.dataset, 0).metrics)

    def made(self, cell: Cell) -> Recommender:
        """The model, trained."""
        if cell.model in self.peers:
            return self.peers[cell.model]
        if cell.model == "private-popular":
            items = self.lesson.dataset.catalog.items
            return MostPopular(noised_counts(self.lines(cell.length), items, self.noise(cell), cell.seed))
        student = self._undistilled(cell) if cell.model == "none" else self._private(cell)
        return Scorer(student, student.length, cell.model)

    def _undistilled(self, cell: Cell) -> Student:
        dataset, length, knobs = self.lesson.dataset, self.lesson.length, self.knobs
        shape = DecoderShape.of(dataset.catalog.items, cell.width, 1, length)
        student = Student.untrained(shape, knobs.dropouts[0], cell.seed)
        schedule = Schedule(knobs.epochs, knobs.learning_rate, cell.seed)
        validate = ranking_validator(student, dataset.validation_cases())
        fit(student, dataset.histories, length, schedule, HardLabels(), validate)
        return student

    def _private(self, cell: Cell) -> Student:
        shape = DecoderShape.of(self.lesson.dataset.catalog.items, cell.width, 1, cell.length)
        model = PrivateStudent(shape, cell.seed, self.texts if cell.rows == "texts" else None)
        course = Course(cell.steps, cell.sampling, cell.clip, self.noise(cell), cell.learning_rate, cell.seed)
        train(model, self.lines(cell.length), course)
        return model.folded()


def noised_counts(lines: UserLines, items: int, noise: float, seed: int) -> np.ndarray:
    """(N,): how often items were taken, each user's counts at norm 1, and noise on each: one step, everybody drawn."""
    users, codes = lines.importance.numpy() > 0, lines.labels.numpy()
    counts = np.zeros(items)
    for row, there in zip(codes, users, strict=True):
        own = np.bincount(row[there] - 1, minlength=items)
        counts += own / np.linalg.norm(own)
    return counts + np.random.default_rng(seed).normal(0, noise, items) if noise else counts


def main() -> None:
    """Makes what is asked for and not yet there, and tells all."""
    asked = _arguments()
    settings = Settings.from_environment(asked.home)
    if Store(settings.store).head(HEAD) is None:
        words = ["nightly", "--preset", asked.preset, "--split", asked.split]
        recsys(asked.home, *words, "--events", asked.data / "events.parquet", "--items", asked.data / "items.parquet")
    computing.use(settings)
    lesson = Lesson.of(asked.data.name, Store(settings.store))
    school = School(lesson, PRESETS[asked.preset].search, settings.cache / "text")
    rows = [json.loads(line) for line in asked.out.open()] if asked.out.exists() else []
    there = [{name: value for name, value in row.items() if name in _row(school, Cell(""), False)} for row in rows]
    cells = [cell for cell in _cells(asked) if _row(school, cell, asked.validation_only) not in there]
    print(f"{len(cells)} models, {school.users:,} users, delta {school.delta:.1e}", flush=True)
    for cell in cells:
        rows.append({**_row(school, cell, asked.validation_only), **told(school, cell, asked.validation_only)})
        with asked.out.open("a") as file:
            file.write(json.dumps(rows[-1], sort_keys=True) + "\n")
        print(json.dumps(rows[-1], sort_keys=True), flush=True)
    print(as_markdown(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--home", type=Path, default=Path("build/private"))
    parser.add_argument("--widths", type=int, nargs="*", default=[16, 32])
    parser.add_argument("--rows", choices=["ids", "texts"], nargs="+", default=["ids", "texts"])
    parser.add_argument("--epsilons", type=float, nargs="*", default=[1, 4, 8, 16, 64])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[60])
    parser.add_argument("--sampling", type=float, nargs="+", default=[0.1])
    parser.add_argument("--clip", type=float, nargs="+", default=[1.0])
    parser.add_argument("--learning-rate", type=float, nargs="+", default=[0.01])
    parser.add_argument("--length", type=int, nargs="+", default=[32])
    parser.add_argument("--validation-only", action="store_true")
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--split", default="temporal")
    parser.add_argument("--out", type=Path, default=Path("docs/private_student.jsonl"))
    return parser.parse_args()


def _cells(asked: argparse.Namespace) -> Iterator[Cell]:
    """The cheapest first, then seed by seed and width by width, the loop without noise before those with it."""
    courses = list(product(asked.steps, asked.sampling, asked.clip, asked.learning_rate, asked.length))
    if not asked.validation_only:
        yield from (Cell(name) for name in ("most-popular", "neighbours"))
        yield from (
            Cell("private-popular", e, seed=s, steps=1, sampling=1.0, clip=1.0, length=asked.length[0])
            for e in asked.epsilons
            for s in asked.seeds
        )
    for seed, width in product(asked.seeds, asked.widths):
        if not asked.validation_only:
            yield Cell("none", width=width, rows="ids", seed=seed)
        for rows, epsilon, course in product(
            asked.rows, asked.epsilons if asked.validation_only else [0.0, *asked.epsilons], courses
        ):
            yield Cell("private" if epsilon else "clipped", epsilon, width, rows, seed, *course)


def _row(school: School, cell: Cell, validation_only: bool) -> dict[str, Any]:
    """What tells a row from another."""
    lesson = school.lesson
    return {"shop": lesson.shop, "made_from": lesson.made_from, "validation_only": validation_only, **asdict(cell)}


def told(school: School, cell: Cell, validation_only: bool) -> dict[str, Any]:
    """The model's figures. Bounds are one-sided, 95 %, over the test users; shares are paired with the baselines' users."""
    began = time.monotonic()
    model = school.made(cell)
    cases = school.lesson.dataset.validation_cases()
    found: dict[str, Any] = {"noise": school.noise(cell), "delta": school.delta}
    if isinstance(model, Scorer):
        found["validation_ndcg"] = ranking_validator(model.model, cases)()
    if not validation_only:
        metrics = school.metrics(model)
        for name in ("ndcg_at_10", "hr_at_10"):
            found[name] = asdict(mean_interval(metrics[name]))
        for name, peer in school.of_peers.items():
            found[f"over {name}"] = asdict(paired_ratio(metrics["ndcg_at_10"], peer))
        attacked = attack(model, school.suspects) if isinstance(model, Scorer) else None
        found["membership_auc"] = asdict(attacked.auc) if attacked else None
    return {**found, "seconds": round(time.monotonic() - began, 1)}


if __name__ == "__main__":
    main()
