"""What may be wrong with a file as bytes, with the way its Parquet was written, and with its name."""

import gzip
import io
import zipfile
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.mutator import Delivery, Stage, mutator
from tests.fuzz.tables import plain

WRITING, BYTES, NAME = Stage.WRITING, Stage.BYTES, Stage.NAME
BOM = b"\xef\xbb\xbf"


def write(one: Delivery) -> None:
    """The table as bytes."""
    if one.csv:
        columns = [_cells(column) for column in one.table.columns]
        lines = [[name.encode() for name in one.table.column_names], *map(list, zip(*columns, strict=True))]
        one.raw = b"".join(b",".join(_quoted(cell) for cell in line) + b"\n" for line in lines)
        one.touched = b'"' in one.raw or b"\r" in one.raw or one.raw.count(b"\n") != len(lines)
    elif not one.raw:
        try:
            one.raw = _parquet(one.table, one.writing)
        except pa.ArrowException:  # of an old format, that cannot hold every type
            one.raw = _parquet(one.table, {})


def _parquet(table: pa.Table, writing: dict[str, Any]) -> bytes:
    place = io.BytesIO()
    pq.write_table(table, place, **writing)
    return place.getvalue()


def _cells(column: pa.ChunkedArray) -> list[bytes]:
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        return [value or b"" for value in column.cast(pa.binary()).to_pylist()]
    return [b"" if value is None else str(value).encode() for value in plain(column)]


def _quoted(cell: bytes) -> bytes:
    return b'"' + cell.replace(b'"', b'""') + b'"' if any(mark in cell for mark in b',"\r\n') else cell


# --- how Parquet is written -----------------------------------------------------------------------------------------


@mutator(WRITING, "parquet")
def other_codec(one: Delivery, rng: Random) -> None:
    one.writing["compression"] = rng.choice(("none", "snappy", "gzip", "brotli", "lz4", "zstd"))


@mutator(WRITING, "parquet")
def other_pages(one: Delivery, rng: Random) -> None:
    one.writing |= {"data_page_version": rng.choice(("1.0", "2.0")), "use_dictionary": rng.random() < 0.5}
    one.writing |= {"data_page_size": rng.choice((1, 64, 1 << 20)), "write_page_checksum": rng.random() < 0.5}


@mutator(WRITING, "parquet")
def other_writer(one: Delivery, rng: Random) -> None:
    one.writing |= {"version": rng.choice(("1.0", "2.4", "2.6")), "store_schema": False}
    one.writing |= {"use_deprecated_int96_timestamps": rng.random() < 0.5}


@mutator(WRITING, "parquet")
def tiny_row_groups(one: Delivery, rng: Random) -> None:
    one.writing["row_group_size"] = max(rng.choice((1, 3)), one.table.num_rows // 300)


@mutator(WRITING, "parquet")
def empty_row_groups(one: Delivery, rng: Random) -> None:
    _written(one, lambda writer: [writer.write_table(one.table.slice(0, 0)) for _ in range(rng.choice((1, 500)))])


@mutator(WRITING, "parquet")
def no_row_groups(one: Delivery, rng: Random) -> None:
    _written(one, lambda writer: None)


@mutator(WRITING, "parquet")
def much_metadata(one: Delivery, rng: Random) -> None:
    one.table = one.table.replace_schema_metadata(
        {b"x" * rng.choice((1, 1000)): rng.randbytes(rng.choice((10, 3 << 20)))}
    )


@mutator(WRITING, "parquet")
def bomb_of_one_long_text(one: Delivery, rng: Random) -> None:
    """Stored once, it stands in every row."""
    name = {"events": "item_id", "items": "description", "users": "user_id"}[one.kind]
    _bomb(one, name, rng.choice((600, 300_000)), rng.choice((300_000, 3_000_000)), store_schema=rng.random() < 0.5)


@mutator(WRITING, "parquet")
def bomb_of_nothing(one: Delivery, rng: Random) -> None:
    """Rows of nulls take no bytes."""
    _bomb(one, "", 0, rng.choice((1_000_000, 50_000_000)), store_schema=True)


@mutator(WRITING, "parquet")
def bomb_of_zeros(one: Delivery, rng: Random) -> None:
    """A page that a codec makes ten thousand times smaller."""
    one.raw, one.table, one.touched = _zeros(one.kind), one.table.slice(0, 0), True


def _bomb(one: Delivery, name: str, length: int, rows: int, *, store_schema: bool) -> None:
    one.raw, one.touched = (
        _bomb_bytes(tuple(dict.fromkeys(one.table.column_names))[:6], name, length, rows, store_schema),
        True,
    )


@cache
def _bomb_bytes(names: tuple[str, ...], long: str, length: int, rows: int, store_schema: bool) -> bytes:
    codes = pa.array(np.zeros(rows, np.int32)) if long else None
    columns = {
        name: pa.nulls(rows, pa.int8()) if codes is None else
        pa.DictionaryArray.from_arrays(codes, pa.array(["x" * length if name == long else "2023-11-14"]))
        for name in names
    }  # fmt: skip
    place = io.BytesIO()
    pq.write_table(pa.table(columns), place, store_schema=store_schema)
    return place.getvalue()


@cache
def _zeros(kind: str) -> bytes:
    names = {"events": ("user_id", "timestamp", "item_id"), "items": ("item_id", "title"), "users": ("user_id",)}[kind]
    columns = {name: pa.array(["2023-11-14"]) for name in names[:-1]} | {names[-1]: pa.array(["0" * (300 << 20)])}
    place = io.BytesIO()
    pq.write_table(
        pa.table(columns), place, compression="zstd", compression_level=1, use_dictionary=False, write_statistics=False
    )
    return place.getvalue()


def _written(one: Delivery, groups: Callable[[pq.ParquetWriter], object]) -> None:
    place = io.BytesIO()
    with pq.ParquetWriter(place, one.table.schema) as writer:
        groups(writer)
    one.raw, one.table = place.getvalue(), one.table.slice(0, 0)


# --- bytes ----------------------------------------------------------------------------------------------------------


def spoilt(one: Delivery, raw: bytes) -> None:
    """Other bytes than those that were written."""
    one.touched |= raw != one.raw
    one.raw = raw


def place_in(one: Delivery, rng: Random) -> int:
    """Anywhere in the file, more often in its head and tail than elsewhere."""
    n = len(one.raw)
    return rng.choice((rng.randint(0, n), min(n, rng.randint(0, 200)), max(0, n - rng.randint(0, 400))))


@mutator(BYTES, "file")
def cut_short(one: Delivery, rng: Random) -> None:
    spoilt(one, one.raw[: place_in(one, rng)])


@mutator(BYTES, "file")
def cut_in_front(one: Delivery, rng: Random) -> None:
    spoilt(one, one.raw[place_in(one, rng) :])


@mutator(BYTES, "file")
def cut_in_the_middle(one: Delivery, rng: Random) -> None:
    first, last = sorted((place_in(one, rng), place_in(one, rng)))
    spoilt(one, one.raw[:first] + one.raw[last:])


@mutator(BYTES, "file")
def flipped_bits(one: Delivery, rng: Random) -> None:
    raw = bytearray(one.raw)
    for _ in range(rng.choice((1, 1, 4, 40))):
        if raw:
            raw[min(place_in(one, rng), len(raw) - 1)] ^= 1 << rng.randrange(8)
    spoilt(one, bytes(raw))


@mutator(BYTES, "parquet")
def flipped_footer_bits(one: Delivery, rng: Random) -> None:
    raw = bytearray(one.raw)
    length = int.from_bytes(raw[-8:-4], "little")
    for _ in range(rng.choice((1, 2, 8))):
        if 0 < length < len(raw) - 8:
            raw[len(raw) - 8 - 1 - rng.randrange(length)] ^= 1 << rng.randrange(8)
    spoilt(one, bytes(raw))


@mutator(BYTES, "parquet")
def another_footer_length(one: Delivery, rng: Random) -> None:
    length = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, len(one.raw), rng.randrange(2000)))
    spoilt(one, one.raw[:-8] + length.to_bytes(4, "little") + one.raw[-4:])


@mutator(BYTES, "parquet")
def another_magic(one: Delivery, rng: Random) -> None:
    magic = rng.choice((b"PARE", b"ARROW1", b"PK\3\4", b"\0\0\0\0"))
    spoilt(one, rng.choice((magic + one.raw[4:], one.raw[:-4] + magic, magic + one.raw[4:-4] + magic)))


@mutator(BYTES, "file")
def inserted_zeros(one: Delivery, rng: Random) -> None:
    place = place_in(one, rng)
    spoilt(one, one.raw[:place] + b"\0" * rng.choice((1, 3, 5000)) + one.raw[place:])


@mutator(BYTES, "file")
def overwritten(one: Delivery, rng: Random) -> None:
    place, junk = place_in(one, rng), rng.randbytes(rng.choice((1, 8, 300)))
    spoilt(one, one.raw[:place] + junk + one.raw[place + len(junk) :])


@mutator(BYTES, "file")
def appended(one: Delivery, rng: Random) -> None:
    spoilt(one, one.raw + rng.choice((b"\n\n\n", b"\0" * 9, rng.randbytes(50), one.raw, b"\x1a", b"PAR1")))


@mutator(BYTES, "file")
def nothing_left(one: Delivery, rng: Random) -> None:
    spoilt(one, rng.choice((b"", b"\0", b"\n", b"\0" * 5000, BOM, b"PAR1", b"PAR1PAR1", b"\n" * 5000, b'"')))


@mutator(BYTES, "file")
def packed(one: Delivery, rng: Random) -> None:
    if rng.random() < 0.5:
        return spoilt(one, gzip.compress(one.raw[: 1 << 20], 1, mtime=0))
    place = io.BytesIO()
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as folder:
        folder.writestr(zipfile.ZipInfo("events.csv"), one.raw[: 1 << 20])
    spoilt(one, place.getvalue())


@mutator(BYTES, "file")
def byte_order_mark(one: Delivery, rng: Random) -> None:
    spoilt(one, rng.choice((BOM, BOM, BOM + BOM, b"\xff\xfe")) + one.raw)


@mutator(BYTES, "csv")
def other_encoding(one: Delivery, rng: Random) -> None:
    text = one.raw.decode("latin-1").replace("i", "é", 3)
    spoilt(one, text.encode(rng.choice(("latin-1", "utf-16", "utf-16-le", "utf-32", "utf-7")), "replace"))


@mutator(BYTES, "csv")
def other_line_ends(one: Delivery, rng: Random) -> None:
    ends = rng.choice(
        ((b"\r\n",), (b"\r",), (b"\n", b"\r\n"), (b"\r\r\n",), (b"\n", b"\r", b"\n\r"), ("\u2028".encode(),), (b"",))
    )
    spoilt(one, b"".join(line + rng.choice(ends) for line in one.raw.split(b"\n")[:3000]))


def _lines(one: Delivery, rng: Random, change: Callable[[bytes], bytes], *, header: bool = False) -> None:
    lines = one.raw.split(b"\n")
    for _ in range(rng.choice((1, 3))):
        place = 0 if header else rng.randrange(len(lines))
        lines[place] = change(lines[place])
    spoilt(one, b"\n".join(lines))


@mutator(BYTES, "csv")
def stray_quote(one: Delivery, rng: Random) -> None:
    def change(line: bytes) -> bytes:
        place = rng.randint(0, len(line))
        return line[:place] + rng.choice((b'"', b'""', b'"x', b',"', b'",')) + line[place:]

    _lines(one, rng, change)


@mutator(BYTES, "csv")
def short_and_long_lines(one: Delivery, rng: Random) -> None:
    change = rng.choice(
        (
            lambda s: s.rpartition(b",")[0],
            lambda s: s + b",more",
            lambda s: b"",
            lambda s: s + b"," * 3000,
            lambda s: b",,,,",
        )
    )
    _lines(one, rng, change)


@mutator(BYTES, "csv")
def endless_line(one: Delivery, rng: Random) -> None:
    most = rng.choice((130_000, 131_072, 1 << 20, (1 << 20) + 1, 5 << 20))
    _lines(one, rng, lambda line: line + rng.choice((b"x", b",", b'"', b" ")) * most, header=rng.random() < 0.3)


@mutator(BYTES, "csv")
def other_separator(one: Delivery, rng: Random) -> None:
    spoilt(one, one.raw.replace(b",", rng.choice((b";", b"\t", b"|", b", ", b" ,"))))


@mutator(BYTES, "csv")
def no_header(one: Delivery, rng: Random) -> None:
    spoilt(one, one.raw.partition(b"\n")[2])


@mutator(BYTES, "csv")
def header_again(one: Delivery, rng: Random) -> None:
    head = one.raw.partition(b"\n")[0]
    _lines(one, rng, lambda line: head + b"\n" + line)


@mutator(BYTES, "csv")
def everything_quoted(one: Delivery, rng: Random) -> None:
    lines = [line for line in one.raw.split(b"\n") if b'"' not in line][:3000]
    spoilt(one, b"\n".join(b",".join(b'"' + cell + b'"' for cell in line.split(b",")) for line in lines))


# --- names ----------------------------------------------------------------------------------------------------------


@mutator(NAME, "file")
def hostile_file_name(one: Delivery, rng: Random) -> None:
    stem = rng.choice(
        (
            "a\nb",
            "\x1b[31m",
            "\u202egpj",
            "caf\udce9",
            "[*]?",
            "'",
            '"',
            "$(id)",
            " ",
            "🛒",
            "x" * 240,
            "%s{0}",
            "<b>",
            "..",
            "-x",
        )
    )
    one.name = stem + one.name[one.name.rindex(".") :]


@mutator(NAME, "file")
def another_suffix(one: Delivery, rng: Random) -> None:
    one.touched = True
    one.name = rng.choice(("x.csv", "x.parquet", "x.CSV", "x.Parquet", "x.csv.gz", "x.json", "x", ".csv", "x.xlsx"))
