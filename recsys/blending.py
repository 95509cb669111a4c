"""Whether a sequence model gains by its neighbours' opinion, and at which weight: asked on validation users."""

from collections.abc import Sequence

import numpy as np
import torch

from recsys.histories import Cases
from recsys.neighbourhood import Neighbourhood, Opinion, padded
from recsys.recommender import History, Recommender
from recsys.sequence_model import NDCG_BLOCK, Scorer, SequenceModel, ndcg_of
from recsys.statistics import paired_difference

WEIGHTS = tuple(round(0.1 * tenths, 1) for tenths in range(1, 8))
"""The shares of the neighbours in the mean of logits that are tried."""

MOST_CASES = 5_000


def opinion_for(
    model: SequenceModel, neighbourhood: Neighbourhood, cases: Cases, held: float | None = None
) -> Opinion | None:
    """The neighbours at the weight that does best on validation `cases`; None where that is no weight at all.

    A weight that is `held`, from the model that this one goes on from, is left only for one that is better with
    95 % confidence, user by user: one window of few users shall not undo what earlier ones found.
    """
    tried = dict(zip((0.0, *WEIGHTS), ndcg_by_weight(model, neighbourhood, cases.sample(MOST_CASES)), strict=True))
    weight = max(tried, key=lambda weight: float(tried[weight].mean()))
    if held in tried and not paired_difference(tried[weight], tried[held]).low > 0:
        weight = held
    return Opinion(neighbourhood, weight) if weight else None


def ndcg_by_weight(model: SequenceModel, neighbourhood: Neighbourhood, cases: Cases) -> list[np.ndarray]:
    """(C,) NDCG@10 of each case, without neighbours and at each of WEIGHTS. The model scores each case once."""
    scorer = Scorer(model, model.length, "blended")
    found: list[list[np.ndarray]] = [[] for _ in (0, *WEIGHTS)]
    for first in range(0, len(cases), NDCG_BLOCK):
        some = cases.part(slice(first, first + NDCG_BLOCK))
        known = [history[history <= scorer.items][-model.length :] for history in some.histories]
        items, ends = padded([history if len(history) else np.zeros(1, np.int32) for history in known])
        heard = neighbourhood.heard(items, np.arange(len(items)), ends)
        alone = torch.from_numpy(scorer.scores(some.histories))
        found[0].append(ndcg_of(_Known(alone.numpy().copy()), some))
        for weight, values in zip(WEIGHTS, found[1:], strict=True):
            blended = Opinion(neighbourhood, weight).blended(alone.clone(), heard)
            values.append(ndcg_of(_Known(blended.numpy()), some))
    return [np.concatenate(values) for values in found]


class _Known(Recommender):
    """Scores that are known already, for the very histories they were made for."""

    name = "known"

    def __init__(self, scores: np.ndarray) -> None:
        self.items = scores.shape[1]
        self._scores = scores

    def scores(self, histories: Sequence[History]) -> np.ndarray:
        """(B, N), as it was given."""
        return self._scores
