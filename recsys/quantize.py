"""A matrix in eight or four bits: whole numbers and one scale a row, and a decoder of such matrices."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from recsys.decoder import Decoder

LEVELS = {8: 127, 4: 7}
"""The largest whole number by bits. The most negative one is left out so that a vector and its negative are rounded alike."""

CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
"""Shares of a row's largest value that its scale may stand for in four bits; what lies beyond is cut off."""


@dataclass(frozen=True)
class RowTable:
    """Row-wise symmetric whole numbers: row r stands for `rows[r] * scales[r]`."""

    rows: np.ndarray  # (N + 1, D) int8
    scales: np.ndarray  # (N + 1,) float32

    @classmethod
    def of(cls, table: np.ndarray, bits: Literal[4, 8]) -> "RowTable":
        """The nearest such table of `table` (N + 1, D) float32. A row of zeros, the padding, stays zero.

        Eight bits keep the whole range of a row. With four the range is searched row by row: of CLIPS the one with
        the smallest squared error, since 15 levels are better spent on the many values than on the largest.
        """
        largest = np.abs(table).max(axis=1)
        best = _rounded(table, largest, LEVELS[bits])
        for clip in CLIPS[1:] if bits == 4 else ():
            other = _rounded(table, clip * largest, LEVELS[bits])
            closer = other._error(table) < best._error(table)
            rows = np.where(closer[:, None], other.rows, best.rows)
            best = cls(rows, np.where(closer, other.scales, best.scales))
        return best

    def dequantized(self) -> np.ndarray:
        """(N + 1, D) float32; in eight bits no element is further than half its row's scale from the original."""
        return np.asarray(self.rows.astype(np.float32) * self.scales[:, None])

    def _error(self, table: np.ndarray) -> np.ndarray:
        error: np.ndarray = ((self.dequantized() - table) ** 2).sum(axis=1)
        return error


def _rounded(table: np.ndarray, largest: np.ndarray, levels: int) -> RowTable:
    scales = np.where(largest > 0, largest / levels, 1).astype(np.float32)
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
            whole = RowTable.of(weight.detach().cpu().numpy(), 8)
            weight.data = torch.from_numpy(whole.dequantized()).to(weight.device)
    return made
