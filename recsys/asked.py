"""The users somebody asks recommendations for: a file with a column user_id, read strictly. None is lost, none doubled."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.door import Door
from recsys.errors import DataError
from recsys.fields import Rule, read_ids, require_id
from recsys.rows import Column, RowBatch, RowFile

_USER_ID = Column("user_id", True, require_id)


@dataclass(frozen=True)
class AskedUsers:
    """Each user once, in the order of the file."""

    user_ids: pa.Array  # (U,) strings
    tokens: pa.Array  # (U,) strings
    doubled: int  # rows that name a user again


def read_asked(file: Path, columns: Mapping[str, str], door: Door) -> AskedUsers:
    """From a Parquet or CSV file; `columns` may say what its column user_id is called.

    Raises DataError naming file and row when a row names no user, or the file as a whole cannot be read.
    """
    rows = RowFile.open(file, (_USER_ID,), {name: theirs for name, theirs in columns.items() if name == "user_id"})
    distinct, count = [pa.array([], pa.string())], 0
    for batch in rows.batches():
        distinct.append(_user_ids(batch, rows))
        count += len(batch.numbers)
    user_ids = pc.unique(pa.chunked_array(distinct))
    return AskedUsers(user_ids, door.tokens(user_ids), count - len(user_ids))


def _user_ids(batch: RowBatch, rows: RowFile) -> pa.Array:
    field = read_ids(batch.columns["user_id"])
    refused = [(line.line, line.rule.word) for line in batch.broken]
    refused += [(int(batch.numbers[at]), Rule(field.faults[at]).word) for at in np.flatnonzero(field.faults)]
    if refused:
        row, rule = min(refused)
        raise DataError(
            f"{len(refused):,} rows name no user",
            where=f"{rows.where('user_id')}, row {row}: {rule}",
            mend="Leave such rows out, or write the users' ids.",
        )
    return field.values()
