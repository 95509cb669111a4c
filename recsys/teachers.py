"""A teacher as it labels and is registered: a sequence model of either kind, blended with neighbours where that helps."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch

from recsys.config import BlendConfig
from recsys.errors import StoreError
from recsys.histories import Cases, Histories
from recsys.lm_teacher import LmTeacher
from recsys.neighbourhood import Neighbourhood, Opinion, padded
from recsys.recommender import History, Recommender
from recsys.sequence_model import NDCG_BLOCK, Scorer, ndcg_of
from recsys.statistics import paired_difference
from recsys.teacher import Teacher

WEIGHTS = tuple(round(0.1 * tenths, 1) for tenths in range(1, 8))
"""The shares of the neighbours in the mean of logits that are tried."""

MOST_CASES = 5_000


@dataclass(frozen=True)
class BlendedTeacher:
    """What writes the soft labels: one object, causal, kept as data. Without an opinion it is the model alone."""

    model: Teacher | LmTeacher
    opinion: Opinion | None = None

    @property
    def items(self) -> int:
        """N, how many items it knows: a prefix of later catalogs."""
        return self.model.items

    @property
    def length(self) -> int:
        """L, the most items it reads."""
        return self.model.length

    @property
    def weight(self) -> float:
        """The share of the neighbours in the mean of logits."""
        return self.opinion.weight if self.opinion else 0.0

    def scorer(self, name: str) -> Scorer:
        """As a Recommender."""
        return Scorer(self.model, self.length, name, opinion=self.opinion)

    def save(self, folder: Path) -> None:
        """Write the model's files and, where there is an opinion, its own, into an existing folder."""
        self.model.save(folder)
        if self.opinion:
            self.opinion.save(folder)

    @classmethod
    def of(cls, model: Teacher | LmTeacher, histories: Histories, cases: Cases, config: BlendConfig) -> Self:
        """The model with the neighbours of the training part, at the weight that does best on validation `cases`.

        The gain of that weight in NDCG@10 must be proven with 95 % confidence, user by user; else there is no blend.
        """
        if config.neighbours == 0:
            return cls(model)
        neighbourhood = Neighbourhood.of_training(histories, model.items, config)
        alone, *blended = _ndcg_by_weight(model, neighbourhood, cases.sample(MOST_CASES))
        best = int(np.argmax([values.mean() for values in blended]))
        proven = paired_difference(blended[best], alone).low > 0
        return cls(model, Opinion(neighbourhood, WEIGHTS[best]) if proven else None)


def load_teacher(folder: Path) -> BlendedTeacher:
    """The teacher in `folder`, on the GPU when there is one. Raises StoreError when there is none that we know."""
    try:
        kind = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError("a teacher cannot be read", where=f"{folder}: {error}") from None
    for teacher in (Teacher, LmTeacher):
        if kind == teacher.KIND:
            return BlendedTeacher(teacher.load(folder), Opinion.load(folder))
    raise StoreError(f"a teacher of the kind {kind!r} is not known", where=str(folder / "teacher.json"))


class _Known(Recommender):
    """Scores that are known already, for the very histories they were made for."""

    name = "known"

    def __init__(self, scores: np.ndarray) -> None:
        self.items = scores.shape[1]
        self._scores = scores

    def scores(self, histories: Sequence[History]) -> np.ndarray:
        """(B, N), as it was given."""
        return self._scores


def _ndcg_by_weight(model: Teacher | LmTeacher, neighbourhood: Neighbourhood, cases: Cases) -> list[np.ndarray]:
    """(C,) NDCG@10 of each case, without neighbours and at each of WEIGHTS. The model scores each case once."""
    scorer = Scorer(model, model.length, "blended")
    found: list[list[np.ndarray]] = [[] for _ in (0, *WEIGHTS)]
    for first in range(0, len(cases), NDCG_BLOCK):
        some = cases.part(slice(first, first + NDCG_BLOCK))
        known = [history[history <= model.items][-model.length :] for history in some.histories]
        items, ends = padded([history if len(history) else np.zeros(1, np.int32) for history in known])
        heard = neighbourhood.heard(items, np.arange(len(items)), ends)
        alone = torch.from_numpy(scorer.scores(some.histories))
        found[0].append(ndcg_of(_Known(alone.numpy().copy()), some))
        for weight, values in zip(WEIGHTS, found[1:], strict=True):
            blended = Opinion(neighbourhood, weight).blended(alone.clone(), heard)
            values.append(ndcg_of(_Known(blended.numpy()), some))
    return [np.concatenate(values) for values in found]
