"""The log keeps what build keeps, by time; what is cut at a moment knows nothing of what came later."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import DataConfig, EventsConfig
from recsys.dataset import BuildPlan
from recsys.door import Door
from recsys.event_log import read_log
from recsys.events import EventSource, validate_file
from recsys.items import ITEMS
from recsys.split import DAY

FIRST = 1_700_000_000
ROWS = [  # user, item, day, kind
    ("ann", "pen", 0, "view"), ("bob", "ink", 1, "purchase"), ("ann", "ink", 2, "purchase"),
    ("ann", "pen", 3, "purchase"), ("ann", "pen", 3, "purchase"), ("cat", "pad", 4, "ignored"), ("cat", "mug", 5, None),
]  # fmt: skip


@pytest.fixture(scope="module")
def accepted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    users, items, days, kinds = zip(*ROWS, strict=True)
    times = [FIRST + day * DAY for day in days]
    table = pa.table({"user_id": users, "item_id": items, "timestamp": times, "event": pa.array(kinds, pa.string())})
    pq.write_table(table, folder / "events.parquet")
    source = EventSource({}, None, FIRST + 100 * DAY, Door(b"k" * 32), lambda users: None)
    validate_file(folder / "events.parquet", folder / "out", source, EventsConfig())
    pq.write_table(
        pa.table([["mug", "pen"], [None, None], ["cups", "writing"], [None, None]], schema=ITEMS),
        folder / "items.parquet", write_page_checksum=True,
    )  # fmt: skip
    return folder


def log_of(folder: Path, as_of: int | None = None, repeats: str = "allow"):
    config = EventsConfig(event_weights={"ignored": 0})
    plan = BuildPlan(config, DataConfig(repeats=repeats), as_of, 4, 512, folder / "temp", 1)
    return read_log([folder / "out" / "accepted.parquet"], folder / "items.parquet", plan)


def test_what_counts_is_there_once_and_by_time(accepted):
    log = log_of(accepted)
    ann, bob, cat = (Door(b"k" * 32).token(user).encode() for user in ("ann", "bob", "cat"))
    assert log.tokens.tolist() == [ann, bob, cat], "in the order of their first event"
    assert log.item_ids.to_pylist() == ["pen", "ink", "mug"], "what has weight 0 is no event"
    assert log.users.tolist() == [0, 1, 0, 0, 2]
    assert log.codes.tolist() == [1, 2, 2, 1, 3], "the duplicate counts once, the repeat counts"
    assert ((log.times - FIRST) // DAY).tolist() == [0, 1, 2, 3, 5]
    assert log.kinds.to_pylist() == ["view", "purchase", "purchase", "purchase", None]
    assert log.categories.to_pylist() == ["writing", None, "cups"]
    assert log.as_of == FIRST + 5 * DAY + 1


def test_before_a_moment_nobody_and_nothing_of_later_is_known(accepted):
    past = log_of(accepted).until(FIRST + 2 * DAY)
    assert past.codes.tolist() == [1, 2]
    assert (len(past.tokens), past.item_ids.to_pylist(), past.as_of) == (2, ["pen", "ink"], FIRST + 2 * DAY)
    window = log_of(accepted).between(FIRST + 2 * DAY, FIRST + 4 * DAY)
    assert window.users.tolist() == [0, 0]
    assert len(window.tokens) == 2, "bob is known although he did nothing in the window"
    assert log_of(accepted).until(FIRST).histories().users == 0


def test_a_bound_is_as_good_as_a_file_that_ends_there(accepted):
    bounded, cut = log_of(accepted, FIRST + 4 * DAY), log_of(accepted).until(FIRST + 4 * DAY)
    for name in ("tokens", "users", "codes", "times"):
        np.testing.assert_array_equal(getattr(bounded, name), getattr(cut, name))


def test_once_is_what_the_union_keeps_where_repeats_are_excluded(accepted):
    ours, theirs = log_of(accepted).once(), log_of(accepted, repeats="exclude")
    assert ours.repeats == theirs.repeats == "exclude"
    for name in ("users", "codes", "times"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert ours.kinds.to_pylist() == theirs.kinds.to_pylist()


def test_histories_are_the_events_user_by_user(accepted):
    histories = log_of(accepted).histories()
    assert histories.offsets.tolist() == [0, 3, 4, 5]
    assert histories.items.tolist() == [1, 2, 1, 2, 3]
    assert histories.valid_end.tolist() == [3, 1, 1]
