"""The search for the best student: Optuna trials in a journal, resumed after a kill to exactly those asked.

Space: the width and the dropout among those configured, the weight a of the soft label in [0.7, 1], and K of the items
kept. The loss from the teacher is the same in all trials, since only then do a and K mean the same in them. The loss
hidden, which sees the teacher's whole distribution, has a temperature in [1, 4] as well.
The first trials are pairs, one for each dropout: the student without distillation, at equal steps, never pruned, which is
what distilling must beat; and a = 0.9. A warm start keeps width and dropout, so that it has one pair; its undistilled
student goes on from the earlier search's undistilled one, which never saw a soft label either; without one, from scratch.
FIRST_ROUND trials are the first round, ROUND more each later one. What is proposed and what is pruned in a round follows
from the rounds before it alone, so that its trials may run side by side: which ends first, what was killed, and how many
workers there are change nothing. A journal is of one search (data, labels, configuration, parent), of one caller at a
time.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from recsys.config import SearchConfig
from recsys.errors import ConfigError, TrainingError
from recsys.fleet import Fleet, threads_each
from recsys.losses import HIDDEN
from recsys.student import Student
from recsys.training import Epoch, never
from recsys.trial import Course, Lessons, Order, Outcome, Parent, Recipe, run, study_of

WEIGHTS = (0.7, 1.0)
TEMPERATURES = (1.0, 4.0)
FIRST_WEIGHT = 0.9
KEPT = (10, 20, 50)
FIRST_ROUND = 2
"""The undistilled student and a distilled one: a search that is cut short has tried both."""

ROUND = 4
"""Trials of a later round: more would keep more cores busy, fewer would propose and prune from more knowledge."""

MAX_FAILURES = 3
"""Trials that may fail in one search; each is replaced, from another seed."""

_STUDY = "student"
_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
_log = logging.getLogger(__name__)

Hear = Callable[[int, Epoch], None]
Crew = Callable[[Sequence[Order], Hear], Iterator[tuple[int, Outcome]]]
"""Runs orders; hears of epochs and gives outcomes by the order's place."""


@dataclass(frozen=True)
class SearchPlace:
    """Where a search is kept, so that it can be resumed."""

    storage: Path  # the journal file of the study
    weights: Path  # the folder of `trial-NNN/`

    def folder(self, number: int) -> Path:
        """Where the student of a complete trial is."""
        return self.weights / f"trial-{number:03d}"


@dataclass(frozen=True)
class Trial:
    """A trial that ran to its end or was pruned. A search that was cut short may lack some of its last round."""

    number: int
    width: int
    weight: float
    k: int
    dropout: float
    state: Literal["complete", "pruned"]
    validation_ndcg: float  # of its best epoch
    seconds: float  # measured; belongs to no identity
    epochs: tuple[Epoch, ...]
    temperature: float = 1.0  # of the loss hidden


@dataclass(frozen=True)
class Search:
    """What a search came to. The best may be an undistilled one: then distilling did not pay."""

    student: Student
    control: Student  # the best of the undistilled ones
    best: Trial
    undistilled: Trial  # the control's
    trials: tuple[Trial, ...]


class _Enough(Exception):  # noqa: N818  no error
    """Ends a round that there is no time for."""


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
    on_epoch: Hear = _ignore_epoch,
    enough: Callable[[], bool] = never,
    workers: int = 1,
) -> Search:
    """Run the trials that are still missing and give the best student, with the weights of its best epoch.

    With `warm` every distilled trial starts from its best student, grown to tonight's catalog, at its width and dropout,
    and trial 0 from its undistilled one, if that has the same width.
    Above one, `workers` processes run the trials of a round side by side and share torch's present threads.
    `on_trial` hears of every trial as it ends, after a resume also of those before it. `enough` is asked before each
    round but the first, and after each epoch in it, whether to stop with what there is: fewer trials come back, and the
    same search goes on from the journal. The same arguments give the same student, to the bit, on one torch build and
    number of threads a trial, however often the search was killed. Raises ConfigError when `warm` reads another
    length, TrainingError when more than MAX_FAILURES trials fail.
    """
    if warm is not None and warm.best.length != lessons.length:
        raise ConfigError(
            f"the earlier student reads {warm.best.length} items, tonight's are to read {lessons.length}",
            where="data.history_length",
            mend="Set refresh.warm_start to false for this night.",
        )
    course = Course(lessons, config, warm)
    journal, space = _Journal(place), Space.of(course)
    for trial in journal.trials():
        on_trial(trial)
    with ExitStack() as held:
        crew = _crew(course, workers, held)
        while missing := journal.missing(config.trials):
            stop = enough if missing[0] >= FIRST_ROUND else never
            if stop():
                break
            orders = [_order(course, space, journal, place, number) for number in missing]
            try:
                for at, outcome in crew(orders, partial(_heard, course, orders, on_epoch, stop)):
                    added = journal.add(orders[at], outcome, space)
                    if added is not None:
                        on_trial(added)
            except _Enough:
                break
            journal.refuse_failures(config.trials)
    trials = journal.trials()
    best, undistilled = _best(trials), _best([trial for trial in trials if trial.weight == 0])
    student, control = (Student.load(place.folder(trial.number)) for trial in (best, undistilled))
    return Search(student, control, best, undistilled, trials)


def _best(trials: Sequence[Trial]) -> Trial:
    """The best of the complete ones, the first of equals."""
    return max((trial for trial in trials if trial.state == "complete"), key=lambda t: (t.validation_ndcg, -t.number))


def _heard(
    course: Course, orders: Sequence[Order], on_epoch: Hear, enough: Callable[[], bool], at: int, epoch: Epoch
) -> None:
    on_epoch(orders[at].number, epoch)
    if epoch.number < course.epochs and enough():
        raise _Enough


def _crew(course: Course, workers: int, held: ExitStack) -> Crew:
    """This process, or several; they end with `held`."""
    if workers == 1:
        return lambda orders, hear: ((at, course.run(order, partial(hear, at))) for at, order in enumerate(orders))
    return held.enter_context(Fleet(run, course, workers, threads_each(workers))).run


@dataclass(frozen=True)
class Space:
    """What trials are proposed from."""

    widths: tuple[int, ...]
    dropouts: tuple[float, ...]
    kept: tuple[int, ...]
    temperatures: tuple[float, float] | None  # from, to
    control: float  # dropout of the first undistilled student

    @classmethod
    def of(cls, course: Course) -> "Space":
        """A warm start leaves no choice of width and dropout, labels with few items little of K."""
        top_k = course.lessons.labels.labelling.top_k
        kept = tuple(k for k in KEPT if k <= top_k) or (top_k,)
        if course.config.loss == "hard_label":
            kept = (1,)
        if course.config.loss == HIDDEN:  # it knows all items anyway: K only says which are exact in a large catalog
            kept = (top_k,)
        temperatures = TEMPERATURES if course.config.loss == HIDDEN else None
        widths, dropouts, control = course.config.widths, course.config.dropouts, course.config.dropouts[0]
        if course.warm is not None:
            earlier, undistilled = course.warm.best, course.warm.undistilled_of(course.warm.best.shape.width)
            widths, dropouts = (earlier.shape.width,), (earlier.dropout.share,)
            control = (undistilled or earlier).dropout.share
        return cls(widths, dropouts, kept, temperatures, control)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """By the names of a recipe."""
        space: dict[str, BaseDistribution] = {
            "width": CategoricalDistribution(self.widths),
            "dropout": CategoricalDistribution(self.dropouts),
            "weight": FloatDistribution(*WEIGHTS),
            "k": CategoricalDistribution(self.kept),
        }
        if self.temperatures:
            space["temperature"] = FloatDistribution(*self.temperatures)
        return space

    def recipe(self, number: int, study: optuna.Study) -> Recipe:
        """Of trial `number`, from what the study knows."""
        pair, distilled = divmod(number, 2)
        if pair >= len(self.dropouts):
            return Recipe(**study.ask(self.distributions).params)
        if distilled:
            return Recipe(self.widths[0], FIRST_WEIGHT, self.kept[-1], self.dropouts[pair])
        return Recipe(self.widths[0], 0.0, 0, self.dropouts[pair] if pair else self.control)


def _order(course: Course, space: Space, journal: "_Journal", place: SearchPlace, number: int) -> Order:
    """Trial `number` as the rounds before its own, and its own failures, would have it."""
    rivals, failed = journal.before(_round(number).start), len(journal.failures(number))
    sampler = TPESampler(seed=course.config.seed + number + failed, n_startup_trials=3)
    recipe = space.recipe(number, study_of(rivals, course.epochs, sampler))
    return Order(number, recipe, course.config.seed + failed, tuple(rivals), place.folder(number))


def _round(number: int) -> range:
    """The numbers of the round that trial `number` is in."""
    if number < FIRST_ROUND:
        return range(FIRST_ROUND)
    first = number - (number - FIRST_ROUND) % ROUND
    return range(first, first + ROUND)


class _Journal:
    """The study on disk: a trial is in it once it has ended."""

    def __init__(self, place: SearchPlace) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        place.storage.parent.mkdir(parents=True, exist_ok=True)
        place.weights.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(place.storage)
        # Absolute, because the journal's lock is a symbolic link to it.
        storage = JournalStorage(JournalFileBackend(str(place.storage.resolve())))
        self.study = optuna.create_study(storage=storage, study_name=_STUDY, direction="maximize", load_if_exists=True)

    def trials(self) -> tuple[Trial, ...]:
        """The complete and pruned ones, by number."""
        return tuple(_trial(one) for one in self._ended())

    def before(self, number: int) -> list[FrozenTrial]:
        """The complete and pruned trials with a lower number."""
        return [one for one in self._ended() if one.user_attrs["number"] < number]

    def failures(self, number: int | None = None) -> list[FrozenTrial]:
        """The trials that failed, of all numbers or of one."""
        failed = self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        return [one for one in failed if number in (None, one.user_attrs["number"])]

    def missing(self, asked: int) -> list[int]:
        """Numbers, below `asked`, of the first round that is not whole."""
        there = {one.user_attrs["number"] for one in self._ended()}
        absent = [number for number in range(asked) if number not in there]
        return [number for number in absent if number in _round(absent[0])]

    def add(self, order: Order, outcome: Outcome, space: Space) -> Trial | None:
        """Keep what came of an order; None when it failed."""
        values = {epoch.number: epoch.validation_ndcg for epoch in outcome.epochs}
        recipe, state = asdict(order.recipe), _STATES[outcome.state]
        told = create_trial(
            state=state,
            value=max(values.values()) if state == TrialState.COMPLETE else None,
            # Outside the range of weights an undistilled one would mislead the sampler.
            params={name: recipe[name] for name in space.distributions} if order.recipe.weight else {},
            distributions=space.distributions if order.recipe.weight else {},
            user_attrs={
                "number": order.number,
                "recipe": recipe,
                "epochs": [asdict(epoch) for epoch in outcome.epochs],
                "failure": outcome.failure,
            },
            intermediate_values=values,
        )
        self.study.add_trial(told)
        if state == TrialState.FAIL:
            _log.warning("a trial failed and is replaced: %s", outcome.failure)
            return None
        return _trial(told)

    def refuse_failures(self, asked: int) -> None:
        """TrainingError when too many have failed."""
        failures = self.failures()
        if len(failures) > MAX_FAILURES:
            raise TrainingError(_table(failures, len(self._ended()), asked), mend="Lower search.learning_rate.")

    def _ended(self) -> list[FrozenTrial]:
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return sorted(trials, key=lambda one: int(one.user_attrs["number"]))


def _cut_torn_line(storage: Path) -> None:
    """Cut what was being written when the machine stopped; Optuna would refuse the whole journal."""
    if not storage.exists():
        return
    whole = storage.read_bytes().rfind(b"\n") + 1
    if whole < storage.stat().st_size:
        os.truncate(storage, whole)


def _trial(frozen: FrozenTrial) -> Trial:
    epochs = tuple(Epoch(**values) for values in frozen.user_attrs["epochs"])
    return Trial(
        frozen.user_attrs["number"],
        **frozen.user_attrs["recipe"],
        state="complete" if frozen.state == TrialState.COMPLETE else "pruned",
        validation_ndcg=max(epoch.validation_ndcg for epoch in epochs),
        seconds=sum(epoch.seconds for epoch in epochs),
        epochs=epochs,
    )


def _table(failures: list[FrozenTrial], finished: int, asked: int) -> str:
    rows = [
        "width {width}, dropout {dropout:g}, weight {weight:.2f}, k {k}: ".format(**trial.user_attrs["recipe"])
        + trial.user_attrs["failure"]
        for trial in failures
    ]
    # An error is one line (recsys/errors.py).
    return "; ".join([f"{len(failures)} trials failed and only {finished} of {asked} finished", *rows])
