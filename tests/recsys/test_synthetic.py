"""The synthetic shop: the rule is where it is said to be, and the dial turns it off."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.config import DataConfig, EventsConfig
from recsys.dataset import BuildPlan, Dataset, build
from recsys.door import Door
from recsys.events import EventSource, validate_file
from recsys.items import validate_items
from recsys.synthetic import shop


def followed(made):
    """The share of steps from an item to its successor."""
    table = made.events.to_pandas().sort_values(["user_id", "timestamp"], kind="stable")
    item = table["item_id"].str.removeprefix("item-").astype(int).to_numpy()
    same_user = table["user_id"].to_numpy()[1:] == table["user_id"].to_numpy()[:-1]
    return np.mean(made.successor[item[:-1]][same_user] == item[1:][same_user])


@pytest.mark.parametrize(("randomness", "share"), [(0.0, 1.0), (0.4, 0.6 + 0.4 / 60), (1.0, 1 / 60)])
def test_the_dial(randomness, share):
    assert followed(shop(300, 60, 20, randomness, seed=1)) == pytest.approx(share, abs=0.02)


def test_the_successor_stays_in_the_group_that_the_title_names():
    made = shop(10, 50, 5, 0.5, seed=0)
    titles = [title.split(" number ")[0] for title in made.items["title"].to_pylist()]
    assert [titles[j] for j in made.successor] == titles
    assert sorted(made.successor) == list(range(50))
    assert len(set(titles)) == 5


def test_the_seed_decides_everything():
    assert shop(20, 30, 5, 0.5, seed=3).events == shop(20, 30, 5, 0.5, seed=3).events
    assert shop(20, 30, 5, 0.5, seed=3).events != shop(20, 30, 5, 0.5, seed=4).events


def test_a_written_shop_becomes_a_dataset(tmp_path):
    events, items = shop(100, 40, 12, 0.2, seed=0, days=40).write(tmp_path / "shop")
    assert pq.read_table(events).column_names == ["user_id", "item_id", "timestamp"]
    assert pq.read_table(items).column_names == ["item_id", "title", "category", "description"]
    validate_items(items, tmp_path / "items", {}, 0.0)
    known = pq.read_table(items)["item_id"].combine_chunks()
    source = EventSource({}, known, 2_000_000_000, Door(b"k" * 32), lambda users: None)
    validation = validate_file(events, tmp_path / "events", source, EventsConfig())
    assert (validation.accepted, validation.users) == (1200, 100)
    plan = BuildPlan(EventsConfig(), DataConfig(min_users=20), None, 2, 256, tmp_path / "temp", 1)
    build([tmp_path / "events" / "accepted.parquet"], tmp_path / "items" / "items.parquet", None, tmp_path / "d", plan)
    dataset = Dataset.load(tmp_path / "d")
    assert dataset.catalog.items == 40
    assert len(dataset.test_cases()) >= 20
