"""Why an item is recommended: the events without which its score falls, by exact leave-one-out through the runtime."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypedDict

import numpy as np

from recsys.artifact import Card
from recsys.recommender import BATCH_SCORES, History

REASONS = 3

Basis = Literal["events", "history", "popularity"]
"""What a recommendation rests on.

events: single events, by their drops. history: the one item that the model knows of the history; without it popularity
would answer, whose scores are on another scale, so there is no drop. popularity: the model knows nothing of the history.
"""


@dataclass(frozen=True)
class Reason:
    """One event that carried a recommendation."""

    code: int  # of the event's item
    position: int  # in the history as it was given, from 0, oldest first
    drop: float | None  # of the score when the event is left out, above 0; None where the basis is "history"


@dataclass(frozen=True)
class Explained:
    """One recommended item, and what carried it."""

    code: int
    score: float
    basis: Basis
    reasons: tuple[Reason, ...]  # the largest drop first, ties by the newer event; none if no event alone lowers it
    drops: float = 0.0  # the sum over all events that lower the score, also those that are not among the reasons

    def share(self, reason: Reason) -> float | None:
        """A reason's part of `drops`; None where it has no drop."""
        return None if reason.drop is None else reason.drop / self.drops


class Answers(Protocol):
    """What answered, as the runtime computes it."""

    @property
    def codes(self) -> np.ndarray:
        """(B, K), best first, 0 where nothing is left."""

    @property
    def scores(self) -> np.ndarray:
        """(B, K)."""


class Explainable(Protocol):
    """The runtime, as far as it is asked here: it is what explains itself to MLflow's callers."""

    card: Card
    items: int
    item_ids: Sequence[str]

    def serve(self, histories: Sequence[History], k: int) -> Answers:
        """The best k items of each history."""

    def scores(self, histories: Sequence[History]) -> np.ndarray:
        """(B, N)."""

    def events(self, history: History) -> np.ndarray:
        """Places in the history of what the model may read."""

    def codes(self, item_ids: Sequence[str]) -> History:
        """Raw item ids as codes."""


class NamedReason(TypedDict):
    """A reason as MLflow's callers get it."""

    item_id: str
    drop: float | None


def explain(runtime: Explainable, history: History, k: int, reasons: int = REASONS) -> tuple[Explained, ...]:
    """The best k items as `runtime.serve` answers them, each with at most `reasons` events of `history`, which may be empty.

    The drop of an event is the item's score with the whole history minus its score with that event left out, both as
    the runtime answers them: an event too old to be read moves up. Tried are the newest L events that the model reads;
    where it reads an item once only, the item is left out with its repeats. At most two times BATCH_SCORES scores are
    held at once, and (L, k) drops.
    """
    served = runtime.serve([history], k)
    some = served.codes[0] > 0
    codes, scores = served.codes[0][some], served.scores[0][some]
    places = runtime.events(history)[-runtime.card.length - 1 :]  # one more than are read: it moves up
    if len(places) < 2:
        basis: Basis = "history" if len(places) else "popularity"
        only = tuple(Reason(int(history[place]), int(place), None) for place in places)
        return tuple(Explained(int(code), float(score), basis, only) for code, score in zip(codes, scores, strict=True))
    read = places[-runtime.card.length :]
    drops = _drops(runtime, history[places], len(read), codes)
    return tuple(
        Explained(int(code), float(score), "events", _reasons(history, read, column, reasons), _positive(column))
        for code, score, column in zip(codes, scores, drops.T, strict=True)
    )


def reasons_by_id(runtime: Explainable, item_ids: Sequence[str], k: int) -> list[list[NamedReason]]:
    """The reasons of each of the best k items for a history of raw item ids, in the order of the items."""
    return [
        [{"item_id": runtime.item_ids[reason.code - 1], "drop": reason.drop} for reason in item.reasons]
        for item in explain(runtime, runtime.codes(item_ids), k)
    ]


def _drops(runtime: Explainable, events: History, newest: int, codes: np.ndarray) -> np.ndarray:
    """(newest, K) float32: the scores of `codes` with all events minus those with one of the newest left out."""
    without = (np.delete(events, place) for place in range(len(events) - newest, len(events)))
    asked = [events, *without]
    size = max(1, BATCH_SCORES // runtime.items)
    parts = [runtime.scores(asked[start : start + size])[:, codes - 1] for start in range(0, len(asked), size)]
    scores = np.concatenate(parts)
    drops: np.ndarray = scores[0] - scores[1:]
    return drops


def _reasons(history: History, read: np.ndarray, drops: np.ndarray, most: int) -> tuple[Reason, ...]:
    """The `most` largest of `drops` (R,), those of the events at the places `read` (R,)."""
    order = np.lexsort((-read, -drops))[:most]
    return tuple(Reason(int(history[read[at]]), int(read[at]), float(drops[at])) for at in order if drops[at] > 0)


def _positive(drops: np.ndarray) -> float:
    return float(drops[drops > 0].sum(dtype=np.float64))
