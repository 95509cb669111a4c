"""What a student can learn from the teacher's distribution: five losses, of which a search uses one.

Each sees the student as the soft labels see the teacher: K items, and all others that the teacher knows together.
So each is a function of log q (P, K) and of log q_rest (P, 1), the student's log-probabilities over the teacher's
V items; items that the teacher does not know are in no normaliser. Temperature is 1, values are in nats.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from recsys.config import SoftLossName

DRAWS = 50
"""Draws a position and step of the loss `sampled`."""


@dataclass(frozen=True)
class SoftTargets:
    """The teacher's distribution at P positions: its K best items, and one bucket for the rest of its V."""

    items: Tensor  # (P, K) int64 codes, best first
    p: Tensor  # (P, K) float, their probabilities
    rest: Tensor  # (P,) float, the probability of all other items together
    catalog: int  # V: the teacher knows the codes 1 to V

    @classmethod
    def of(cls, items: Tensor, logp: Tensor, catalog: int) -> Self:
        """From stored half-precision log-probabilities (P, K), whose sum may be rounded to more than one."""
        p = logp.float().exp()
        mass = p.sum(1)
        # Where all V items are listed there is no rest, whatever the rounding says.
        scale = mass if items.shape[1] == catalog else mass.clamp_min(1)
        return cls(items.long(), p / scale[:, None], (1 - mass / scale).clamp_min(0), catalog)

    def part(self, rows: slice) -> Self:
        """The targets of some of the positions."""
        return replace(self, items=self.items[rows], p=self.p[rows], rest=self.rest[rows])


@dataclass(frozen=True)
class Pull:
    """How a loss pulls at the student's scores: the gradient by score j is `normaliser` q_j minus j's pull."""

    head: Tensor  # (P, K), of the items listed
    rest: Tensor  # (P, 1), of all others together, shared among them as q shares
    normaliser: float  # the sum of all pulls: a loss that does not change when all scores rise has no other


@dataclass(frozen=True)
class SoftLoss:
    """One way to learn from the teacher."""

    aim: Callable[[SoftTargets], SoftTargets]
    """What is aimed at, from what is stored; once a batch, and the only part that may draw at random."""

    value: Callable[[Tensor, Tensor, SoftTargets], Tensor]
    """The loss (P,) at log q (P, K) and log q_rest (P, 1), in nats; differentiable."""

    pull: Callable[[Tensor, Tensor, SoftTargets], Pull]
    """The same loss's gradient, written out."""


def topk_tail(log_q: Tensor, log_rest: Tensor, soft: SoftTargets) -> Tensor:
    """KL divergence (P,) of the student from the teacher, items outside the teacher's top K as one, in nats.

    sum_S p log(p / q) + (1 - P_S) log((1 - P_S) / (1 - Q_S)): S the K items, p and q the teacher's and the
    student's probabilities over the teacher's V items, P_S and Q_S their sums. It is the exact KL of a
    coarser distribution, so never negative and zero at the teacher; without the last term nothing would push
    the student's own favourites down. The teacher's rest is a weight and may be 0; the student's stands in a
    logarithm, and the caller keeps it finite. The tail-aware top-K of verl-project/verl #7856.
    """
    head = torch.xlogy(soft.p, soft.p) - soft.p * log_q
    return head.sum(1) + torch.xlogy(soft.rest, soft.rest) - soft.rest * log_rest[:, 0]


def cross_entropy(log_q: Tensor, log_rest: Tensor, soft: SoftTargets) -> Tensor:
    """-sum_S p log q - rest log q_rest (P,), in nats: `topk_tail` and the entropy of what is aimed at."""
    return -(soft.p * log_q).sum(1) - soft.rest * log_rest[:, 0]


def _toward(log_q: Tensor, log_rest: Tensor, soft: SoftTargets) -> Pull:
    """Of a cross-entropy with a distribution, and of a KL from one."""
    return Pull(soft.p, soft.rest[:, None], 1.0)


def renormalised(soft: SoftTargets) -> SoftTargets:
    """The aim of `topk_catalogue`: the teacher's probabilities over its K items, scaled to sum to one.

    The student is normalised over all V items, so its own favourites are pushed down; its least loss, the entropy
    of the scaled p, is that of a student with nothing outside S. Top K alone is a biased picture of the teacher
    (Anshumann et al. 2025, arXiv 2503.16870), which the bucket of `topk_tail` mends.
    """
    return replace(soft, p=soft.p / soft.p.sum(1, keepdim=True), rest=torch.zeros_like(soft.rest))


def drawn(soft: SoftTargets) -> SoftTargets:
    """The aim of `sampled`: the shares of DRAWS draws with replacement from the K items and the bucket.

    Random sampling KD of Anshumann et al. 2025 (arXiv 2503.16870, ACL), which draws ids from the teacher's whole
    distribution when labels are written. The stored labels do not say which item a tail draw would be, so it
    counts as the bucket; in return draws are fresh at every step, and their noise averages out, which that of
    stored draws does not. Expected shares are the probabilities: the gradient is that of `topk_tail` on average, and
    the value is `topk_tail` plus the teacher's entropy on average. It costs noise and gains nothing over `topk_tail`
    but regularisation: it is here to be compared.
    """
    buckets = torch.cat([soft.p, soft.rest[:, None]], 1)
    which = torch.multinomial(buckets, DRAWS, replacement=True)
    counts = torch.zeros_like(buckets).scatter_add_(1, which, torch.ones_like(which, dtype=buckets.dtype))
    return replace(soft, p=counts[:, :-1] / DRAWS, rest=counts[:, -1] / DRAWS)


def first(soft: SoftTargets) -> SoftTargets:
    """The aim of `hard_label`: the teacher's first rank, with certainty. The loss is -log q of it.

    A pseudo-label (Lee 2013); how far it falls behind the others is what the teacher's doubt is worth.
    """
    items, rest = soft.items[:, :1], torch.zeros_like(soft.rest)
    return replace(soft, items=items, p=torch.ones_like(soft.p[:, :1]), rest=rest)


def _as_stored(soft: SoftTargets) -> SoftTargets:
    return soft


def plackett_luce(log_q: Tensor, log_rest: Tensor, soft: SoftTargets) -> Tensor:
    """`rrd`: minus the log-likelihood (P,) of the teacher's order of its K items, in nats a rank.

    -1/K sum_k (z_k - log(sum_{j >= k} e^{z_j} + sum_rest e^z)): one after another the teacher's items are chosen
    from what is left, and all others are only ever left. Relaxed ranking distillation (Kang et al. 2020, DE-RRD,
    arXiv 2012.04357), with every one of the K in it, as its authors came to prefer, and the whole rest instead of
    a sample. They sum over ranks; the mean has the scale of one cross-entropy, so that the weight a means the
    same in every loss. It knows no probabilities, so the teacher's own is no special point: the least loss, 0, is
    approached where each item towers over the next.
    """
    return (_left(log_q, log_rest) - log_q).mean(1)


def _left(log_q: Tensor, log_rest: Tensor) -> Tensor:
    """(P, K): the log of what is left to choose from at each rank."""
    upwards = torch.cat([log_rest, log_q.flip(1)], 1)
    return torch.logcumsumexp(upwards, 1)[:, 1:].flip(1)


def _up_the_ranks(log_q: Tensor, log_rest: Tensor, soft: SoftTargets) -> Pull:
    """An item is pulled once for its own rank and pushed by its share of what is left at every rank up to it."""
    left = _left(log_q, log_rest)
    # In logarithms, because what is left at the last ranks may be next to nothing.
    shares = (torch.logcumsumexp(-left, 1) + log_q).exp()
    of_rest = (torch.logsumexp(-left, 1, keepdim=True) + log_rest).exp()
    ranks = log_q.shape[1]
    return Pull((1 - shares) / ranks, -of_rest / ranks, 0.0)


SOFT_LOSSES: Mapping[SoftLossName, SoftLoss] = {
    "topk_tail": SoftLoss(_as_stored, topk_tail, _toward),
    "topk_catalogue": SoftLoss(renormalised, cross_entropy, _toward),
    "sampled": SoftLoss(drawn, cross_entropy, _toward),
    "rrd": SoftLoss(_as_stored, plackett_luce, _up_the_ranks),
    "hard_label": SoftLoss(first, cross_entropy, _toward),
}
