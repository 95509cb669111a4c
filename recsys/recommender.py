"""The one interface every model obeys: scores(histories) -> one row a user, one column an item. Numpy only."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

History = np.ndarray
"""(L,) int32 item codes from 1, oldest first. Models read the newest `length` of them; never padded by the caller."""


BATCH_SCORES = 8_000_000
"""Scores that are held at once, 32 MB."""


class Recommender(ABC):
    """Anything that scores a catalog of `items` items; column j is the item with code j + 1."""

    name: str
    items: int
    item_ids: Sequence[str] | None = None  # of its items by code - 1; None: it has the codes of whoever asks
    probabilistic: bool = True  # whether softmax(scores) is the model's distribution over the catalog

    @abstractmethod
    def scores(self, histories: Sequence[History]) -> np.ndarray:
        """(B, N) float32, higher is better. A user's row never depends on the other rows."""

    def top(
        self, histories: Sequence[History], k: int, exclude: Sequence[np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best k items of each user as (codes (B, K) int32, scores (B, K) float32); ties go to the lower code.

        `exclude` holds the codes a user must not be shown. Where fewer than k are left the code is 0, the score -inf.
        """
        scores = self.scores(histories)
        if exclude is not None:
            for row, codes in zip(scores, exclude, strict=True):
                row[codes - 1] = -np.inf
        return top_k(scores, k)


def top_k(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (B, K) int32 and scores (B, K) of the k largest of each row of `scores` (B, N), ties by the lower code."""
    k = min(k, scores.shape[1])
    kth = np.partition(scores, -k, axis=1)[:, -k, None]
    codes = np.empty((len(scores), k), np.int32)
    for row, (values, bound) in enumerate(zip(scores, kth, strict=True)):
        candidates = np.flatnonzero(values >= bound)
        codes[row] = candidates[np.argsort(-values[candidates], kind="stable")[:k]] + 1
    best = np.take_along_axis(scores, codes.astype(np.int64) - 1, axis=1)
    codes[~np.isfinite(best)] = 0
    return codes, best
