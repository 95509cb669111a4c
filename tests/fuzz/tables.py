"""What may be wrong with columns, values and rows of a file of events, items or users."""

from collections.abc import Sequence
from contextlib import suppress
from random import Random

import numpy as np
import pyarrow as pa

from tests.fuzz import texts
from tests.fuzz.mutator import Delivery, Stage, mutator

COLUMNS, ROWS = Stage.COLUMNS, Stage.ROWS


def any_column(one: Delivery, rng: Random) -> int:
    """The place of some column."""
    return rng.randrange(one.table.num_columns)


def put(one: Delivery, name: str, values: pa.Array | Sequence[object], kind: pa.DataType | None = None) -> None:
    """Replaces a column where there is one of that name."""
    place = one.table.schema.get_field_index(name)
    if place >= 0:
        values = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, kind)
        one.table = one.table.set_column(place, name, values)


def rename(one: Delivery, place: int, name: str) -> None:
    """Gives the column at a place another name."""
    names = list(one.table.column_names)
    names[place] = name
    one.table = one.table.rename_columns(names)


def sown(one: Delivery, rng: Random, seeds: Sequence[str | bytes | None], names: Sequence[str] = ()) -> None:
    """Puts some of the `seeds` into some rows of a column, which becomes one of texts."""
    n, there = one.table.num_rows, [name for name in names or one.table.column_names if name in one.table.column_names]
    there = [name for name in there if one.table.column_names.count(name) == 1]
    if not (n and there):
        return
    name = rng.choice(there)
    values = [None if v is None else v if isinstance(v, str | bytes) else str(v) for v in plain(one.table[name])]
    for _ in range(rng.choice((1, 1, 2, n))):
        values[rng.randrange(n)] = rng.choice(seeds)
    if any(isinstance(value, bytes) for value in values):
        raw = pa.array([v.encode() if isinstance(v, str) else v for v in values], pa.binary())
        put(one, name, raw if rng.random() < 0.3 else raw.view(pa.string()))
    else:
        put(one, name, values, pa.string())


def plain(column: pa.ChunkedArray) -> list[object]:
    """The values, or what they look like where Python has no such value."""
    try:
        return column.to_pylist()
    except (ValueError, OverflowError, KeyError, pa.ArrowException):
        return [f"value {row}" for row in range(len(column))]


def retyped(one: Delivery, rng: Random, kinds: Sequence[pa.DataType], names: Sequence[str]) -> None:
    """Gives one of the columns another type, keeping values where they fit and taking small numbers where not."""
    name, kind = rng.choice(names), rng.choice(kinds)
    if name not in one.table.column_names or one.table.column_names.count(name) > 1:
        return
    try:
        values = one.table[name].cast(kind)
    except (pa.ArrowException, ValueError):
        numbers = pa.array([row % 7 for row in range(one.table.num_rows)], pa.int64())
        try:
            values = numbers.cast(kind)
        except pa.ArrowException:
            values = pa.nulls(one.table.num_rows, kind)
    put(one, name, values)


IDS = ("user_id", "item_id")


@mutator(COLUMNS, "file")
def drop_column(one: Delivery, rng: Random) -> None:
    one.table = one.table.remove_column(any_column(one, rng)) if one.table.num_columns > 1 else one.table


@mutator(COLUMNS, "file")
def rename_column(one: Delivery, rng: Random) -> None:
    rename(one, any_column(one, rng), rng.choice(("CustomerID", "sku", "ts", "date", "ITEM_ID", "Item Id", "product")))


@mutator(COLUMNS, "file")
def hostile_column_name(one: Delivery, rng: Random) -> None:
    rename(one, any_column(one, rng), rng.choice(texts.NAMES))


@mutator(COLUMNS, "file")
def hostile_extra_column(one: Delivery, rng: Random) -> None:
    one.table = one.table.append_column(rng.choice(texts.NAMES), pa.nulls(one.table.num_rows, pa.string()))


@mutator(COLUMNS, "file")
def double_column(one: Delivery, rng: Random) -> None:
    place = any_column(one, rng)
    one.table = one.table.append_column(one.table.column_names[place], one.table.column(place))


@mutator(COLUMNS, "file")
def swap_columns(one: Delivery, rng: Random) -> None:
    first, second = any_column(one, rng), any_column(one, rng)
    names = list(one.table.column_names)
    names[first], names[second] = names[second], names[first]
    one.table = one.table.rename_columns(names)


@mutator(COLUMNS, "file")
def columns_in_another_order(one: Delivery, rng: Random) -> None:
    places = list(range(one.table.num_columns))
    rng.shuffle(places)
    one.table = one.table.select(places)


@mutator(COLUMNS, "file")
def many_columns(one: Delivery, rng: Random) -> None:
    nothing, more = pa.nulls(one.table.num_rows, pa.string()), rng.choice((50, 1500))
    schema = list(one.table.schema) + [pa.field(f"more_{n}", pa.string()) for n in range(more)]
    one.table = pa.Table.from_arrays(one.table.columns + [nothing] * more, schema=pa.schema(schema))


@mutator(COLUMNS, "parquet")
def dotted_neighbour(one: Delivery, rng: Random) -> None:
    name = rng.choice(one.table.column_names)
    one.table = one.table.append_column(f"{name}.{rng.choice(('id', 'list', ''))}", one.table[name])


@mutator(COLUMNS, "parquet")
def nested_type(one: Delivery, rng: Random) -> None:
    name, n = rng.choice(one.table.column_names), one.table.num_rows
    kinds = (
        pa.list_(pa.string()),
        pa.struct({"id": pa.string()}),
        pa.map_(pa.string(), pa.int32()),
        pa.list_(pa.int8(), 2),
    )
    put(one, name, pa.nulls(n, rng.choice(kinds)))


@mutator(COLUMNS, "parquet")
def dictionary_encoded(one: Delivery, rng: Random) -> None:
    kinds = (
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
        pa.dictionary(pa.int16(), pa.int64()),
    )
    retyped(one, rng, kinds, one.table.column_names)


@mutator(COLUMNS, "parquet")
def other_text_type(one: Delivery, rng: Random) -> None:
    kinds = (pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(4))
    retyped(one, rng, kinds, one.table.column_names)


@mutator(COLUMNS, "parquet")
def extension_type(one: Delivery, rng: Random) -> None:
    name, n = rng.choice(one.table.column_names), one.table.num_rows
    uuids = pa.array([rng.randbytes(16) for _ in range(n)], pa.binary(16))
    kinds = (
        pa.ExtensionArray.from_storage(pa.uuid(), uuids),
        pa.ExtensionArray.from_storage(pa.json_(), pa.nulls(n, pa.string())),
    )
    put(one, name, rng.choice(kinds))


@mutator(COLUMNS, "parquet")
def decimals(one: Delivery, rng: Random) -> None:
    kinds = (
        pa.decimal128(38, 0),
        pa.decimal128(10, 2),
        pa.decimal256(76, 0),
        pa.decimal32(9, 0),
        pa.decimal64(18, 0),
        pa.decimal128(5, 0),
    )
    retyped(one, rng, kinds, one.table.column_names)


@mutator(COLUMNS, "parquet")
def floats(one: Delivery, rng: Random) -> None:
    retyped(one, rng, (pa.float64(), pa.float32(), pa.float16()), one.table.column_names)


@mutator(COLUMNS, "parquet")
def integers_of_every_width(one: Delivery, rng: Random) -> None:
    kinds = (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
    retyped(one, rng, kinds, one.table.column_names)


@mutator(COLUMNS, "parquet")
def booleans_and_nulls(one: Delivery, rng: Random) -> None:
    retyped(one, rng, (pa.bool_(), pa.null()), one.table.column_names)


@mutator(COLUMNS, "events", "parquet")
def timestamps_of_every_unit(one: Delivery, rng: Random) -> None:
    zone = rng.choice((None, "UTC", "Asia/Kolkata", "+05:30", "-23:59", "America/Sao_Paulo"))
    kind = pa.timestamp(rng.choice(("s", "ms", "us", "ns")), zone)
    put(
        one,
        "timestamp",
        pa.array([1_700_000_000 + row for row in range(one.table.num_rows)], pa.timestamp("s")).cast(kind),
    )


@mutator(COLUMNS, "events", "parquet")
def timestamps_beyond_the_calendar(one: Delivery, rng: Random) -> None:
    kinds = (
        pa.timestamp("ms", "UTC"),
        pa.timestamp("us"),
        pa.timestamp("ns"),
        pa.timestamp("ms", "Asia/Kolkata"),
        pa.date32(),
    )
    kind = rng.choice(kinds)
    width = 31 if kind == pa.date32() else 63
    values = [
        rng.choice((2**width - 1, -(2**width), 2 ** (width - 1), -1, 0, 10**9)) for _ in range(one.table.num_rows)
    ]
    put(one, "timestamp", pa.array(values, pa.int32() if width == 31 else pa.int64()).cast(kind))


@mutator(COLUMNS, "events", "parquet")
def timestamps_of_no_zone_there_is(one: Delivery, rng: Random) -> None:
    kind = pa.timestamp("us", rng.choice(("Mars/Base", "", "+99:99", "\u202e")))
    put(
        one,
        "timestamp",
        pa.array([1_700_000_000_000_000 * rng.choice((1, 1, 9))] * one.table.num_rows, pa.int64())
        .cast(pa.timestamp("us"))
        .cast(kind),
    )


@mutator(COLUMNS, "events", "parquet")
def other_time_types(one: Delivery, rng: Random) -> None:
    retyped(one, rng, (pa.date32(), pa.date64(), pa.time32("s"), pa.time64("us"), pa.duration("s")), ("timestamp",))


@mutator(COLUMNS, "events")
def times_in_another_unit(one: Delivery, rng: Random) -> None:
    factor = rng.choice((10**3, 10**6, 10**9))
    put(one, "timestamp", [(1_700_000_000 + row) * factor for row in range(one.table.num_rows)], pa.int64())


@mutator(COLUMNS, "events")
def extreme_times(one: Delivery, rng: Random) -> None:
    extremes = (2**63 - 1, -(2**63), 0, -1, 2**31, 4_102_444_800, 1_700_000_000, None)
    put(one, "timestamp", [rng.choice(extremes) for _ in range(one.table.num_rows)], pa.int64())


@mutator(COLUMNS, "events")
def times_as_texts(one: Delivery, rng: Random) -> None:
    sown(one, rng, texts.TIMES, ("timestamp",))


@mutator(COLUMNS, "events")
def ratings_as_texts(one: Delivery, rng: Random) -> None:
    sown(one, rng, (*texts.NUMBERS, *texts.ABSENT, "inf", "-Infinity", "1e39", "1e-60", "5 stars", "4,5"), ("rating",))


@mutator(COLUMNS, "events", "parquet")
def ratings_out_of_all_bounds(one: Delivery, rng: Random) -> None:
    extremes = (float("nan"), float("inf"), -float("inf"), 1e300, -1e300, 5e-324, 4.0, None)
    put(one, "rating", [rng.choice(extremes) for _ in range(one.table.num_rows)], pa.float64())


@mutator(COLUMNS, "parquet")
def huge_integer_ids(one: Delivery, rng: Random) -> None:
    name, numbers = rng.choice(one.table.column_names), (2**64 - 1, 2**53 + 1, 2**63, 0, 7)
    put(one, name, [rng.choice(numbers) for _ in range(one.table.num_rows)], pa.uint64())


@mutator(COLUMNS, "file")
def hostile_texts(one: Delivery, rng: Random) -> None:
    sown(one, rng, texts.HOSTILE)


@mutator(COLUMNS, "file")
def absent_words(one: Delivery, rng: Random) -> None:
    sown(one, rng, texts.ABSENT)


@mutator(COLUMNS, "file")
def numbers_that_are_texts(one: Delivery, rng: Random) -> None:
    sown(one, rng, texts.NUMBERS)


@mutator(COLUMNS, "file")
def blank_texts(one: Delivery, rng: Random) -> None:
    sown(one, rng, texts.BLANK)


@mutator(COLUMNS, "file")
def control_characters(one: Delivery, rng: Random) -> None:
    sown(one, rng, texts.CONTROL)


@mutator(COLUMNS, "file")
def texts_that_are_not_utf8(one: Delivery, rng: Random) -> None:
    sown(one, rng, texts.BROKEN)


@mutator(COLUMNS, "file")
def nulls(one: Delivery, rng: Random) -> None:
    sown(one, rng, (None,))


@mutator(COLUMNS, "file")
def long_texts(one: Delivery, rng: Random) -> None:
    sown(one, rng, [rng.choice(("x", "é", "🛒", "=", "<b>", "\u202e", "a ")) * n for n in (512, 513, 10_000, 140_000)])


@mutator(COLUMNS, "file")
def megabyte_text(one: Delivery, rng: Random) -> None:
    sown(one, rng, ["x" * (1 << 20), "é" * (1 << 20)])


@mutator(COLUMNS, "file")
def quotes_and_commas(one: Delivery, rng: Random) -> None:
    sown(one, rng, ('"', '""', 'a"b', '"a', 'a"', ",", "a,b", ',"', '","', "'", ";"))


# --- rows -----------------------------------------------------------------------------------------------------------


@mutator(ROWS, "file")
def doubled_rows(one: Delivery, rng: Random) -> None:
    one.table = pa.concat_tables([one.table] * rng.choice((2, 20)))


@mutator(ROWS, "file")
def shuffled_rows(one: Delivery, rng: Random) -> None:
    places = list(range(one.table.num_rows))
    rng.shuffle(places)
    with suppress(pa.ArrowNotImplementedError):  # pyarrow takes no rows of a view of strings
        one.table = one.table.take(pa.array(places, pa.int64()))


@mutator(ROWS, "file")
def no_rows(one: Delivery, rng: Random) -> None:
    one.table = one.table.slice(0, 0)


@mutator(ROWS, "file")
def one_row(one: Delivery, rng: Random) -> None:
    one.table = one.table.slice(0, 1)


@mutator(ROWS, "file")
def one_value(one: Delivery, rng: Random) -> None:
    place = any_column(one, rng)
    places = pa.array(np.zeros(one.table.num_rows, np.int64))
    one.table = one.table.set_column(place, one.table.field(place), one.table.column(place).take(places))


@mutator(ROWS, "file")
def empty_days(one: Delivery, rng: Random) -> None:
    one.table = one.table.slice(one.table.num_rows // 3, one.table.num_rows // 3)


@mutator(ROWS, "file")
def many_rows(one: Delivery, rng: Random) -> None:
    if one.table.num_rows and one.table.nbytes < 100_000:
        one.table = one.table.take(pa.array(np.arange(20_000) % one.table.num_rows))


@mutator(ROWS, "items")
def contradicting_rows(one: Delivery, rng: Random) -> None:
    one.table = pa.concat_tables([one.table, one.table])
    sown(one, rng, ("another",), ("title", "category"))
