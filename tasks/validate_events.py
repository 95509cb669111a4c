"""validate: each file of events by itself into accepted and quarantined rows, each once."""

import hashlib
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task

from recsys.errors import DataError
from recsys.events import EventSource, Validation, input_files, validate_file
from recsys.items import validate_items
from tasks import computing
from tasks.adapters import expectations
from tasks.adapters.store import Recipe, Stored, sha256_of
from tasks.adapters.vault import Vault, forgotten
from tasks.night import TASK_OPTIONS, Night, Step, step
from tasks.refs import AcceptedRef, EventsRef, ItemsRef

VERSION = 1
DAY = timedelta(days=1)


@task(name="validate", **TASK_OPTIONS)
def validate_events(night: Night) -> AcceptedRef:
    """Read strictly, turn users into tokens, check the rest with Great Expectations."""
    with step(night, "validate", "Reading events and items") as at:
        files = input_files(night.source.events_path())
        items = _validated_items(at)
        known = _item_ids(at, items) if items else None
        gone, refs = frozenset(forgotten(at.settings.vault)), []
        for number, file in enumerate(files):
            at.progress(number / len(files), f"reading {file.name}")
            refs.append(_validated_file(at, file, items, known, gone))
        at.tracking.log_metrics(
            night.run_id,
            {"rows/lines": sum(r.lines for r in refs), "rows/quarantined": sum(r.quarantined for r in refs)},
            step=0,
        )
        return AcceptedRef(files=tuple(refs), items=items)


def _validated_items(at: Step) -> ItemsRef | None:
    path = at.night.source.items_path()
    if path is None:
        return None
    if not path.exists():
        raise DataError("there is no such file of items", where=str(path), mend="Check --items.")
    columns, most = dict(at.night.source.columns), at.night.config.events.max_quarantined
    recipe = Recipe("items", VERSION, {"columns": columns, "max_quarantined": most}, (sha256_of(path),))
    stored = at.make(recipe, lambda out: validate_items(path, out, columns, most))
    return ItemsRef.of(stored, file=path.name, items=stored.rows)


def _item_ids(at: Step, items: ItemsRef) -> pa.Array:
    table = pq.read_table(at.store.open(items.step, items.digest) / "items.parquet", columns=["item_id"])
    return table.column("item_id").combine_chunks()


def _validated_file(
    at: Step, file: Path, items: ItemsRef | None, known: pa.Array | None, gone: frozenset[str]
) -> EventsRef:
    """One file's object. A file with rows from the future is looked at again every day; any other once for ever."""
    rules: dict[str, Any] = {
        "max_quarantined": at.night.config.events.max_quarantined,
        "columns": dict(at.night.source.columns),
    }
    if gone:
        rules["forgotten"] = hashlib.sha256("".join(sorted(gone)).encode("ascii")).hexdigest()
    parents = (sha256_of(file), items.digest if items else "no items")
    end_of_tomorrow = int((datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + 2 * DAY).timestamp())
    for_ever = Recipe("validate", VERSION, {**rules, "not_after": None}, parents)
    for_today = Recipe("validate", VERSION, {**rules, "not_after": end_of_tomorrow}, parents)

    def build(out: Path) -> None:
        _read(at, file, known, end_of_tomorrow, gone, out)

    if at.store.find(for_ever):
        stored = at.make(for_ever, build)
    else:
        stored = at.make(for_today, build)
        if _validation(at, stored).future == 0:
            folder = at.store.open(stored.step, stored.digest)
            at.store.make(for_ever, lambda out: shutil.copytree(folder, out, dirs_exist_ok=True))
    validation = _validation(at, stored)
    if not stored.reused:
        at.tracking.log_text(at.night.run_id, _page(at, stored), f"validation/{file.name}.html")
    at.tell(f"{file.name}: {validation.accepted:,} of {validation.lines:,} rows accepted")
    return EventsRef.of(
        stored, file=file.name, lines=validation.lines, accepted=validation.accepted, quarantined=validation.quarantined
    )


def _read(at: Step, file: Path, known: pa.Array | None, not_after: int, gone: frozenset[str], out: Path) -> None:
    """The strict reader, then Great Expectations over what it accepted."""
    computing.expect_trials(at.settings)
    vault = Vault(at.settings.vault, at.settings.vault_key)
    met = 0

    def on_users(users: pa.Table) -> None:
        nonlocal met
        vault.remember(users)
        met += len(users)
        at.progress(0.0, f"{file.name}: {met:,} users met, batch by batch")

    source = EventSource(
        columns=at.night.source.columns,
        known_items=known,
        not_after=not_after,
        door=vault.door,
        on_users=on_users,
        forgotten=gone,
    )
    validation = validate_file(file, out, source, at.night.config.events)
    if validation.lines == 0:
        raise DataError(
            "the file has no rows",
            where=file.name,
            mend="Deliver it whole or, if nothing happened on that day, take it out of the folder.",
        )
    found = expectations.check(out / "accepted.parquet", oldest=validation.oldest, newest=validation.newest)
    found.save(out / "expectations.json")
    found.require(file)


def _page(at: Step, stored: Stored) -> str:
    """The validation report that a person reads."""
    folder = at.store.open(stored.step, stored.digest)
    found = expectations.Expectations.load(folder / "expectations.json")
    return expectations.validation_report(_validation(at, stored), found, folder / "quarantine.parquet")


def _validation(at: Step, stored: Stored) -> Validation:
    folder = at.store.open(stored.step, stored.digest)
    return Validation.from_json(json.loads((folder / "validation.json").read_text()))
