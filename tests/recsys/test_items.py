"""The strict reader of items: texts byte-exact, doubles counted once, contradictions quarantined."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys import sample
from recsys.errors import DataError
from recsys.items import ITEMS, ItemsValidation, validate_items


def read(path, tmp_path, columns=None):
    out = tmp_path / "out"
    validation = validate_items(path, out, columns or {}, 1.0)
    table, refused = (pq.read_table(out / "items.parquet"), pq.read_table(out / "quarantine.parquet").to_pylist())
    assert table.schema == ITEMS
    assert validation.lines == validation.accepted + validation.duplicates + validation.quarantined
    assert ItemsValidation.from_json(json.loads((out / "validation.json").read_text())) == validation
    return validation, table.to_pylist(), [(row["row"], row["column"], row["rule"]) for row in refused]


def write(tmp_path, **columns):
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    return tmp_path / "items.parquet"


def test_the_sample_is_accepted_whole(tmp_path):
    validation, rows, _ = read(sample.ITEMS, tmp_path)
    assert (validation.lines, validation.accepted) == (3_659, 3_659)
    assert rows == pq.read_table(sample.ITEMS).to_pylist()


def test_texts_are_kept_byte_exact(tmp_path):
    titles = ["NA", "null", " x ", "a\u0301", "\u00e1", "\u202eevil", "z\u200bw", "<script>", "a\nb\0c", "🛒" * 1000]
    _, rows, refused = read(write(tmp_path, item_id=[f"{i}" for i in range(10)], title=titles), tmp_path)
    assert [row["title"] for row in rows] == titles
    assert refused == []


def test_a_long_text_is_kept(tmp_path):
    _, rows, _ = read(write(tmp_path, item_id=["a"], description=["x" * (1 << 20)]), tmp_path)
    assert len(rows[0]["description"]) == 1 << 20


def test_empty_texts_are_null_and_numbers_become_text(tmp_path):
    _, rows, _ = read(write(tmp_path, item_id=[7, 8], title=["", None], category=[3, 4]), tmp_path)
    assert rows == [
        {"item_id": "7", "title": None, "category": "3", "description": None},
        {"item_id": "8", "title": None, "category": "4", "description": None},
    ]


def test_equal_rows_are_kept_once_and_contradictions_not_at_all(tmp_path):
    path = write(tmp_path, item_id=["a", "b", "a", "b", "c", "a"], title=["x", "y", "x", "z", "w", "x"])
    validation, rows, refused = read(path, tmp_path)
    assert [row["item_id"] for row in rows] == ["a", "c"]
    assert (validation.duplicates, validation.quarantined) == (2, 2)
    assert refused == [(2, "item_id", "duplicate_id"), (4, "item_id", "duplicate_id")]


def test_a_title_and_no_title_contradict_each_other(tmp_path):
    validation, rows, _ = read(write(tmp_path, item_id=["a", "a"], title=["x", None]), tmp_path)
    assert (rows, validation.by_rule) == ([], {"item_id duplicate_id": 2})


def test_bad_rows_are_quarantined(tmp_path):
    titles = pa.array([b"ok", b"\xff", b"ok", b"ok"]).view(pa.string())
    _, rows, refused = read(write(tmp_path, item_id=["a", "b", None, " "], title=titles), tmp_path)
    assert [row["item_id"] for row in rows] == ["a"]
    assert sorted(refused) == [(2, "title", "not_utf8"), (3, "item_id", "missing"), (4, "item_id", "blank")]


def test_csv(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text('item_id,title,extra\n1,"Lamp, red",x\n2,Mug\n3,"5"" disc",y\n')
    validation, rows, refused = read(path, tmp_path)
    assert [(row["item_id"], row["title"]) for row in rows] == [("1", "Lamp, red"), ("3", '5" disc')]
    assert refused == [(3, None, "wrong_fields")]
    assert validation.notes == ("columns ignored: extra",)


def test_no_items(tmp_path):
    validation, rows, _ = read(write(tmp_path, item_id=pa.array([], pa.string())), tmp_path)
    assert (validation.lines, rows) == (0, [])


def test_renamed_columns(tmp_path):
    path = write(tmp_path, sku=["a"], name=["Lamp"])
    _, rows, _ = read(path, tmp_path, {"item_id": "sku", "title": "name", "user_id": "of the events file"})
    assert rows[0]["title"] == "Lamp"


def test_the_events_may_call_the_item_otherwise(tmp_path):
    assert read(write(tmp_path, item_id=["a"]), tmp_path, {"item_id": "sku"})[0].accepted == 1


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"title": ["x"]}, "the column item_id is missing"),
        ({"item_id": [1.5]}, "ids of type double are refused"),
        ({"item_id": ["a"], "title": [["x"]]}, "column title"),
    ],
)
def test_a_file_that_cannot_be_trusted(tmp_path, columns, says):
    with pytest.raises(DataError, match=says):
        validate_items(write(tmp_path, **columns), tmp_path / "out", {}, 1.0)


def test_too_many_quarantined(tmp_path):
    with pytest.raises(DataError, match=r"1 of 2 rows \(50%\) are refused, more than 20%"):
        validate_items(write(tmp_path, item_id=["a", None]), tmp_path / "out", {}, 0.2)
    assert list((tmp_path / "out").iterdir()) == []
