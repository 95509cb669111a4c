"""A causal model over item vectors: what training asks of it, and how it scores and is validated."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from recsys.histories import Cases
from recsys.metrics import Hits, ndcg
from recsys.neighbourhood import Opinion, padded
from recsys.recommender import History, Recommender


class SequenceModel(Protocol):
    """The decoder of teacher and student, or a language model. Always an nn.Module."""

    @property
    def length(self) -> int:
        """L, the most items it reads."""

    def item_table(self) -> Tensor:
        """(N + 1, D): one vector an item, used on the input and the output side; row 0 is padding."""

    def states(self, items: Tensor, table: Tensor) -> Tensor:
        """(B, L) codes, 0 padding on the right -> (B, L, D); the score of an item is state . item vector."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those with requires_grad are trained, checkpointed, and kept of the best epoch."""

    def train(self, mode: bool = True) -> Any:
        """Dropout on."""

    def eval(self) -> Any:
        """Dropout off."""


class Scorer(Recommender):
    """A sequence model as a Recommender, with a second opinion where it has one.

    The item table is computed at construction: train first.
    """

    def __init__(
        self,
        model: SequenceModel,
        length: int,
        name: str,
        batch_tokens: int = 16_384,
        *,
        opinion: Opinion | None = None,
    ) -> None:
        """`length` newest items of a history are read, at most `batch_tokens` padded positions at a time."""
        self.model, self.length, self.name, self.batch_tokens = model, length, name, batch_tokens
        self.opinion = opinion
        with torch.inference_mode():
            self.table = model.item_table()
        self.items = len(self.table) - 1

    def scores(self, histories: Sequence[History]) -> np.ndarray:
        """(B, N) float32. Items the model does not know are passed over; with no known item all scores are 0."""
        known = [history[history <= self.items][-self.length :] for history in histories]
        lengths = np.array([len(history) for history in known], np.int64)
        rows = np.zeros((len(known), self.items), np.float32)
        order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
        self.model.eval()
        while len(order):
            # Longest first, so the first of the rest tells the padded width of the next batch.
            chosen, order = np.split(order, [max(1, self.batch_tokens // lengths[order[0]])])
            rows[chosen] = self._scores([known[row] for row in chosen])
        return rows

    def _scores(self, histories: Sequence[History]) -> np.ndarray:
        """(B, N) of a few histories, none empty."""
        codes, last = padded(histories)
        items, ends = torch.from_numpy(codes), torch.from_numpy(last)
        rows = torch.arange(len(histories))
        on = self.table.device
        with torch.inference_mode():
            states = self.model.states(items.to(on), self.table)
            scores = (states[rows.to(on), ends.to(on)] @ self.table[1:].T).float()
            if self.opinion:
                scores = self.opinion.blended(scores, self.opinion.heard(items, rows, ends))
        return np.asarray(scores.cpu().numpy())


NDCG_BLOCK = 1_000  # cases ranked at once: it bounds the memory


def ndcg_of(model: Recommender, cases: Cases) -> np.ndarray:
    """(C,) NDCG@10 of each case over the items the model knows, seen items excluded as the cases say."""
    known = [codes[codes <= model.items] for codes in cases.exclusions()]
    values = [np.empty(0)]
    for first in range(0, len(cases), NDCG_BLOCK):
        some = slice(first, first + NDCG_BLOCK)
        codes, _ = model.top(cases.histories[some], 10, known[some])
        hits = Hits.of(codes, cases.targets[some])
        values.append(ndcg(hits.at_rank, hits.targets, 10))
    return np.concatenate(values)


def ranking_validator(model: SequenceModel, cases: Cases, most: int = 5_000) -> Callable[[], float]:
    """A function that gives the model's present mean NDCG@10 on at most `most` of the cases, evenly spaced."""
    chosen = cases.sample(most)
    return lambda: float(ndcg_of(Scorer(model, model.length, "validated"), chosen).mean())
