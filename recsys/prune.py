"""Which feed-forward units and attention heads of a student matter least, and the smaller student without them."""

from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from recsys.decoder import Block
from recsys.errors import TrainingError
from recsys.histories import Histories
from recsys.student import Student
from recsys.training import Batch, Objective, seeded
from recsys.windows import Windows

BATCHES = 25
"""Batches the importance is read from."""

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Importance:
    """How much each part of each block matters to an objective: the squared change of the loss without it."""

    units: list[Tensor]  # of each block (F,), a feed-forward unit each
    heads: list[Tensor]  # of each block (H,), an attention head each


def importance(student: Student, histories: Histories, objective: Objective, seed: int) -> Importance:
    """How much each feed-forward unit and each attention head matters to the objective.

    First-order Taylor (Molchanov et al. 2019): when a part goes, the loss changes by about sum(weight x gradient)
    over its weights, squared here and summed over batches. A unit has a row and a bias of `up` and a column of
    `down`; a head its rows and biases of query, key and value and its columns of `out`.
    """
    windows = Windows.of_training(histories, student.length)
    on = student.item_table().device
    blocks = [cast(Block, block) for block in student.blocks]
    units = [torch.zeros(count, device=on) for count in student.shape.ffn]
    heads = [torch.zeros(count, device=on) for count in student.shape.heads]
    student.eval()
    with seeded(on, seed) as rng:
        for chosen in islice(windows.batches(BATCH_TOKENS, rng), BATCHES):
            batch = Batch.of(histories, windows, chosen, on)
            table = student.item_table()
            loss = objective(student.states(batch.items, table)[batch.owned], table, batch)
            for unit, head, block in zip(units, heads, blocks, strict=True):
                by_unit, by_head = _change_without(block, loss)
                unit += by_unit**2
                head += by_head**2
    return Importance(units, heads)


def pruned(student: Student, scores: Importance, keep_ffn: float, keep_heads: float = 1.0) -> Student:
    """A new student with a share of each block's feed-forward units and heads, those that matter most.

    One at least stays and, below 1, one at least goes: TrainingError where a block has only one unit. A block with one
    head keeps it.
    """
    units = [_largest(score, max(1, int(keep_ffn * len(score)))) for score in scores.units]
    heads = [_largest(score, max(1, int(keep_heads * len(score)))) for score in scores.heads]
    if keep_ffn < 1 and any(len(kept) == len(score) for kept, score in zip(units, scores.units, strict=True)):
        raise TrainingError("a block with one feed-forward unit cannot be pruned", mend="Set compress.keep_ffn to 1.")
    smaller = deepcopy(student)
    smaller.shape = replace(
        student.shape, ffn=tuple(len(kept) for kept in units), heads=tuple(len(kept) for kept in heads)
    )
    blocks = (cast(Block, block) for block in smaller.blocks)
    for block, kept_units, kept_heads in zip(blocks, units, heads, strict=True):
        _cut(block.up, block.down, kept_units, kept_units)
        _keep_heads(block, kept_heads)
    return smaller


def _keep_heads(block: Block, heads: Tensor) -> None:
    """Take all other heads out of the block: their rows of query, key and value, their columns of `out`."""
    places = torch.arange(3 * block.heads * block.head_width, device=heads.device)
    places = places.view(3, block.heads, block.head_width)[:, heads]
    _cut(block.qkv, block.out, places.flatten(), places[0].flatten())
    block.heads = len(heads)


def _cut(into: nn.Linear, out_of: nn.Linear, rows: Tensor, columns: Tensor) -> None:
    """Keep some output units of one linear and the input units of the next that read them."""
    into.weight, into.bias = nn.Parameter(into.weight.detach()[rows]), nn.Parameter(into.bias.detach()[rows])
    out_of.weight = nn.Parameter(out_of.weight.detach()[:, columns])
    into.out_features, out_of.in_features = len(rows), len(columns)


def _change_without(block: Block, loss: Tensor) -> tuple[Tensor, Tensor]:
    """(F,) and (H,): sum of weight x gradient of each unit and of each head."""
    read, mixed = _changes(block.qkv, block.out, loss)
    head = block.heads, block.head_width
    up, down = _changes(block.up, block.down, loss)
    return up + down, read.view(3, *head).sum((0, 2)) + mixed.view(*head).sum(1)


def _changes(into: nn.Linear, out_of: nn.Linear, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of weight x gradient over each output unit of one linear, bias and all, and each input unit of the next."""
    weights = into.weight, into.bias, out_of.weight
    gradients = torch.autograd.grad(loss, weights, retain_graph=True)
    rows, bias, columns = (w.detach() * gradient for w, gradient in zip(weights, gradients, strict=True))
    return rows.sum(1) + bias, columns.sum(0)


def _largest(score: Tensor, count: int) -> Tensor:
    """The places of the `count` largest, in order; of equal ones the first."""
    order = np.argsort(-score.detach().cpu().numpy(), kind="stable")[:count]
    return torch.from_numpy(np.sort(order)).to(score.device)
