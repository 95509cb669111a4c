"""The items' texts: the one strict reader of a file of items. A row is accepted, doubled or quarantined."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import DataError
from recsys.fields import Rule, TextField, read_ids, read_texts, readable, require_id
from recsys.quarantine import SCHEMA as QUARANTINE
from recsys.quarantine import Quarantine, Refusals, TableDraft
from recsys.rows import Column, RowBatch, RowFile, column_names

ITEMS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("category", pa.string()),
        pa.field("description", pa.string()),
    ]
)
"""Accepted items in file order, one row an id; texts are byte-exact, and null where there is none."""

_TEXTS = ("title", "category", "description")
_COLUMNS = (Column("item_id", True, require_id), *(Column(name, False, require_id) for name in _TEXTS))


@dataclass(frozen=True)
class ItemsValidation:
    """What became of one file: lines == accepted + duplicates + quarantined."""

    file: str
    lines: int
    accepted: int
    duplicates: int  # rows equal to an earlier one
    quarantined: int
    by_rule: Mapping[str, int]  # "column rule" -> rows
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values, to be read back by `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `as_json`."""
        return cls(**{**value, "notes": tuple(value["notes"])})


def validate_items(file: Path, out: Path, columns: Mapping[str, str], max_quarantined: float) -> ItemsValidation:
    """Reads one file into `out`: items.parquet, quarantine.parquet, validation.json. It is held in memory.

    `columns` maps our column names to the file's; what it says of `item_id` may be meant for the events
    alone. Rows that agree in everything are kept once; ids whose rows contradict each other are quarantined
    whole. Raises DataError when the file as a whole cannot be trusted.
    """
    found = column_names(file)
    columns = {name: theirs for name, theirs in columns.items() if name != "item_id" or theirs in found}
    rows = RowFile.open(file, _COLUMNS, columns)
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as drafts:
        accepted = drafts.enter_context(TableDraft(out / "items.parquet", ITEMS))
        quarantine = Quarantine(file.name, drafts.enter_context(TableDraft(out / "quarantine.parquet", QUARANTINE)))
        tables, lines = [_readable_rows(RowBatch(np.empty(0, np.int64), {}, []), quarantine)], 0
        for batch in rows.batches():
            tables.append(_readable_rows(batch, quarantine))
            lines += len(batch.numbers) + len(batch.broken)
        table = pa.concat_tables(tables)
        kept, duplicates = _without_doubles(table, quarantine)
        quarantine.verify_share(lines, max_quarantined)
        accepted.write(kept.select(ITEMS.names).cast(ITEMS))
    if lines != len(kept) + duplicates + quarantine.rows:
        raise DataError(
            f"{lines} rows are not {len(kept)} accepted, {duplicates} doubled and {quarantine.rows} quarantined",
            where=file.name,
        )
    counts = dict(sorted(quarantine.counts.items()))
    validation = ItemsValidation(file.name, lines, len(kept), duplicates, quarantine.rows, counts, tuple(rows.notes()))
    draft = out / "validation.json.part"
    draft.write_text(json.dumps(validation.as_json(), sort_keys=True, indent=1, allow_nan=False))
    draft.rename(out / "validation.json")
    return validation


def _readable_rows(batch: RowBatch, quarantine: Quarantine) -> pa.Table:
    """The rows of a batch whose every column can be read, with their row numbers."""
    quarantine.add_lines(batch.broken)
    nothing = pa.nulls(len(batch.numbers), pa.string())
    fields: dict[str, TextField] = {}
    fine = np.ones(len(batch.numbers), bool)
    for column in _COLUMNS:
        raw = batch.columns.get(column.name, nothing)
        field = read_ids(raw) if column.required else read_texts(raw)
        rows = np.flatnonzero(fine & (field.faults != Rule.FINE))
        fine[rows] = False
        values = readable(raw.take(pa.array(rows)))
        quarantine.add(Refusals(column.name, batch.numbers[rows], field.faults[rows], values))
        fields[column.name] = field
    chosen = pa.array(np.flatnonzero(fine))
    columns = {name: field.values().take(chosen) for name, field in fields.items()}
    return pa.table({**columns, "row": pa.array(batch.numbers[fine])})


def _without_doubles(table: pa.Table, quarantine: Quarantine) -> tuple[pa.Table, int]:
    """One row for each id, and how many doubles are dropped. Contradicting rows are quarantined."""
    counts = pc.value_counts(table["item_id"].combine_chunks())
    often = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if not len(often):
        return table, 0
    at = np.flatnonzero(pc.is_in(table["item_id"], value_set=often).to_numpy(zero_copy_only=False))
    doubled = table.take(pa.array(at)).to_pylist()
    versions: dict[str, set[tuple[str | None, ...]]] = {}
    for row in doubled:
        versions.setdefault(row["item_id"], set()).add(tuple(row[name] for name in _TEXTS))
    dropped, contradicting, seen = [], [], set()
    for place, row in zip(at, doubled, strict=True):
        item_id = row["item_id"]
        if len(versions[item_id]) > 1:
            contradicting.append(row)
        if len(versions[item_id]) > 1 or item_id in seen:
            dropped.append(place)
        seen.add(item_id)
    rows = np.array([row["row"] for row in contradicting], np.int64)
    rules = np.full(len(rows), Rule.DUPLICATE_ID, np.int8)
    quarantine.add(Refusals("item_id", rows, rules, [row["item_id"] for row in contradicting]))
    keep = np.ones(len(table), bool)
    keep[dropped] = False
    return table.filter(pa.array(keep)), len(dropped) - len(contradicting)
