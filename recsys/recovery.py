"""The little training that wins back what pruning or rounding lost.

After pruning: by distillation or by hard labels, whichever is better. For rounding: with the weights rounded as they
will be served.
"""

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from recsys.graph import Bits
from recsys.histories import Cases, Histories
from recsys.quantize import rounding
from recsys.student import Student
from recsys.training import HardLabels, Objective, Schedule, device, fit, ranking_validator

RECOVERY_RATE = 0.25
"""Of the peak learning rate of the student's own training, for what was pruned."""

ROUNDING_RATES = (RECOVERY_RATE, 0.05)
"""The same, for weights that learn to be rounded: a student that rounding spoils has much to win back, one that has learnt
enough needs to move its weights by half a step at most and loses by more (docs/compression.md). The better is kept."""

Given = TypeVar("Given")
Recovered = Literal["", "soft", "hard", "rounded"]
"""Trained a little more: not at all, by distillation, by the cross-entropy of what followed, or with rounded weights."""


@dataclass(frozen=True)
class Recovery:
    """What a pruned student is trained on again, and what every point is judged on."""

    histories: Histories
    objective: Objective  # the loss the student was distilled with
    learning_rate: float  # the peak of the student's own training
    validation: Cases
    seed: int
    distilled: bool  # whether the objective hears soft labels


@dataclass(frozen=True)
class Retraining:
    """A little training to be done."""

    student: Student  # it starts from, and stays as it is
    hard: bool = False  # by what followed instead of the student's own objective
    bits: Bits = 32  # with weights rounded as in a file of so many bits, and left so
    rate: float = RECOVERY_RATE


Retrained = tuple[Student, float]
"""The student that came of it, and its NDCG@10 on validation."""

Crew = Callable[[Iterable[Retraining]], Iterator[tuple[int, Retrained]]]
"""Does trainings, each when it can; tells the place of each and what came of it, as it ends."""


@dataclass(frozen=True)
class Retrainer:
    """What all trainings of a recovery have in common."""

    recovery: Recovery
    epochs: float

    @property
    def positions(self) -> float:
        """That a training learns from, in all its epochs."""
        return self.epochs * int(np.maximum(self.recovery.histories.train_end - 1, 0).sum())

    def trained(self, order: Retraining) -> Retrained:
        """A copy of the student, trained on.

        Items without training events keep their rows, which are of their texts: training only pushes them away.
        """
        recovery, student = self.recovery, order.student
        objective = HardLabels() if order.hard else recovery.objective
        schedule = Schedule.of(self.epochs, order.rate * recovery.learning_rate, recovery.seed)
        copy = deepcopy(student).to(device())
        validate = ranking_validator(copy, recovery.validation)
        with rounding(copy, order.bits):
            epochs = fit(copy, recovery.histories, copy.length, schedule, objective, validate)
        copy = copy.cpu()
        unseen = torch.from_numpy(recovery.histories.training_counts(copy.shape.items) == 0)
        with torch.no_grad():
            copy.table.weight[1:][unseen] = student.table.weight[1:][unseen]
        return copy, max(epoch.validation_ndcg for epoch in epochs)

    def alone(self, orders: Iterable[Retraining]) -> Iterator[tuple[int, Retrained]]:
        """A crew of this process."""
        return ((place, self.trained(order)) for place, order in enumerate(orders))


def retrained(retrainer: Retrainer, order: Retraining, tell: Callable[[Any], None]) -> Retrained:
    """`Retrainer.trained`, for a worker process."""
    return retrainer.trained(order)


class Recoverer:
    """Trains students that were cut a little more, by distillation and, where that was not enough, by hard labels.

    Not enough: it ranks the validation users worse than the student of before. Where distillation has won that back, a
    second training could not make the file smaller. What lost little may lose more by training than it wins back: then
    it is left as it was cut. The student of before itself is the control: it is trained by distillation, whatever
    comes of it.
    """

    def __init__(self, recovery: Recovery, before: Student, crew: Crew) -> None:
        self.recovery, self.before, self.crew = recovery, before, crew

    def __call__(
        self, students: Iterable[Student], enough: Callable[[], bool]
    ) -> Iterator[tuple[int, Recovered, Student]]:
        """Each one's place, the best of all on validation and which it is, as they are ready.

        Second trainings come last; none begins once `enough` says that time is up.
        """
        given: list[Student] = []
        failed: list[tuple[int, Retrained]] = []
        for place, (student, reached) in self.crew(Retraining(cut) for cut in _noted(students, given)):
            if given[place] is self.before:
                yield place, self._own, student
            elif self._own == "soft" and reached < self.reached_before:
                failed.append((place, (student, reached)))
            else:
                yield place, *self._better(given[place], self._own, (student, reached))
        again: list[Retraining] = []
        orders = (Retraining(given[place], hard=True) for place, _ in failed if not enough())
        for number, second in self.crew(_noted(orders, again)):
            place, first = failed[number]
            how: Recovered = "hard" if second[1] > first[1] else "soft"
            yield place, *self._better(given[place], how, second if how == "hard" else first)
        for place, first in failed[len(again) :]:
            yield place, *self._better(given[place], "soft", first)

    def rounded(self, orders: Iterable[tuple[Student, Bits]]) -> Iterator[tuple[int, Student]]:
        """Each one's place, and it trained on by its own objective with weights rounded as in a file, and left so.

        At each rate; given is the best on validation.
        """
        several, best = len(ROUNDING_RATES), dict[int, Retrained]()
        trainings = (Retraining(each, bits=bits, rate=rate) for each, bits in orders for rate in ROUNDING_RATES)
        for place, made in sorted(self.crew(trainings), key=lambda one: one[0]):
            best[place // several] = max(best.get(place // several, made), made, key=lambda one: one[1])
        return ((place, student) for place, (student, _) in best.items())

    @property
    def _own(self) -> Recovered:
        """The labels of the student's own objective."""
        return "soft" if self.recovery.distilled else "hard"

    def _better(self, cut: Student, how: Recovered, made: Retrained) -> tuple[Recovered, Student]:
        """What training made of a student, or it as it was cut."""
        student, reached = made
        return (how, student) if reached > ranking_validator(cut, self.recovery.validation)() else ("", cut)

    @cached_property
    def reached_before(self) -> float:
        """Mean NDCG@10 of the student as it was distilled."""
        return ranking_validator(self.before, self.recovery.validation)()


def _noted(values: Iterable[Given], given: list[Given]) -> Iterator[Given]:
    """The same values; those that were taken are in `given`."""
    for value in values:
        given.append(value)
        yield value
