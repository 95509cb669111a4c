"""What a model does for the users of a window: metrics and lists by user, their breadth and popularity."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.dataset import Dataset
from recsys.histories import Cases, Catalog
from recsys.membership import Membership
from recsys.metrics import CUTOFFS, Hits, cross_entropy, every_metric
from recsys.recommender import History, Recommender
from recsys.spread import HERE, Shared, in_order

LIST_LENGTH = max(CUTOFFS)
_HEAD_EVENTS = 0.8  # the head is the fewest items that make this share of the training events
_BATCH_USERS = 256
_BATCH_SCORES = 32_000_000  # scores held at once

ENOUGH_MS = 500
"""Milliseconds of answers after which a slow model's latency is known well enough."""

OnProgress = Callable[[int, int], None]
"""Called with the users done and the users in all."""


def ignore(done: int, total: int) -> None:
    """No progress is shown."""


@dataclass(frozen=True)
class ModelReport:
    """One model on C users of one dataset. Reports of one night have the users in the same order."""

    model: str
    users: np.ndarray  # (C,) S32 tokens
    metrics: Mapping[str, np.ndarray]  # (C,) float64 by name, as "ndcg_at_10"; NaN where the model gave no number
    cross_entropy: np.ndarray | None  # (C,) nats a target the model knows, NaN where it knows none
    coverage_at_10: float  # share of the catalog that is in somebody's first ten
    popularity_at_10: float  # mean training events of what is in the first tens, over those of the average item
    top: np.ndarray  # (C, 20) int32 codes, 0 where a list ran out
    bytes: int  # of the model's files
    history_lengths: np.ndarray  # (C,) int64
    tail_share: np.ndarray  # (C,) share of a user's targets outside the head
    unseen_hit_at_10: np.ndarray  # (C,) 1 where a target without training events is in the first ten; NaN without one
    as_of: int  # seconds UTC
    catalog_items: int
    membership: Membership | None = None  # None: not attacked, or too few users

    def mean(self, metric: str) -> float:
        """The mean of a metric over the users."""
        return float(self.metrics[metric].mean())

    def exposure_at_10(self) -> np.ndarray:
        """(N,) share of the users who are shown each item among their first ten."""
        shown = np.bincount(self.top[:, :10].ravel(), minlength=self.catalog_items + 1)
        share: np.ndarray = shown[1:] / len(self.users)
        return share

    @property
    def mean_cross_entropy(self) -> float | None:
        """Nats, over the users with a target the model knows; None where there is no such number."""
        if self.cross_entropy is None or not np.isfinite(self.cross_entropy).any():
            return None
        return float(np.nanmean(self.cross_entropy))

    def save(self, folder: Path) -> None:
        """Writes report.json and users.parquet into `folder`; the same report gives the same bytes."""
        columns: dict[str, pa.Array] = {
            "token": pa.array([token.decode() for token in self.users], pa.string()),
            "history_length": pa.array(self.history_lengths, pa.int64()),
            "tail_share": pa.array(self.tail_share, pa.float64()),
            "unseen_hit_at_10": pa.array(self.unseen_hit_at_10, pa.float64()),
            "top": pa.FixedSizeListArray.from_arrays(pa.array(self.top.ravel(), pa.int32()), self.top.shape[1]),
        }
        if self.cross_entropy is not None:
            columns["cross_entropy"] = pa.array(self.cross_entropy, pa.float64())
        columns |= {name: pa.array(values, pa.float64()) for name, values in sorted(self.metrics.items())}
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), folder / "users.parquet", compression="zstd", write_page_checksum=True)
        means = {name: self.mean(name) for name in self.metrics}
        summary = {
            "model": self.model,
            "users": len(self.users),
            "metrics": {name: mean if np.isfinite(mean) else None for name, mean in means.items()},
            "cross_entropy": self.mean_cross_entropy,
            "coverage_at_10": self.coverage_at_10,
            "popularity_at_10": self.popularity_at_10,
            "bytes": self.bytes,
            "as_of": self.as_of,
            "catalog_items": self.catalog_items,
            "membership": self.membership and self.membership.as_json(),
        }
        text = json.dumps(summary, sort_keys=True, indent=1, allow_nan=False)
        (folder / "report.json").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The inverse of `save`."""
        summary = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        table = pq.read_table(folder / "users.parquet", page_checksum_verification=True)
        column = {name: table[name].combine_chunks() for name in table.column_names}
        width = column["top"].type.list_size
        entropy, unseen = column.get("cross_entropy"), column.get("unseen_hit_at_10")
        attacked = summary.get("membership")  # a report of before it was measured has none
        return cls(
            model=summary["model"],
            users=np.array(column["token"].to_pylist(), "S32"),
            metrics={name: column[name].to_numpy() for name in summary["metrics"]},
            cross_entropy=None if entropy is None else entropy.to_numpy(),
            coverage_at_10=summary["coverage_at_10"],
            popularity_at_10=summary["popularity_at_10"],
            top=column["top"].flatten().to_numpy().reshape(-1, width),
            bytes=summary["bytes"],
            history_lengths=column["history_length"].to_numpy(),
            tail_share=column["tail_share"].to_numpy(),
            unseen_hit_at_10=np.full(len(table), np.nan) if unseen is None else unseen.to_numpy(),  # None: of before
            as_of=summary["as_of"],
            catalog_items=summary["catalog_items"],
            membership=attacked and Membership.from_json(attacked),
        )


class OnCatalog(Recommender):
    """A model on a catalog of N items: it never hears of those it does not know, scores them -inf and does not list them.

    It knows the first M, since a catalog only grows; but one from before users were forgotten knows them by other codes.
    """

    def __init__(self, model: Recommender, catalog: Catalog) -> None:
        self.name, self.items, self.probabilistic = model.name, catalog.items, model.probabilistic
        self._model = model
        ids = None if model.item_ids is None else list(model.item_ids)
        self._codes = _Codes.of(ids, catalog) if ids and ids != catalog.item_ids[: len(ids)] else None

    def scores(self, histories: Sequence[History]) -> np.ndarray:
        """(B, N) float32."""
        scores = np.full((len(histories), self.items + 1), -np.inf, np.float32)
        columns = slice(1, self._model.items + 1) if self._codes is None else self._codes.here[1:]
        scores[:, columns] = self._model.scores(self._known(histories))
        return scores[:, 1:]

    def top(
        self, histories: Sequence[History], k: int, exclude: Sequence[np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The model's own lists, as it serves them; fewer than k columns where it knows fewer items."""
        away = None if exclude is None else self._known(exclude)
        if self._codes is None:
            return self._model.top(self._known(histories), k, away)
        away = [np.append(row, self._codes.foreign) for row in away or [np.zeros(0, np.int32)] * len(histories)]
        codes, scores = self._model.top(self._known(histories), k, away)
        return self._codes.here[codes], scores

    def _known(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        if self._codes is None:
            return [row[row <= self._model.items] for row in codes]
        there = (self._codes.there[row] for row in codes)
        return [row[row > 0] for row in there]


@dataclass(frozen=True)
class _Codes:
    """The codes of one model's M items and those of a catalog of N; 0 is none."""

    here: np.ndarray  # (M + 1,) int32, the catalog's by the model's
    there: np.ndarray  # (N + 1,) int32, the model's by the catalog's
    foreign: np.ndarray  # int32, the model's of items that the catalog has not

    @classmethod
    def of(cls, item_ids: Sequence[str], catalog: Catalog) -> Self:
        codes = {item_id: code for code, item_id in enumerate(catalog.item_ids, start=1)}
        here = np.array([0, *(codes.get(item_id, 0) for item_id in item_ids)], np.int32)
        there = np.zeros(catalog.items + 1, np.int32)
        there[here] = np.arange(len(here))
        there[0] = 0
        return cls(here, there, np.flatnonzero(here[1:] == 0).astype(np.int32) + 1)


def evaluate(
    model: Recommender,
    cases: Cases,
    dataset: Dataset,
    bytes: int,
    on_progress: OnProgress = ignore,
    *,
    executor: Executor = HERE,
) -> ModelReport:
    """Ranks the whole catalog for every user of `cases`, through the model's own `top`, and measures.

    `bytes` is the size of the model's files. A user for whom a score is not a number gets NaN as every
    metric, which the gate refuses. The ranking is the executor's work.
    """
    catalog_items = dataset.catalog.items
    counts = dataset.training_counts()
    ranked = _rank(OnCatalog(model, dataset.catalog), cases, on_progress, executor)
    metrics = every_metric(Hits.of(ranked.top, cases.targets))
    first_ten = ranked.top[:, :10]
    shown = first_ten[first_ten > 0]
    head = head_items(counts)
    return ModelReport(
        model=model.name,
        users=dataset.histories.tokens[cases.users],
        metrics={name: np.where(ranked.broken, np.nan, values) for name, values in metrics.items()},
        cross_entropy=ranked.cross_entropy,
        coverage_at_10=len(np.unique(shown)) / catalog_items,
        popularity_at_10=relative_popularity(counts, shown),
        top=ranked.top,
        bytes=bytes,
        history_lengths=np.array([len(history) for history in cases.histories], np.int64),
        tail_share=np.array([1 - head[targets - 1].mean() for targets in cases.targets]),
        unseen_hit_at_10=unseen_hits(first_ten, cases.targets, counts),
        as_of=dataset.build.as_of,
        catalog_items=catalog_items,
    )


def unseen_hits(lists: np.ndarray, targets: Sequence[np.ndarray], counts: np.ndarray) -> np.ndarray:
    """(C,) of lists (C, K): 1 where one of the user's targets without training events is listed, 0 where none is.

    NaN for a user without such a target. Each stands in a ranking of the whole catalog: seen items compete with it.
    """
    unseen = [codes[counts[codes - 1] == 0] for codes in targets]
    hits = [
        float(np.isin(row, codes).any()) if len(codes) else np.nan for row, codes in zip(lists, unseen, strict=True)
    ]
    return np.array(hits)


def relative_popularity(counts: np.ndarray, shown: np.ndarray) -> float:
    """Mean training events of the `shown` codes (S,) over those of the average item; 0 when nothing is shown.

    Not a percentile: of a long-tailed catalog even a good list lies above the 80th, where no ratio tells it from
    most-popular.
    """
    if not len(shown) or not counts.any():
        return 0.0
    return float(counts[shown - 1].mean() / counts.mean())


def head_items(counts: np.ndarray) -> np.ndarray:
    """(N,) bool: the most popular items, taken until they make 80 % of the training events."""
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    head = np.zeros(len(counts), bool)
    head[order] = before < _HEAD_EVENTS * counts.sum()
    return head


@dataclass(frozen=True)
class Latency:
    """Of one request for one user."""

    p50_ms: float
    p99_ms: float


def latency(model: Recommender, cases: Cases, requests: int = 200) -> Latency:
    """Times `model.top` for one user at a time, after a warm-up. A measurement: never part of an identity.

    Half of the requests are enough of a model that takes more than a few milliseconds: it is told from a quick one by those.
    """
    asked = cases.sample(requests)
    exclusions = asked.exclusions()
    milliseconds: list[float] = []
    for request in range(-min(10, requests), requests):
        if len(milliseconds) >= requests // 2 and sum(milliseconds) > ENOUGH_MS:
            break
        user = request % len(asked)
        start = time.perf_counter_ns()
        model.top([asked.histories[user]], LIST_LENGTH, [exclusions[user]])
        if request >= 0:
            milliseconds.append((time.perf_counter_ns() - start) / 1e6)
    p50, p99 = np.quantile(milliseconds, [0.5, 0.99])
    return Latency(float(p50), float(p99))


@dataclass(frozen=True)
class _Ranked:
    top: np.ndarray  # (C, 20) int32
    cross_entropy: np.ndarray | None  # (C,)
    broken: np.ndarray  # (C,) bool, a score was not a number


def _rank(model: OnCatalog, cases: Cases, on_progress: OnProgress, executor: Executor) -> _Ranked:
    """All users of `cases`, a batch at a time."""
    ranked = _Ranked(
        top=np.zeros((len(cases), LIST_LENGTH), np.int32),
        cross_entropy=np.full(len(cases), np.nan) if model.probabilistic else None,
        broken=np.zeros(len(cases), bool),
    )
    with Shared(model) as shared:
        for users, batch in in_order(executor, partial(_rank_batch, shared), _batches(model, cases)):
            ranked.top[users], ranked.broken[users] = batch.top, batch.broken
            if ranked.cross_entropy is not None:
                ranked.cross_entropy[users] = batch.cross_entropy
            on_progress(users.stop, len(cases))
    return ranked


@dataclass(frozen=True)
class _Batch:
    """B users to rank for."""

    histories: list[np.ndarray]
    targets: list[np.ndarray]
    exclusions: list[np.ndarray]


def _batches(model: Recommender, cases: Cases) -> Iterator[tuple[slice, _Batch]]:
    """The users of `cases`, as many at once as the model's scores have room for."""
    exclusions = cases.exclusions()
    size = max(1, min(_BATCH_USERS, _BATCH_SCORES // model.items))
    for start in range(0, len(cases), size):
        users = slice(start, min(start + size, len(cases)))
        yield users, _Batch(cases.histories[users], cases.targets[users], exclusions[users])


def _rank_batch(model: Shared[OnCatalog], batch: _Batch) -> _Ranked:
    """Each user's list does not depend on the others of the batch."""
    sound = np.arange(len(batch.histories))
    ranked = _Ranked(
        top=np.zeros((len(sound), LIST_LENGTH), np.int32),
        cross_entropy=np.full(len(sound), np.nan) if model.value.probabilistic else None,
        broken=np.zeros(len(sound), bool),
    )
    if ranked.cross_entropy is not None:
        scores = model.value.scores(batch.histories)
        for row, codes in zip(scores, batch.exclusions, strict=True):
            row[codes - 1] = -np.inf
        ranked.broken[:] = np.isnan(scores).any(axis=1) | np.isposinf(scores).any(axis=1)
        sound = np.flatnonzero(~ranked.broken)
        ranked.cross_entropy[sound] = cross_entropy(scores[sound], [batch.targets[user] for user in sound])
    codes, _ = model.value.top(
        [batch.histories[user] for user in sound], LIST_LENGTH, [batch.exclusions[user] for user in sound]
    )
    ranked.top[sound, : codes.shape[1]] = codes
    return ranked
