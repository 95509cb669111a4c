"""The events that count, in the order of time: what was known at a moment, and what came after it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.dataset import BuildPlan
from recsys.door import TOKEN_LENGTH
from recsys.event_union import Engine, open_union
from recsys.histories import Histories


@dataclass(frozen=True)
class EventLog:
    """E events of U users and N items. Users and items are in the order of their first event.

    So those of before a moment come first, and what is cut there knows nothing of who or what came later.
    """

    tokens: np.ndarray  # (U,) S32
    item_ids: pa.Array  # (N,) strings; item_ids[c - 1] has code c
    categories: pa.Array  # (N,) strings, null where unknown
    users: np.ndarray  # (E,) int64 rows of `tokens`
    codes: np.ndarray  # (E,) int32 from 1
    times: np.ndarray  # (E,) int64 seconds UTC, ascending
    kinds: pa.Array  # (E,) strings, null where the file names none
    as_of: int  # seconds UTC, exclusive
    repeats: Literal["exclude", "allow"]  # exclude: only a user's first event with an item is here

    def until(self, moment: int) -> Self:
        """What was known just before `moment` (seconds UTC)."""
        return self.between(np.iinfo(np.int64).min, moment)

    def between(self, start: int, end: int) -> Self:
        """The events of [start, end); users and items are all that were known by then."""
        first, last = (int(place) for place in np.searchsorted(self.times, [start, end]))
        users = int(self.users[:last].max(initial=-1)) + 1
        items = int(self.codes[:last].max(initial=0))
        return replace(
            self._of(slice(first, last)),
            tokens=self.tokens[:users],
            item_ids=self.item_ids[:items],
            categories=self.categories[:items],
            as_of=min(end, self.as_of),
        )

    def once(self) -> Self:
        """A user's first event with each item."""
        _, first = np.unique(self.users * (len(self.item_ids) + 1) + self.codes, return_index=True)
        return replace(self._of(np.sort(first)), repeats="exclude")

    def histories(self) -> Histories:
        """The same events user by user, none of them held out. Every user of `tokens` has a row."""
        order = np.argsort(self.users, kind="stable")
        lengths = np.bincount(self.users, minlength=len(self.tokens))
        ends = lengths.astype(np.int32)
        return Histories(
            tokens=self.tokens,
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            items=self.codes[order],
            times=self.times[order],
            weights=np.ones(len(order), np.float32),
            train_end=ends,
            valid_end=ends,
        )

    def _of(self, chosen: slice | np.ndarray) -> Self:
        kinds = self.kinds[chosen] if isinstance(chosen, slice) else self.kinds.take(pa.array(chosen))
        return replace(self, users=self.users[chosen], codes=self.codes[chosen], times=self.times[chosen], kinds=kinds)


def read_log(accepted: Sequence[Path], items: Path | None, plan: BuildPlan) -> EventLog:
    """The log of accepted.parquet files up to `plan.as_of`, by the rules that `build` keeps events by.

    `items` is a validated items.parquet, for the categories. Nothing need be left to train or test on.
    """
    with open_union(accepted, Engine(plan.memory_mb, plan.threads, plan.temp)) as union:
        as_of = union.newest() + 1 if plan.as_of is None else plan.as_of
        union.keep(plan.events, as_of, plan.data.repeats == "exclude")
        union.number_users()
        item_ids = union.item_ids()
        union.code_items(item_ids)
        tokens = union.users_of(0, 1)["token"].to_pylist()
        events = union.log()
    return EventLog(
        tokens=np.array(tokens, f"S{TOKEN_LENGTH}"),
        item_ids=item_ids,
        categories=_categories(item_ids, items),
        users=events["number"].to_numpy(),
        codes=events["code"].to_numpy().astype(np.int32),
        times=events["timestamp"].to_numpy(),
        kinds=events["kind"].combine_chunks(),
        as_of=as_of,
        repeats=plan.data.repeats,
    )


def _categories(item_ids: pa.Array, items: Path | None) -> pa.Array:
    if items is None:
        return pa.nulls(len(item_ids), pa.string())
    table = pq.read_table(items, columns=["item_id", "category"], page_checksum_verification=True).combine_chunks()
    places = pc.index_in(item_ids, table["item_id"].combine_chunks())
    return table["category"].combine_chunks().take(places)
