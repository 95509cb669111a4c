"""The little training that wins back what pruning or rounding lost.

After pruning: by distillation or by hard labels, whichever is better. For rounding: with the weights rounded as they
will be served.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from recsys.graph import Bits
from recsys.histories import Cases, Histories
from recsys.quantize import rounding
from recsys.student import Student
from recsys.training import HardLabels, Objective, Schedule, device, fit, ranking_validator

RECOVERY_RATE = 0.25
"""Of the peak learning rate of the student's own training."""

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


class Recoverer:
    """Trains a copy of a student a little more, by distillation and, where that was not enough, by hard labels.

    Not enough: it ranks the validation users worse than the student of before. Where distillation has won that back, a
    second training could not make the file smaller. What lost little may lose more by training than it wins back: then
    it is left as it was cut.
    """

    def __init__(self, recovery: Recovery, epochs: int, before: Student) -> None:
        self.recovery, self.before = recovery, before
        self.schedule = Schedule(epochs, RECOVERY_RATE * recovery.learning_rate, recovery.seed)

    def __call__(self, student: Student, enough: Callable[[], bool]) -> tuple[Recovered, Student]:
        """The best of all on validation, and which it is; without the second training when `enough` says that time is up."""
        how, best, reached = self.control(student)
        if how == "soft" and reached < self.reached_before and not enough():
            second, then = self._trained(student, HardLabels())
            if then > reached:
                how, best, reached = "hard", second, then
        untrained = ranking_validator(student, self.recovery.validation)()
        return (how, best) if reached > untrained else ("", student)

    def control(self, student: Student) -> tuple[Recovered, Student, float]:
        """The student trained as one that was cut, whatever comes of it: the kind of labels, the student, its NDCG@10."""
        trained, reached = self._trained(student, self.recovery.objective)
        return "soft" if self.recovery.distilled else "hard", trained, reached

    def rounded(self, student: Student, bits: Bits) -> Student:
        """The student trained on by its own objective with weights rounded as in a file of `bits` bits, and left so."""
        return self._trained(student, self.recovery.objective, bits)[0]

    @cached_property
    def reached_before(self) -> float:
        """Mean NDCG@10 of the student as it was distilled."""
        return ranking_validator(self.before, self.recovery.validation)()

    def _trained(self, student: Student, objective: Objective, bits: Bits = 32) -> tuple[Student, float]:
        """A copy and the NDCG@10 it reached.

        Items without training events keep their rows, which are of their texts: training only pushes them away.
        """
        copy = deepcopy(student).to(device())
        validate = ranking_validator(copy, self.recovery.validation)
        with rounding(copy, bits):
            epochs = fit(copy, self.recovery.histories, copy.length, self.schedule, objective, validate)
        copy = copy.cpu()
        unseen = torch.from_numpy(self.recovery.histories.training_counts(copy.shape.items) == 0)
        with torch.no_grad():
            copy.table.weight[1:][unseen] = student.table.weight[1:][unseen]
        return copy, max(epoch.validation_ndcg for epoch in epochs)
