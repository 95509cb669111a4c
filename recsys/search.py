"""The search for the best student: Optuna trials in a journal, resumed after a kill to exactly those asked.

Space: the width among those configured, the weight a of the soft label in [0.7, 1], and K of the items kept. The loss
from the teacher is the same in all trials, since only then do a and K mean the same in them.
Trial 0 is always the student without distillation, at equal steps, never pruned: what distilling must beat. On a warm
start it goes on from the earlier search's own trial 0, which never saw a soft label either; without one, from scratch.
Trial 1 is a = 0.9. A journal is of one search (data, labels, configuration, parent), of one caller at a time.
"""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import optuna
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from recsys.config import SearchConfig
from recsys.decoder import DecoderShape
from recsys.errors import ConfigError, TrainingError
from recsys.histories import Cases, Histories
from recsys.losses import Distillation
from recsys.sequence_model import Scorer, ranking_validator
from recsys.soft_labels import SoftLabels
from recsys.student import Student, grow
from recsys.training import Epoch, Schedule, device, fit, never

WEIGHTS = (0.7, 1.0)
FIRST_WEIGHT = 0.9
KEPT = (10, 20, 50)
LEAST_TRIALS = 2
"""The undistilled student and a distilled one: a search that is cut short has tried both."""

MAX_FAILURES = 3
"""Trials that may fail in one search; each is replaced, from another seed."""

WARM_EPOCHS, WARM_RATE = 4, 0.3
"""A warm start takes a fourth of the epochs at 0.3 of the learning rate."""

_STUDY = "student"
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lessons:
    """What every student of a search learns from and is judged on."""

    histories: Histories
    items: int  # N of tonight's catalog, at least the teacher's
    length: int  # L, the most items a student reads
    labels: SoftLabels  # of the training positions for this length
    validation: Cases


@dataclass(frozen=True)
class SearchPlace:
    """Where a search is kept, so that it can be resumed."""

    storage: Path  # the journal file of the study
    weights: Path  # the folder of `trial-NNN/`


@dataclass(frozen=True)
class Recipe:
    """What sets one trial apart."""

    width: int  # D
    weight: float  # a, of the soft label; 0: not distilled
    k: int  # soft labels used; 0: none


@dataclass(frozen=True)
class Trial:
    """A trial that ran to its end or was pruned. Numbers count these alone, so a kill leaves no gap."""

    number: int
    width: int
    weight: float
    k: int
    state: Literal["complete", "pruned"]
    validation_ndcg: float  # of its best epoch
    seconds: float  # measured; belongs to no identity
    epochs: tuple[Epoch, ...]


@dataclass(frozen=True)
class Parent:
    """The students of an earlier search that this one goes on from."""

    best: Student
    undistilled: Student | None = None  # its trial 0


@dataclass(frozen=True)
class Search:
    """What a search came to. The best may be the undistilled one: then distilling did not pay."""

    student: Student
    control: Student  # of trial 0
    best: Trial
    undistilled: Trial
    trials: tuple[Trial, ...]


class _Enough(Exception):  # noqa: N818  no error
    """Ends a trial that there is no time for."""


def _ignore_trial(trial: Trial) -> None:
    """Do nothing with a trial."""


def _ignore_epoch(number: int, epoch: Epoch) -> None:
    """Do nothing with an epoch of trial `number`."""


def search(
    lessons: Lessons,
    config: SearchConfig,
    place: SearchPlace,
    *,
    warm: Parent | None = None,
    on_trial: Callable[[Trial], None] = _ignore_trial,
    on_epoch: Callable[[int, Epoch], None] = _ignore_epoch,
    enough: Callable[[], bool] = never,
) -> Search:
    """Run the trials that are still missing and give the best student, with the weights of its best epoch.

    With `warm` every distilled trial starts from its best student, grown to tonight's catalog, at its width, and trial 0
    from its undistilled one, if that has the same width.
    `on_trial` hears of every trial, after a resume also of those before it. `enough` is asked before each trial and
    after each of its epochs, once the undistilled student and a distilled one are there, whether to stop with what there
    is: fewer trials come back, and the same search goes on from the journal. The same arguments give the same
    student, to the bit, on one torch build and thread count, however often the search was killed. Raises
    ConfigError when `warm` reads another length, TrainingError when more than MAX_FAILURES trials fail.
    """
    course = _Course(lessons, config, place, warm)
    study = _study(place.storage, course.epochs)
    told = 0
    while True:
        trials = _finished(study)
        for trial in trials[told:]:
            on_trial(trial)
        told = len(trials)
        if told >= config.trials or (told >= LEAST_TRIALS and enough()):
            break
        try:
            course.advance(study, told, on_epoch, enough if told >= LEAST_TRIALS else never)
        except _Enough:
            break
    best = max((trial for trial in trials if trial.state == "complete"), key=lambda t: (t.validation_ndcg, -t.number))
    student, control = (Student.load(course.folder(number), config.dropout) for number in (best.number, 0))
    return Search(student, control, best, trials[0], tuple(trials))


class _Course:
    """Trains one trial after another."""

    def __init__(self, lessons: Lessons, config: SearchConfig, place: SearchPlace, warm: Parent | None) -> None:
        if warm is not None and warm.best.length != lessons.length:
            raise ConfigError(
                f"the earlier student reads {warm.best.length} items, tonight's are to read {lessons.length}",
                where="data.history_length",
                mend="Set refresh.warm_start to false for this night.",
            )
        self.lessons, self.config, self.place, self.warm = lessons, config, place, warm
        self.widths = config.widths if warm is None else (warm.best.shape.width,)
        top_k = lessons.labels.labelling.top_k
        self.kept = tuple(k for k in KEPT if k <= top_k) or (top_k,)
        if config.loss == "hard_label":
            self.kept = (1,)
        self.epochs = config.epochs if warm is None else max(1, config.epochs // WARM_EPOCHS)
        self.rate = config.learning_rate if warm is None else config.learning_rate * WARM_RATE

    def folder(self, number: int) -> Path:
        """Where the weights of a complete trial are."""
        return self.place.weights / f"trial-{number:03d}"

    def advance(
        self, study: optuna.Study, number: int, on_epoch: Callable[[int, Epoch], None], enough: Callable[[], bool]
    ) -> None:
        """Run trial `number`. It ends complete, pruned or failed; once complete, its weights are in place.

        Raises _Enough in the middle of it, and the trial counts as killed.
        """
        failures = _failures(study)
        if len(failures) > MAX_FAILURES:
            raise TrainingError(_table(failures, number, self.config.trials), mend="Lower search.learning_rate.")
        trial, recipe = self._ask(study, number, len(failures))
        epochs: list[Epoch] = []

        def hear(epoch: Epoch) -> None:
            epochs.append(epoch)
            on_epoch(number, epoch)
            if epoch.number < self.epochs and enough():
                raise _Enough
            trial.report(epoch.validation_ndcg, epoch.number)
            if number > 0 and epoch.number < self.epochs and trial.should_prune():
                raise optuna.TrialPruned

        try:
            student = self._train(recipe, self.config.seed + len(failures), hear)
        except optuna.TrialPruned:
            trial.set_user_attr("epochs", [asdict(epoch) for epoch in epochs])
            study.tell(trial, state=TrialState.PRUNED)
        except TrainingError as error:
            _log.warning("a trial failed and is replaced: %s", error)
            trial.set_user_attr("failure", str(error))
            study.tell(trial, state=TrialState.FAIL)
        else:
            trial.set_user_attr("epochs", [asdict(epoch) for epoch in epochs])
            _publish(student, self.folder(number))
            study.tell(trial, max(epoch.validation_ndcg for epoch in epochs))

    def _ask(self, study: optuna.Study, number: int, failures: int) -> tuple[optuna.Trial, Recipe]:
        """A new trial of the study, to be trial `number` of those that finish."""
        # Seeded anew by what came before: with one seed a resumed study would propose the same trials again.
        study.sampler = TPESampler(seed=self.config.seed + number + failures, n_startup_trials=3)
        if number == 1 and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            study.enqueue_trial({"width": self.widths[0], "weight": FIRST_WEIGHT, "k": self.kept[-1]})
        trial = study.ask()
        # The undistilled trial suggests nothing: outside the range of weights it would mislead the sampler.
        recipe = Recipe(self.widths[0], 0.0, 0)
        if number > 0:
            recipe = Recipe(
                trial.suggest_categorical("width", self.widths),
                trial.suggest_float("weight", *WEIGHTS),
                trial.suggest_categorical("k", self.kept),
            )
        trial.set_user_attr("recipe", asdict(recipe))
        return trial, recipe

    def _train(self, recipe: Recipe, seed: int, hear: Callable[[Epoch], None]) -> Student:
        lessons, dropout = self.lessons, self.config.dropout
        start = self._start(recipe)
        if start is not None:
            student, epochs, rate = grow(start, lessons.items, dropout), self.epochs, self.rate
        else:
            shape = DecoderShape.of(lessons.items, recipe.width, 1, lessons.length)
            student = Student.untrained(shape, dropout, seed)
            epochs, rate = self.config.epochs, self.config.learning_rate
        student.to(device())
        fit(
            student,
            lessons.histories,
            lessons.length,
            Schedule(epochs, rate, seed),
            Distillation(lessons.labels, recipe.weight, recipe.k, self.config.loss),
            _validator(student, lessons.validation),
            on_epoch=hear,
        )
        return student

    def _start(self, recipe: Recipe) -> Student | None:
        """The earlier student that a trial goes on from."""
        if self.warm is None:
            return None
        if recipe.weight > 0:
            return self.warm.best
        control = self.warm.undistilled
        return control if control is not None and control.shape.width == recipe.width else None


def _validator(student: Student, cases: Cases) -> Callable[[], float]:
    """The student's NDCG@10. TrainingError where its scores are not numbers: ranking them would tell nothing."""
    rank = ranking_validator(student, cases)

    def validate() -> float:
        if not np.isfinite(Scorer(student, student.length, "probed").scores(cases.histories[:1])).all():
            raise TrainingError("the scores after an epoch are not numbers")
        return rank()

    return validate


def _study(storage: Path, epochs: int) -> optuna.Study:
    """The study in the journal, without what a kill left behind: half a line, trials that seem to run."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage.parent.mkdir(parents=True, exist_ok=True)
    _cut_torn_line(storage)
    # Absolute, because the journal's lock is a symbolic link to it. Two trials, 0 and 1, are never pruned.
    journal = JournalStorage(JournalFileBackend(str(storage.resolve())))
    pruner = MedianPruner(n_startup_trials=2, n_warmup_steps=1 + epochs // 3)
    study = optuna.create_study(
        storage=journal, study_name=_STUDY, direction="maximize", pruner=pruner, load_if_exists=True
    )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def _cut_torn_line(storage: Path) -> None:
    """Cut what was being written when the machine stopped; Optuna would refuse the whole journal."""
    if not storage.exists():
        return
    whole = storage.read_bytes().rfind(b"\n") + 1
    if whole < storage.stat().st_size:
        os.truncate(storage, whole)


def _finished(study: optuna.Study) -> list[Trial]:
    """The complete and pruned trials, in order."""
    frozen = study.get_trials(deepcopy=False, states=_FINISHED)
    return [_trial(number, one) for number, one in enumerate(frozen)]


def _trial(number: int, frozen: FrozenTrial) -> Trial:
    epochs = tuple(Epoch(**values) for values in frozen.user_attrs["epochs"])
    return Trial(
        number,
        **frozen.user_attrs["recipe"],
        state="complete" if frozen.state == TrialState.COMPLETE else "pruned",
        validation_ndcg=max(epoch.validation_ndcg for epoch in epochs),
        seconds=sum(epoch.seconds for epoch in epochs),
        epochs=epochs,
    )


def _failures(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that failed by themselves, not those that were killed."""
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return [trial for trial in failed if "failure" in trial.user_attrs]


def _table(failures: list[FrozenTrial], finished: int, asked: int) -> str:
    rows = [
        "width {width}, weight {weight:.2f}, k {k}: ".format(**trial.user_attrs["recipe"]) + trial.user_attrs["failure"]
        for trial in failures
    ]
    return "\n  ".join([f"{len(failures)} trials failed and only {finished} of {asked} finished", *rows]) + "\n"


def _publish(student: Student, folder: Path) -> None:
    """Write under a temporary name and rename; what a killed trial of this number left is replaced."""
    draft = folder.with_name(f"{folder.name}.tmp")
    for old in (draft, folder):
        shutil.rmtree(old, ignore_errors=True)
    student.save(draft)
    os.rename(draft, folder)
