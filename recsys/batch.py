"""What one step of training reads: some windows, and what followed each of their positions."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from recsys.histories import Histories
from recsys.windows import Windows


@dataclass(frozen=True)
class Batch:
    """B windows, and the P positions among them that are owned, in row-major order."""

    items: Tensor  # (B, L) int64, 0 is padding
    owned: Tensor  # (B, L) bool
    labels: Tensor  # (P,) int64, the item that really followed
    weights: Tensor  # (P,) float32, the label's event weight
    positions: Tensor  # (P,) int64, flat input positions in the Histories

    @classmethod
    def of(cls, histories: Histories, windows: Windows, chosen: np.ndarray, on: torch.device) -> Self:
        """The windows with the numbers `chosen` (B,)."""
        start, own, stop = (edge[chosen, None] for edge in (windows.start, windows.own, windows.stop))
        at = start + np.arange((stop - start).max())
        inside = at < stop
        items = np.where(inside, histories.items[np.where(inside, at, 0)], 0).astype(np.int64)
        owned = inside & (at >= own)
        positions = at[owned]
        labels = histories.items[positions + 1].astype(np.int64)
        arrays = items, owned, labels, histories.weights[positions + 1], positions
        return cls(*(torch.from_numpy(array).to(on) for array in arrays))

    def part(self, number: int, parts: int) -> tuple[Self, float]:
        """Every `parts`-th window from `number` on, and the share that their labels have of all weights.

        Where there are fewer windows than parts, one too many gets the first window with a share of nothing: it has a
        gradient like the others, of zeros.
        """
        first = number if number < len(self.items) else 0
        mine = self.owned.nonzero()[:, 0] % parts == first
        of_positions = (self.labels[mine], self.weights[mine], self.positions[mine])
        part = type(self)(self.items[first::parts], self.owned[first::parts], *of_positions)
        share = part.weights.double().sum() / self.weights.double().sum()
        return part, float(share) if first == number else 0.0
