"""A shop of any size, for benchmarks: string ids, users and items met by Zipf's law, 90 days of events."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.items import ITEMS
from recsys.split import DAY

OPENING = 1_704_067_200  # 2024-01-01T00:00:00Z
DAYS = 90
_CHUNK = 1_000_000
_SCHEMA = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64())])


def write_shop(folder: Path, events: int, users: int, items: int, titled: bool = True) -> None:
    """events.parquet and items.parquet in an existing folder; the same arguments give the same rows."""
    ids = pa.array([f"item-{item:07d}" for item in range(items)])
    nothing = pa.nulls(items, pa.string())
    titles = pa.array([f"thing number {item}" for item in range(items)]) if titled else nothing
    pq.write_table(pa.Table.from_arrays([ids, titles, nothing, nothing], schema=ITEMS), folder / "items.parquet")
    with pq.ParquetWriter(folder / "events.parquet", _SCHEMA, compression="zstd") as writer:
        for table in _events(events, users, ids):
            writer.write_table(table)


def _events(events: int, users: int, item_ids: pa.Array) -> Iterator[pa.Table]:
    rng = np.random.default_rng(events)
    by_user, by_item = _zipf(max(2, users)), _zipf(len(item_ids))
    for begin in range(0, events, _CHUNK):
        n = min(_CHUNK, events - begin)
        user = pa.array(np.searchsorted(by_user, rng.random(n))).cast(pa.string())
        item = item_ids.take(pa.array(np.searchsorted(by_item, rng.random(n))))
        times = pa.array(OPENING + rng.integers(DAYS * DAY, size=n))
        yield pa.Table.from_arrays([pc.binary_join_element_wise("user-", user, ""), item, times], schema=_SCHEMA)


def _zipf(n: int) -> np.ndarray:
    """The cumulated shares of n things, the r-th of which is met as often as 1 / (r + 10)."""
    cumulated = np.cumsum(1 / (np.arange(n) + 10))
    return cumulated / cumulated[-1]
