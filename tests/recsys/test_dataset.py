"""Build and load: hand-counted events, whatever the order of files, threads, shards or keys."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys import sample
from recsys.config import DataConfig, EventsConfig
from recsys.dataset import SHARD, Build, BuildPlan, Dataset, build
from recsys.door import Door
from recsys.errors import ConfigError, DataError, LeakageError
from recsys.events import ACCEPTED, EventSource, validate_file
from recsys.items import ITEMS
from recsys.split import DAY

DOOR = Door(b"k" * 32)
LEAVE_ONE_OUT = DataConfig(split="leave_one_out")


def accepted(path, rows, door=DOOR):
    """(user, item, timestamp[, event[, rating]]) rows as an accepted.parquet."""
    full = [(*row, *(None,) * (5 - len(row))) for row in rows]
    columns = [
        [door.token(row[0]) for row in full],
        *([row[i] for row in full] for i in range(1, 5)),
        range(1, len(full) + 1),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, ACCEPTED, strict=True)], schema=ACCEPTED),
        path,
    )
    return path


def catalog_file(path, *rows):
    pq.write_table(pa.Table.from_pylist([dict(zip(ITEMS.names, row, strict=True)) for row in rows], schema=ITEMS), path)
    return path


def plan(tmp_path, events=None, data=LEAVE_ONE_OUT, as_of=None, shards=2, threads=1):
    return BuildPlan(events or EventsConfig(), data, as_of, shards, 256, tmp_path / "temp", threads)


def made(tmp_path, files, items=None, before=None, out="dataset", **options):
    result = build(files, items, before, tmp_path / out, plan(tmp_path, **options))
    dataset = Dataset.load(tmp_path / out)
    assert dataset.build == result
    return dataset


def of(dataset, user, door=DOOR):
    """A user's item ids and times."""
    histories = dataset.histories
    place = int(np.flatnonzero(histories.tokens == door.token(user).encode())[0])
    part = slice(histories.offsets[place], histories.offsets[place + 1])
    return [dataset.catalog.item_ids[code - 1] for code in histories.items[part]], histories.times[part].tolist()


def digests(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


SMALL = [
    ("u", "a", 10),
    ("u", "b", 20),
    ("u", "c", 30),
    ("v", "b", 5),
    ("v", "a", 15),
    ("v", "c", 25),
    ("w", "a", 40),
    ("w", "b", 45),
]


# --- what is kept ---------------------------------------------------------------------------------------------------


def test_histories_catalog_and_cuts_by_hand(tmp_path):
    dataset = made(tmp_path, [accepted(tmp_path / "1.parquet", SMALL)])
    histories = dataset.histories
    assert histories.tokens.tolist() == [DOOR.token(u).encode() for u in ("v", "u", "w")]  # by first event
    assert dataset.catalog.item_ids == ["b", "a", "c"]
    assert histories.items.tolist() == [1, 2, 3, 2, 1, 3, 2, 1]
    assert histories.times.tolist() == [5, 15, 25, 10, 20, 30, 40, 45]
    assert histories.offsets.tolist() == [0, 3, 6, 8]
    assert (histories.train_end.tolist(), histories.valid_end.tolist()) == ([1, 1, 2], [2, 2, 2])
    assert dataset.build == Build(
        accepted=8, kept=8, duplicates=0, left_out=0, repeats=0, after_as_of=0, capped=0, users=3, items=3, as_of=46,
        test_start=None, validation_start=None, test_users=2, validation_users=2, notes=(),
    )  # fmt: skip
    assert dataset.training_counts().tolist() == [2, 2, 0]


def test_types_are_those_of_the_contract(tmp_path):
    histories = made(tmp_path, [accepted(tmp_path / "1.parquet", SMALL)]).histories
    kinds = {name: str(getattr(histories, name).dtype) for name in histories.__dataclass_fields__}
    assert kinds == {
        "tokens": "|S32", "offsets": "int64", "items": "int32", "times": "int64", "weights": "float32", "train_end": "int32", "valid_end": "int32",
    }  # fmt: skip


def test_duplicates_are_counted_once_within_and_across_files(tmp_path):
    again = [("u", "a", 10), ("u", "a", 10), ("x", "a", 50)]
    files = [accepted(tmp_path / "1.parquet", SMALL), accepted(tmp_path / "2.parquet", again)]
    result = made(tmp_path, files).build
    assert (result.accepted, result.kept, result.duplicates) == (11, 9, 2)


def test_the_same_file_twice_changes_nothing_but_the_counts(tmp_path):
    file = accepted(tmp_path / "1.parquet", SMALL)
    once, twice = made(tmp_path, [file], out="once"), made(tmp_path, [file, file], out="twice")
    assert (twice.build.kept, twice.build.duplicates) == (8, 8)
    assert digests(tmp_path / "once") | {"build.json": ""} == digests(tmp_path / "twice") | {"build.json": ""}
    assert once.histories.items.tolist() == twice.histories.items.tolist()


def test_the_kind_of_event_tells_events_apart_and_weighs_them(tmp_path):
    rows = [
        *SMALL,
        ("w", "b", 50, "view"),
        ("w", "b", 50, "purchase"),
        ("w", "b", 50, "purchase"),
        ("w", "b", 50, "odd"),
    ]
    data = DataConfig(split="leave_one_out", repeats="allow")
    dataset = made(tmp_path, [accepted(tmp_path / "1.parquet", rows)], data=data)
    assert dataset.histories.weights[-4:].tolist() == [1.0, np.float32(0.2), 1.0, 1.0]
    assert dataset.build.duplicates == 1


def test_repeats_are_excluded_or_allowed(tmp_path):
    file = accepted(tmp_path / "1.parquet", [*SMALL, ("u", "a", 35), ("u", "a", 12)])
    excluded = made(tmp_path, [file], out="excluded")
    assert excluded.build.repeats == 2
    assert of(excluded, "u") == (["a", "b", "c"], [10, 20, 30])
    allowed = made(tmp_path, [file], out="allowed", data=DataConfig(split="leave_one_out", repeats="allow"))
    assert allowed.build.repeats == 0
    assert of(allowed, "u") == (["a", "a", "b", "c", "a"], [10, 12, 20, 30, 35])


def test_low_ratings_and_weightless_kinds_are_left_out(tmp_path):
    rows = [
        *SMALL,
        ("x", "a", 1),
        ("x", "b", 2),
        ("w", "b", 50, None, 3.2),
        ("w", "c", 60, None, 3.3),
        ("w", "c", 61, "view", 5.0),
    ]
    events = EventsConfig(min_rating=3.3, event_weights={"view": 0.0})
    dataset = made(tmp_path, [accepted(tmp_path / "1.parquet", rows)], events=events)
    assert dataset.build.left_out == 2
    assert of(dataset, "w") == (["a", "b", "c"], [40, 45, 60])  # 3.3 as float32 is below 3.3, and still counts


def test_nothing_from_as_of_on_is_known(tmp_path):
    dataset = made(tmp_path, [accepted(tmp_path / "1.parquet", [*SMALL, ("z", "new", 30)])], as_of=30)
    assert (dataset.build.after_as_of, dataset.build.as_of) == (4, 30)
    assert "new" not in dataset.catalog.item_ids
    assert dataset.histories.times.max() == 25


def test_only_the_newest_events_of_a_user_are_kept(tmp_path):
    rows = [("bot", f"i{i}", 100 + i) for i in range(50)]
    dataset = made(
        tmp_path, [accepted(tmp_path / "1.parquet", [*SMALL, *rows])], events=EventsConfig(max_user_events=10)
    )
    assert (dataset.build.capped, dataset.build.kept) == (40, 18)
    assert of(dataset, "bot") == ([f"i{i}" for i in range(40, 50)], list(range(140, 150)))


def test_a_user_with_a_million_events(tmp_path):
    n = 1_000_000
    table = pa.table(
        {
            "token": pa.repeat(DOOR.token("bot"), n),
            "item_id": pa.array(np.arange(n) % 1000).cast(pa.string()),
            "timestamp": pa.array(np.arange(n)),
            "event": pa.nulls(n, pa.string()),
            "rating": pa.nulls(n, pa.float32()),
            "row": pa.array(np.arange(1, n + 1)),
        },
        schema=ACCEPTED,
    )
    pq.write_table(table, tmp_path / "bot.parquet")
    files = [tmp_path / "bot.parquet", accepted(tmp_path / "1.parquet", SMALL)]
    dataset = made(tmp_path, files, data=DataConfig(split="leave_one_out", repeats="allow"))
    assert (dataset.build.capped, dataset.build.kept) == (990_000, 10_008)
    assert of(dataset, "bot")[1] == list(range(990_000, n))


def test_events_of_one_time_keep_the_order_of_files_and_rows(tmp_path):
    first = accepted(tmp_path / "b.parquet", [("u", "z", 5), ("u", "a", 5)])
    second = accepted(
        tmp_path / "a.parquet", [("u", "y", 5), ("v", "a", 5), ("u", "b", 5), ("u", "early", 4), ("u", "z", 5)]
    )
    assert of(made(tmp_path, [first, second]), "u")[0] == ["early", "z", "a", "y", "b"]


# --- the same, whatever does not matter ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop_file(tmp_path_factory):
    """The first 20,000 rows of the sample, validated."""
    folder = tmp_path_factory.mktemp("sample")
    pq.write_table(pq.read_table(sample.EVENTS).slice(0, 20_000), folder / "events.parquet")

    def validated(name, door):
        source = EventSource({}, None, 2_000_000_000, door, lambda users: None)
        validate_file(folder / "events.parquet", folder / name, source, EventsConfig())
        return folder / name / "accepted.parquet"

    return validated


def test_threads_change_no_byte(tmp_path, shop_file):
    data = DataConfig(min_users=10)
    for threads in (1, 3):
        build([shop_file("x", DOOR)], None, None, tmp_path / f"{threads}", plan(tmp_path, data=data, threads=threads))
    assert digests(tmp_path / "1") == digests(tmp_path / "3")


def test_shards_and_keys_change_no_history(tmp_path, shop_file):
    data = DataConfig(min_users=10)
    one = made(tmp_path, [shop_file("x", DOOR)], out="one", data=data, shards=1)
    four = made(tmp_path, [shop_file("x", DOOR)], out="four", data=data, shards=4)
    other = made(
        tmp_path, [shop_file("y", Door(b"another key, 32 bytes or longer.."))], out="other", data=data, shards=4
    )
    assert one.histories.tokens.tolist() == four.histories.tokens.tolist() != other.histories.tokens.tolist()
    for name in ("offsets", "items", "times", "weights", "train_end", "valid_end"):
        assert np.array_equal(getattr(one.histories, name), getattr(four.histories, name))
        assert np.array_equal(getattr(one.histories, name), getattr(other.histories, name))
    assert one.build == four.build == other.build


def test_shards_are_prefixes_of_the_token(tmp_path, shop_file):
    build(
        [shop_file("x", DOOR)], None, None, tmp_path / "four", plan(tmp_path, data=DataConfig(min_users=10), shards=4)
    )
    for shard in range(4):
        table = pq.read_table(tmp_path / "four" / f"shard-0{shard}.parquet")
        assert table.schema == SHARD
        assert {int(token[0], 16) // 4 for token in table["token"].to_pylist()} == {shard}


def test_odd_paths(tmp_path):
    file = accepted(tmp_path / "a[b]*?'c" / "1.parquet", SMALL)
    assert made(tmp_path, [file]).build.kept == 8


# --- the catalog ----------------------------------------------------------------------------------------------------


def test_codes_are_append_only(tmp_path):
    items = catalog_file(
        tmp_path / "i1.parquet",
        ("never", "N", None, None),
        ("a", "A", "x", "y"),
        ("b", "B", None, None),
        ("c", "C", None, None),
    )
    first = made(tmp_path, [accepted(tmp_path / "1.parquet", SMALL)], items, out="first")
    assert first.catalog.item_ids == ["b", "a", "c", "never"]
    items = catalog_file(
        tmp_path / "i2.parquet", ("fresh", "F", None, None), ("a", "A2", None, None), ("d", "D", None, None)
    )
    files = [accepted(tmp_path / "1.parquet", SMALL), accepted(tmp_path / "2.parquet", [("u", "d", 3), ("u", "e", 1)])]
    second = made(tmp_path, files, items, tmp_path / "first" / "catalog.parquet", out="second")
    assert second.catalog.item_ids == ["b", "a", "c", "never", "e", "d", "fresh"]
    assert second.catalog.titles == ["B", "A2", "C", "N", None, "D", "F"]
    assert second.catalog.categories[1] is None  # the newer text wins whole
    assert second.build.notes == ("4 items of earlier nights or of events are not in the items file",)
    assert of(second, "u")[0] == ["e", "d", "a", "b", "c"]


def test_a_catalog_with_gaps_is_refused(tmp_path):
    made(tmp_path, [accepted(tmp_path / "1.parquet", SMALL)], out="first")
    path = tmp_path / "first" / "catalog.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(DataError, match="codes are not 1 to N"):
        build([tmp_path / "1.parquet"], None, path, tmp_path / "second", plan(tmp_path))


def test_an_unvalidated_items_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="not those of a validated file"):
        build([accepted(tmp_path / "1.parquet", SMALL)], tmp_path / "1.parquet", None, tmp_path / "out", plan(tmp_path))


# --- cases ----------------------------------------------------------------------------------------------------------


def listed(cases, dataset):
    names = {DOOR.token(u).encode(): u for u in "uvwxyz"}
    ids = dataset.catalog.item_ids
    return {
        names[dataset.histories.tokens[user]]: ([ids[c - 1] for c in history], sorted(ids[c - 1] for c in targets))
        for user, history, targets in zip(cases.users, cases.histories, cases.targets, strict=True)
    }


TIMELY = [
    ("u", "a", 0), ("u", "b", 80 * DAY), ("u", "c", 86 * DAY), ("u", "a", 95 * DAY), ("u", "d", 95 * DAY), ("u", "d", 96 * DAY),
    ("v", "b", 1 * DAY), ("v", "c", 2 * DAY), ("v", "d", 94 * DAY), ("w", "a", 94 * DAY), ("x", "a", 3 * DAY), ("x", "d", 87 * DAY),
]  # fmt: skip


def test_temporal_cases_by_hand(tmp_path):
    file = accepted(tmp_path / "1.parquet", TIMELY)
    dataset = made(tmp_path, [file], data=DataConfig(min_users=2), as_of=100 * DAY)
    assert (dataset.build.test_start, dataset.build.validation_start) == (93 * DAY, 86 * DAY)
    assert listed(dataset.test_cases(), dataset) == {"u": (["a", "b", "c"], ["d"]), "v": (["b", "c"], ["d"])}
    assert listed(dataset.validation_cases(), dataset) == {"u": (["a", "b"], ["c"]), "x": (["a"], ["d"])}
    assert (dataset.build.test_users, dataset.build.validation_users) == (2, 2)
    assert dataset.test_cases().exclude_seen
    assert {targets.dtype.name for targets in dataset.test_cases().targets} == {"int32"}


def test_temporal_cases_with_repeats(tmp_path):
    file = accepted(tmp_path / "1.parquet", TIMELY)
    dataset = made(tmp_path, [file], data=DataConfig(min_users=2, repeats="allow"), as_of=100 * DAY)
    assert listed(dataset.test_cases(), dataset)["u"] == (["a", "b", "c"], ["a", "d"])
    assert not dataset.test_cases().exclude_seen


def test_windows_are_extended_and_reported(tmp_path):
    file = accepted(tmp_path / "1.parquet", TIMELY)
    dataset = made(tmp_path, [file], data=DataConfig(min_users=3, test_days=1, validation_days=1), as_of=100 * DAY)
    assert dataset.build.test_start == 87 * DAY  # three users only with x's event of day 87
    assert dataset.build.validation_users == 1
    assert dataset.build.notes == (
        "the test window is extended from 1 to 13 days",
        "the validation window has 1 users, fewer than 3",
    )


def test_events_of_one_time_are_a_basket_unless_one_is_left_out(tmp_path):
    """Leave-one-out is there to be compared with papers, and they take the order of the file."""
    rows = [(user, f"{user}{day}", day * DAY) for user in "uv" for day in range(60)]
    file = accepted(tmp_path / "a.parquet", rows)
    assert made(tmp_path, [file], out="temporal", data=DataConfig(min_users=1)).has_baskets
    assert not made(tmp_path, [file], out="left", data=LEAVE_ONE_OUT).has_baskets


def test_leave_one_out_cases(tmp_path):
    dataset = made(tmp_path, [accepted(tmp_path / "1.parquet", SMALL)])
    assert listed(dataset.test_cases(), dataset) == {"u": (["a", "b"], ["c"]), "v": (["b", "a"], ["c"])}
    assert listed(dataset.validation_cases(), dataset) == {"u": (["a"], ["b"]), "v": (["b"], ["a"])}


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "data", "says"),
    [
        ([], LEAVE_ONE_OUT, "there are no events"),
        ([("u", "a", 1)], LEAVE_ONE_OUT, "all events are of one user"),
        ([("u", "a", 1), ("u", "b", 2)], LEAVE_ONE_OUT, "all events are of one user"),
        ([("u", "a", 1), ("v", "a", 2)], LEAVE_ONE_OUT, "all events are of one item"),
        ([("u", "a", 1), ("v", "b", 2)], LEAVE_ONE_OUT, "nothing to train on"),
        ([("u", "a", 1), ("u", "b", 2), ("v", "a", 3)], LEAVE_ONE_OUT, "nobody to validate on.*three events or more"),
        ([("u", "a", 1), ("u", "b", 2), ("v", "a", 99 * DAY)], DataConfig(), "nobody to validate on.*Bring older events"),
        (
            [("u", "a", 1), ("u", "b", 2), ("u", "c", 70 * DAY), ("v", "a", 99 * DAY)],
            DataConfig(),
            "nobody to test on",
        ),
    ],
)  # fmt: skip
def test_too_little(tmp_path, rows, data, says):
    with pytest.raises(DataError, match=says):
        build([accepted(tmp_path / "1.parquet", rows)], None, None, tmp_path / "out", plan(tmp_path, data=data))
    assert not (tmp_path / "out" / "build.json").exists()


def test_no_files(tmp_path):
    with pytest.raises(DataError, match="no files of events"):
        build([], None, None, tmp_path / "out", plan(tmp_path))


def test_nothing_before_as_of(tmp_path):
    with pytest.raises(DataError, match="none of 8 events is left: 8 are not before as-of"):
        build([accepted(tmp_path / "1.parquet", SMALL)], None, None, tmp_path / "out", plan(tmp_path, as_of=1))


def test_shards_are_a_power_of_two(tmp_path):
    with pytest.raises(ConfigError, match="3 shards"):
        build([accepted(tmp_path / "1.parquet", SMALL)], None, None, tmp_path / "out", plan(tmp_path, shards=3))


def test_no_dataset(tmp_path):
    with pytest.raises(DataError, match="is no dataset"):
        Dataset.load(tmp_path)


def edited(tmp_path, column, change):
    """A dataset of one shard with one column changed."""
    file = accepted(tmp_path / "1.parquet", TIMELY)
    build([file], None, None, tmp_path / "d", plan(tmp_path, data=DataConfig(min_users=2), as_of=100 * DAY, shards=1))
    path = tmp_path / "d" / "shard-00.parquet"
    table = pq.read_table(path)
    rows = change(table[column].to_pylist())
    pq.write_table(
        table.set_column(
            table.column_names.index(column), SHARD.field(column), [pa.array(rows, SHARD.field(column).type)]
        ),
        path,
    )
    return tmp_path / "d"


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("train_end", lambda ends: [end + 1 for end in ends]),
        ("valid_end", lambda ends: [end + 1 for end in ends]),
        ("valid_end", lambda ends: [max(0, end - 1) for end in ends]),
        ("times", lambda lists: [times[::-1] for times in lists]),
        ("times", lambda lists: [[*times[:-1], 100 * DAY] for times in lists]),
    ],
)
def test_leakage_is_refused(tmp_path, column, change):
    with pytest.raises(LeakageError, match="wrong side of a cut"):
        Dataset.load(edited(tmp_path, column, change))


def test_a_repeat_is_refused_where_repeats_are_excluded(tmp_path):
    with pytest.raises(LeakageError, match="has an item twice"):
        Dataset.load(edited(tmp_path, "items", lambda lists: [[1] * len(items) for items in lists]))


def test_another_schema_is_refused(tmp_path):
    made(tmp_path, [accepted(tmp_path / "1.parquet", SMALL)])
    path = tmp_path / "dataset" / "shard-00.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["times"]), path)
    with pytest.raises(DataError, match=r"shard-00\.parquet has other columns"):
        Dataset.load(tmp_path / "dataset")


def test_the_document_of_a_build_comes_back(tmp_path):
    made(tmp_path, [accepted(tmp_path / "1.parquet", SMALL)])
    document = json.loads((tmp_path / "dataset" / "build.json").read_text())
    assert Build.from_json(document["build"]).accepted == 8
    assert document["repeats"] == "exclude"
