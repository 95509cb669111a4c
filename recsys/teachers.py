"""A teacher as it labels and is registered: a sequence model of either kind, blended with neighbours where that helps."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from recsys.blending import opinion_for
from recsys.config import BlendConfig
from recsys.ensemble import Ensemble
from recsys.errors import StoreError
from recsys.histories import Cases, Histories
from recsys.lm_teacher import LmTeacher
from recsys.neighbourhood import Neighbourhood, Opinion
from recsys.sequence_model import Scorer
from recsys.teacher import Teacher


@dataclass(frozen=True)
class BlendedTeacher:
    """What writes the soft labels: one object, causal, kept as data. Without an opinion it is the model alone."""

    model: Teacher | LmTeacher | Ensemble
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
    def of(cls, model: Teacher | LmTeacher | Ensemble, histories: Histories, cases: Cases, config: BlendConfig) -> Self:
        """The model with the neighbours of the training part, if `opinion_for` finds on `cases` that it gains by them."""
        if config.neighbours == 0:
            return cls(model)
        neighbourhood = Neighbourhood.of_training(histories, model.items, config.neighbours, config.newest)
        return cls(model, opinion_for(model, neighbourhood, cases))


def load_teacher(folder: Path) -> BlendedTeacher:
    """The teacher in `folder`, on the GPU when there is one. Raises StoreError when there is none that we know."""
    try:
        kind = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError("a teacher cannot be read", where=f"{folder}: {error}") from None
    for teacher in (Teacher, LmTeacher, Ensemble):
        if kind == teacher.KIND:
            return BlendedTeacher(teacher.load(folder), Opinion.load(folder))
    raise StoreError(f"a teacher of the kind {kind!r} is not known", where=str(folder / "teacher.json"))
