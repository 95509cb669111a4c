"""What users did up to as-of, batch by batch in bounded memory, in the item codes of a model that is to serve them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.catalog import read_catalog
from recsys.dataset import MOST_SHARDS, BuildPlan
from recsys.errors import DataError
from recsys.event_union import Engine, EventUnion, open_union

BATCH = 16_384
"""Users of a batch: enough for the runtime to find many histories of one length."""

_EVENTS_A_SHARD = 1 << 20


@dataclass(frozen=True)
class PastBatch:
    """B users and what they did, oldest first. Items the model does not know are left out or have code 0."""

    tokens: pa.Array  # (B,) strings
    histories: list[np.ndarray]  # (l,) int32 codes each, possibly empty


@dataclass(frozen=True)
class Past:
    """Everybody who has events before `as_of`."""

    as_of: int  # seconds UTC, exclusive
    repeats: Literal["exclude", "allow"]
    batches: Iterator[PastBatch]


def past_of_dataset(folder: Path, code_of: Mapping[str, int]) -> Past:
    """All kept events of a dataset, also those after its cuts. `code_of` are the model's codes by item id."""
    try:
        document = json.loads((folder / "build.json").read_text())
        as_of, repeats = document["build"]["as_of"], document["repeats"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"the folder is no dataset: {error}", where=str(folder), mend="Build it again.") from error
    item_ids = read_catalog(folder / "catalog.parquet")["item_id"].to_pylist()
    codes = np.array([0, *(code_of.get(item_id, 0) for item_id in item_ids)], np.int32)
    return Past(as_of, repeats, _of_shards(sorted(folder.glob("shard-*.parquet")), codes))


def past_of_events(accepted: Sequence[Path], plan: BuildPlan, item_ids: Sequence[str]) -> Past:
    """All accepted events before `plan.as_of`, joined as `build` would; item_ids[c - 1] has the model's code c.

    Nothing need be left to train or test on: a file with one event of one user is enough.
    """
    if plan.as_of is None:
        raise ValueError("plan.as_of is not set")
    return Past(plan.as_of, plan.data.repeats, _of_union(accepted, plan, plan.as_of, item_ids))


def _of_shards(shards: Sequence[Path], codes: np.ndarray) -> Iterator[PastBatch]:
    for shard in shards:
        file = pq.ParquetFile(shard, page_checksum_verification=True, pre_buffer=False)
        for batch in file.iter_batches(BATCH, columns=["token", "items"]):
            lists = batch.column("items")
            items = codes[lists.flatten().to_numpy()]
            ends = np.cumsum(pc.list_value_length(lists).to_numpy())
            yield PastBatch(batch.column("token"), np.split(items, ends[:-1]))


def _of_union(accepted: Sequence[Path], plan: BuildPlan, as_of: int, item_ids: Sequence[str]) -> Iterator[PastBatch]:
    with open_union(accepted, Engine(plan.memory_mb, plan.threads, plan.temp)) as union:
        losses = union.keep(plan.events, as_of, plan.data.repeats == "exclude")
        union.number_users()
        union.code_items(pa.array(item_ids, pa.string()))
        shards = min(MOST_SHARDS, 1 << (losses.kept // _EVENTS_A_SHARD).bit_length())
        for shard in range(shards):
            yield from _of_users(union, shard, shards)


def _of_users(union: EventUnion, shard: int, shards: int) -> Iterator[PastBatch]:
    users, events = union.users_of(shard, shards), union.events_of(shard, shards)
    numbers, tokens = users["number"].to_numpy(), users["token"].combine_chunks()
    starts = np.searchsorted(events["number"], numbers)
    ends = np.searchsorted(events["number"], numbers, side="right")
    for first in range(0, len(users), BATCH):
        spans = zip(starts[first : first + BATCH], ends[first : first + BATCH], strict=True)
        histories = [events["code"][start:end].astype(np.int32) for start, end in spans]
        yield PastBatch(tokens[first : first + BATCH], histories)
