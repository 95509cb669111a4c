"""Rows that were refused, a record each: file, row, column, rule and value, unless that names a user."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.csv_rows import BrokenLine
from recsys.errors import DataError
from recsys.fields import Rule

SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("column", pa.string()),
        pa.field("rule", pa.string(), nullable=False),
        pa.field("value", pa.string()),
    ]
)
_LONGEST_VALUE = 200
_EXAMPLES = 3


@dataclass(frozen=True)
class Refusals:
    """The rows of one batch that a column's rule refuses, with what stood there (None: withheld)."""

    column: str
    rows: np.ndarray  # (n,) int64
    rules: np.ndarray  # (n,) int8 of Rule
    values: Sequence[object] | None


class TableDraft:
    """A Parquet file written batch by batch under a temporary name; it gets its name when all went well."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._draft = path.with_name(path.name + ".part")

    def __enter__(self) -> Self:
        self._writer = pq.ParquetWriter(self._draft, self._schema, compression="zstd", write_page_checksum=True)
        return self

    def write(self, table: pa.Table) -> None:
        """Appends rows; the schema must be the declared one."""
        if table.num_rows:
            self._writer.write_table(table)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._writer.close()
            if error is None:
                self._draft.rename(self._path)
        finally:
            self._draft.unlink(missing_ok=True)


@dataclass
class Quarantine:
    """Writes the refused rows of one file and counts them by column and rule."""

    file: str
    draft: TableDraft
    counts: Counter[str] = field(default_factory=Counter)
    by_rule: Counter[Rule] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add_lines(self, broken: list[BrokenLine]) -> None:
        """CSV lines that are no rows."""
        rows, rules = (np.array(each, np.int64) for each in ([x.line for x in broken], [x.rule for x in broken]))
        self._write(rows, None, rules, [line.what for line in broken])

    def add(self, refusals: Refusals) -> None:
        """Rows refused for one column."""
        texts = None if refusals.values is None else [repr(value)[:_LONGEST_VALUE] for value in refusals.values]
        self._write(refusals.rows, refusals.column, refusals.rules, texts)

    @property
    def rows(self) -> int:
        """How many rows are quarantined."""
        return self.counts.total()

    def verify_share(self, lines: int, largest: float) -> None:
        """Raises DataError when more than the share `largest` of `lines` rows is refused; the forgotten are no faults."""
        refused = self.rows - self.by_rule[Rule.FORGOTTEN]
        if refused > largest * lines:
            share = f"{refused:,} of {lines:,} rows ({refused / lines:.0%})"
            most = ", ".join(f"{name}: {count:,}" for name, count in self.counts.most_common(3))
            raise DataError(
                f"{share} are refused, more than {largest:.0%} ({most})",
                where=f"{self.file}, for example {'; '.join(self.examples)}",
                mend="Mend the rows, or raise events.max_quarantined if they may be left out.",
            )

    def _write(self, rows: np.ndarray, column: str | None, rules: np.ndarray, values: Sequence[str] | None) -> None:
        if not len(rows):
            return
        kinds, places = np.unique(rules, return_inverse=True)
        words = [Rule(kind).word for kind in kinds]
        names = [f"{column} {word}" if column else word for word in words]
        numbers = np.bincount(places).tolist()
        self.counts.update(dict(zip(names, numbers, strict=True)))
        self.by_rule.update({Rule(kind): number for kind, number in zip(kinds, numbers, strict=True)})
        for row, place in zip(rows[: _EXAMPLES - len(self.examples)], places, strict=False):
            self.examples.append(f"row {row} {names[place]}")
        arrays = [
            pa.repeat(self.file, len(rows)),
            pa.array(rows),
            pa.repeat(pa.scalar(column, pa.string()), len(rows)),
            pa.array(words, pa.string()).take(pa.array(places)),
            pa.nulls(len(rows), pa.string()) if values is None else pa.array(values, pa.string()),
        ]
        self.draft.write(pa.Table.from_arrays(arrays, schema=SCHEMA))
