"""Scoring: parts of users through the serving runtime, by whoever works, and their rows into one file, here and in order.

To a worker go item codes and the model's file; user ids stay here.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.asked import AskedUsers
from recsys.past import BATCH, Past
from recsys.quarantine import TableDraft
from recsys.runtime import Runtime, Served
from recsys.spread import Shared, in_order
from tasks.adapters.vault import Vault

RECOMMENDATIONS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),  # from 1, best first
        pa.field("score", pa.float32(), nullable=False),  # comparable within one user
        pa.field("source", pa.string(), nullable=False),  # model; popularity for a user without a known item
        pa.field("model_version", pa.int32(), nullable=False),
    ]
)

_EVENTS_A_PART = 1 << 20  # 4 MB of codes: what one message to a worker holds

Named = tuple[pa.Array, list[np.ndarray]]
"""User ids (B,), and what each did."""


@dataclass(frozen=True)
class _Histories:
    """Those of B users, as they travel."""

    items: np.ndarray  # (E,) int32
    ends: np.ndarray  # (B,) int64


@dataclass
class Scoring:
    """Serves parts of users and writes their rows."""

    runtime: Runtime
    version: int
    k: int
    draft: TableDraft
    executor: Executor
    on_progress: Callable[[int], None]
    users: int = 0
    by_popularity: int = 0
    rows: int = 0
    item_ids: pa.Array = field(init=False)

    def __post_init__(self) -> None:
        self.item_ids = pa.array(self.runtime.item_ids, pa.string())

    def serve_everybody(self, past: Past, names: Vault) -> list[str]:
        """All users with events. Gives a note when some of them have no name any more."""
        nameless = 0

        def named() -> Iterator[Named]:
            nonlocal nameless
            for batch in past.batches:
                tokens = batch.tokens.to_pylist()
                found = names.user_ids(tokens)
                user_ids = pa.array([found.get(token) for token in tokens], pa.string())
                known = np.flatnonzero(user_ids.is_valid().to_numpy(zero_copy_only=False))
                nameless += len(user_ids) - len(known)
                yield user_ids.take(pa.array(known)), [batch.histories[at] for at in known]

        self._serve(named())
        return [f"{nameless:,} users have no name in the vault and are left out"] if nameless else []

    def serve_asked(self, past: Past, asked: AskedUsers) -> list[str]:
        """Those with events from them, the others, in the order of their file, from popularity."""

        def named() -> Iterator[Named]:
            waiting = np.ones(len(asked.tokens), bool)
            for batch in past.batches:
                places = pc.index_in(batch.tokens, asked.tokens)
                here = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
                places = places.take(pa.array(here))
                waiting[places.to_numpy()] = False
                yield asked.user_ids.take(places), [batch.histories[at] for at in here]
            strangers = np.flatnonzero(waiting)
            for start in range(0, len(strangers), BATCH):
                some = asked.user_ids.take(pa.array(strangers[start : start + BATCH]))
                yield some, [np.empty(0, np.int32)] * len(some)

        self._serve(named())
        return [f"{asked.doubled:,} rows name a user again: each is served once"] if asked.doubled else []

    def _serve(self, named: Iterator[Named]) -> None:
        with Shared(self.runtime) as runtime:
            for user_ids, served in in_order(self.executor, partial(_served, runtime, self.k), _parts(named)):
                self._write(user_ids, served)

    def _write(self, user_ids: pa.Array, served: Served) -> None:
        """The rows of (B,) users."""
        row, rank = np.nonzero(served.codes)
        source = pa.array(["model", "popularity"]).take(pa.array(served.popular[row].astype(np.int8)))
        columns = [
            user_ids.take(pa.array(row)),
            self.item_ids.take(pa.array(served.codes[row, rank] - 1)),
            pa.array((rank + 1).astype(np.int32)),
            pa.array(served.scores[row, rank]),
            source,
            pa.array(np.full(len(row), self.version, np.int32)),
        ]
        self.draft.write(pa.Table.from_arrays(columns, schema=RECOMMENDATIONS))
        self.users += len(user_ids)
        self.by_popularity += int(served.popular.sum())
        self.rows += len(row)
        self.on_progress(self.users)


def _parts(named: Iterator[Named]) -> Iterator[tuple[pa.Array, _Histories]]:
    """The same users, in parts of a bounded number of events. One user is never cut."""
    for user_ids, histories in named:
        ends = np.cumsum([len(history) for history in histories], dtype=np.int64)
        first = 0
        while first < len(histories):
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + _EVENTS_A_PART, side="right")))
            items = np.concatenate(histories[first:last]).astype(np.int32, copy=False)
            yield user_ids[first:last], _Histories(items, ends[first:last] - before)
            first = last


def _served(runtime: Shared[Runtime], k: int, part: _Histories) -> Served:
    return runtime.value.serve(np.split(part.items, part.ends[:-1]), k)
