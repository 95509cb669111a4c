"""Most-popular and item-to-item neighbours: what everything must clear."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array, vstack

from recsys.histories import Histories
from recsys.recommender import History, Recommender, top_k

_BLOCK = 4_000_000  # similarities held dense at once while neighbours are chosen


class MostPopular(Recommender):
    """Every user gets the items with the most training events."""

    name = "most_popular"
    probabilistic = False

    def __init__(self, counts: np.ndarray) -> None:
        """`counts` (N,): training events of each item."""
        self.items = len(counts)
        self._counts = counts.astype(np.float32)

    def scores(self, histories: Sequence[History]) -> np.ndarray:
        """(B, N) float32: the counts, whoever asks."""
        return np.tile(self._counts, (len(histories), 1))


class Neighbours(Recommender):
    """Items of the same users: score(j) is the sum of cosine(i, j) over the distinct items i of the history.

    Cosine of the columns of the binary user-item matrix of all events before the test cut: a peer that tunes nothing
    needs no validation window, and is the stronger for it. Each item keeps its `keep`
    nearest (Sarwar et al. 2001; Linden et al. 2003).
    """

    name = "neighbours"
    probabilistic = False

    def __init__(self, histories: Histories, items: int, keep: int = 4_000) -> None:
        """Memory is bounded by `keep` neighbours an item and one dense block of similarities."""
        self.items = items
        self._similarities = _nearest(_matrix_before_test(histories, items), keep)

    def scores(self, histories: Sequence[History]) -> np.ndarray:
        """(B, N) float32; all zero for an empty history."""
        distinct = [np.unique(history) - 1 for history in histories]
        ends = np.cumsum([0, *(len(codes) for codes in distinct)])
        codes = np.concatenate([*distinct, np.empty(0, np.int64)]).astype(np.int64)
        seen = csr_array((np.ones(len(codes), np.float32), codes, ends), shape=(len(distinct), self.items))
        scores: np.ndarray = (seen @ self._similarities).toarray()
        return scores


def _matrix_before_test(histories: Histories, items: int) -> csr_array:
    """(U, N) float32: 1 / sqrt(its users) where a user has an item before the test cut; columns have norm 1."""
    lengths = np.diff(histories.offsets)
    users = np.repeat(np.arange(histories.users), lengths)
    before = np.arange(len(users)) - histories.offsets[users] < histories.valid_end[users]
    pairs = np.unique(users[before] * items + histories.items[before] - 1)
    owners, columns = np.divmod(pairs, items)
    buyers = np.bincount(columns, minlength=items)
    values = (1 / np.sqrt(buyers[columns])).astype(np.float32)
    return csr_array((values, (owners, columns)), shape=(histories.users, items))


def _nearest(matrix: csr_array, keep: int) -> csr_array:
    """(N, N): row i holds the cosines of item i to its `keep` nearest other items; ties by the lower code."""
    items = matrix.shape[1]
    by_item = matrix.T.tocsr()
    block = max(1, _BLOCK // items)
    parts = []
    for start in range(0, items, block):
        cosines = (by_item[start : start + block] @ matrix).toarray()
        rows = np.arange(len(cosines))
        cosines[rows, start + rows] = 0
        if keep >= items:  # none is left out: nothing to sort
            parts.append(csr_array(cosines))
            continue
        codes, values = top_k(cosines, keep)
        near = values > 0
        columns = codes[near].astype(np.int64) - 1
        parts.append(csr_array((values[near], (np.nonzero(near)[0], columns)), shape=(len(cosines), items)))
    return vstack(parts, format="csr")
