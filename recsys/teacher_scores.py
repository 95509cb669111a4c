"""A teacher's scores: read at the positions of windows, and made again from the states that labels keep."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import embedding

from recsys.histories import Histories
from recsys.neighbourhood import Opinion
from recsys.sequence_model import SequenceModel
from recsys.training import Batch
from recsys.windows import Windows

BATCH_TOKENS = 8_192
SCORES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class TeacherHead:
    """What turns a state into scores: the item table, and the neighbours that the teacher is blended with."""

    table: Tensor  # (V + 1, D) float32; row 0 is the padding
    opinion: Opinion | None = None

    @classmethod
    def of(cls, model: SequenceModel, opinion: Opinion | None = None) -> Self:
        """The head of a teacher, on its device."""
        with torch.no_grad():
            return cls(model.item_table().detach().float(), opinion)

    @property
    def items(self) -> int:
        """V, how many items it scores."""
        return len(self.table) - 1

    def known(self, items: Tensor) -> Tensor:
        """Codes (B, L) as the teacher reads them: an item it does not know is no item."""
        return items.masked_fill(items > self.items, 0)

    def heard(self, items: Tensor, rows: Tensor, ends: Tensor) -> csr_array | None:
        """(P, V), what the neighbours say at P places of `items` (B, L); None without neighbours."""
        return self.opinion.heard(self.known(items), rows, ends) if self.opinion else None

    def logits(self, states: Tensor, heard: csr_array | None, items: Tensor | None = None) -> Tensor:
        """(P, V), or (P, n) of the codes `items` (n,), from states (P, D) and, where it is blended, what was heard (P, V)."""
        rows = self.table[1:] if items is None else embedding(items, self.table)
        logits = states @ rows.to(states).T
        if self.opinion is None or heard is None:
            return logits
        return self.opinion.blended(logits, heard if items is None else heard[:, items.cpu().numpy() - 1])


@dataclass(frozen=True)
class Reading:
    """What a teacher says at P positions."""

    at: np.ndarray  # (P,) int64, flat input positions in the Histories
    states: Tensor  # (P, D) float32
    logits: Tensor  # (P, V) float32


def readings(
    model: SequenceModel,
    head: TeacherHead,
    histories: Histories,
    windows: Windows,
    wanted: np.ndarray,
    batches: Iterable[np.ndarray],
) -> Iterator[Reading]:
    """The wanted positions that some windows own, at most SCORES_AT_ONCE scores a time; `wanted` (E,) bool, flat.

    The windows, named by `batches` of numbers as `windows.batches` gives them, are read whole, since a position needs what
    stands before it, but only wanted positions are scored. The work is done on the model's device.
    """
    model.eval()
    on, rows = head.table.device, max(1, SCORES_AT_ONCE // head.items)
    for numbers in batches:
        batch = Batch.of(histories, windows, numbers, on)
        at = batch.positions.cpu().numpy()
        some = wanted[at]
        at = at[some]
        window, end = torch.nonzero(batch.owned)[torch.from_numpy(some).to(on)].unbind(1)
        heard = head.heard(batch.items, window, end)
        # Never around a yield: what is done between two readings is not ours to change.
        with torch.inference_mode():
            states = model.states(head.known(batch.items), head.table)[window, end].float()
        for first in range(0, len(at), rows):
            part = slice(first, first + rows)
            with torch.inference_mode():
                logits = head.logits(states[part], None if heard is None else heard[part])
            yield Reading(at[part], states[part], logits)


def best_items(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Codes (P, k) and logits (P, k) of the k largest of each row of (P, V), ties by the lower code."""
    values, at = torch.topk(logits, min(k + 1, logits.shape[1]), 1)
    at = at[:, :k]
    if values.shape[1] > k:
        # topk takes any of several equals: where the first left out equals the last kept, sort the whole row.
        tied = torch.nonzero(values[:, k] == values[:, k - 1])[:, 0]
        at[tied] = torch.sort(logits[tied], dim=1, descending=True, stable=True)[1][:, :k]
    at = torch.sort(at, dim=1)[0]
    values, order = torch.sort(logits.gather(1, at), dim=1, descending=True, stable=True)
    return at.gather(1, order) + 1, values
