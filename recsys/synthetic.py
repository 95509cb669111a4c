"""Events with a known answer and a difficulty dial: what a model can learn from them is fixed beforehand."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.split import DAY

_OPENING = 1_704_067_200  # 2024-01-01T00:00:00Z
_GROUP_SIZE = 12
_ADJECTIVES = ("red", "green", "blue", "tiny", "large", "old", "plain", "soft", "round", "bright", "striped", "quiet")
_NOUNS = ("lamp", "mug", "chair", "clock", "basket", "candle", "mirror", "vase", "kettle", "blanket", "stool", "tray")


@dataclass(frozen=True)
class SyntheticShop:
    """A shop where item j is followed by `successor[j]` with probability 1 - randomness, else by any item."""

    events: pa.Table  # user_id, item_id, timestamp (seconds UTC), by time
    items: pa.Table  # item_id, title, category, description
    successor: np.ndarray  # (N,) int64 rows of `items`

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Writes events.parquet and items.parquet, and returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        events, items = folder / "events.parquet", folder / "items.parquet"
        pq.write_table(self.events, events, compression="zstd", write_page_checksum=True)
        pq.write_table(self.items, items, compression="zstd", write_page_checksum=True)
        return events, items


def shop(users: int, items: int, events_a_user: int, randomness: float, seed: int, days: int = 60) -> SyntheticShop:
    """`users` x `events_a_user` events over `days` days. randomness 0: fully predictable; 1: pure noise.

    Items come in groups of about a dozen; the successor of an item is the next of its group, and its title
    names the group. A user's first item and every random one are uniform over the catalog; event times are
    uniform over the days.
    """
    rng = np.random.default_rng(seed)
    group = np.arange(items) // _GROUP_SIZE
    first_of_group = group * _GROUP_SIZE
    group_size = np.minimum(first_of_group + _GROUP_SIZE, items) - first_of_group
    successor = first_of_group + (np.arange(items) - first_of_group + 1) % group_size
    walk = np.empty((users, events_a_user), np.int64)
    walk[:, 0] = rng.integers(items, size=users)
    for step in range(1, events_a_user):
        random = rng.random(users) < randomness
        walk[:, step] = np.where(random, rng.integers(items, size=users), successor[walk[:, step - 1]])
    times = np.sort(_OPENING + rng.integers(days * DAY, size=(users, events_a_user)), axis=1)
    order = np.argsort(times.ravel(), kind="stable")
    user_ids = pa.array([f"user-{user:06d}" for user in range(users)])
    item_ids = pa.array([f"item-{item:05d}" for item in range(items)])
    events = {
        "user_id": user_ids.take(pa.array(order // events_a_user)),
        "item_id": item_ids.take(pa.array(walk.ravel()[order])),
        "timestamp": pa.array(times.ravel()[order]),
    }
    return SyntheticShop(pa.table(events), _catalog(item_ids, group), successor)


def _catalog(item_ids: pa.Array, group: np.ndarray) -> pa.Table:
    """Titles such as "round mug 2 number 7": the group's words, then the item's own number in it."""
    kinds = [f"{_ADJECTIVES[g // len(_NOUNS) % len(_ADJECTIVES)]} {_NOUNS[g % len(_NOUNS)]}" for g in group]
    titles = [f"{kind} {g} number {j % _GROUP_SIZE}" for j, (kind, g) in enumerate(zip(kinds, group, strict=True))]
    columns = {"item_id": item_ids, "title": titles, "category": kinds, "description": [None] * len(titles)}
    schema = pa.schema([(name, pa.string()) for name in columns])
    return pa.table(columns, schema=schema)
