"""The loss `hidden`: the student against the teacher's whole distribution at a temperature, made from its kept states.

    T^2 sum_V p log(p / q),  p = softmax(z / T) of the teacher's scores, q of the student's, over the teacher's V items

Hinton et al. 2015 (arXiv 1503.02531), section 2, as a KL divergence: zero at the teacher. T^2 keeps its gradient by the
student's scores, T (q - p), of one size at every T. Values are in nats.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from scipy.sparse import csr_array
from torch import Tensor

from recsys.teacher_scores import TeacherHead


@dataclass(frozen=True)
class HiddenTargets:
    """The teacher at P positions, by what its scores are made of."""

    states: Tensor  # (P, D) float
    head: TeacherHead
    heard: csr_array | None  # (P, V), what the neighbours say; None where the teacher is not blended
    listed: Tensor  # (P, K) float, its logits of the K items that the labels list
    temperature: float  # T

    def part(self, rows: slice) -> Self:
        """The targets of some of the positions."""
        heard = None if self.heard is None else self.heard[rows]
        return replace(self, states=self.states[rows], heard=heard, listed=self.listed[rows])

    def logits(self, items: Tensor | None = None) -> Tensor:
        """(P, V), or (P, n) of the codes `items` (n,)."""
        return self.head.logits(self.states, self.heard, items)


def value_and_gradient(scores: Tensor, hidden: HiddenTargets) -> tuple[Tensor, Tensor]:
    """The loss (P,) at the student's scores (P, V), and its gradient by them (P, V), over all V items."""
    T = hidden.temperature
    log_q = torch.log_softmax(scores / T, 1)
    log_p = torch.log_softmax(hidden.logits().to(scores) / T, 1)
    p = log_p.exp()
    value = T**2 * (p * (log_p - log_q)).sum(1)
    return value, T * (log_q.exp_() - p)


def sampled_value(
    head: Tensor, others: Tensor, left_out: Tensor, drawn: Tensor, N: int, hidden: HiddenTargets
) -> Tensor:
    """The loss (P,) over the K listed items and a sample of the rest, differentiable.

    `head` (P, K) and `others` (P, n) are the student's scores, of the listed items S and of the n items `drawn` evenly
    of all N; `left_out` (P, n) are those drawn that are listed, or that the teacher does not know. With weight N / n

        Z = sum_S e^(z / T) + N/n sum_drawn e^(z / T), of the teacher and of the student,
        KL = sum_S p log(p / q) + N/n sum_drawn p log(p / q),  p = e^(z / T) / Z of the teacher, q of the student.

    Every sum over the rest is right in expectation (Horvitz and Thompson 1952), the teacher's as the student's; what is
    made of them by a division and a logarithm is not: the bias is of the order 1 / n and grows with the share of the
    rest and with how uneven it is. It is the exact KL of two distributions over what was drawn, so never negative, and
    zero at the teacher in every draw.
    """
    T, weight = hidden.temperature, torch.tensor(N / len(drawn)).log()
    catalog = hidden.head.items
    with torch.no_grad():
        theirs = hidden.logits(drawn.clamp_max(catalog)).to(others)
        rest = (theirs / T + weight).masked_fill(left_out, -torch.inf)
        log_p = torch.log_softmax(torch.cat([hidden.listed.to(head) / T, rest], 1), 1)
    rest = (others / T + weight).masked_fill(left_out, -torch.inf)
    log_q = torch.log_softmax(torch.cat([head / T, rest], 1), 1)
    counts = torch.cat([torch.ones_like(hidden.listed, dtype=torch.bool), ~left_out], 1)
    return T**2 * (log_p.exp() * (log_p - log_q).masked_fill(~counts, 0)).sum(1)
