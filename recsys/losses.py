"""What a student learns from: the click (hard label), and the teacher by one of the losses of soft_losses.py.

The two are mixed here, and computed without a matrix of all scores: in chunks over all items, or over a sample.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import embedding

from recsys.config import SoftLossName
from recsys.errors import ConfigError
from recsys.hidden_loss import HiddenTargets, sampled_value, value_and_gradient
from recsys.soft_labels import SoftLabels
from recsys.soft_losses import SOFT_LOSSES, SoftLoss, SoftTargets
from recsys.softmax import reach, shifted
from recsys.training import Batch

HIDDEN = "hidden"
"""The loss that aims at the teacher's whole distribution, hidden_loss.py."""

TINY = 1e-30
"""The least probability of the student a logarithm is taken of."""

# Scores of a chunk of positions stay in the processor's cache; on a GPU the fewer launches the better.
_CHUNK_BYTES = {"cpu": 1 << 21, "cuda": 1 << 28}


@dataclass(frozen=True)
class Targets:
    """What the student should predict at P positions, and how much each position and kind of label counts."""

    clicks: Tensor  # (P,) int64 codes from 1, of all N items
    importance: Tensor  # (P,) float, sums to 1
    soft: SoftTargets  # what the loss aims at
    weight: float  # a, of the soft label; the click has 1 - a
    loss: SoftLoss = SOFT_LOSSES["topk_tail"]
    hidden: HiddenTargets | None = None  # the whole distribution, which is aimed at instead where it is given

    def part(self, rows: slice) -> Self:
        """The targets of some of the positions."""
        some, hidden = self.soft.part(rows), self.hidden.part(rows) if self.hidden else None
        return replace(self, clicks=self.clicks[rows], importance=self.importance[rows], soft=some, hidden=hidden)


def exact(states: Tensor, table: Tensor, targets: Targets) -> Tensor:
    """sum_i importance_i ((1 - a) CE(click) + a soft loss), all items in the normalisers; a scalar, in nats.

    States (P, D) and table (N + 1, D). Gradients are computed on the way, chunk by chunk: never are all
    P x N scores in memory.
    """
    return cast(Tensor, _Exact.apply(states, table, targets))  # type: ignore[no-untyped-call]


def sampled(states: Tensor, table: Tensor, targets: Targets, negatives: int) -> Tensor:
    """`exact`, its normalisers in expectation only, from `negatives` of the N items that all positions share.

    The click and the teacher's K items are scored exactly. n distinct items, drawn uniformly, stand for the
    others with the correction + log(N / n) (Horvitz and Thompson 1952); where one of them is scored exactly
    already it is left out.
    """
    items, K = len(table) - 1, targets.soft.items.shape[1]
    n = min(negatives, items)
    drawn = torch.randperm(items, device=table.device)[:n] + 1
    others = states @ embedding(drawn, table).T + math.log(items / n)
    click = (states * embedding(targets.clicks, table)).sum(1)
    others_but_click = others.masked_fill(drawn == targets.clicks[:, None], -math.inf)
    hard = torch.logsumexp(torch.cat([click[:, None], others_but_click], 1), 1) - click
    if K == 0 or targets.weight == 0:
        return (targets.importance * hard).sum()
    head = torch.einsum("pd,pkd->pk", states, embedding(targets.soft.items, table))
    listed = _listed(drawn, targets.soft, items)
    if targets.hidden:
        soft = sampled_value(head, others - math.log(items / n), listed, drawn, items, targets.hidden)
        return _mixed(hard, soft, targets)
    # The floor, TINY beside the head, keeps the logarithm finite where no drawn item is left.
    floor = torch.logsumexp(head, 1, keepdim=True).detach() + math.log(TINY)
    unlisted = others.masked_fill(listed, -math.inf)
    rest = torch.logsumexp(torch.cat([floor, unlisted], 1), 1, keepdim=True)
    normaliser = torch.logsumexp(torch.cat([head, rest], 1), 1, keepdim=True)
    return _mixed(hard, targets.loss.value(head - normaliser, rest - normaliser, targets.soft), targets)


def _mixed(hard: Tensor, soft: Tensor, targets: Targets) -> Tensor:
    return (targets.importance * ((1 - targets.weight) * hard + targets.weight * soft)).sum()


def _listed(drawn: Tensor, soft: SoftTargets, items: int) -> Tensor:
    """(P, n) bool: drawn items that are among a position's K, or that the teacher does not know."""
    column = torch.full((items + 1,), -1, device=drawn.device)
    column[drawn] = torch.arange(len(drawn), device=drawn.device)
    at = column[soft.items]
    row, which = torch.nonzero(at >= 0, as_tuple=True)
    mask = (drawn > soft.catalog).repeat(len(soft.items), 1)
    mask[row, at[row, which]] = True
    return mask


@dataclass(frozen=True)
class Distillation:
    """The objective (1 - a) CE(click, over all N items) + a soft loss(over the teacher's V), by event weight.

    At a = 0 it is the plain cross-entropy of the click: the student without distillation. Up to `full_up_to`
    items every item is scored, above it a sample of `negatives` a batch. Raises ConfigError when the loss `hidden` is
    asked of labels without states, or a temperature of another loss: their stored log-sum-exp is that of temperature 1.
    """

    labels: SoftLabels
    weight: float  # a
    k: int  # the best items used, at most those kept in the labels
    loss: SoftLossName = "topk_tail"
    full_up_to: int = 5_000
    negatives: int = 1_024
    temperature: float = 1.0  # T, of teacher and student in the loss `hidden`; the click is learnt at 1

    def __post_init__(self) -> None:
        """Refuses what the labels cannot give."""
        if self.loss != HIDDEN and self.temperature != 1:
            raise ConfigError(
                f"the loss {self.loss} knows no temperature but 1, {self.temperature:g} was asked for",
                where="search.loss",
                mend="Set search.loss to hidden.",
            )
        if self.loss == HIDDEN and self.weight and self.labels.states is None:
            raise ConfigError(
                "the loss hidden needs the teacher's states, and the soft labels keep none",
                where="search.loss",
                mend="Set labels.states to true.",
            )

    def __call__(self, states: Tensor, table: Tensor, batch: Batch) -> Tensor:
        """States (P, D) and table (N + 1, D) -> the weighted mean over positions, a scalar, in nats."""
        items, logp = self.labels.at(batch.positions, self.k if self.weight else 0)
        soft = SoftTargets.of(items, logp, self.labels.labelling.items)
        # Without weight no loss may draw: all searches have the same undistilled student.
        hidden = self.labels.hidden_at(batch, self.k, self.temperature) if self.weight and self.loss == HIDDEN else None
        loss = SOFT_LOSSES["topk_tail" if hidden or not self.weight else self.loss]
        importance = batch.weights / batch.weights.sum()
        targets = Targets(batch.labels, importance, loss.aim(soft), self.weight, loss, hidden)
        # Probabilities of thousands of items are summed: half precision would lose the rest.
        with torch.autocast(states.device.type, enabled=False):
            states, table = _wide(states), _wide(table)
            if len(table) - 1 <= self.full_up_to:
                return exact(states, table, targets)
            return sampled(states, table, targets, self.negatives)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class _Exact(torch.autograd.Function):
    """`exact`, with its gradients written out: a chunk of scores is turned into their gradient in place."""

    @staticmethod
    def forward(ctx: FunctionCtx, states: Tensor, table: Tensor, targets: Targets) -> Tensor:
        vectors = table[1:]
        to_states, to_table = torch.empty_like(states), torch.zeros_like(table)
        rows = max(1, _CHUNK_BYTES[states.device.type] // (len(vectors) * states.element_size()))
        loss, furthest = states.new_zeros(()), reach(states, vectors)
        for first in range(0, len(states), rows):
            some = slice(first, first + rows)
            part, q = targets.part(some), states[some] @ vectors.T
            if part.hidden:
                soft = value_and_gradient(q[:, : part.soft.catalog], part.hidden)
                loss += _with_hidden(q := torch.softmax(q, 1), *soft, part)
            else:
                loss += _loss_and_gradient(shifted(q, furthest).exp_(), part)
            torch.mm(q, vectors, out=to_states[some])
            to_table[1:].addmm_(q.T, states[some])
        ctx.save_for_backward(to_states, to_table)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, None]:
        to_states, to_table = ctx.saved_tensors
        return outer * to_states, outer * to_table, None


def _loss_and_gradient(q: Tensor, targets: Targets) -> Tensor:
    """The loss at the student's e^score `q` (P, N), up to a factor a row; it becomes the gradient by the scores, in place.

    With q normalised and Q the student's mass on the teacher's V items: the click's term has the gradient
    q - [click]. The soft term has, with its pull (of a cross-entropy with p: p on S, 1 - P_S on the rest, sum 1),
    sum q / Q - pull on S, sum q / Q - (pull of the rest) q / sum_rest q on the rest of V, and none on items the
    teacher does not know.
    """
    soft, a = targets.soft, targets.weight
    click, listed, V = targets.clicks[:, None] - 1, soft.items - 1, soft.catalog
    q_click, q_head = q.gather(1, click), q.gather(1, listed)
    q.scatter_(1, listed, 0.0)
    on_rest = q[:, :V].sum(1, keepdim=True)
    total = on_rest + q_head.sum(1, keepdim=True) + q[:, V:].sum(1, keepdim=True)
    q_click, q_head, q_rest = q_click / total, q_head / total, (on_rest / total).clamp_min(TINY)
    Q = q_rest + q_head.sum(1, keepdim=True)
    hard = -q_click.clamp_min(TINY).log()[:, 0]
    log_q, log_rest = (q_head / Q).clamp_min(TINY).log(), (q_rest / Q).clamp_min(TINY).log()
    value, pull = targets.loss.value(log_q, log_rest, soft), targets.loss.pull(log_q, log_rest, soft)

    on_click, on_soft = (1 - a) * targets.importance[:, None], a * targets.importance[:, None]
    q[:, :V] *= (on_click + on_soft * (pull.normaliser / Q - pull.rest / q_rest)) / total
    q[:, V:] *= on_click / total
    q.scatter_(1, listed, on_click * q_head + on_soft * (pull.normaliser * q_head / Q - pull.head))
    q.scatter_add_(1, click, -on_click)
    return (targets.importance * ((1 - a) * hard + a * value)).sum()


def _with_hidden(q: Tensor, value: Tensor, gradient: Tensor, targets: Targets) -> Tensor:
    """As `_loss_and_gradient`, the soft term being `value` (P,), its gradient by the teacher's V items (P, V)."""
    a, click = targets.weight, targets.clicks[:, None] - 1
    hard = -q.gather(1, click).clamp_min(TINY).log()[:, 0]
    on_click, on_soft = (1 - a) * targets.importance[:, None], a * targets.importance[:, None]
    q *= on_click
    q.scatter_add_(1, click, -on_click)
    q[:, : targets.soft.catalog] += on_soft * gradient
    return (targets.importance * ((1 - a) * hard + a * value)).sum()
