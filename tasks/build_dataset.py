"""build: accepted files into coded histories in shards, split in time."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import task

from recsys.dataset import Build, BuildPlan, build
from recsys.known import as_of_time, moment, newest_before
from tasks.adapters.store import Recipe, Store
from tasks.night import TASK_OPTIONS, Night, Source, Step, step
from tasks.opening import open_build
from tasks.refs import AcceptedRef, DatasetRef, digest_of

VERSION = 1


@task(name="build", **TASK_OPTIONS)
def build_dataset(night: Night, accepted: AcceptedRef) -> DatasetRef:
    """Union of the files, duplicates counted once, append-only item codes, histories cut at the as-of time."""
    events, data = night.config.events, night.config.data
    with step(night, "build", "Building histories") as at:
        as_of = effective_as_of(at.store, accepted, night.source)
        known = digest_of(accepted.digests()) + ("" if as_of is None else f"-{as_of}")
        before = at.decide_once(f"catalog-before-{known}", lambda: at.store.head("catalog") or {})
        config = {
            "events": events.model_dump(mode="json", exclude={"max_quarantined"}),
            "data": data.model_dump(mode="json", exclude={"history_length"}),
            "as_of": as_of,
            "shards": at.settings.shards,
        }
        recipe = Recipe("build", VERSION, config, (*accepted.digests(), before.get("digest", "no catalog")))

        def make(out: Path) -> None:
            plan = BuildPlan(
                events=events,
                data=data,
                as_of=as_of,
                shards=at.settings.shards,
                memory_mb=at.settings.memory_mb,
                temp=at.store.scratch(recipe),
                threads=at.settings.threads,
            )
            files = accepted_files(at.store, accepted)
            items = (
                at.store.open(accepted.items.step, accepted.items.digest) / "items.parquet" if accepted.items else None
            )
            build(files, items, _catalog(at, before), out, plan)

        stored = at.make(recipe, make)
        made = open_build(at.store, stored.digest)
        _advance_catalog(at, stored.digest, made.items)
        _tell(at, made)
        at.tracking.log_dataset(
            night.run_id, "events", stored.digest, source=str(night.source.events_path()), rows=made.kept
        )
        return DatasetRef.of(stored, users=made.users, items=made.items, as_of=made.as_of)


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


def _advance_catalog(at: Step, digest: str, items: int) -> None:
    """The head is the longest catalog so far: every later one begins with it."""
    head = at.store.head("catalog")
    if head is None or items > head["items"]:
        at.store.set_head("catalog", {"digest": digest, "items": items})


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
