"""build: accepted files into coded histories in shards, split in time."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from prefect import task

from recsys.dataset import Build, BuildPlan, build
from recsys.errors import StoreError
from recsys.event_union import Engine
from recsys.known import as_of_time, moment, newest_before
from tasks.adapters.store import Recipe, Store, Stored
from tasks.night import TASK_OPTIONS, Night, Source, Step, step
from tasks.opening import open_build, open_item_ids
from tasks.refs import AcceptedRef, DatasetRef, digest_of

VERSION = 1


@task(name="build", **TASK_OPTIONS)
def build_dataset(night: Night, accepted: AcceptedRef) -> DatasetRef:
    """Union of the files, duplicates counted once, append-only item codes, histories cut at the as-of time."""
    with step(night, "build", "Building histories") as at:
        as_of = effective_as_of(at.store, accepted, night.source)
        known = digest_of(accepted.digests()) + ("" if as_of is None else f"-{as_of}")
        decision = f"catalog-before-{known}"
        before = at.decide_once(decision, lambda: at.store.head("catalog") or {})
        stored = _made(at, accepted, as_of, before)
        while (theirs := advance_catalog(at.store, stored.digest)) is not None:
            at.tell("another host has given its new items the same codes: building on its catalog")
            at.store.set_head(decision, theirs)
            stored = _made(at, accepted, as_of, theirs)
        made = open_build(at.store, stored.digest)
        _tell(at, made)
        at.tracking.log_dataset(
            night.run_id, "events", stored.digest, source=str(night.source.events_path()), rows=made.kept
        )
        return DatasetRef.of(stored, users=made.users, items=made.items, as_of=made.as_of)


def _made(at: Step, accepted: AcceptedRef, as_of: int | None, before: Mapping[str, Any]) -> Stored:
    events, data = at.night.config.events, at.night.config.data
    config = {
        "events": events.model_dump(mode="json", exclude={"max_quarantined"}),
        "data": data.model_dump(mode="json", exclude={"history_length"}),
        "as_of": as_of,
        "shards": at.settings.shards,
    }
    recipe = Recipe("build", VERSION, config, (*accepted.digests(), before.get("digest", "no catalog")))

    def make(out: Path) -> None:
        scratch, workers = at.store.scratch(recipe), at.workers
        plan = BuildPlan(
            events=events,
            data=data,
            as_of=as_of,
            shards=at.settings.shards,
            memory_mb=at.settings.memory_mb,
            temp=scratch,
            threads=at.settings.threads,
            a_shard=Engine(workers.memory_mb, workers.threads, scratch),
        )
        files = accepted_files(at.store, accepted)
        items = at.store.open(accepted.items.step, accepted.items.digest) / "items.parquet" if accepted.items else None
        build(files, items, _catalog(at, before), out, plan, workers.executor)

    return at.make(recipe, make)


def effective_as_of(store: Store, accepted: AcceptedRef, source: Source) -> int | None:
    """Seconds UTC from which on nothing is known; None: just after the newest accepted event, as where nothing bounds.

    A bound that leaves no event out is none, so that nights in which no event came make the same dataset. ConfigError
    for a time that is unreadable or, as an explicit as-of, in the future; DataError when no event is before the bound.
    """
    if source.as_of:
        return int(as_of_time(source.as_of).timestamp())
    if not source.until:
        return None
    return newest_before(accepted_files(store, accepted), math.ceil(moment(source.until).timestamp())).as_of


def accepted_files(store: Store, accepted: AcceptedRef) -> list[Path]:
    """Tonight's accepted events, file by file."""
    return [store.open(f.step, f.digest) / "accepted.parquet" for f in accepted.files]


def _catalog(at: Step, before: Mapping[str, Any]) -> Path | None:
    return at.store.open("build", before["digest"]) / "catalog.parquet" if before else None


def advance_catalog(store: Store, digest: str) -> Mapping[str, Any] | None:
    """Points the head at the longest catalog so far: every later one begins with it, so that a code is one item for ever.

    Where a dataset's catalog and the head's part ways (another host has extended the same one meanwhile), gives the
    head: the dataset is to be built on that. Else None.
    """
    ours = open_item_ids(store, digest)

    def longest(head: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        longer = head is None or (len(ours) > head["items"] and _agree(store, ours, head))
        return {"digest": digest, "items": len(ours)} if longer else None

    head = store.move_head("catalog", longest)
    return None if head is None or _agree(store, ours, head) else head


def _agree(store: Store, ours: pa.ChunkedArray, head: Mapping[str, Any]) -> bool:
    """Whether one catalog begins with the other. With one that is damaged or gone nothing can disagree."""
    try:
        theirs = open_item_ids(store, head["digest"])
    except StoreError:
        return True
    known = min(len(ours), len(theirs))
    return bool(ours[:known].equals(theirs[:known]))


def _tell(at: Step, made: Build) -> None:
    at.tell(
        f"{made.kept:,} events of {made.users:,} users and {made.items:,} items; "
        f"{made.test_users:,} users to test on, {made.validation_users:,} to validate on"
    )
    asked = at.night.config.gate.min_users
    if made.test_users < asked:
        at.logger.warning(
            "%s",
            f"only {made.test_users} users to test on, the gate asks for {asked}: the verdict will be HOLD; "
            "wait for more days, widen data.test_days, or lower gate.min_users",
            extra={"recsys_step": at.name},
        )
    for note in made.notes:
        at.logger.warning("%s", note, extra={"recsys_step": at.name})
