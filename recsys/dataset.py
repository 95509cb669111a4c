"""The dataset: accepted events as coded histories in shards, an append-only catalog, the cuts in time.

`build` writes it, out of core, from the files that `validate_file` accepted; `Dataset.load` reads it and
refuses leakage.
"""

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.catalog import appended, load_catalog
from recsys.config import DataConfig, EventsConfig
from recsys.door import TOKEN_LENGTH
from recsys.errors import ConfigError, DataError, LeakageError
from recsys.event_union import Engine, EventUnion, Losses, UnionFile, open_union
from recsys.histories import Cases, Catalog, Histories
from recsys.quiet_day import DAYS, quiet_day
from recsys.rating_scale import rating_scale
from recsys.split import DAY, Cuts, window_before
from recsys.spread import HERE, in_order

SHARD = pa.schema(
    [
        pa.field("token", pa.string(), nullable=False),
        pa.field("first_seen", pa.int64(), nullable=False),  # rank among all users of the first kept event
        pa.field("items", pa.list_(pa.int32()), nullable=False),
        pa.field("times", pa.list_(pa.int64()), nullable=False),
        pa.field("weights", pa.list_(pa.float32()), nullable=False),
        pa.field("train_end", pa.int32(), nullable=False),
        pa.field("valid_end", pa.int32(), nullable=False),
    ]
)
"""One row a user, in the order of `first_seen`; the lists are the kept events, oldest first."""

MOST_SHARDS = 256


@dataclass(frozen=True)
class BuildPlan:
    """How a dataset is made. `memory_mb` (DuckDB's limit), `threads`, `temp` and `a_shard` change no result."""

    events: EventsConfig
    data: DataConfig
    as_of: int | None  # seconds UTC, exclusive; None: just after the newest accepted event
    shards: int  # a power of two, at most 256
    memory_mb: int
    temp: Path
    threads: int = 2
    a_shard: Engine | None = None  # of a process that writes shards; None: as here


@dataclass(frozen=True)
class Build:
    """What became of the events: accepted = kept + duplicates + left_out + repeats + after_as_of + capped."""

    accepted: int
    kept: int
    duplicates: int
    left_out: int
    repeats: int
    after_as_of: int
    capped: int
    users: int
    items: int  # of the catalog
    as_of: int
    test_start: int | None  # seconds UTC; None: leave-one-out
    validation_start: int | None
    test_users: int
    validation_users: int
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values, to be read back by `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `as_json`."""
        return cls(**{**value, "notes": tuple(value["notes"])})


def build(
    accepted: Sequence[Path],
    items: Path | None,
    catalog_before: Path | None,
    out: Path,
    plan: BuildPlan,
    executor: Executor = HERE,
) -> Build:
    """Makes a dataset in `out` from accepted.parquet files in order, an items.parquet and the last catalog.

    Writes catalog.parquet, shard-XX.parquet and, last, build.json. The shards are the executor's work; its processes
    must see `plan.temp`. Raises DataError when there is nothing to learn from, to validate or to test on.
    """
    if plan.shards not in {1 << bits for bits in range(MOST_SHARDS.bit_length())}:
        raise ConfigError(f"{plan.shards} shards are not a power of two up to {MOST_SHARDS}")
    if not accepted:
        raise DataError("there are no files of events", mend="Validate at least one.")
    out.mkdir(parents=True, exist_ok=True)
    engine = Engine(plan.memory_mb, plan.threads, plan.temp)
    with open_union(accepted, engine) as union:
        as_of = union.newest() + 1 if plan.as_of is None else plan.as_of
        losses = union.keep(plan.events, as_of, plan.data.repeats == "exclude")
        _require_kept(losses)
        users, event_items = union.number_users(), union.item_ids()
        _require_several(users, len(event_items))
        catalog, notes = appended(event_items, items, catalog_before)
        union.code_items(catalog["item_id"].combine_chunks())
        newest = _newest_day(union, as_of, plan.events)
        cuts, cut_notes = _cuts(union, as_of, plan.data)
        parts = _write_shards(union.closed(plan.a_shard or engine), cuts, out, plan.shards, executor)
    _write(catalog, out / "catalog.parquet")
    result = Build(
        **asdict(losses),
        users=users,
        items=len(catalog),
        as_of=as_of,
        test_start=cuts.test.start if cuts.test else None,
        validation_start=cuts.validation.start if cuts.validation else None,
        test_users=sum(part.test_users for part in parts),
        validation_users=sum(part.validation_users for part in parts),
        notes=(*notes, *newest, *cut_notes),
    )
    _require_use(result, sum(part.training_positions for part in parts), plan.data)
    document = {"build": result.as_json(), "repeats": plan.data.repeats}
    draft = out / "build.json.part"
    draft.write_text(json.dumps(document, sort_keys=True, indent=1, allow_nan=False))
    draft.rename(out / "build.json")
    return result


def _newest_day(union: EventUnion, as_of: int, events: EventsConfig) -> list[str]:
    """What is to be said of the newest day, held against the days before."""
    told = [quiet_day(union.events_a_day(as_of, DAYS))]
    if events.min_rating is not None:
        newest, earlier = union.ratings(as_of - DAY, as_of), union.ratings(as_of - DAYS * DAY, as_of - DAY)
        told.append(rating_scale(newest, earlier, events.min_rating))
    return [sentence for sentence in told if sentence]


@dataclass(frozen=True)
class _Part:
    """What one shard holds."""

    draft: Path
    training_positions: int
    validation_users: int
    test_users: int


def _write_shards(union: UnionFile, cuts: Cuts, out: Path, shards: int, executor: Executor) -> list[_Part]:
    """Only here does a shard get its name: a worker thought lost may still be writing a draft of its own."""
    parts = []
    for shard, part in in_order(executor, partial(_draft, union, cuts, shards), ((n, n) for n in range(shards))):
        shutil.move(part.draft, out / f"shard-{shard:02x}.parquet")
        parts.append(part)
    return parts


def _draft(union: UnionFile, cuts: Cuts, shards: int, shard: int) -> _Part:
    """Writes a shard under a name that nobody else writes to."""
    with union.reading() as read:
        users, events = read.users_of(shard, shards), read.events_of(shard, shards)
    offsets = np.searchsorted(events["number"], np.append(users["number"].to_numpy(), np.iinfo(np.int64).max))
    train_end, valid_end = cuts.ends(events["timestamp"], offsets)
    columns = [users["token"].combine_chunks(), users["number"].combine_chunks()]
    for name in ("code", "timestamp", "weight"):
        columns.append(pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(events[name])))
    columns += [pa.array(train_end), pa.array(valid_end)]
    draft = union.folder / f"shard-{uuid4().hex}.parquet"
    _write(pa.Table.from_arrays(columns, schema=SHARD), draft)
    lengths = np.diff(offsets)
    return _Part(
        draft=draft,
        training_positions=int(np.maximum(train_end - 1, 0).sum()),
        validation_users=int(((train_end > 0) & (valid_end > train_end)).sum()),
        test_users=int(((valid_end > 0) & (lengths > valid_end)).sum()),
    )


def _write(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def _cuts(union: EventUnion, as_of: int, config: DataConfig) -> tuple[Cuts, list[str]]:
    """The cuts of a dataset, and what was done to get enough users."""
    if config.split == "leave_one_out":
        return Cuts(), []
    test = window_before(as_of, *union.user_spans(as_of), config.test_days, config.min_users)
    validation = window_before(test.start, *union.user_spans(test.start), config.validation_days, config.min_users)
    notes = []
    for name, window, days in (("test", test, config.test_days), ("validation", validation, config.validation_days)):
        if window.days > days:
            notes.append(f"the {name} window is extended from {days} to {window.days} days")
        if window.users < config.min_users:
            notes.append(f"the {name} window has {window.users} users, fewer than {config.min_users}")
    return Cuts(test, validation), notes


def _require_kept(losses: Losses) -> None:
    if losses.kept == 0:
        raise DataError(
            f"none of {losses.accepted:,} events is left: {losses.after_as_of:,} are not before as-of, "
            f"{losses.left_out:,} are rated too low or of a kind with weight 0",
            mend="Check the as-of time, events.min_rating and events.event_weights.",
        )


def _require_several(users: int, items: int) -> None:
    for count, noun in ((users, "user"), (items, "item")):
        if count < 2:
            raise DataError(f"all events are of one {noun}", mend=f"A recommender needs at least two {noun}s.")


def _require_use(result: Build, training_positions: int, config: DataConfig) -> None:
    """Raises DataError unless there is something to train, validate and test on and no event is lost."""
    if config.split == "temporal":
        mend = "Bring older events, or shorten data.test_days and data.validation_days."
    else:
        mend = "Leave-one-out needs users with three events or more."
    if training_positions == 0:
        raise DataError("no user has two events before the validation cut, there is nothing to train on", mend=mend)
    for users, name in ((result.validation_users, "validate"), (result.test_users, "test")):
        if users == 0:
            raise DataError(f"there is nobody to {name} on: no user with something new and a history", mend=mend)
    gone = result.duplicates + result.left_out + result.repeats + result.after_as_of + result.capped
    if result.accepted != result.kept + gone:
        raise DataError(f"{result.accepted} accepted events, {result.kept} kept and {gone} set aside do not add up")


@dataclass(frozen=True)
class Dataset:
    """A dataset in memory."""

    histories: Histories
    catalog: Catalog
    build: Build
    repeats: Literal["exclude", "allow"]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `build` wrote; users are in the order of their first kept event, whatever their tokens.

        Raises DataError for a folder that is no dataset, LeakageError when an event lies on the wrong side of
        a cut.
        """
        try:
            document = json.loads((folder / "build.json").read_text())
            tables = [_read_shard(file) for file in sorted(folder.glob("shard-*.parquet"))]
            shards = pa.concat_tables(tables).combine_chunks()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"the folder is no dataset: {error}", where=str(folder), mend="Build it again.") from error
        dataset = cls(
            _histories(shards),
            load_catalog(folder / "catalog.parquet"),
            Build.from_json(document["build"]),
            document["repeats"],
        )
        dataset._verify()
        return dataset

    def test_cases(self) -> Cases:
        """Everything before the test cut as the history, what came after it as the targets."""
        return self._cases(self.histories.valid_end, np.diff(self.histories.offsets))

    def validation_cases(self) -> Cases:
        """Everything before the validation cut as the history, what came between the cuts as the targets."""
        return self._cases(self.histories.train_end, self.histories.valid_end)

    def training_counts(self) -> np.ndarray:
        """(N,) int64: training events of each item."""
        return self.histories.training_counts(self.catalog.items)

    @property
    def has_baskets(self) -> bool:
        """Whether events of a user at one time are a basket without order. Leave-one-out takes the file's order, as papers do."""
        return self.build.test_start is not None

    def _cases(self, cut: np.ndarray, end: np.ndarray) -> Cases:
        """Users with events before `cut` (U,) and between `cut` and `end` (U,)."""
        histories, width = self.histories, self.catalog.items + 1
        users = np.flatnonzero((cut > 0) & (end > cut))
        case = np.repeat(np.arange(len(users)), (end - cut)[users])
        start = (histories.offsets[:-1] + cut)[users]
        before = np.cumsum((end - cut)[users]) - (end - cut)[users]
        at = np.arange(len(case)) + np.repeat(start - before, (end - cut)[users])
        pairs = np.unique(case * width + histories.items[at])  # what is repeated in the window is one target
        targets = np.split((pairs % width).astype(np.int32), np.searchsorted(pairs // width, np.arange(1, len(users))))
        return Cases(
            users=users,
            histories=[histories.until(int(user), int(cut[user])) for user in users],
            targets=targets if len(users) else [],
            exclude_seen=self.repeats == "exclude",
        )

    def _verify(self) -> None:
        """Raises LeakageError when an event lies on the wrong side of a cut, or a repeat was not excluded."""
        histories, build = self.histories, self.build
        lengths = np.diff(histories.offsets)
        user = np.repeat(np.arange(histories.users), lengths)
        position = np.arange(len(user)) - np.repeat(histories.offsets[:-1], lengths)
        if build.validation_start is not None and build.test_start is not None:
            part = (position >= histories.train_end[user]).astype(int) + (position >= histories.valid_end[user])
            lower = np.array([np.iinfo(np.int64).min, build.validation_start, build.test_start])[part]
            upper = np.array([build.validation_start, build.test_start, build.as_of])[part]
        else:
            lower, upper = np.iinfo(np.int64).min, build.as_of
        ordered = np.append(True, (np.diff(histories.times) >= 0) | (np.diff(user) > 0))
        wrong = np.flatnonzero((histories.times < lower) | (histories.times >= upper) | ~ordered[: len(user)])
        if len(wrong):
            where = f"user {user[wrong[0]]}, event {position[wrong[0]]}"
            raise LeakageError(
                f"{len(wrong)} events lie on the wrong side of a cut", where=where, mend="Build it again."
            )
        pairs = np.sort(user * (self.catalog.items + 1) + histories.items)
        if self.repeats == "exclude" and (np.diff(pairs) == 0).any():
            raise LeakageError("a user has an item twice although repeats are excluded", mend="Build it again.")


def _read_shard(file: Path) -> pa.Table:
    table = pq.read_table(file, page_checksum_verification=True)
    if not table.schema.equals(SHARD):
        raise ValueError(f"{file.name} has other columns")
    return table


def _histories(shards: pa.Table) -> Histories:
    """The users of all shards in the order of `first_seen`."""
    order = np.argsort(shards["first_seen"].to_numpy())
    lengths = pc.list_value_length(shards["items"]).to_numpy().astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    offsets = np.concatenate([[0], np.cumsum(lengths[order])])
    at = np.repeat(starts[order] - offsets[:-1], lengths[order]) + np.arange(offsets[-1])
    items, times, weights = (pc.list_flatten(shards[name]).to_numpy()[at] for name in ("items", "times", "weights"))
    tokens = np.array(shards["token"].cast(pa.binary()).to_pylist(), f"S{TOKEN_LENGTH}")
    ends = (shards[name].to_numpy()[order] for name in ("train_end", "valid_end"))
    return Histories(tokens[order], offsets, items, times, weights, *ends)
