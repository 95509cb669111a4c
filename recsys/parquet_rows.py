"""Parquet read strictly and in bounded memory, whatever its pages hold: a text stored once may stand in a million rows."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from recsys.errors import DataError

_BATCH_ROWS = 1 << 18
_BATCH_BYTES = 64 << 20
_MAGIC = b"PAR1"
_UNFOLDED_BYTES, _UNFOLDED_RATIO = 256 << 20, 500
"""A file may become so many bytes, or so many times its own; a bomb of a few kilobytes would fill the machine."""
_ROW_BYTES = 64
"""What is made of a row at least: a token, an item id, a time, the row's number."""


def opened(file: Path, texts: Iterable[str] = ()) -> pq.ParquetFile:
    """The opened file; its columns of text named in `texts` come as dictionaries, however they were written.

    Raises DataError when it is another format, cut short or damaged.
    """
    with file.open("rb") as stream:
        starts_well = stream.read(4) == _MAGIC
    try:
        options = {"page_checksum_verification": True, "pre_buffer": False, "buffer_size": 1 << 20}
        parquet = pq.ParquetFile(file, read_dictionary=list(texts), **options)
        parquet.schema_arrow.names  # noqa: B018 - raises where what it says of its columns cannot be read
        return parquet
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        if starts_well:
            raise DataError(
                "the Parquet file is cut short or damaged", where=file.name, mend="Deliver it again."
            ) from error
        mend = "Check how it was written, or name it .csv if it is one."
        raise DataError("the file is not Parquet", where=file.name, mend=mend) from error


def batches(file: Path, wanted: list[str]) -> Iterator[pa.Table]:
    """The `wanted` columns in order, near 64 MiB at a time, neither as dictionaries nor as views.

    Raises DataError when a page is damaged, rows are missing, or the file unfolds to far more than its own bytes.
    """
    parquet = opened(file, wanted)
    rows, done = parquet.metadata.num_rows, 0
    unfolding = _Unfolding(file)
    unfolding.require(max(_stored_bytes(parquet), _ROW_BYTES * rows))
    try:
        for table in _gathered(_pieces(parquet, wanted, unfolding), _batch_rows(parquet)):
            yield table
            done += len(table)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        where = f"{file.name}, after row {done}"
        raise DataError(f"the file is damaged: {error}", where=where, mend="Deliver it again.") from error
    if done != rows:
        raise DataError(f"{rows} rows are announced, {done} came", where=file.name, mend="Deliver it again.")


class _Unfolding:
    """Counts what a file becomes in memory."""

    def __init__(self, file: Path) -> None:
        self._name, self._bytes, self._read = file.name, file.stat().st_size, 0
        self._most = max(_UNFOLDED_BYTES, _UNFOLDED_RATIO * self._bytes)

    def require(self, unfolded: int) -> None:
        """Raises DataError where so many bytes are too much."""
        if unfolded > self._most:
            raise DataError(
                f"the file unfolds to more than {self._most:,} bytes, far more than its own {self._bytes:,}",
                where=self._name,
                mend="If it is no mistake, deliver it as several smaller files.",
            )

    def cut(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """The batch in pieces whose texts stay near 64 MiB."""
        sizes = np.zeros(batch.num_rows, np.int64)
        for column in batch.columns:
            if types.is_dictionary(column.type) and len(column.dictionary):
                sizes += _lengths(column.dictionary)[column.indices.fill_null(0).to_numpy(zero_copy_only=False)]
        total = int(sizes.sum())
        self._read += total
        self.require(self._read)
        if total <= _BATCH_BYTES:
            yield batch
            return
        cuts = np.flatnonzero(np.diff(np.cumsum(sizes) // _BATCH_BYTES)) + 1
        for start, end in zip([0, *cuts], [*cuts, batch.num_rows], strict=True):
            yield batch.slice(start, end - start)


def _pieces(parquet: pq.ParquetFile, wanted: list[str], unfolding: _Unfolding) -> Iterator[pa.Table]:
    for whole in parquet.iter_batches(_batch_rows(parquet), columns=wanted):
        for batch in unfolding.cut(whole.select(wanted)):  # without what only begins like a name: "item_id.x"
            yield pa.table([_plain(column) for column in batch.columns], names=wanted)


def _gathered(pieces: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows, `rows` at a time however few a row group has, or 64 MiB where that is less."""
    waiting: list[pa.Table] = []
    held = size = 0
    for rest in pieces:
        while len(rest):
            head = rest.slice(0, rows - held)
            if waiting and size + head.nbytes > _BATCH_BYTES:
                yield pa.concat_tables(waiting)
                waiting, held, size = [], 0, 0
                continue
            rest = rest.slice(len(head))
            waiting.append(head)
            held, size = held + len(head), size + head.nbytes
            if held == rows:
                yield pa.concat_tables(waiting)
                waiting, held, size = [], 0, 0
    if waiting:
        yield pa.concat_tables(waiting)


def _plain(column: pa.Array) -> pa.Array:
    """The same values, but neither as a dictionary nor as views."""
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if types.is_string_view(column.type) or types.is_binary_view(column.type):
        column = column.cast(pa.binary())
    return column


def _batch_rows(parquet: pq.ParquetFile) -> int:
    """Fewer rows a batch where rows are long."""
    row_bytes = _stored_bytes(parquet) / max(1, parquet.metadata.num_rows)
    return int(min(_BATCH_ROWS, max(1024, _BATCH_BYTES // max(1, row_bytes))))


def _stored_bytes(parquet: pq.ParquetFile) -> int:
    """Of all pages before their codec, as the file declares them."""
    metadata = parquet.metadata
    total: int = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    return total


def _lengths(values: pa.Array) -> np.ndarray:
    """(d,) bytes of each text; 8 of a value that is none."""
    try:
        return np.asarray(pc.binary_length(values).fill_null(0).to_numpy(zero_copy_only=False), np.int64)
    except pa.ArrowNotImplementedError:
        return np.full(len(values), 8, np.int64)
