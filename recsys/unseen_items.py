"""Gives the items that nobody has bought yet a row of their own in a trained model's table."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import nn

from recsys.sequence_model import SequenceModel
from recsys.text_map import TextMap


class WithOwnVectors(SequenceModel, Protocol):
    """A sequence model whose items have vectors of their own, of which its item table is made."""

    @property
    def table(self) -> nn.Embedding:
        """(N + 1, D)."""


def fill_unseen(
    model: WithOwnVectors, texts: np.ndarray, counts: np.ndarray, reader: Mapping[str, str]
) -> TextMap | None:
    """Give items with a text and without training events (N,) the row of their text, in place; the map that did it.

    What training left them with is noise that every sampled negative pushed away. None with too few texts for a map.
    """
    table = model.item_table().detach().cpu().numpy()[1:]
    found = TextMap.of(table, texts, counts, reader)
    unseen = np.flatnonzero((counts == 0) & texts.any(axis=1))
    if found is not None:
        own = model.table.weight
        change = torch.from_numpy(found.rows(texts[unseen]) - table[unseen])
        with torch.no_grad():
            own[torch.from_numpy(unseen + 1).to(own.device)] += change.to(own)
    return found
