"""CSV read strictly: UTF-8, commas, a header; one line is one row, or a broken line that says why."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from recsys.errors import DataError
from recsys.fields import Rule

_BLOCK = 4 << 20
_LONGEST_LINE = 1 << 20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class BrokenLine:
    """A line that is no row. It is never quoted: a user's id may stand anywhere in it."""

    line: int
    rule: Rule
    what: str


@dataclass(frozen=True)
class CsvBatch:
    """The rows of some lines: line numbers (n,), the columns asked for with n strings each, broken lines."""

    lines: np.ndarray
    columns: list[pa.Array]
    broken: list[BrokenLine]


def header(file: Path) -> list[str]:
    """The column names. Raises DataError when the first line cannot be a header."""
    with file.open("rb") as stream:
        raw = stream.readline(_LONGEST_LINE + 1).removeprefix(_BOM)
    where = f"{file.name}, line 1"
    if len(raw) > _LONGEST_LINE:
        mend = "The first line names the columns; end it with LF or CRLF."
        raise DataError(f"the header is longer than {_LONGEST_LINE:,} bytes", where=where, mend=mend)
    try:
        text = raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError("the header is not UTF-8 text", where=where, mend="Save the file as UTF-8 CSV.") from error
    if "\r" in text or "\0" in text:
        raise DataError("the header has stray control characters", where=where, mend="End lines with LF or CRLF.")
    if not text.strip():
        raise DataError("the header is empty", where=where, mend="The first line names the columns.")
    try:
        return _fields(text, 1, file)
    except csv.Error as error:
        raise DataError(f"the header is broken: {error}", where=where, mend="Quote names as CSV does.") from error


def batches(file: Path, wanted: list[str]) -> Iterator[CsvBatch]:
    """The rows after the header, about 4 MiB at a time, with the `wanted` columns in that order.

    Raises DataError for a quote that is not closed on its line (it would swallow the lines after it) and for
    a line above 1 MiB. Lines with too few or many fields, stray quotes or broken UTF-8 come back as broken
    lines.
    """
    names = header(file)
    places = [names.index(name) for name in wanted]
    with file.open("rb") as stream:
        stream.readline()
        first = 2
        for block in _blocks(stream, file):
            batch = _parsed(block, first, file, len(names), places)
            first += len(batch.lines) + len(batch.broken)
            yield batch


def _blocks(stream: BinaryIO, file: Path) -> Iterator[bytes]:
    """Blocks of whole lines without the last line end."""
    rest = b""
    while block := stream.read(_BLOCK):
        whole, newline, rest_of_block = (rest + block).rpartition(b"\n")
        rest = rest_of_block
        if len(rest) > _LONGEST_LINE:
            mend = "End every line with LF or CRLF; put long texts into Parquet."
            raise DataError(f"a line is longer than {_LONGEST_LINE:,} bytes", where=file.name, mend=mend)
        if newline:
            yield whole
    if rest:
        yield rest


def _parsed(block: bytes, first: int, file: Path, width: int, places: list[int]) -> CsvBatch:
    texts, broken = _decoded(block, first)
    rows = _split_all(list(texts.values()))
    if rows is None:
        rows, bad = _split_each(texts, file)
        broken += bad
        for line in bad:
            del texts[line.line]
    lines = list(texts)
    if any(len(row) != width for row in rows):
        odd = [(line, len(row)) for line, row in zip(lines, rows, strict=True) if len(row) != width]
        broken += [BrokenLine(line, Rule.WRONG_FIELDS, f"{n} fields instead of {width}") for line, n in odd]
        kept = [(line, row) for line, row in zip(lines, rows, strict=True) if len(row) == width]
        lines, rows = [line for line, _ in kept], [row for _, row in kept]
    columns = [pa.array([row[place] for row in rows], pa.string()) for place in places]
    return CsvBatch(np.array(lines, np.int64), columns, sorted(broken, key=lambda line: line.line))


def _decoded(block: bytes, first: int) -> tuple[dict[int, str], list[BrokenLine]]:
    """The lines by number, without their ends, and those that are not UTF-8."""
    broken = []
    try:
        lines = dict(enumerate(block.decode().split("\n"), first))
    except UnicodeDecodeError:
        lines = {}
        for number, raw in enumerate(block.split(b"\n"), first):
            try:
                lines[number] = raw.decode()
            except UnicodeDecodeError as error:
                broken.append(BrokenLine(number, Rule.NOT_UTF8, f"byte {error.start + 1} of the line"))
    if b"\r" in block:
        lines = {number: line.removesuffix("\r") for number, line in lines.items()}
    return lines, broken


def _split_all(lines: list[str]) -> list[list[str]] | None:
    """The fields of every line, or None when some line needs a closer look.

    A record takes one line or more, so as many records as lines means that no quote has run over a line end.
    """
    try:
        rows = list(csv.reader(lines, strict=True))
    except csv.Error:
        return None
    return rows if len(rows) == len(lines) else None


def _split_each(lines: dict[int, str], file: Path) -> tuple[list[list[str]], list[BrokenLine]]:
    rows, broken = [], []
    for number, line in lines.items():
        try:
            rows.append(_fields(line, number, file))
        except csv.Error as error:
            broken.append(BrokenLine(number, Rule.BROKEN_LINE, str(error)))
    return rows, broken


def _fields(line: str, number: int, file: Path) -> list[str]:
    """The fields of one line. Raises DataError for an unclosed quote, csv.Error for anything else."""
    reader = csv.reader([line], strict=True)
    try:
        return next(reader, [])
    except csv.Error as error:
        if "unexpected end of data" not in str(error):
            raise
        mend = "Close it on the same line: a line is one row, and a field holds no line break (Parquet may)."
        raise DataError("a quote is opened and not closed", where=f"{file.name}, line {number}", mend=mend) from error
