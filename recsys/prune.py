"""Which feed-forward units, attention heads and blocks of a student matter least, and the smaller student without them."""

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
    """How much each part of a student matters to an objective: the squared change of the loss without it."""

    units: list[Tensor]  # of each block (F,), a feed-forward unit each
    heads: list[Tensor]  # of each block (H,), an attention head each
    blocks: Tensor  # (B,), a whole block each


def importance(student: Student, histories: Histories, objective: Objective, seed: int) -> Importance:
    """How much each feed-forward unit, each attention head and each block matters to the objective.

    First-order Taylor (Molchanov et al. 2019): when a part goes, the loss changes by about sum(weight x gradient)
    over its weights, squared here and summed over batches. A unit has a row and a bias of `up` and a column of
    `down`; a head its rows and biases of query, key and value and its columns of `out`; a block all that is in it.
    """
    windows = Windows.of_training(histories, student.length)
    on = student.item_table().device
    blocks = [cast(Block, block) for block in student.blocks]
    units = [torch.zeros(count, device=on) for count in student.shape.ffn]
    heads = [torch.zeros(count, device=on) for count in student.shape.heads]
    whole = torch.zeros(len(blocks), device=on)
    student.eval()
    with seeded(on, seed) as rng:
        for chosen in islice(windows.batches(BATCH_TOKENS, rng), BATCHES):
            batch = Batch.of(histories, windows, chosen, on)
            table = student.item_table()
            loss = objective(student.states(batch.items, table)[batch.owned], table, batch)
            for place, block in enumerate(blocks):
                by_unit, by_head, by_block = _change_without(block, loss)
                units[place] += by_unit**2
                heads[place] += by_head**2
                whole[place] += by_block**2
    return Importance(units, heads, whole)


def pruned(
    student: Student, scores: Importance, keep_ffn: float, keep_heads: float = 1.0, keep_blocks: float = 1.0
) -> Student:
    """A new student with a share of its blocks and of each one's feed-forward units and heads, those that matter most.

    One at least stays and, of units below 1, one at least goes: TrainingError where a block has only one. A block with
    one head keeps it. Scores are of the whole student, also those of what is left in a smaller one.
    """
    smaller = deepcopy(student)
    places = _largest(scores.blocks, max(1, round(keep_blocks * len(scores.blocks)))).tolist()
    blocks = [cast(Block, smaller.blocks[place]) for place in places]
    for block, place in zip(blocks, places, strict=True):
        unit, head = scores.units[place], scores.heads[place]
        units = _largest(unit, max(1, int(keep_ffn * len(unit))))
        if keep_ffn < 1 and len(units) == len(unit):
            raise TrainingError(
                "a block with one feed-forward unit cannot be pruned", mend="Set compress.keep_ffn to 1."
            )
        _cut(block.up, block.down, units, units)
        _keep_heads(block, _largest(head, max(1, int(keep_heads * len(head)))))
    smaller.blocks = nn.ModuleList(blocks)
    smaller.shape = replace(
        student.shape,
        ffn=tuple(block.up.out_features for block in blocks),
        heads=tuple(block.heads for block in blocks),
    )
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


def _change_without(block: Block, loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(F,), (H,) and a scalar: sum of weight x gradient of each unit, of each head, of the block."""
    weights = dict(block.named_parameters())
    gradients = torch.autograd.grad(loss, list(weights.values()), retain_graph=True)
    sums = {name: w.detach() * g for (name, w), g in zip(weights.items(), gradients, strict=True)}
    by_unit = sums["up.weight"].sum(1) + sums["up.bias"] + sums["down.weight"].sum(0)
    read, mixed = sums["qkv.weight"].sum(1) + sums["qkv.bias"], sums["out.weight"].sum(0)
    head = block.heads, block.head_width
    by_head = read.view(3, *head).sum((0, 2)) + mixed.view(*head).sum(1)
    return by_unit, by_head, torch.stack([part.sum() for part in sums.values()]).sum()


def _largest(score: Tensor, count: int) -> Tensor:
    """The places of the `count` largest, in order; of equal ones the first."""
    order = np.argsort(-score.detach().cpu().numpy(), kind="stable")[:count]
    return torch.from_numpy(np.sort(order)).to(score.device)
