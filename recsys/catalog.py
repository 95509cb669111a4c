"""The catalog on disk: item codes are append-only, so an old code means the same item for ever."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.errors import DataError
from recsys.histories import Catalog
from recsys.items import ITEMS
from recsys.reused_ids import reused_ids

CATALOG = pa.schema([pa.field("code", pa.int32(), nullable=False), *ITEMS])
"""One row an item; row c - 1 has code c."""

_TEXTS = ("title", "category", "description")


def appended(event_items: pa.Array, items: Path | None, before: Path | None) -> tuple[pa.Table, tuple[str, ...]]:
    """Tonight's catalog, and what is worth saying about it.

    The items of the catalog `before` keep their codes; `event_items`, in the order of their first event, and
    then the other items of the file `items` follow where they are new. Texts are those of `items`, else those
    of `before`.
    """
    old, texts = read_catalog(before), _read_items(items)
    ids = pa.concat_arrays([table["item_id"].combine_chunks() for table in (old, texts)])
    old_ids, file_ids = ids[: len(old)], ids[len(old) :]
    every = pc.unique(pa.concat_arrays([old_ids, event_items, file_ids]))
    in_file, in_old = pc.index_in(every, file_ids), pc.index_in(every, old_ids)
    columns = {"code": pa.array(np.arange(1, len(every) + 1, dtype=np.int32)), "item_id": every}
    for name in _TEXTS:
        ours, earlier = texts[name].combine_chunks().take(in_file), old[name].combine_chunks().take(in_old)
        columns[name] = pc.if_else(in_file.is_valid(), ours, earlier)
    notes = []
    if items is not None and in_file.null_count:
        notes.append(f"{in_file.null_count:,} items of earlier nights or of events are not in the items file")
    if told := _reused(old, texts):
        notes.append(told)
    return pa.table(columns, schema=CATALOG), tuple(notes)


def _reused(old: pa.Table, texts: pa.Table) -> str | None:
    """What is to be said of items whose title in the file is another than in the catalog before."""
    place = pc.index_in(old["item_id"].combine_chunks(), texts["item_id"].combine_chunks())
    both = pa.table(
        [old["item_id"], old["title"], texts["title"].combine_chunks().take(place)], ["item", "before", "now"]
    ).drop_null()
    renamed = both.filter(pc.not_equal(both["before"], both["now"]))
    return reused_ids(list(zip(*(column.to_pylist() for column in renamed.columns), strict=True)), len(both))


def read_catalog(path: Path | None) -> pa.Table:
    """The (N,) rows of a catalog.parquet; none without a path. DataError unless the codes are 1 to N."""
    if path is None:
        return CATALOG.empty_table()
    table = _read(path, CATALOG)
    if not np.array_equal(table["code"].to_numpy(), np.arange(1, len(table) + 1)):
        raise DataError("the codes are not 1 to N in order", where=path.name, mend="Use an untouched catalog.parquet.")
    return table


def load_catalog(path: Path) -> Catalog:
    """A catalog.parquet in memory."""
    return _catalog(read_catalog(path))


def load_items(path: Path) -> Catalog:
    """The items.parquet of a validated file of items, in memory; codes are its rows, not those of any model."""
    return _catalog(_read_items(path))


def _catalog(table: pa.Table) -> Catalog:
    return Catalog(*(table[name].to_pylist() for name in ("item_id", *_TEXTS)))


def _read_items(path: Path | None) -> pa.Table:
    return ITEMS.empty_table() if path is None else _read(path, ITEMS)


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"the file cannot be read: {error}", where=path.name, mend="Make it again.") from error
    if table.schema.names != schema.names or table.schema.types != schema.types:
        raise DataError("the columns are not those of a validated file", where=path.name, mend="Validate it first.")
    return table
