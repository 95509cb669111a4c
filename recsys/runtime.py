"""Serves a published artifact without torch; the MLflow loader module of every registered version.

Needs onnxruntime, numpy and pyarrow. Its name is in the registry for ever: `mlflow.pyfunc` calls the
`_load_pyfunc` of whatever version is installed.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from recsys.artifact import CARD, GOLDEN, ITEMS, MEND, MODEL, Card, Golden, verify
from recsys.errors import ArtifactError, DataError
from recsys.explanation import reasons_by_id
from recsys.item_columns import NO_CODES, Filter, ItemColumns
from recsys.recommender import BATCH_SCORES, History, Recommender, top_k
from recsys.serving_graph import ServingGraph

BATCH_ROWS, BATCH_TOKENS, CACHED_SCORES = 64, 2_048, 2_000_000
"""Of one pass: as large as caches hold what lies between two steps (measured: docs/results.md, What one request costs)."""
BATCH_LEAST = 8
"""Fewer rows would read a large table too often."""
DEFAULT_K = 10

TOLERANCE: Mapping[int, float] = {4: 0.02, 8: 0.03, 32: 1e-4}
"""How far a score may lie from the one expected, by bits of the table, as a share of the scores' range.

A state is rounded to 255 levels beside a table of four bits and to 127 beside one of eight, which moves a score by up to
0.9 and 1.3 % (measured: models trained and of noise, widths 8 to 128). CPUs differ in the last bit of a float32 state,
and so, now and then, in one level. What a CPU computes wrongly is off by tens of percent (decision 0005).
"""

NO_GOLDEN = Golden((), (), ())


class Recommendation(NamedTuple):
    """One recommended item."""

    item_id: str
    score: float  # comparable within one answer; the item's training events where source is "popular"
    source: Literal["model", "popular"]


@dataclass(frozen=True)
class Served:
    """The answers to B requests, by item code."""

    codes: np.ndarray  # (B, K) int32, best first, 0 where nothing is left
    scores: np.ndarray  # (B, K) float32, -inf where nothing is left
    popular: np.ndarray  # (B,) bool, answered by popularity because the history holds no known item


class Runtime(Recommender):
    """A published model.

    It reads the newest L known items of a history, with `repeats: exclude` each at its first place only.
    """

    item_ids: Sequence[str]

    def __init__(
        self, graph: ServingGraph, card: Card, items: ItemColumns, golden: Golden = NO_GOLDEN, name: str = "artifact"
    ) -> None:
        if len(items.item_ids) != card.items:
            raise ArtifactError(f"{ITEMS} holds {len(items.item_ids)} items, {CARD} says {card.items}", mend=MEND)
        self.graph, self.card, self.golden, self.name = graph, card, golden, name
        self.new_rows = np.zeros((0, card.width), np.float32)
        self._name_items(items)

    def _name_items(self, items: ItemColumns) -> None:
        self.items = len(items.item_ids)
        self.columns, self.item_ids, self.code_of = items, items.item_ids, items.code_of
        self.popularity = items.counts.astype(np.float32)

    @classmethod
    def open(cls, folder: Path, name: str = "artifact", threads: int = 1) -> Self:
        """Verify the files of `folder`, then load them. ArtifactError names the file that is at fault."""
        folder = Path(folder)
        manifest = verify(folder)
        # Reading a Parquet file takes more than it leaves: before the graph, which then has the room.
        items = ItemColumns.from_bytes(manifest.read(folder, ITEMS))
        graph = ServingGraph(folder / MODEL, threads)
        manifest.check(folder, MODEL)  # the same file before and after it was read
        return cls(
            graph,
            Card.from_bytes(manifest.read(folder, CARD)),
            items,
            Golden.from_bytes(manifest.read(folder, GOLDEN)),
            name,
        )

    def with_items(self, items: ItemColumns, rows: np.ndarray) -> Self:
        """The same model with M items more, each with its row (M, D): old items score as before, to the bit.

        New items are ranked with the others; in a history they are passed over, for the file cannot read them. Where
        neighbours have a say, nobody speaks for a new item. Raises ArtifactError where the file gives no states.
        """
        more = copy(self)
        more.graph.require_states()
        more.new_rows = np.concatenate([self.new_rows, rows]).astype(np.float32)
        more._name_items(self.columns.followed_by(items))
        return more

    def scores(self, histories: Sequence[History]) -> np.ndarray:
        """(B, N) float32. Without a known item in the history they are the items' training events."""
        read = [self._read(history) for history in histories]
        rows = np.tile(self.popularity, (len(read), 1))
        for chosen in self._batches(read):
            rows[chosen] = self._all_scores([read[row] for row in chosen])
        return rows

    def top(
        self, histories: Sequence[History], k: int, exclude: Sequence[np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As Recommender.top, by the graph's own exact top-k. Unknown codes may be excluded too."""
        k = min(k, self.items)
        read = [self._read(history) for history in histories]
        barred = [self._known(codes) for codes in exclude] if exclude is not None else [NO_CODES] * len(read)
        codes, scores = np.zeros((len(read), k), np.int32), np.full((len(read), k), -np.inf, np.float32)
        for row in (row for row, history in enumerate(read) if not len(history)):
            codes[row], scores[row] = self._most_popular(barred[row], k)
        for chosen in self._batches(read):
            codes[chosen], scores[chosen] = self._best(
                [read[row] for row in chosen], [barred[row] for row in chosen], k
            )
        return codes, scores

    def _all_scores(self, read: Sequence[History]) -> np.ndarray:
        if not len(self.new_rows):
            return self.graph.all_scores(read)
        scores, states = self.graph.run(["all_scores", "state"], read, [], 0)
        return np.concatenate([scores, states @ self.new_rows.T], axis=1)

    def _best(self, read: Sequence[History], barred: Sequence[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The graph's own best, and among them the new items, where there are any."""
        if not len(self.new_rows):
            return self.graph.best(read, barred, k)
        old = self.card.items
        known = [codes[codes <= old] for codes in barred]
        codes, scores, states = self.graph.run(["codes", "scores", "state"], read, known, k)
        new = states @ self.new_rows.T
        for row, codes_barred in zip(new, barred, strict=True):
            row[codes_barred[codes_barred > old] - old - 1] = -np.inf
        codes = np.concatenate([codes, np.broadcast_to(np.arange(old + 1, self.items + 1), new.shape)], axis=1)
        scores = np.concatenate([scores, new], axis=1)
        codes[~np.isfinite(scores)] = 0
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # new items have the higher codes
        return np.take_along_axis(codes, best, 1), np.take_along_axis(scores, best, 1)

    def serve(self, histories: Sequence[History], k: int, filters: Sequence[Filter] | None = None) -> Served:
        """The best k items of each user by the card's rule on repeats and by its filter. A history may be empty.

        What is denied is left out by the graph; what is allowed is ranked among itself, from the scores of all items.
        """
        exclude = histories if self.card.repeats == "exclude" else None
        popular = np.array([not self._readable(history).any() for history in histories], bool)
        if filters is None:
            return Served(*self.top(histories, k, exclude), popular)
        seen = [NO_CODES] * len(histories) if exclude is None else exclude
        barred = [np.concatenate([codes, each.denied]) for codes, each in zip(seen, filters, strict=True)]
        k = min(k, self.items)
        codes, scores = np.zeros((len(histories), k), np.int32), np.full((len(histories), k), -np.inf, np.float32)
        free = [row for row, each in enumerate(filters) if each.allowed is None]
        codes[free], scores[free] = self.top([histories[row] for row in free], k, [barred[row] for row in free])
        among = {
            row: np.setdiff1d(self._known(each.allowed), barred[row])
            for row, each in enumerate(filters)
            if each.allowed is not None
        }
        for row, listed, best in self._best_among(histories, among, k):
            codes[row, : len(listed)], scores[row, : len(listed)] = listed, best
        return Served(codes, scores, popular)

    def codes(self, item_ids: Sequence[str]) -> History:
        """A history of raw item ids as codes; ids the model does not know are left out."""
        return self.columns.codes(item_ids)

    def events(self, history: History) -> np.ndarray:
        """Places in a history, ascending, of its known items, with `repeats: exclude` each at its first place only."""
        places = np.flatnonzero(self._readable(history))
        if self.card.repeats == "exclude":
            _, first = np.unique(history[places], return_index=True)
            places = places[np.sort(first)]
        return places

    def recommend(
        self, histories: Sequence[Sequence[str]], k: int = DEFAULT_K, filters: Sequence[Filter] | None = None
    ) -> list[list[Recommendation]]:
        """The best k items of each history of raw item ids, oldest first; fewer where fewer are left.

        A history without any known item is answered with the most popular items, filtered alike.
        """
        served = self.serve([self.codes(history) for history in histories], k, filters)
        return [
            [
                Recommendation(self.item_ids[code - 1], score, "popular" if popular else "model")
                for code, score in zip(codes, scores, strict=True)
                if code
            ]
            for codes, scores, popular in zip(
                served.codes.tolist(), served.scores.tolist(), served.popular.tolist(), strict=True
            )
        ]

    def check_golden(self) -> None:
        """Replay the golden requests. ArtifactError when an answer is another than when the model was made.

        Two items whose scores lie within the tolerance may have changed places: CPUs differ in the last bit.
        """
        answers = zip(self.golden.histories, self.golden.codes, self.golden.scores, strict=True)
        for number, (history, listed, expected) in enumerate(answers, start=1):
            asked, codes = np.array(history, np.int32), np.array(listed, np.int64)
            scores = self.scores([asked])[0]
            served = self.serve([asked], len(codes))
            within = TOLERANCE[self.card.bits] * np.ptp(scores)
            now = np.stack([scores[codes - 1], served.scores[0]])
            if not np.all(np.abs(now - np.array(expected)) <= within):
                raise ArtifactError(
                    f"golden request {number} is answered otherwise than when the model was made", mend=MEND
                )

    def _readable(self, history: History) -> np.ndarray:
        """(L,) bool: the file can read this item."""
        readable: np.ndarray = (history >= 1) & (history <= self.card.items)
        return readable

    def _known(self, codes: np.ndarray) -> np.ndarray:
        """The codes this model has an item for: a champion may be asked about a later catalog."""
        return codes[(codes >= 1) & (codes <= self.items)]

    def _read(self, history: History) -> History:
        """What the model reads of a history."""
        read: History = history[self.events(history)[-self.card.length :]]
        return read

    def _most_popular(self, barred: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes and scores (K,)."""
        row = self.popularity.copy()
        row[barred - 1] = -np.inf
        codes, scores = top_k(row[None], k)
        return codes[0], scores[0]

    def _best_among(
        self, histories: Sequence[History], among: Mapping[int, np.ndarray], k: int
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For each row of `among` its best codes (K,) of those named there, ascending, and their scores (K,)."""
        rows = [row for row, codes in among.items() if len(codes)]
        size = max(1, BATCH_SCORES // self.items)
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            for row, scores in zip(some, self.scores([histories[row] for row in some]), strict=True):
                places, best = top_k(scores[among[row] - 1][None], k)
                kept = places[0] > 0
                yield row, among[row][places[0][kept] - 1], best[0][kept]

    def _batches(self, read: Sequence[History]) -> Iterator[np.ndarray]:
        """Rows of equally long histories: unpadded, so that no row depends on another by a single bit."""
        lengths = np.array([len(history) for history in read], np.int64)
        for length in np.unique(lengths[lengths > 0]):
            rows, size = np.flatnonzero(lengths == length), pass_rows(int(length), self.items)
            for start in range(0, len(rows), size):
                yield rows[start : start + size]


def pass_rows(length: int, items: int) -> int:
    """Histories of `length` items that are answered at once."""
    cached = max(BATCH_LEAST, CACHED_SCORES // items)
    return max(1, min(BATCH_ROWS, BATCH_TOKENS // length, cached, BATCH_SCORES // items))


class PyfuncModel:
    """What `mlflow.pyfunc.load_model` wraps."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """A frame of item_ids, scores and sources, a list a row, for a frame with the column history.

        A history is a list of item ids, oldest first. `params` may set `k`, how many items are wanted, and `explain`:
        then the column reasons holds, for each item, a list of {"item_id", "drop"} as recsys/explanation.py has them.
        DataError for another frame or a k below 1.
        """
        import pandas as pd  # only MLflow's callers need it

        if "history" not in getattr(model_input, "columns", ()):
            raise DataError("the input has no column history", mend="Send one list of item ids a row, oldest first.")
        k = int((params or {}).get("k", DEFAULT_K))
        if k < 1:
            raise DataError(f"k is {k}", mend="Ask for at least one item.")
        histories = [_item_ids(history) for history in model_input["history"]]
        answers = self.runtime.recommend(histories, k)
        columns: dict[str, list[Any]] = {
            "item_ids": [[item.item_id for item in answer] for answer in answers],
            "scores": [[item.score for item in answer] for answer in answers],
            "sources": [[item.source for item in answer] for answer in answers],
        }
        if (params or {}).get("explain"):
            columns["reasons"] = [reasons_by_id(self.runtime, history, k) for history in histories]
        return pd.DataFrame(columns, index=model_input.index)


def _item_ids(history: Any) -> list[str]:
    """A cell of the column: None is an empty history, one text is not a list of texts."""
    if history is None:
        return []
    if isinstance(history, str) or not hasattr(history, "__iter__"):
        raise DataError(f"a history is {history!r}", where="column history", mend="Send a list of item ids.")
    return list(history)


def _load_pyfunc(path: str) -> PyfuncModel:
    """MLflow's entry: the folder of the artifact, verified and proven on its golden requests."""
    runtime = Runtime.open(Path(path))
    runtime.check_golden()
    return PyfuncModel(runtime)
