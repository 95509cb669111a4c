"""The event log: columns, dtypes, units, and the one strict reader. No row is lost: accepted or quarantined.

A file of events has `user_id`, `item_id`, `timestamp` (seconds since 1970 UTC, ISO 8601 or a Parquet
timestamp) and may have `event` (view, cart, purchase, ...) and `rating`. User ids are read, turned into
tokens by the door and forgotten.
"""

import glob
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import EventsConfig
from recsys.door import Door
from recsys.errors import DataError
from recsys.fields import (
    Rule,
    TextField,
    UnitCheck,
    read_ids,
    read_numbers,
    read_times,
    readable,
    require_id,
    require_number,
    require_time,
)
from recsys.quarantine import SCHEMA as QUARANTINE
from recsys.quarantine import Quarantine, Refusals, TableDraft
from recsys.rows import Column, RowBatch, RowFile, input_files

__all__ = ["ACCEPTED", "QUARANTINE", "EventSource", "Validation", "input_files", "validate_file"]

ACCEPTED = pa.schema(
    [
        pa.field("token", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("timestamp", pa.int64(), nullable=False),
        pa.field("event", pa.string()),
        pa.field("rating", pa.float32()),
        pa.field("row", pa.int64(), nullable=False),
    ]
)
"""Accepted events in file order; `row` is the row of a Parquet file from 1, or the line of a CSV file."""

_COLUMNS = (
    Column("user_id", True, require_id),
    Column("item_id", True, require_id),
    Column("timestamp", True, require_time),
    Column("event", False, require_id),
    Column("rating", False, require_number),
)
_ENOUGH_TO_TELL_THE_UNIT = 100_000


@dataclass(frozen=True)
class EventSource:
    """How events are to be read: the columns' names, what is known, and who takes the users' names."""

    columns: Mapping[str, str]  # our column name -> the file's, where they differ
    known_items: pa.Array | None  # item ids of the catalog, as strings; None: every item is accepted
    not_after: int  # seconds UTC; later events are quarantined
    door: Door
    on_users: Callable[[pa.Table], None]  # receives (token, user_id), the distinct users of each batch
    forgotten: frozenset[str] = frozenset()  # tokens of users of whom no row is accepted


@dataclass(frozen=True)
class Validation:
    """What became of one file: lines == accepted + quarantined."""

    file: str
    lines: int
    accepted: int
    quarantined: int
    by_rule: Mapping[str, int]  # "column rule" -> rows
    future: int
    oldest: int | None  # of the accepted, seconds UTC
    newest: int | None
    users: int  # distinct, of the accepted
    items: int
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values, to be read back by `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `as_json`."""
        return cls(**{**value, "notes": tuple(value["notes"])})


def validate_file(file: Path, out: Path, source: EventSource, config: EventsConfig) -> Validation:
    """Streams one file into `out`: accepted.parquet, quarantine.parquet and validation.json.

    Raises DataError when the file as a whole cannot be trusted: see `RowFile.open`, times that are not in
    seconds, or more than `config.max_quarantined` of its rows refused. Nothing is left in `out` then.
    """
    rows = RowFile.open(file, _COLUMNS, source.columns)
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as drafts:
        accepted = drafts.enter_context(TableDraft(out / "accepted.parquet", ACCEPTED))
        refused = drafts.enter_context(TableDraft(out / "quarantine.parquet", QUARANTINE))
        reader = _Reader(rows, source, accepted, Quarantine(file.name, refused))
        for batch in rows.batches():
            reader.read(batch)
        reader.verify(config)
    validation = reader.validation(out)
    draft = out / "validation.json.part"
    draft.write_text(json.dumps(validation.as_json(), sort_keys=True, indent=1, allow_nan=False))
    draft.rename(out / "validation.json")
    return validation


class _Reader:
    """Reads batches and keeps the counts of one file."""

    def __init__(self, rows: RowFile, source: EventSource, accepted: TableDraft, quarantine: Quarantine) -> None:
        self._rows, self._source, self._draft, self._quarantine = rows, source, accepted, quarantine
        self._units = UnitCheck()
        self._lines = self._accepted = self._without_zone = 0

    def read(self, batch: RowBatch) -> None:
        """Accepts or quarantines every row of a batch."""
        columns, numbers = batch.columns, batch.numbers
        users, items = read_ids(columns["user_id"]), read_ids(columns["item_id"])
        times = read_times(columns["timestamp"], self._source.not_after)
        faults = {
            "user_id": self._with_forgotten(users),
            "item_id": self._with_unknown(items),
            "timestamp": times.faults,
        }
        event, rating = pa.nulls(len(numbers), pa.string()), pa.nulls(len(numbers), pa.float32())
        if "event" in columns:
            kinds = read_ids(columns["event"], required=False)
            event, faults["event"] = kinds.values(), kinds.faults
        if "rating" in columns:
            ratings = read_numbers(columns["rating"])
            rating, faults["rating"] = ratings.values, ratings.faults
        self._units.watch(times.integers)
        if self._units.seen >= _ENOUGH_TO_TELL_THE_UNIT:
            self._units.verify(self._rows.where("timestamp"))

        fine = self._quarantined(batch, faults)
        tokens = self._tokens(users, fine)
        chosen = pa.array(np.flatnonzero(fine))
        parts = [tokens, items.values().take(chosen), pa.array(times.seconds[fine])]
        parts += [event.take(chosen), rating.take(chosen), pa.array(numbers[fine])]
        self._draft.write(pa.Table.from_arrays(parts, schema=ACCEPTED))
        self._lines += len(numbers) + len(batch.broken)
        self._accepted += int(fine.sum())
        self._without_zone += times.without_zone

    def verify(self, config: EventsConfig) -> None:
        """Raises DataError when the file as a whole cannot be trusted, or a row is not accounted for."""
        self._units.verify(self._rows.where("timestamp"))
        self._quarantine.verify_share(self._lines, config.max_quarantined)
        if self._lines != self._accepted + self._quarantine.rows:
            raise DataError(
                f"{self._lines} rows are not {self._accepted} accepted and {self._quarantine.rows} quarantined",
                where=self._rows.file.name,
            )

    def validation(self, out: Path) -> Validation:
        """The counts, with what only the written accepted.parquet tells."""
        oldest, newest, users, items = _summary(out / "accepted.parquet")
        return Validation(
            file=self._rows.file.name,
            lines=self._lines,
            accepted=self._accepted,
            quarantined=self._quarantine.rows,
            by_rule=dict(sorted(self._quarantine.counts.items())),
            future=self._quarantine.by_rule[Rule.FUTURE],
            oldest=oldest,
            newest=newest,
            users=users,
            items=items,
            notes=tuple(self._notes()),
        )

    def _notes(self) -> list[str]:
        notes = self._rows.notes()
        if self._without_zone:
            notes.append(f"{self._without_zone:,} times have no zone and are read as UTC")
        if not self._lines:
            notes.append("the file has no rows")
        return notes

    def _with_unknown(self, items: TextField) -> np.ndarray:
        """The faults of the item ids, with those that the catalog does not know."""
        if self._source.known_items is None:
            return items.faults
        known = pc.is_in(items.distinct, value_set=self._source.known_items).to_numpy(zero_copy_only=False)
        unknown = ~np.append(known, True)[items.codes] & (items.faults == Rule.FINE)
        return np.where(unknown, Rule.UNKNOWN_ITEM, items.faults).astype(np.int8)

    def _with_forgotten(self, users: TextField) -> np.ndarray:
        """The faults of the user ids, with those who are forgotten."""
        if not self._source.forgotten:
            return users.faults
        names, forgotten = self._source.door.names, self._source.forgotten
        gone = [user is not None and not forgotten.isdisjoint(names(user)) for user in users.distinct.to_pylist()]
        refused = np.array([*gone, False])[users.codes] & (users.faults == Rule.FINE)
        return np.where(refused, Rule.FORGOTTEN, users.faults).astype(np.int8)

    def _quarantined(self, batch: RowBatch, faults: Mapping[str, np.ndarray]) -> np.ndarray:
        """Quarantines a faulty row once, for its first faulty column; returns the mask (n,) of the others."""
        self._quarantine.add_lines(batch.broken)
        fine = np.ones(len(batch.numbers), bool)
        for name, rules in faults.items():
            rows = np.flatnonzero(fine & (rules != Rule.FINE))
            fine[rows] = False
            values = None if name == "user_id" else readable(batch.columns[name].take(pa.array(rows)))
            self._quarantine.add(Refusals(name, batch.numbers[rows], rules[rows], values))
        return fine

    def _tokens(self, users: TextField, fine: np.ndarray) -> pa.Array:
        """The tokens of the fine rows; the distinct users among them are handed on with their names."""
        used, place = np.unique(users.codes[fine], return_inverse=True)
        user_ids = users.distinct.take(pa.array(used))
        tokens = self._source.door.tokens(user_ids)
        self._source.on_users(pa.table({"token": tokens, "user_id": user_ids}))
        return tokens.take(pa.array(place))


def _summary(accepted: Path) -> tuple[int | None, int | None, int, int]:
    """Oldest and newest time, and how many users and items, counted out of core."""
    import duckdb  # here: see event_union

    with duckdb.connect() as connection:
        connection.execute("SET memory_limit = '1GB'; SET threads = 1")
        connection.execute("SET temp_directory = ?", [str(accepted.parent)])
        columns = "min(timestamp), max(timestamp), count(DISTINCT token), count(DISTINCT item_id)"
        source = connection.from_parquet(glob.escape(str(accepted)))
        oldest, newest, users, items = source.aggregate(columns).fetchall()[0]
    return oldest, newest, users, items
