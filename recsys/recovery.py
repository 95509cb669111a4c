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
    second training could not make the file smaller.
    """

    def __init__(self, recovery: Recovery, epochs: int, before: Student) -> None:
        self.recovery, self.before = recovery, before
        self.schedule = Schedule(epochs, RECOVERY_RATE * recovery.learning_rate, recovery.seed)

    def __call__(self, student: Student, enough: Callable[[], bool]) -> tuple[Recovered, Student]:
        """The better of both and which it is; only the first when `enough` says that time is up."""
        first, reached = self._trained(student, self.recovery.objective)
        if not self.recovery.distilled:
            return "hard", first
        if reached >= self.reached_before or enough():
            return "soft", first
        second, then = self._trained(student, HardLabels())
        return ("hard", second) if then > reached else ("soft", first)

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
