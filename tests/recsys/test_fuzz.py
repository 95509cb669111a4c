"""Three hundred spoilt inputs, always the same: each is read to the row or refused in a sentence. More: `python -m benchmarks.fuzz`

And one test for each defect that was found this way, without the fuzzer.
"""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from recsys.config import EventsConfig
from recsys.door import Door
from recsys.errors import ConfigError, DataError
from recsys.events import EventSource, input_files, validate_file
from recsys.items import validate_items
from recsys.resolve import resolve
from recsys.web import app_of
from tests.fuzz.asks import write
from tests.fuzz.cases import KINDS, Bench, draw
from tests.fuzz.mutator import MUTATORS, Ask

SEED, CASES, GROUPS = 2, 300, 10
DAY = 1_700_000_000


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("bench"))
    yield bench
    bench.close()


@pytest.mark.parametrize("group", range(GROUPS))
def test_a_spoilt_input_is_read_to_the_row_or_refused_in_a_sentence(bench, group):
    for number in range(group, CASES, GROUPS):
        case, outcome = bench.tried(SEED, number)
        assert outcome.result != "defect", f"{case}: {outcome.why}"


def test_the_cases_are_many_sided():
    cases = [draw(SEED, number)[0] for number in range(CASES)]
    assert {case.subject.kind for case in cases} == set(KINDS)
    assert len({each.name for case in cases for each in case.mutators}) > 0.85 * len(MUTATORS)
    assert len(MUTATORS) > 100
    assert [str(case) for case in cases] == [str(draw(SEED, number)[0]) for number in range(CASES)]


@pytest.mark.parametrize("kind", ["request", "wire"])
@pytest.mark.parametrize("batch", [False, True])
def test_a_request_that_nobody_spoilt_is_answered(bench, kind, batch):
    one = Ask(kind, {"history": ["item-4"], "k": 5}, batch)
    write(one)
    assert bench.shelf.ask(one) == "accepted"


# --- what was found ---------------------------------------------------------------------------------------------------


def validated(tmp_path, **columns):
    """The validation of a Parquet file of two events, and its quarantined values."""
    table = {"user_id": ["u", "v"], "item_id": ["i", "j"], "timestamp": [DAY, DAY], **columns}
    pq.write_table(pa.table(table), tmp_path / "events.parquet", row_group_size=1 << 24)
    return validated_file(tmp_path, tmp_path / "events.parquet")


def validated_file(tmp_path, file):
    source = EventSource({}, None, 1_800_000_000, Door(b"k" * 32), lambda users: None)
    validation = validate_file(file, tmp_path / "out", source, EventsConfig(max_quarantined=1))
    return validation, pq.read_table(tmp_path / "out" / "quarantine.parquet")["value"].to_pylist()


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint32(), pa.uint64()])
def test_times_may_be_integers_of_every_width(tmp_path, kind):
    validation, _ = validated(tmp_path, timestamp=pa.array([DAY, DAY + 1], kind))
    assert (validation.accepted, validation.newest) == (2, DAY + 1)


@pytest.mark.parametrize(
    "kind",
    [
        pa.timestamp("ms", "UTC"),
        pa.timestamp("us"),
        pa.timestamp("us", "Mars/Base"),
        pa.timestamp("ms", "Asia/Kolkata"),
    ],
)
def test_times_that_pythons_calendar_or_zones_do_not_hold_are_quarantined(tmp_path, kind):
    validation, values = validated(tmp_path, timestamp=pa.array([0, 2**62], pa.int64()).cast(kind))
    assert (validation.accepted, validation.future, values) == (1, 1, [str(2**62)])


def test_days_that_pythons_calendar_does_not_hold_are_quarantined(tmp_path):
    validation, values = validated(tmp_path, timestamp=pa.array([0, 2**30], pa.int32()).cast(pa.date32()))
    assert (validation.accepted, validation.future, values) == (1, 1, [str(2**30)])


@pytest.mark.parametrize("store_schema", [True, False])
@pytest.mark.parametrize("column", ["item_id", "user_id"])
def test_a_text_that_is_stored_once_for_millions_of_rows_is_refused(tmp_path, column, store_schema):
    codes = pa.array([0] * 100_000, pa.int32())
    texts = {"user_id": "u", "item_id": "i", "timestamp": "2023-11-14", column: "x" * 100_000}
    table = pa.table({name: pa.DictionaryArray.from_arrays(codes, pa.array([text])) for name, text in texts.items()})
    pq.write_table(table, tmp_path / "events.parquet", store_schema=store_schema)
    assert (tmp_path / "events.parquet").stat().st_size < 200_000
    with pytest.raises(DataError, match=r"unfolds to more than 268,435,456 bytes.*events\.parquet.*smaller files"):
        validated_file(tmp_path, tmp_path / "events.parquet")
    assert list((tmp_path / "out").iterdir()) == []


def test_millions_of_rows_of_nothing_are_refused_before_they_are_read(tmp_path):
    nothing = pa.nulls(6_000_000, pa.int8())
    with pytest.raises(DataError, match="unfolds to more than"):
        validated(tmp_path, user_id=nothing, item_id=nothing, timestamp=nothing)


def test_many_rows_of_one_long_text_are_read_in_pieces(tmp_path):
    codes = pa.array([0, 1] * 800, pa.int32())
    texts = pa.DictionaryArray.from_arrays(codes, pa.array(["x" * 100_000, "i"]))
    validation, values = validated(tmp_path, user_id=["u"] * 1_600, item_id=texts, timestamp=[DAY] * 1_600)
    assert (validation.accepted, validation.quarantined) == (800, 800)
    assert {len(value) for value in values} == {200}


def test_a_page_that_a_codec_made_tiny_is_refused_by_what_it_declares(tmp_path, monkeypatch):
    monkeypatch.setattr("recsys.parquet_rows._UNFOLDED_BYTES", 2 << 20)
    table = pa.table({"item_id": ["i"], "title": ["0" * (3 << 20)]})
    pq.write_table(table, tmp_path / "items.parquet", compression="zstd", use_dictionary=False, write_statistics=False)
    with pytest.raises(DataError, match="unfolds to more than 2,097,152 bytes"):
        validate_items(tmp_path / "items.parquet", tmp_path / "out", {}, 1.0)


def test_a_header_that_does_not_end_is_refused(tmp_path):
    (tmp_path / "events.csv").write_bytes(b"user_id,item_id,timestamp," + b"x" * (1 << 20) + b"\nu,i,1\n")
    with pytest.raises(DataError, match=r"the header is longer than 1,048,576 bytes \(events\.csv, line 1\)"):
        validated_file(tmp_path, tmp_path / "events.csv")


@pytest.mark.parametrize(("first", "listed"), [("user-17,item-3,1700000000", False), ("CustomerID,sku,when", True)])
def test_a_row_that_stands_where_the_header_should_is_not_repeated(tmp_path, first, listed):
    path = tmp_path / "events.csv"
    path.write_text(f"{first}\nuser-18,item-4,1700000001\n")
    with pytest.raises(DataError, match="user_id is missing") as refused:
        validate_file(path, tmp_path / "out", EventSource({}, None, DAY, Door(b"k" * 32), print), EventsConfig())
    assert (first.split(",")[0] in str(refused.value)) == listed
    assert ("its header is missing" in str(refused.value)) != listed


def test_many_ignored_columns_are_told_in_brief(tmp_path):
    validation, _ = validated(tmp_path, **{f"more_{n}_{'x' * 100}": [1, 2] for n in range(80)})
    assert validation.notes[0].endswith(" and 30 more")
    assert len(validation.notes[0]) < 4_000


@pytest.mark.parametrize("name", ["x" * 300 + ".csv", "folder.csv"])
def test_a_path_that_is_no_file_is_refused(tmp_path, name):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError):
        input_files(tmp_path / "folder.csv" / name)


def test_a_pipe_is_refused_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "events.csv")
    with pytest.raises(DataError, match="this is no file"):
        input_files(tmp_path / "events.csv")


@pytest.mark.parametrize("name", ["caf\udce9.csv", "a\nb.csv", "\x1b[31m.csv"])
def test_a_name_that_cannot_be_written_down_is_refused(tmp_path, name):
    (tmp_path / name).write_text("user_id,item_id,timestamp\nu,i,1\n")
    with pytest.raises(DataError, match=r"the file's name holds what is no text.*Rename it"):
        validated_file(tmp_path, tmp_path / name)


def test_one_column_is_not_read_as_two_of_ours(tmp_path):
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\nu,i,1\n")
    source = EventSource({"item_id": "user_id"}, None, DAY, Door(b"k" * 32), lambda users: None)
    with pytest.raises(DataError, match="the column user_id would be read as two of ours"):
        validate_file(tmp_path / "events.csv", tmp_path / "out", source, EventsConfig())


def test_a_message_cannot_steer_the_terminal_and_is_short(tmp_path):
    (tmp_path / "events.csv").write_text("\ufeff\x1b[31muser_id,item\u202e_id,timestamp\x07\nu,i,1\n")
    with pytest.raises(DataError) as error:
        validated_file(tmp_path, tmp_path / "events.csv")
    assert not {"\x1b", "\u202e", "\x07", "\ufeff"} & set(str(error.value))
    long = str(ConfigError("x" * 10_000, where="a\nb\x1b", mend="Mend it.\udcff"))
    assert len(long) < 1_000
    assert long.endswith(r"(a b\x1b). Mend it.\udcff")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("9" * 5000, "exceeded maximum size"),
        ("[" * 50_000, "valid integer"),
        ('"\\ud800"', "the value is no text"),
        ("x" * 100_000, "valid integer"),
    ],
)
def test_a_value_that_json_cannot_read_is_refused(value, says):
    with pytest.raises(ConfigError, match=says) as error:
        resolve("quick", [f"data.test_days={value}"])
    assert len(str(error.value)) < 2_000


@pytest.mark.parametrize(
    "word",
    ['events.event_weights={"view": -1}', 'events.event_weights={"view": 1e300}', "events.min_rating=1e300", f"events.max_user_events={2**63}",
     f"teacher.seed={10**30}", "refresh.max_age_days=1e300", 'events.event_weights={"\\udfff": 1}'],
)  # fmt: skip
def test_a_number_that_no_engine_holds_is_refused(word):
    with pytest.raises(ConfigError):
        resolve("quick", [word])


def test_spaces_in_a_word_do_not_matter():
    assert resolve("quick", [" teacher . epochs = 3"]).teacher.epochs == 3


def test_a_length_of_five_thousand_digits_is_too_large(bench):
    headers = {"content-length": "9" * 5000, "content-type": "application/json"}
    reply = TestClient(app_of(bench.shelf)).post("/recommend", content=b"{}", headers=headers)
    assert reply.status_code == 413
