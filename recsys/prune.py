"""Which feed-forward units of a student matter least, and the smaller student without them."""

from copy import deepcopy
from dataclasses import replace
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


def importance(student: Student, histories: Histories, objective: Objective, seed: int) -> list[Tensor]:
    """How much each feed-forward unit matters to the objective, (F,) a block.

    First-order Taylor (Molchanov et al. 2019): when a unit goes, the loss changes by about sum(weight x
    gradient) over its weights, a row and a bias of `up` and a column of `down`; that is squared and summed
    over batches.
    """
    windows = Windows.of_training(histories, student.length)
    on = student.item_table().device
    blocks = [cast(Block, block) for block in student.blocks]
    scores = [torch.zeros(units, device=on) for units in student.shape.ffn]
    student.eval()
    with seeded(on, seed) as rng:
        for chosen in islice(windows.batches(BATCH_TOKENS, rng), BATCHES):
            batch = Batch.of(histories, windows, chosen, on)
            table = student.item_table()
            loss = objective(student.states(batch.items, table)[batch.owned], table, batch)
            for score, block in zip(scores, blocks, strict=True):
                score += _change_without(block, loss) ** 2
    return scores


def pruned(student: Student, scores: list[Tensor], keep: float) -> Student:
    """A new student with the share `keep` of each block's feed-forward units, those that matter most.

    One unit at least stays and, below 1, one at least goes: TrainingError where a block has only one.
    """
    kept = [_largest(score, max(1, int(keep * len(score)))) for score in scores]
    if keep < 1 and any(len(units) == len(score) for units, score in zip(kept, scores, strict=True)):
        raise TrainingError("a block with one feed-forward unit cannot be pruned", mend="Set compress.keep_ffn to 1.")
    smaller = deepcopy(student)
    smaller.shape = replace(student.shape, ffn=tuple(len(units) for units in kept))
    for block, units in zip(smaller.blocks, kept, strict=True):
        _keep(cast(Block, block), units)
    return smaller


def _keep(block: Block, units: Tensor) -> None:
    """Take all other feed-forward units out of the block."""
    up, down = block.up, block.down
    up.weight, up.bias = nn.Parameter(up.weight.detach()[units]), nn.Parameter(up.bias.detach()[units])
    down.weight = nn.Parameter(down.weight.detach()[:, units])
    up.out_features = down.in_features = len(units)


def _change_without(block: Block, loss: Tensor) -> Tensor:
    """(F,) sum of weight x gradient of each unit."""
    weights = block.up.weight, block.up.bias, block.down.weight
    gradients = torch.autograd.grad(loss, weights, retain_graph=True)
    up, bias, down = (w.detach() * gradient for w, gradient in zip(weights, gradients, strict=True))
    return up.sum(1) + bias + down.sum(0)


def _largest(score: Tensor, count: int) -> Tensor:
    """The places of the `count` largest, in order; of equal ones the first."""
    order = np.argsort(-score.detach().cpu().numpy(), kind="stable")[:count]
    return torch.from_numpy(np.sort(order)).to(score.device)
