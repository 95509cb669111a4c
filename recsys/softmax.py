"""The cross-entropy of the item that followed, over a whole catalog or a sample of it, in nats.

On a CPU it is most of a training's cost, and memory traffic is most of that: both ways below avoid whole passes.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, embedding

CHUNK_BYTES = 2_000_000  # of scores at a time: they stay in the processor's cache

SAFE = 60.0
"""Scores up to which e^score and the sum of a million of them are far from the limits of float32, e^88."""


def full(states: Tensor, table: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of -log softmax(states . table)[label]: states (P, D), table (N + 1, D), others (P,)."""
    if states.is_cuda:
        losses = cross_entropy(states @ table[1:].T, labels - 1, reduction="none")
        return (losses * weights).sum() / weights.sum()
    importance = weights / weights.sum()
    return cast(Tensor, _ChunkedCrossEntropy.apply(states, table[1:], labels - 1, importance))  # type: ignore[no-untyped-call]


def sampled(states: Tensor, table: Tensor, labels: Tensor, weights: Tensor, negatives: int) -> Tensor:
    """As `full`, with the sum over the other items estimated from `negatives` of them, shared by the batch.

    -log(e^z_y / (e^z_y + V/n sum_j e^z_j)) over n items j != y drawn evenly without replacement from the V: the
    denominator is the full one in expectation (Jean et al. 2015, section 3). `embedding`, not indexing: threads add
    up the gradient of indexing in no fixed order.
    """
    items = len(table) - 1
    drawn = torch.randperm(items, device=table.device)[:negatives] + 1
    # Column 0 is kept free for the positive; scoring the padding there is cheaper than joining two matrices.
    scores = states @ embedding(torch.nn.functional.pad(drawn, (1, 0)), table).T
    column = torch.zeros(items + 1, dtype=torch.int64, device=table.device)
    column[drawn] = torch.arange(1, len(drawn) + 1, device=table.device)
    clash = column[labels].nonzero()[:, 0]
    scores[clash, column[labels[clash]]] = -math.inf
    positive = (states * embedding(labels, table)).sum(1)
    scores[:, 0] = positive - math.log(items / len(drawn))
    losses = cross_entropy(scores, torch.zeros_like(labels), reduction="none")
    return (losses * weights).sum() / weights.sum()


def reach(states: Tensor, table: Tensor) -> float:
    """No score of states (P, D) . table (N, D) is further from 0: the longest vectors' product (Cauchy and Schwarz)."""
    return float(states.norm(dim=1).max() * table.norm(dim=1).max())


def shifted(scores: Tensor, reach: float) -> Tensor:
    """The scores (P, N), which the sum of their exponentials cannot overflow: if need be moved, in place, row by row.

    Below SAFE nothing has to be looked for or moved, which saves half of the passes of a softmax.
    """
    return scores.sub_(scores.amax(1, keepdim=True)) if reach > SAFE else scores


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradient in one pass over chunks of rows, so that no (P, N) matrix is ever written to memory."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """sum(weights * -log softmax(states @ table.T)[labels]), `weights` adding up to 1."""
        rows = max(1, CHUNK_BYTES // (4 * len(table)))
        loss, furthest = states.new_zeros(()), reach(states, table)
        to_states, to_table = torch.empty_like(states), torch.zeros_like(table)
        for first in range(0, len(states), rows):
            part = slice(first, first + rows)
            label, weight = labels[part, None], weights[part, None]
            scores = shifted(states[part] @ table.T, furthest)
            chosen = scores.gather(1, label)
            gradient = scores.exp_()
            total = gradient.sum(1, keepdim=True)
            loss += ((total.log() - chosen) * weight).sum()
            # The gradient is softmax - [label], by weight. What is common to a row is multiplied in where it is small.
            gradient.scatter_add_(1, label, -total)
            common = weight / total
            torch.mm(gradient, table, out=to_states[part])
            to_states[part] *= common
            to_table.addmm_(gradient.T, states[part] * common)
        ctx.save_for_backward(to_states, to_table)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The gradients found on the way forward, scaled by what comes from above."""
        to_states, to_table = ctx.saved_tensors
        return to_states * upstream[0], to_table * upstream[0], None, None
