"""Great Expectations over accepted events: nothing passes vacuously, and the report shows nothing unescaped."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import EventsConfig
from recsys.door import Door
from recsys.errors import DataError
from recsys.events import ACCEPTED, EventSource, validate_file
from tasks.adapters.expectations import Expectations, check, validation_report

GOOD = {
    "token": ["0123456789abcdef" * 2, "f" * 32, "f" * 32],
    "item_id": ["a", "b", "🛒"],
    "timestamp": [10, 20, 30],
    "event": ["view", None, "cart"],
    "rating": [5.0, None, 1.0],
    "row": [1, 2, 3],
}


def written(tmp_path, schema=ACCEPTED, **changed):
    path = tmp_path / "accepted.parquet"
    pq.write_table(pa.table({**GOOD, **changed}, schema=schema), path)
    return path


def broken(path, **options):
    found = check(path, oldest=10, newest=30, **options)
    assert found.passed == (not [rule for rule in found.rules if rule.severity == "stop" and not rule.passed])
    return {(rule.column, rule.rule) for rule in found.rules if not rule.passed}


def test_good_events_pass_every_rule(tmp_path):
    found = check(written(tmp_path), oldest=10, newest=30)
    assert all(rule.passed for rule in found.rules)
    assert found.passed
    assert (found.rows, found.parts) == (3, 1)
    assert {rule.column for rule in found.rules} == {"", *ACCEPTED.names}
    found.require(Path("events.csv"))
    found.save(tmp_path / "expectations.json")
    assert Expectations.load(tmp_path / "expectations.json") == found


def test_no_rows_do_not_pass(tmp_path):
    pq.write_table(ACCEPTED.empty_table(), tmp_path / "accepted.parquet")
    assert {("", "at least 1 rows"), ("", "a part has rows")} <= broken(tmp_path / "accepted.parquet")
    found = check(tmp_path / "accepted.parquet", oldest=None, newest=None)
    assert not found.passed
    with pytest.raises(DataError, match=r"break 2 of \d+ expectations: table: at least 1 rows, 0 rows.*\(events.csv\)"):
        found.require(Path("events.csv"))


def test_fewer_rows_than_the_floor_do_not_pass(tmp_path):
    assert broken(written(tmp_path), min_rows=4) == {("", "at least 4 rows")}


NULLABLE = pa.schema([field.with_nullable(True) for field in ACCEPTED])


@pytest.mark.parametrize("column", ["token", "item_id", "timestamp", "row"])
def test_a_column_of_nulls_does_not_pass(tmp_path, column):
    assert (column, "is never missing") in broken(written(tmp_path, NULLABLE, **{column: [None] * 3}))


@pytest.mark.parametrize("rating", [np.nan, np.inf, -np.inf])
def test_a_rating_that_is_no_number_does_not_pass(tmp_path, rating):
    rule = "is a number where there is one" if np.isnan(rating) else "is finite"
    assert broken(written(tmp_path, rating=pa.array([5.0, None, rating], pa.float32()))) == {("rating", rule)}


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("token", "f" * 31 + "\n", "is 32 hex characters"),
        ("token", "f" * 32 + "\n", "is 32 hex characters"),
        ("token", "F" * 32, "is 32 hex characters"),
        ("item_id", "a\n", "has no control characters"),
        ("item_id", "x" * 513, "has 1 to 512 characters"),
        ("event", "x" * 513, "has at most 512 characters"),
        ("timestamp", 9, "lies in 10 to 30"),
        ("timestamp", 31, "lies in 10 to 30"),
        ("row", 0, "is counted from 1"),
    ],
)
def test_one_bad_value_does_not_pass(tmp_path, column, value, rule):
    assert broken(written(tmp_path, **{column: [*GOOD[column][:2], value]})) == {(column, rule)}


def test_a_row_that_comes_twice_does_not_pass(tmp_path):
    assert broken(written(tmp_path, row=[1, 2, 2])) == {("row", "occurs once")}


def test_another_type_does_not_pass(tmp_path):
    schema = ACCEPTED.set(ACCEPTED.names.index("timestamp"), pa.field("timestamp", pa.float64()))
    assert broken(written(tmp_path, schema)) == {("timestamp", "is of type int64")}


def test_a_missing_column_does_not_pass(tmp_path):
    pq.write_table(pa.table(GOOD, schema=ACCEPTED).drop_columns(["rating"]), tmp_path / "accepted.parquet")
    assert {column for column, _ in broken(tmp_path / "accepted.parquet")} == {"rating"}


def test_a_warning_does_not_stop(tmp_path):
    path = written(tmp_path, item_id=["a", "a", "a"])
    assert broken(path) == {("item_id", "is not the same in every row")}
    assert check(path, oldest=10, newest=30).passed


def test_a_fault_in_the_last_part_is_found(tmp_path):
    n = 25
    columns = {name: (values * n)[:n] for name, values in GOOD.items()} | {"row": list(range(1, n + 1))}
    path = written(tmp_path, **columns | {"rating": [1.0] * (n - 1) + [np.nan]})
    found = check(path, oldest=10, newest=30, part_rows=10)
    assert (found.rows, found.parts) == (25, 3)
    assert [(r.column, r.observed) for r in found.rules if not r.passed] == [("rating", "1 of 25 break it")]


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "accepted.parquet").write_text("no Parquet")
    with pytest.raises(DataError, match="cannot be read"):
        check(tmp_path / "accepted.parquet", oldest=10, newest=30)


# --- the report -----------------------------------------------------------------------------------------------------

PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="x',
    "{{ 7 * 7 }}",
    "</td><b>",
    "a&amp;b",
]


class Tags(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def test_the_report_escapes_every_value(tmp_path):
    columns = {"user_id": ["canary"] * 6 + ["u"], "item_id": [*PAYLOADS, "fine"], "timestamp": [1] * 7}
    columns[PAYLOADS[0]] = [1] * 7
    file = tmp_path / f"{PAYLOADS[1].replace('/', '')}.parquet"
    pq.write_table(pa.table(columns), file)
    source = EventSource({}, pa.array(["fine"]), 100, Door(b"k" * 32), lambda users: None)
    validation = validate_file(file, tmp_path / "out", source, EventsConfig(max_quarantined=1))
    found = check(tmp_path / "out" / "accepted.parquet", oldest=1, newest=1)
    hostile = replace(found, rules=tuple(replace(rule, observed=PAYLOADS[0]) for rule in found.rules))
    page = Tags(validation_report(validation, hostile, tmp_path / "out" / "quarantine.parquet"))
    assert not page.tags & {"script", "img", "b", "a", "link", "iframe"}
    assert not page.attributes & {"onerror", "onmouseover", "src", "href"}
    for payload in PAYLOADS:
        assert payload in page.text
    assert "1 of 7 rows are accepted" in " ".join(page.text.split())
    assert "canary" not in page.text
