"""Ranking metrics with binary relevance, one value a user. Numpy only.

All of them read a table of hits: `hits[c, r]` says whether the item at rank r + 1 of user c's list is one of
the user's targets. The whole catalog is ranked for every user, so nothing is sampled.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CUTOFFS = (1, 5, 10, 20)
"""The list lengths k at which a report gives every metric."""


@dataclass(frozen=True)
class Hits:
    """What C lists of K recommended items got right."""

    at_rank: np.ndarray  # (C, K) bool
    targets: np.ndarray  # (C,) int64, how many relevant items each user has, never 0

    @classmethod
    def of(cls, top: np.ndarray, targets: Sequence[np.ndarray]) -> "Hits":
        """The hits of `top` (C, K) codes, 0 where a list ran out, among each user's distinct `targets`."""
        at_rank = np.zeros(top.shape, bool)
        for row, (codes, relevant) in enumerate(zip(top, targets, strict=True)):
            at_rank[row] = np.isin(codes, relevant) & (codes != 0)
        return cls(at_rank, np.array([len(relevant) for relevant in targets], np.int64))


def ndcg(hits: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """(C,) DCG@k over the ideal DCG@k; a hit at rank r gains 1 / log2(r + 1) (Järvelin and Kekäläinen 2002).

    The ideal list has min(k, targets) hits at its head, so a user with two targets can reach 1, and one with
    thirty can too.
    """
    gains = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(gains)[np.minimum(targets, k) - 1]
    shown = hits[:, :k]
    values: np.ndarray = shown @ gains[: shown.shape[1]] / ideal
    return values


def recall(hits: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """(C,) share of the user's targets among the first k."""
    values: np.ndarray = hits[:, :k].sum(axis=1) / targets
    return values


def hit(hits: np.ndarray, k: int) -> np.ndarray:
    """(C,) 1 where any target is among the first k, else 0. At k = 1 it is the accuracy of first place."""
    return np.where(hits[:, :k].any(axis=1), 1.0, 0.0)


def reciprocal_rank(hits: np.ndarray, k: int) -> np.ndarray:
    """(C,) 1 / rank of the first hit, 0 where none is among the first k (Voorhees 1999)."""
    shown = hits[:, :k]
    return np.where(shown.any(axis=1), 1 / (shown.argmax(axis=1) + 1), 0.0)


def every_metric(hits: Hits) -> dict[str, np.ndarray]:
    """Every metric at every cutoff by its name, as `ndcg_at_10`: each (C,) float64."""
    values = {}
    for k in CUTOFFS:
        values[f"ndcg_at_{k}"] = ndcg(hits.at_rank, hits.targets, k)
        values[f"recall_at_{k}"] = recall(hits.at_rank, hits.targets, k)
        values[f"hr_at_{k}"] = hit(hits.at_rank, k)
        values[f"mrr_at_{k}"] = reciprocal_rank(hits.at_rank, k)
    return values


def cross_entropy(scores: np.ndarray, targets: Sequence[np.ndarray]) -> np.ndarray:
    """(B,) nats: the mean over a user's targets of -log softmax(scores)[target], for `scores` (B, N).

    Items at -inf (excluded, or unknown to the model) have no share in the normaliser. Targets among them have
    no finite value and are left out, so compare models over one catalog only; a user with no other is NaN.
    """
    wide = scores.astype(np.float64)
    peak = np.maximum(wide.max(axis=1, keepdims=True), np.finfo(np.float64).min)
    log_sum = np.log(np.maximum(np.exp(wide - peak).sum(axis=1), 1)) + peak[:, 0]
    values = np.full(len(wide), np.nan)
    for row, relevant in enumerate(targets):
        known = wide[row, relevant - 1]
        known = known[np.isfinite(known)]
        if len(known):
            values[row] = log_sum[row] - known.mean()
    return values
