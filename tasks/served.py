"""What was served: batch scores on the disk, and what the gate had seen of the version that made them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.door import Door
from recsys.errors import StoreError
from recsys.evaluate import ModelReport
from recsys.event_log import EventLog
from recsys.prequential import AtGate, ServedLists
from recsys.split import DAY
from tasks.adapters.registry import Version
from tasks.adapters.settings import Settings
from tasks.adapters.store import Store
from tasks.batch_scores import RECOMMENDATIONS, STAMP

_HITS = "hr_at_10"


@dataclass(frozen=True)
class Batch:
    """One night's batch scores: home/scores/<as-of>-v<version>."""

    folder: Path
    as_of: int  # seconds UTC, exclusive
    version: int

    def lists(self, door: Door) -> ServedLists:
        """What each user was recommended. User ids go through the door and are forgotten."""
        table = pq.read_table(self.folder / RECOMMENDATIONS, columns=["user_id", "item_id", "rank"])
        tokens = door.tokens(table["user_id"].combine_chunks())
        rows = pa.table({"token": tokens, "item_id": table["item_id"], "rank": table["rank"]})
        return ServedLists.of(self.as_of, self.version, rows)


def batches(settings: Settings) -> list[Batch]:
    """All that lie in the home, newest first. A folder without a readable stamp is none."""
    return sorted(_batches(settings.home / "scores"), key=lambda batch: (-batch.as_of, -batch.version))


def _batches(folder: Path) -> Iterator[Batch]:
    for path in folder.glob(f"*/{STAMP}"):
        if path.parent.is_symlink():  # the newest under its other name
            continue
        try:
            value = json.loads(path.read_bytes())
            yield Batch(path.parent, int(value["as_of"]), int(value["version"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue


def worth_following(
    found: Sequence[Batch], log: EventLog, door: Door, champion: int | None, window_days: int, min_users: int
) -> ServedLists | None:
    """The newest batch with `min_users` served users who came back, the champion's before any other's.

    Where none has so many, the one with the most; None when no batch has later events.
    """
    best, most = None, 0
    for batch in sorted(found, key=lambda batch: batch.version != champion):
        if batch.as_of >= log.as_of:
            continue
        lists = batch.lists(door)
        window = log.between(batch.as_of, batch.as_of + window_days * DAY)
        back = int(np.isin(window.tokens[np.unique(window.users)], lists.tokens).sum())
        if back > most:
            best, most = lists, back
        if back >= min_users:
            return lists
    return best


def at_gate(store: Store, version: Version) -> AtGate | None:
    """The hits of a version and of the neighbours on the gate's test users; None when the store has them no more."""
    try:
        parents = store.manifest("judge", version.tags["recsys.verdict"]).parents
        digests = dict(parent.split(" ", 1) for parent in parents)
        reports = [ModelReport.load(store.open("evaluate", digests[role])) for role in ("artifact", "neighbours")]
    except (KeyError, ValueError, StoreError):
        return None
    hits = [report.metrics[_HITS] for report in reports]
    return AtGate(*hits) if all(np.isfinite(values).all() for values in hits) else None
