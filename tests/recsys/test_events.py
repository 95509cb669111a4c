"""The strict reader of events: every row is accepted or quarantined, every bad file refused with a way to mend it."""

import json
import os
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys import sample
from recsys.config import EventsConfig
from recsys.door import Door
from recsys.errors import DataError
from recsys.events import ACCEPTED, EventSource, Validation, input_files, validate_file

DOOR = Door(b"k" * 32)
TOLERANT = EventsConfig(max_quarantined=1)
DAY = 1_700_000_000  # 2023-11-14T22:13:20Z


class Users:
    """Takes what a vault would take."""

    def __init__(self):
        self.names = {}

    def __call__(self, table):
        assert table.column_names == ["token", "user_id"]
        self.names.update(zip(table["token"].to_pylist(), table["user_id"].to_pylist(), strict=True))


@pytest.fixture
def users():
    return Users()


@pytest.fixture
def source(users):
    return EventSource(columns={}, known_items=None, not_after=1_800_000_000, door=DOOR, on_users=users)


def parquet(tmp_path, name="events.parquet", **columns):
    n = max(len(values) for values in columns.values() if values is not None)
    full = {"user_id": [f"u{i}" for i in range(n)], "item_id": ["i"] * n, "timestamp": [DAY] * n, **columns}
    path = tmp_path / name
    pq.write_table(pa.table({k: v for k, v in full.items() if v is not None}), path)
    return path


def csv(tmp_path, text, name="events.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path, tmp_path, source, config=TOLERANT):
    """The validation, the accepted rows and the quarantined ones."""
    out = tmp_path / "out"
    validation = validate_file(path, out, source, config)
    accepted, refused = pq.read_table(out / "accepted.parquet"), pq.read_table(out / "quarantine.parquet")
    assert accepted.schema == ACCEPTED
    assert validation.lines == validation.accepted + validation.quarantined
    assert (validation.accepted, validation.quarantined) == (len(accepted), len(refused))
    assert Validation.from_json(json.loads((out / "validation.json").read_text())) == validation
    return validation, accepted.to_pylist(), refused.to_pylist()


def broken(refused):
    return [(row["row"], row["column"], row["rule"]) for row in refused]


def refusal(path, tmp_path, source, config=TOLERANT):
    """The message with which a file is refused; nothing may be left behind."""
    out = tmp_path / "refused"
    with pytest.raises(DataError) as error:
        validate_file(path, out, source, config)
    assert not out.exists() or list(out.iterdir()) == []
    assert "Traceback" not in str(error.value)
    return str(error.value)


# --- whole files --------------------------------------------------------------------------------------------------


def test_the_sample_is_accepted_whole(tmp_path, source):
    items = pq.read_table(sample.ITEMS)["item_id"].combine_chunks()
    validation, accepted, _ = read(sample.EVENTS, tmp_path, replace(source, known_items=items), EventsConfig())
    assert (validation.lines, validation.users, validation.items) == (386_278, 4_335, 3_659)
    assert (validation.oldest, validation.newest) == (1_291_191_960, 1_323_435_000)
    assert accepted[0]["row"] == 1
    assert accepted[-1]["row"] == 386_278


def test_a_missing_file(tmp_path, source):
    assert "does not exist (" in refusal(tmp_path / "none.parquet", tmp_path, source)


@pytest.mark.parametrize("name", ["events.parquet", "events.csv"])
def test_a_file_of_no_bytes(tmp_path, source, name):
    assert f"empty, 0 bytes ({name})" in refusal(csv(tmp_path, "", name), tmp_path, source)


def test_a_file_that_is_not_parquet(tmp_path, source):
    path = csv(tmp_path, "user_id,item_id,timestamp\n", "events.parquet")
    assert "is not Parquet (events.parquet)" in refusal(path, tmp_path, source)


def test_parquet_named_csv(tmp_path, source):
    path = parquet(tmp_path, user_id=["u"]).rename(tmp_path / "events.csv")
    assert "events.csv" in refusal(path, tmp_path, source)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.99])
def test_truncated_parquet(tmp_path, source, keep):
    path = parquet(tmp_path, user_id=[f"u{i}" for i in range(1000)])
    os.truncate(path, int(path.stat().st_size * keep))
    assert "cut short or damaged (events.parquet)" in refusal(path, tmp_path, source)


def test_a_flipped_bit_is_noticed_where_the_writer_left_checksums(tmp_path, source):
    path = tmp_path / "events.parquet"
    table = pa.table({"user_id": [f"u{i}" for i in range(1000)], "item_id": ["i"] * 1000, "timestamp": [DAY] * 1000})
    pq.write_table(table, path, write_page_checksum=True)
    raw = bytearray(path.read_bytes())
    raw[200] ^= 4
    path.write_bytes(raw)
    assert "is damaged" in refusal(path, tmp_path, source)


def test_another_suffix(tmp_path, source):
    assert "only .parquet and .csv" in refusal(csv(tmp_path, "x", "events.json"), tmp_path, source)


def test_a_folder_gives_its_files_by_name(tmp_path):
    for name in ("b.csv", "a.parquet", "_c.csv", ".d.csv", "notes.txt"):
        (tmp_path / name).write_text("x")
    assert [file.name for file in input_files(tmp_path)] == ["a.parquet", "b.csv"]
    assert input_files(tmp_path / "b.csv") == [tmp_path / "b.csv"]


def test_a_folder_without_events(tmp_path):
    with pytest.raises(DataError, match=r"no \.parquet or \.csv file"):
        input_files(tmp_path)


def test_no_rows_are_no_error_here_but_a_note(tmp_path, source):
    empty = pa.table(
        {
            "user_id": pa.array([], pa.string()),
            "item_id": pa.array([], pa.string()),
            "timestamp": pa.array([], pa.int64()),
        }
    )
    pq.write_table(empty, tmp_path / "events.parquet")
    validation, accepted, _ = read(tmp_path / "events.parquet", tmp_path, source, EventsConfig())
    assert (validation.lines, validation.oldest, accepted) == (0, None, [])
    assert "the file has no rows" in validation.notes
    assert read(csv(tmp_path, "user_id,item_id,timestamp\n"), tmp_path, source)[0].lines == 0


def test_row_groups_are_streamed_and_rows_counted_through(tmp_path, source, users):
    table = pa.table(
        {"user_id": [f"u{i % 7}" for i in range(1000)], "item_id": ["i"] * 1000, "timestamp": [DAY] * 1000}
    )
    pq.write_table(table, tmp_path / "events.parquet", row_group_size=64)
    _, accepted, _ = read(tmp_path / "events.parquet", tmp_path, source)
    assert [row["row"] for row in accepted] == list(range(1, 1001))
    assert len(users.names) == 7


def test_too_many_quarantined(tmp_path, source):
    path = parquet(tmp_path, item_id=["i", None, "i", None])
    message = refusal(path, tmp_path, source, EventsConfig(max_quarantined=0.4))
    assert "2 of 4 rows (50%) are refused, more than 40% (item_id missing: 2)" in message
    assert "row 2 item_id missing" in message
    read(path, tmp_path, source, EventsConfig(max_quarantined=0.5))


# --- columns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("itemid", "item_id"), ("ITEM_ID", "item_id"), ("product_code", "item_id"), ("ts", "timestamp")],
)
def test_a_renamed_column_is_suggested(tmp_path, source, theirs, ours):
    path = parquet(tmp_path, **{ours: None, theirs: ["i", "j"]})
    message = refusal(path, tmp_path, source)
    assert f"the column {ours} is missing (events.parquet)" in message
    assert f"--columns {ours}={theirs}" in message


def test_a_missing_column_lists_what_there_is(tmp_path, source):
    message = refusal(csv(tmp_path, "user_id;item_id;timestamp\nu;i;1\n"), tmp_path, source)
    assert "'user_id;item_id;timestamp'" in message


def test_renamed_columns_are_read(tmp_path, source):
    path = parquet(tmp_path, item_id=None, sku=["x"])
    _, accepted, _ = read(path, tmp_path, replace(source, columns={"item_id": "sku", "title": "for the items file"}))
    assert accepted[0]["item_id"] == "x"


def test_a_renaming_to_nowhere(tmp_path, source):
    path = parquet(tmp_path, user_id=["u"])
    assert "column sku, given as item_id, is missing" in refusal(
        path, tmp_path, replace(source, columns={"item_id": "sku"})
    )
    assert "no column of ours" in refusal(path, tmp_path, replace(source, columns={"item": "item_id"}))


def test_a_doubled_column(tmp_path, source):
    assert "occurs twice" in refusal(csv(tmp_path, "user_id,item_id,timestamp,item_id\nu,i,1,j\n"), tmp_path, source)


def test_other_columns_are_ignored_with_a_note(tmp_path, source):
    validation, _, _ = read(parquet(tmp_path, user_id=["u"], price=[1.5]), tmp_path, source)
    assert validation.notes == ("columns ignored: price",)


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("user_id", pa.array([1.0, 2.0]), "ids of type double are refused, a float merges large ids"),
        ("item_id", pa.array([True, False]), "ids of type bool are refused"),
        ("timestamp", pa.array([1.7e9, 1.7e9]), "times of type double are refused"),
        ("rating", pa.array(["4", "5"]), "ratings of type string are refused"),
    ],
)
def test_a_column_of_another_type(tmp_path, source, column, values, says):
    message = refusal(parquet(tmp_path, **{column: values}), tmp_path, source)
    assert says in message
    assert f"(events.parquet, column {column})" in message


def test_a_wrong_type_is_noticed_without_rows(tmp_path, source):
    table = pa.table(
        {
            "user_id": pa.array([], pa.float64()),
            "item_id": pa.array([], pa.string()),
            "timestamp": pa.array([], pa.int64()),
        }
    )
    pq.write_table(table, tmp_path / "events.parquet")
    assert "ids of type double" in refusal(tmp_path / "events.parquet", tmp_path, source)


# --- ids ----------------------------------------------------------------------------------------------------------


def test_integer_ids_stay_exact(tmp_path, source, users):
    ids = [2**53, 2**53 + 1, -7, 2**63 - 1, None]
    validation, accepted, refused = read(
        parquet(tmp_path, item_id=pa.array(ids, pa.int64()), user_id=pa.array(ids, pa.int64())), tmp_path, source
    )
    assert [row["item_id"] for row in accepted] == ["9007199254740992", "9007199254740993", "-7", "9223372036854775807"]
    assert set(users.names.values()) == {row["item_id"] for row in accepted}
    assert broken(refused) == [(5, "user_id", "missing")]
    assert validation.items == 4


def test_unsigned_and_decimal_ids_stay_exact(tmp_path, source):
    path = parquet(
        tmp_path, item_id=pa.array([2**64 - 1], pa.uint64()), user_id=pa.array([10**30], pa.decimal128(38, 0))
    )
    _, accepted, _ = read(path, tmp_path, source)
    assert accepted[0]["item_id"] == "18446744073709551615"
    assert accepted[0]["token"] == DOOR.token("1" + "0" * 30)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int8(), pa.string())]
)
def test_texts_of_every_type_are_kept_exactly(tmp_path, source, kind):
    ids = ["007", "NA", "null", "None", "nan", "🛒", " padded ", "=HYPERLINK(", "<b>", "é", "é"]
    values = pa.array([i.encode() for i in ids]) if kind == pa.binary() else pa.array(ids).cast(kind)
    _, accepted, _ = read(parquet(tmp_path, item_id=values), tmp_path, source)
    assert [row["item_id"] for row in accepted] == ids


def test_bad_ids_are_quarantined_by_rule(tmp_path, source):
    ids = ["ok", None, "", "  ", "\u3000", "a\0b", "a\n", "x" * 512, "x" * 513, "🛒" * 10_000]
    validation, accepted, refused = read(parquet(tmp_path, item_id=ids), tmp_path, source)
    rules = ["missing", "missing", "blank", "blank", "control_character", "control_character", "too_long", "too_long"]
    assert [row["item_id"] for row in accepted] == ["ok", "x" * 512]
    assert broken(refused) == [
        (row, "item_id", rule) for row, rule in zip([2, 3, 4, 5, 6, 7, 9, 10], rules, strict=True)
    ]
    assert max(len(row["value"]) for row in refused) == 200
    assert validation.by_rule == {
        "item_id blank": 2,
        "item_id control_character": 2,
        "item_id missing": 2,
        "item_id too_long": 2,
    }


def test_text_that_is_not_utf8_is_quarantined(tmp_path, source):
    ids = pa.array([b"ok", b"\xff\xfe", b"ok"]).view(pa.string())
    _, accepted, refused = read(parquet(tmp_path, item_id=ids), tmp_path, source)
    assert [row["item_id"] for row in accepted] == ["ok", "ok"]
    assert broken(refused) == [(2, "item_id", "not_utf8")]
    assert refused[0]["value"] == r"b'\xff\xfe'"


def test_a_user_id_is_never_written(tmp_path, source, users):
    secret = "canary" * 200
    path = parquet(tmp_path, user_id=["canary-1", secret, "canary-\0", "canary-2"], item_id=["i", "i", "i", None])
    _, accepted, refused = read(path, tmp_path, source)
    rules = [(2, "user_id", "too_long"), (3, "user_id", "control_character"), (4, "item_id", "missing")]
    assert broken(refused) == rules
    assert [row["value"] for row in refused] == [None, None, "None"]
    assert users.names == {DOOR.token("canary-1"): "canary-1"}
    assert accepted[0]["token"] == DOOR.token("canary-1")
    for file in (tmp_path / "out").iterdir():
        table = pq.read_table(file).to_pylist() if file.suffix == ".parquet" else file.read_text()
        assert "canary" not in str(table)


def test_the_item_must_be_in_the_catalog(tmp_path, source):
    path = parquet(tmp_path, item_id=["a", "b", "c", None])
    _, accepted, refused = read(path, tmp_path, replace(source, known_items=pa.array(["a", "c"])))
    assert [row["item_id"] for row in accepted] == ["a", "c"]
    assert sorted(broken(refused)) == [(2, "item_id", "unknown_item"), (4, "item_id", "missing")]


def test_a_row_with_several_faults_is_quarantined_once(tmp_path, source):
    path = parquet(tmp_path, user_id=[None], item_id=[None], timestamp=pa.array([None], pa.int64()))
    _, _, refused = read(path, tmp_path, source)
    assert broken(refused) == [(1, "user_id", "missing")]


# --- times --------------------------------------------------------------------------------------------------------


def seconds(*parts):
    return int(datetime(*parts, tzinfo=UTC).timestamp())


def test_iso_texts_with_and_without_zone(tmp_path, source):
    texts = [
        "2023-11-14",
        "2023-11-14T22:13",
        "2023-11-14 22:13:20.999",
        "2023-11-14T22:13:20Z",
        "2023-11-14T22:13:20.123456789+05:30",
        "2023-11-14T22:13:20-0800",
        "1700000000",
    ]
    validation, accepted, _ = read(parquet(tmp_path, timestamp=texts), tmp_path, source)
    at = seconds(2023, 11, 14, 22, 13, 20)
    assert [row["timestamp"] for row in accepted] == [
        seconds(2023, 11, 14), at - 20, at, at, at - 19_800, at + 28_800, 1_700_000_000,
    ]  # fmt: skip
    assert validation.notes == ("3 times have no zone and are read as UTC",)


def test_unreadable_times_are_quarantined(tmp_path, source):
    texts = [
        "2023-02-30",
        "2023-13-01",
        "14.11.2023",
        "2023-11-14T25:00",
        "soon",
        "",
        None,
        "2023-11-14",
        "9" * 19,
        "1e9",
        "2023-11-14\n",
    ]
    _, accepted, refused = read(parquet(tmp_path, timestamp=texts), tmp_path, source)
    assert [row["row"] for row in accepted] == [8]
    rules = {row["row"]: row["rule"] for row in refused}
    assert {row for row, rule in rules.items() if rule == "missing"} == {6, 7}
    assert set(rules.values()) == {"missing", "unreadable"}


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_parquet_timestamps(tmp_path, source, unit):
    naive = pa.array([DAY, None], pa.timestamp("s")).cast(pa.timestamp(unit))
    validation, accepted, _ = read(parquet(tmp_path, timestamp=naive), tmp_path, source)
    assert [row["timestamp"] for row in accepted] == [DAY]
    assert validation.notes == ("1 times have no zone and are read as UTC",)
    zoned = pa.array([DAY], pa.timestamp("s")).cast(pa.timestamp(unit)).cast(pa.timestamp(unit, "Asia/Kolkata"))
    validation, accepted, _ = read(parquet(tmp_path, timestamp=zoned), tmp_path, source)
    assert (accepted[0]["timestamp"], validation.notes) == (DAY, ())


def test_parquet_dates(tmp_path, source):
    _, accepted, _ = read(parquet(tmp_path, timestamp=pa.array([datetime(2023, 11, 14).date()])), tmp_path, source)
    assert accepted[0]["timestamp"] == seconds(2023, 11, 14)


def test_future_and_ancient_times_are_quarantined(tmp_path, source):
    times = [source.not_after, source.not_after + 1, -1, 0, None]
    validation, accepted, refused = read(parquet(tmp_path, timestamp=pa.array(times, pa.int64())), tmp_path, source)
    assert [row["timestamp"] for row in accepted] == [source.not_after, 0]
    assert [row["rule"] for row in refused] == ["future", "before_1970", "missing"]
    assert validation.future == 1


@pytest.mark.parametrize(("factor", "unit"), [(10**3, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds")])
def test_other_units_are_refused(tmp_path, source, factor, unit):
    message = refusal(parquet(tmp_path, timestamp=[DAY * factor, (DAY + 5) * factor, 0]), tmp_path, source)
    assert f"look like {unit}, not seconds (events.parquet, column timestamp). Divide it by {factor:,}" in message
    text = f"user_id,item_id,when\nu,i,{DAY * factor}\n"
    assert "events.csv, column when" in refusal(
        csv(tmp_path, text), tmp_path, replace(source, columns={"timestamp": "when"})
    )


def test_days_as_integers_are_refused(tmp_path, source):
    assert "YYYYMMDD" in refusal(parquet(tmp_path, timestamp=[20231114, 20240131]), tmp_path, source)


def test_a_single_wrong_unit_is_a_row_from_the_future(tmp_path, source):
    _, accepted, refused = read(parquet(tmp_path, timestamp=[DAY, DAY, DAY * 1000]), tmp_path, source)
    assert (len(accepted), refused[0]["rule"], refused[0]["value"]) == (2, "future", str(DAY * 1000))


def test_times_beyond_int64_are_from_the_future(tmp_path, source):
    _, _, refused = read(parquet(tmp_path, timestamp=pa.array([DAY, DAY, 2**64 - 1], pa.uint64())), tmp_path, source)
    assert broken(refused) == [(3, "timestamp", "future")]


def test_positions_instead_of_times_are_fine(tmp_path, source):
    assert read(parquet(tmp_path, timestamp=[0, 1, 2]), tmp_path, source)[0].accepted == 3


# --- events and ratings -------------------------------------------------------------------------------------------


def test_event_and_rating_may_be_missing(tmp_path, source):
    path = parquet(tmp_path, event=["view", None, "", " "], rating=pa.array([4, None, 0, 5], pa.int32()))
    _, accepted, _ = read(path, tmp_path, source)
    assert [row["event"] for row in accepted] == ["view", None, None, None]
    assert [row["rating"] for row in accepted] == [4.0, None, 0.0, 5.0]


def test_bad_events_and_ratings_are_quarantined(tmp_path, source):
    path = parquet(
        tmp_path, event=["e" * 513, "a\tb", "v", "v", "v", "v"], rating=[1.0, 1.0, np.nan, np.inf, 1e300, 2.5]
    )
    _, accepted, refused = read(path, tmp_path, source)
    assert [row["rating"] for row in accepted] == [2.5]
    rules = [(1, "event", "too_long"), (2, "event", "control_character")]
    rules += [(row, "rating", "not_finite") for row in (3, 4, 5)]
    assert broken(refused) == rules


# --- CSV ----------------------------------------------------------------------------------------------------------


def test_csv_with_a_bom_and_crlf(tmp_path, source):
    path = csv(tmp_path, b"\xef\xbb\xbfuser_id,item_id,timestamp,rating\r\nu,i,1700000000,4.5\r\nv,j,2023-11-14,\r\n")
    _, accepted, refused = read(path, tmp_path, source)
    assert [(row["item_id"], row["rating"], row["row"]) for row in accepted] == [("i", 4.5, 2), ("j", None, 3)]
    assert refused == []


def test_csv_without_a_last_line_end(tmp_path, source):
    assert read(csv(tmp_path, "user_id,item_id,timestamp\nu,i,5"), tmp_path, source)[0].accepted == 1


def test_csv_ids_are_texts_whatever_they_look_like(tmp_path, source):
    ids = ["007", "NA", "null", "NaN", "1e5", "9007199254740993", "0x1F", "TRUE", '"a,b"', '"say ""hi"""', '5" disc']
    path = csv(tmp_path, "user_id,item_id,timestamp\n" + "".join(f"u,{i},1\n" for i in ids))
    _, accepted, _ = read(path, tmp_path, source)
    assert [row["item_id"] for row in accepted] == [*ids[:8], "a,b", 'say "hi"', '5" disc']


def test_csv_short_long_and_blank_lines_are_quarantined(tmp_path, source):
    path = csv(tmp_path, "user_id,item_id,timestamp\nu,i,1\nu,i\n\nu,i,1,extra\nv,i,2\n")
    _, accepted, refused = read(path, tmp_path, source)
    assert [row["row"] for row in accepted] == [2, 6]
    assert broken(refused) == [(line, None, "wrong_fields") for line in (3, 4, 5)]
    assert [row["value"] for row in refused] == [
        "2 fields instead of 3",
        "0 fields instead of 3",
        "4 fields instead of 3",
    ]


@pytest.mark.parametrize("close", ["", '"'])
def test_csv_an_unclosed_quote_is_refused_with_its_line(tmp_path, source, close):
    lines = ["user_id,item_id,timestamp", "u,i,1", 'u,"i,2', "u,i,3", f"u,i{close},4", "u,i,5", ""]
    message = refusal(csv(tmp_path, "\n".join(lines)), tmp_path, source)
    assert "a quote is opened and not closed (events.csv, line 3)" in message


def test_csv_no_quote_ever_swallows_a_line(tmp_path, source):
    # The lines from 3 on would be one well-formed record to a lenient reader.
    path = csv(tmp_path, 'user_id,item_id,timestamp\nu,i,1\nu,"i,2\nu,i,3\nu,i",4\n')
    assert "line 3" in refusal(path, tmp_path, source)


def test_csv_text_after_a_closed_quote_is_quarantined(tmp_path, source):
    _, accepted, refused = read(csv(tmp_path, 'user_id,item_id,timestamp\nu,"i"j,1\nv,i,2\n'), tmp_path, source)
    assert broken(refused) == [(2, None, "broken_line")]
    assert len(accepted) == 1


def test_csv_lines_that_are_not_utf8_are_quarantined_unquoted(tmp_path, source):
    path = csv(tmp_path, b"user_id,item_id,timestamp\nu,i,1\ncanary,\xe9,2\nu,j,3\n")
    _, accepted, refused = read(path, tmp_path, source)
    assert [row["row"] for row in accepted] == [2, 4]
    assert broken(refused) == [(3, None, "not_utf8")]
    assert refused[0]["value"] == "byte 8 of the line"


def test_csv_in_another_encoding(tmp_path, source):
    assert "not UTF-8 text (events.csv, line 1)" in refusal(
        csv(tmp_path, "user_id,item_id\n".encode("utf-16")), tmp_path, source
    )


def test_csv_with_old_line_ends(tmp_path, source):
    assert "End lines with LF" in refusal(csv(tmp_path, "user_id,item_id,timestamp\ru,i,1\r"), tmp_path, source)


def test_csv_with_an_endless_line(tmp_path, source):
    path = csv(tmp_path, "user_id,item_id,timestamp\nu," + "x" * (6 << 20))
    assert "longer than 1,048,576 bytes" in refusal(path, tmp_path, source)


def test_csv_ratings(tmp_path, source):
    text = "user_id,item_id,timestamp,rating\n" + "".join(
        f"u,i,1,{r}\n" for r in ["4", "-1.5", "2e1", "nan", "inf", "good", "1e60", ""]
    )
    _, accepted, refused = read(csv(tmp_path, text), tmp_path, source)
    assert [row["rating"] for row in accepted] == [4.0, -1.5, 20.0, None]
    assert [row["rule"] for row in refused] == ["not_finite", "not_finite", "unreadable", "not_finite"]


def test_csv_over_many_blocks(tmp_path, source):
    n = 300_000  # over 8 MB, three blocks
    lines = [f"user-{i % 1000},item-{i % 321},{DAY + i}" for i in range(n)]
    lines[200_000] = "short"
    _, accepted, refused = read(csv(tmp_path, "user_id,item_id,timestamp\n" + "\n".join(lines)), tmp_path, source)
    assert broken(refused) == [(200_002, None, "wrong_fields")]
    assert [row["row"] for row in accepted] == [i + 2 for i in range(n) if i != 200_000]
    assert [row["timestamp"] for row in accepted] == [DAY + i for i in range(n) if i != 200_000]


def test_the_same_file_gives_the_same_bytes(tmp_path, source):
    path = parquet(tmp_path, item_id=["a", None, "b"])
    for out in ("one", "two"):
        validate_file(path, tmp_path / out, source, TOLERANT)
    for name in ("accepted.parquet", "quarantine.parquet", "validation.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_rows_of_the_forgotten_are_refused_without_a_word_of_who_and_are_no_faults(tmp_path, users, source):
    path = parquet(tmp_path, user_id=["ada", "eve", "eve", None, "bob"])
    forgetful = replace(source, forgotten=frozenset({DOOR.token("eve")}))
    validation = validate_file(path, tmp_path / "out", forgetful, EventsConfig(max_quarantined=0.2))
    assert validation.by_rule == {"user_id forgotten": 2, "user_id missing": 1}
    assert validation.lines == validation.accepted + validation.quarantined == 5
    refused = pq.read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()
    assert [(row["row"], row["rule"], row["value"]) for row in refused if row["rule"] == "forgotten"] == [
        (2, "forgotten", None), (3, "forgotten", None)
    ]  # fmt: skip
    assert pq.read_table(tmp_path / "out" / "accepted.parquet")["token"].to_pylist() == [
        DOOR.token("ada"), DOOR.token("bob")
    ]  # fmt: skip


def test_who_was_forgotten_under_a_retired_key_is_refused_by_what_it_was_called_then(tmp_path, users, source):
    path = parquet(tmp_path, user_id=["ada", "eve", "eve", "mallory", "bob"])
    door = Door(b"new" * 11, (b"old" * 11,))
    gone = frozenset({door.token(Door(b"old" * 11).token("eve")), door.token("mallory")})
    forgetful = replace(source, door=door, forgotten=gone)
    validation = validate_file(path, tmp_path / "out", forgetful, EventsConfig())
    assert validation.by_rule == {"user_id forgotten": 3}
    assert pq.read_table(tmp_path / "out" / "accepted.parquet")["token"].to_pylist() == [
        door.token("ada"), door.token("bob")
    ]  # fmt: skip
