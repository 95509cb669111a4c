"""A Parquet or CSV file as batches of the columns asked for. What is wrong with a whole file is said here."""

import difflib
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys import csv_rows, parquet_rows
from recsys.csv_rows import BrokenLine
from recsys.errors import DataError

COLUMNS = ("user_id", "item_id", "timestamp", "event", "rating", "title", "category", "description")
"""Every column of ours, of events and of items: one `renamed` may serve both kinds of file."""

_OTHER_NAMES = {
    "user_id": ("user", "customer", "visitor", "client", "member", "uid"),
    "item_id": ("item", "product", "article", "sku", "movie", "asin", "iid"),
    "timestamp": ("time", "date", "datetime", "ts", "created_at", "event_time"),
}


@dataclass(frozen=True)
class Column:
    """One column of ours: whether a file must have it, and what types are accepted (raises DataError)."""

    name: str
    required: bool
    accept: Callable[[pa.DataType, str], None]


@dataclass(frozen=True)
class RowBatch:
    """Some rows of a file. `numbers` are rows of Parquet from 1, or lines of CSV (the header is line 1)."""

    numbers: np.ndarray  # (n,) int64
    columns: Mapping[str, pa.Array]  # n values each, by our names; optional columns the file lacks are absent
    broken: list[BrokenLine]


@dataclass(frozen=True)
class RowFile:
    """An opened file: its columns by our names, and what it has besides."""

    file: Path
    names: Mapping[str, str]  # our name -> the file's
    ignored: tuple[str, ...]
    is_csv: bool

    @classmethod
    def open(cls, file: Path, columns: tuple[Column, ...], renamed: Mapping[str, str]) -> "RowFile":
        """Looks at the file's header. `renamed` maps our column names to the file's.

        Raises DataError when the file is missing, empty, of another format or cut short, or a column is
        missing, doubled or of a type that is not accepted.
        """
        found = column_names(file)
        names = _matched(file, found, columns, renamed)
        ignored = tuple(name for name in found if name not in names.values())
        rows = cls(file, names, ignored, _is_csv(file))
        if not rows.is_csv:
            kinds = parquet_rows.opened(file).schema_arrow.types
            for column in columns:
                if column.name in names:
                    column.accept(kinds[found.index(names[column.name])], rows.where(column.name))
        return rows

    def batches(self) -> Iterator[RowBatch]:
        """All rows, in order, in bounded memory. Raises DataError when the file turns out to be damaged."""
        yield from self._csv_batches() if self.is_csv else self._parquet_batches()

    def notes(self) -> list[str]:
        """What was passed over, for whoever reads the report."""
        if not self.ignored:
            return []
        shown = ", ".join(name[:60] for name in self.ignored[:50])
        more = f" and {len(self.ignored) - 50:,} more" if len(self.ignored) > 50 else ""
        return [f"columns ignored: {shown}{more}"]

    def where(self, column: str) -> str:
        """The place of one of our columns, for an error message."""
        return f"{self.file.name}, column {self.names[column]}"

    def _csv_batches(self) -> Iterator[RowBatch]:
        for batch in csv_rows.batches(self.file, list(self.names.values())):
            columns = dict(zip(self.names, batch.columns, strict=True))
            yield RowBatch(batch.lines, columns, batch.broken)

    def _parquet_batches(self) -> Iterator[RowBatch]:
        done = 0
        for table in parquet_rows.batches(self.file, list(self.names.values())):
            numbers = np.arange(done + 1, done + 1 + len(table))
            done += len(table)
            columns = {name: table[theirs].combine_chunks() for name, theirs in self.names.items()}
            yield RowBatch(numbers, columns, [])


def input_files(path: Path) -> list[Path]:
    """The Parquet or CSV file at `path`, or those of a folder by name. DataError when there is none."""
    try:
        if not path.is_dir():
            _require_file(path)
            return [path]
        files = sorted(file for file in path.iterdir() if _is_input(file) and file.is_file())
    except OSError as error:
        raise DataError(
            f"the path cannot be read: {error.strerror}", where=str(path), mend="Check the path and its mode."
        ) from error
    if not files:
        raise DataError(
            "the folder has no .parquet or .csv file", where=str(path), mend="Name the events' folder or file."
        )
    return files


def column_names(file: Path) -> list[str]:
    """The names of a file's columns. Raises DataError when it has none that can be read."""
    _require_file(file)
    return csv_rows.header(file) if _is_csv(file) else list(parquet_rows.opened(file).schema_arrow.names)


def _is_csv(file: Path) -> bool:
    return file.suffix.lower() == ".csv"


def _is_input(file: Path) -> bool:
    return file.suffix.lower() in (".parquet", ".csv") and not file.name.startswith((".", "_"))


def _require_file(file: Path) -> None:
    if not file.exists():
        raise DataError("the file does not exist", where=str(file), mend="Check the path.")
    if not file.is_file():
        raise DataError("this is no file", where=str(file), mend="Name a Parquet or CSV file, or a folder of them.")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in file.name):
        raise DataError("the file's name holds what is no text", where=file.name, mend="Rename it.")
    if file.suffix.lower() not in (".parquet", ".csv"):
        raise DataError(
            "only .parquet and .csv files are read", where=file.name, mend="Convert the file, or rename it."
        )
    try:
        with file.open("rb") as stream:
            if not stream.read(1):
                raise DataError("the file is empty, 0 bytes", where=file.name, mend="Deliver it again.")
    except OSError as error:
        raise DataError(
            f"the file cannot be read: {error.strerror}", where=str(file), mend="Check its mode."
        ) from error


def _matched(
    file: Path, found: list[str], columns: tuple[Column, ...], renamed: Mapping[str, str]
) -> Mapping[str, str]:
    ours = [column.name for column in columns]
    for name, theirs in renamed.items():
        if name not in COLUMNS:
            mend = f"The columns are {', '.join(COLUMNS)}."
            raise DataError(f"--columns {name}={theirs} names no column of ours", where=file.name, mend=mend)
        if name in ours and theirs not in found:
            mend = f"The file has {_listed(found, _is_csv(file))}."
            raise DataError(f"column {theirs}, given as {name}, is missing", where=file.name, mend=mend)
    names = {name: renamed.get(name, name) for name in ours}
    twice = [theirs for name, theirs in names.items() if name in renamed and list(names.values()).count(theirs) > 1]
    if twice:
        mend = "Give each of ours a column of its own."
        raise DataError(f"the column {twice[0]} would be read as two of ours", where=file.name, mend=mend)
    doubled = [theirs for theirs in names.values() if found.count(theirs) > 1]
    if doubled:
        raise DataError(f"the column {doubled[0]} occurs twice", where=file.name, mend="Rename or drop one.")
    for column in columns:
        if column.required and names[column.name] not in found:
            raise DataError(
                f"the column {column.name} is missing",
                where=file.name,
                mend=_suggestion(column.name, found, _is_csv(file)),
            )
    return {name: theirs for name, theirs in names.items() if theirs in found}


def _suggestion(name: str, found: list[str], is_csv: bool) -> str:
    """How to name the column that is probably meant, and what columns there are."""
    by_lower = {theirs.lower(): theirs for theirs in reversed(found)}
    near = difflib.get_close_matches(name, by_lower, n=1)
    near += [lower for lower in by_lower if any(other in lower for other in _OTHER_NAMES.get(name, ()))]
    told = near and _may_be_repeated(found, is_csv)
    advice = f"If it is {by_lower[near[0]]}, say --columns {name}={by_lower[near[0]]}. " if told else ""
    return f"{advice}The file has {_listed(found, is_csv)}."


def _may_be_repeated(names: list[str], is_csv: bool) -> bool:
    """Whether these are names. A CSV file may have lost its header: then its first row stands there, with ids of users."""
    words = {*COLUMNS, *(word for others in _OTHER_NAMES.values() for word in others)}
    plain = [name.lower() for name in names if not any(character.isdigit() for character in name)]  # no user-17
    return not is_csv or any(word in name for name in plain for word in words)


def _listed(names: list[str], is_csv: bool) -> str:
    if not _may_be_repeated(names, is_csv):
        return f"{len(names)} columns without a name that says anything: perhaps its header is missing"
    shown = ", ".join(repr(name)[:60] for name in names[:12])
    return f"the columns {shown}" + (f" and {len(names) - 12} more" if len(names) > 12 else "")
