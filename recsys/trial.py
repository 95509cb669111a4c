"""One trial of a search: a student trained by a recipe, pruned where the trials before it did better.

All that a trial depends on comes with its order, so it is the same trial whichever process runs it, and whenever.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import optuna
from optuna.pruners import MedianPruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from recsys.config import SearchConfig
from recsys.decoder import DecoderShape
from recsys.errors import TrainingError
from recsys.histories import Cases, Histories
from recsys.losses import Distillation
from recsys.sequence_model import Scorer, ranking_validator
from recsys.soft_labels import SoftLabels
from recsys.student import Student, grow
from recsys.training import Epoch, Schedule, device, fit

WARM_EPOCHS, WARM_RATE = 4, 0.3
"""A warm start takes a fourth of the epochs at 0.3 of the learning rate."""


@dataclass(frozen=True)
class Lessons:
    """What every student of a search learns from and is judged on."""

    histories: Histories
    items: int  # N of tonight's catalog, at least the teacher's
    length: int  # L, the most items a student reads
    labels: SoftLabels  # of the training positions for this length
    validation: Cases


@dataclass(frozen=True)
class Parent:
    """The students of an earlier search that this one goes on from."""

    best: Student
    undistilled: Student | None = None

    def undistilled_of(self, width: int) -> Student | None:
        """The undistilled one, where it has this width."""
        return self.undistilled if self.undistilled is not None and self.undistilled.shape.width == width else None


@dataclass(frozen=True)
class Recipe:
    """What sets one trial apart."""

    width: int  # D
    weight: float  # a, of the soft label; 0: not distilled
    k: int  # soft labels used; 0: none
    dropout: float  # of a student that goes on from an earlier one: as that one had
    temperature: float = 1.0  # T, of the loss hidden; 1 of all others


@dataclass(frozen=True)
class Order:
    """A trial to be run."""

    number: int  # from 0; 0 is the undistilled one
    recipe: Recipe
    seed: int
    rivals: tuple[FrozenTrial, ...]  # those it is pruned against: of the rounds before
    out: Path  # the folder its student is written to; nobody reads it before the trial has ended


@dataclass(frozen=True)
class Outcome:
    """What came of it. The student of a complete trial is in the order's folder."""

    state: Literal["complete", "pruned", "failed"]
    epochs: tuple[Epoch, ...]
    failure: str = ""


@dataclass(frozen=True)
class Course:
    """What all trials of a search have in common."""

    lessons: Lessons
    config: SearchConfig
    warm: Parent | None

    @property
    def epochs(self) -> int:
        """Of a trial that starts as most do."""
        return self._schedule(self.warm is not None, 0).epochs

    def run(self, order: Order, hear: Callable[[Epoch], None]) -> Outcome:
        """Train to the end, until pruned, or until the loss or the scores are no numbers. `hear` may raise to stop it."""
        trial, epochs = study_of(order.rivals, self.epochs).ask(), list[Epoch]()

        def heard(epoch: Epoch) -> None:
            epochs.append(epoch)
            hear(epoch)
            trial.report(epoch.validation_ndcg, epoch.number)
            if order.recipe.weight > 0 and epoch.number < self.epochs and trial.should_prune():
                raise optuna.TrialPruned

        try:
            student = self._train(order, heard)
        except optuna.TrialPruned:
            return Outcome("pruned", tuple(epochs))
        except TrainingError as error:
            return Outcome("failed", tuple(epochs), str(error))
        _write(student, order.out)
        return Outcome("complete", tuple(epochs))

    def _train(self, order: Order, hear: Callable[[Epoch], None]) -> Student:
        lessons, recipe = self.lessons, order.recipe
        start = self._start(recipe)
        if start is not None:
            student = grow(start, lessons.items)
        else:
            shape = DecoderShape.of(lessons.items, recipe.width, 1, lessons.length)
            student = Student.untrained(shape, recipe.dropout, order.seed)
        student.to(device())
        fit(
            student,
            lessons.histories,
            lessons.length,
            self._schedule(start is not None, order.seed),
            Distillation(lessons.labels, recipe.weight, recipe.k, self.config.loss, temperature=recipe.temperature),
            _validator(student, lessons.validation),
            on_epoch=hear,
        )
        return student

    def _schedule(self, warm: bool, seed: int) -> Schedule:
        epochs, rate = self.config.epochs, self.config.learning_rate
        return Schedule.of(epochs / WARM_EPOCHS, rate * WARM_RATE, seed) if warm else Schedule(epochs, rate, seed)

    def _start(self, recipe: Recipe) -> Student | None:
        """The earlier student that a trial goes on from."""
        if self.warm is None:
            return None
        if recipe.weight > 0:
            return self.warm.best
        return self.warm.undistilled_of(recipe.width)


def run(course: Course, order: Order, hear: Callable[[Epoch], None]) -> Outcome:
    """`Course.run`, for a worker process."""
    return course.run(order, hear)


def study_of(trials: Sequence[FrozenTrial], epochs: int, sampler: BaseSampler | None = None) -> optuna.Study:
    """A study in memory that knows these trials and no others: what it proposes and prunes follows from them alone."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = MedianPruner(n_startup_trials=2, n_warmup_steps=1 + epochs // 3)
    study = optuna.create_study(direction="maximize", pruner=pruner, sampler=sampler)
    for trial in trials:
        study.add_trial(trial)
    return study


def _validator(student: Student, cases: Cases) -> Callable[[], float]:
    """The student's NDCG@10. TrainingError where its scores are not numbers: ranking them would tell nothing."""
    rank = ranking_validator(student, cases)

    def validate() -> float:
        if not np.isfinite(Scorer(student, student.length, "probed").scores(cases.histories[:1])).all():
            raise TrainingError("the scores after an epoch are not numbers")
        return rank()

    return validate


def _write(student: Student, folder: Path) -> None:
    """Under a name of this process's own and renamed; what a killed trial left there is replaced."""
    draft = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    for old in (draft, folder):
        shutil.rmtree(old, ignore_errors=True)
    student.save(draft)
    os.rename(draft, folder)
