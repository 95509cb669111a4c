"""A matrix in eight or four bits: whole numbers and one scale a row, and a decoder of such matrices, or one that learns to be."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

from recsys.decoder import Decoder

LEVELS = {8: 127, 4: 7}
"""The largest whole number by bits. The most negative one is left out so that a vector and its negative are rounded alike."""

CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
"""Shares of a row's largest value that its scale may stand for in four bits; what lies beyond is cut off."""


@dataclass(frozen=True)
class RowTable:
    """Row-wise symmetric whole numbers: row r stands for `rows[r] * scales[r]`."""

    rows: np.ndarray  # (N + 1, D) int8
    scales: np.ndarray  # (N + 1,) float32, each of sixteen bits

    @classmethod
    def of(cls, table: np.ndarray, bits: Literal[4, 8]) -> "RowTable":
        """The nearest such table of `table` (N + 1, D) float32. A row of zeros, the padding, stays zero.

        Eight bits keep the whole range of a row. With four the range is searched row by row: of CLIPS the one with
        the smallest squared error, since 15 levels are better spent on the many values than on the largest.
        """
        return _rounded(table, clips(table, bits) * np.abs(table).max(axis=1), LEVELS[bits])

    def dequantized(self) -> np.ndarray:
        """(N + 1, D) float32; in eight bits no element is further than half its row's scale from the original."""
        return np.asarray(self.rows.astype(np.float32) * self.scales[:, None])


def dequantized(matrix: Tensor, bits: Literal[4, 8]) -> Tensor:
    """What is left of a matrix (R, C) in so many bits, of its own type and on its device."""
    whole = RowTable.of(matrix.detach().float().cpu().numpy(), bits)
    return torch.from_numpy(whole.dequantized()).to(matrix)


def clips(table: np.ndarray, bits: Literal[4, 8]) -> np.ndarray:
    """(N + 1,) float32: the share of its largest value that each row's scale stands for; 1 in eight bits."""
    largest = np.abs(table).max(axis=1)
    tried = CLIPS if bits == 4 else CLIPS[:1]
    least, best = np.full(len(table), np.inf), np.ones(len(table), np.float32)
    for clip in tried:
        error = ((_rounded(table, clip * largest, LEVELS[bits]).dequantized() - table) ** 2).sum(axis=1)
        best[error < least] = clip
        least = np.minimum(error, least)
    return best


def scales_for(largest: Tensor, levels: int) -> Tensor:
    """(R,) float32: by which the largest number of each row is `levels`; 1 for a row of zeros.

    Of sixteen bits (bfloat16), which a file holds in two bytes. Rows are rounded to what is left of the scale, of which
    the largest is still `levels`: a scale that is off by 2^-8, which is the most, moves 127 of it by less than half.
    """
    return torch.where(largest > 0, largest / levels, 1).to(torch.bfloat16).float()


def _rounded(table: np.ndarray, largest: np.ndarray, levels: int) -> RowTable:
    scales = scales_for(torch.from_numpy(largest), levels).numpy()
    return RowTable(np.clip(np.rint(table / scales[:, None]), -levels, levels).astype(np.int8), scales)


def packed(codes: np.ndarray) -> np.ndarray:
    """Numbers below 16, uint8 (N, D) -> two in a byte (N, ceil(D / 2)): the even column below, the odd one above."""
    even, odd = codes[:, ::2], np.pad(codes[:, 1::2], [(0, 0), (0, codes.shape[1] % 2)])
    return np.asarray(even | (odd << 4), np.uint8)


def rounded(decoder: Decoder, bits: Literal[4, 8, 32]) -> Decoder:
    """The decoder with the linears and positions that a file with its item table in `bits` bits computes with.

    In eight bits a row, an output unit or a position, by `RowTable`: weights only, what flows between is float.
    Rounded again it is the same, since the largest of a row is a whole number of its scale. The table is shared.
    """
    if bits == 32:
        return decoder
    made = deepcopy(decoder, {id(decoder.table): decoder.table})
    for name, weight in made.named_parameters():
        if weight.ndim == 2 and name != "table.weight":
            weight.data = dequantized(weight, 8)
    return made


class StraightThrough(nn.Module):
    """Rounds a matrix as `RowTable` does, and hands its gradient back as if it had not (Bengio, Leonard, Courville 2013).

    The shares of `clips` are those of the matrix it is made for: searched once and not at every step. Scales follow the
    rows, so that the largest of each is always a whole number of its scale.
    """

    clips: Tensor  # (N + 1,)

    def __init__(self, matrix: Tensor, bits: Literal[4, 8]) -> None:
        super().__init__()
        self.levels = LEVELS[bits]
        found = torch.from_numpy(clips(matrix.detach().cpu().numpy(), bits))
        self.register_buffer("clips", found.to(matrix.device), persistent=False)

    def forward(self, matrix: Tensor) -> Tensor:
        """(N + 1, D) -> the same shape, rounded."""
        with torch.no_grad():
            largest = self.clips * matrix.abs().amax(1)
            scales = scales_for(largest, self.levels)[:, None]
            whole = (matrix / scales).round().clamp(-self.levels, self.levels) * scales
        return whole + (matrix - matrix.detach())  # the difference is zero, its gradient is not


@contextmanager
def rounding(decoder: Decoder, bits: Literal[4, 8, 32]) -> Iterator[None]:
    """Inside, `decoder` computes as a file with its item table in `bits` bits does, and learns by straight-through gradients.

    Afterwards its weights are the rounded ones, which that file holds as they are. 32 changes nothing.
    """
    if bits == 32:
        yield
        return
    owned = []
    for name, weight in list(decoder.named_parameters()):
        if weight.ndim == 2:
            path, _, last = name.rpartition(".")
            owned.append((decoder.get_submodule(path), last))
            register_parametrization(*owned[-1], StraightThrough(weight, bits if name == "table.weight" else 8))
    yield
    for module, last in owned:
        remove_parametrizations(module, last, leave_parametrized=True)
