"""How much two batch scores differ, against a count by hand and a plain reference."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.errors import HomeError
from recsys.event_union import Engine
from recsys.score_change import score_change


def write(path: Path, lists: dict[str, list[str]]) -> Path:
    rows = [(user, item, rank) for user, items in lists.items() for rank, item in enumerate(items, 1)]
    users, items, ranks = zip(*rows, strict=True)
    pq.write_table(pa.table({"user_id": users, "item_id": items, "rank": pa.array(ranks, pa.int32())}), path)
    return path


def test_lists_are_compared_as_sets_of_users_in_both(tmp_path: Path) -> None:
    old = write(tmp_path / "old[1].parquet", {"a": ["x", "y"], "b": ["x", "y"], "c": ["x"], "gone": ["x", "y"]})
    new = write(tmp_path / "new's.parquet", {"a": ["y", "x"], "b": ["x", "z"], "c": ["x", "y"], "new": ["q"]})
    change = score_change(new, old, 2, Engine(256, 1, tmp_path / "temp"))
    assert (change.users, change.share_changed, change.overlap) == (3, 2 / 3, pytest.approx(2 / 3))
    first = score_change(new, old, 1, Engine(256, 1, tmp_path / "temp"))
    assert (first.share_changed, first.overlap) == (1 / 3, pytest.approx(2 / 3)), "only a begins with another item"


def test_it_counts_as_a_plain_reference_does(tmp_path: Path) -> None:
    rng, items = np.random.default_rng(3), [f"item-{number}" for number in range(30)]
    lists = [
        {f"u{user}": list(rng.choice(items, rng.integers(1, 9), replace=False)) for user in rng.permutation(400)[:300]}
        for _ in range(2)
    ]
    new, old = (write(tmp_path / f"{n}.parquet", each) for n, each in enumerate(lists))
    change = score_change(new, old, 5, Engine(256, 2, tmp_path / "temp"))
    pairs = [(lists[0][user][:5], lists[1][user][:5]) for user in lists[0] if user in lists[1]]
    overlaps = [len(set(a) & set(b)) / max(len(a), len(b)) for a, b in pairs]
    assert change.users == len(pairs)
    assert change.share_changed == np.mean([overlap < 1 for overlap in overlaps])
    assert change.overlap == pytest.approx(np.mean(overlaps), abs=1e-12)


def test_without_common_users_there_is_nothing_to_say(tmp_path: Path) -> None:
    old, new = write(tmp_path / "old.parquet", {"a": ["x"]}), write(tmp_path / "new.parquet", {"b": ["x"]})
    change = score_change(new, old, 10, Engine(256, 1, tmp_path / "temp"))
    assert (change.users, change.share_changed, change.overlap) == (0, None, None)


@pytest.mark.parametrize("content", [None, b"PAR1 nonsense PAR1"])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, content: bytes | None) -> None:
    new, old = write(tmp_path / "new.parquet", {"b": ["x"]}), tmp_path / "old.parquet"
    if content:
        old.write_bytes(content)
    with pytest.raises(HomeError, match="two batch scores cannot be compared"):
        score_change(new, old, 10, Engine(256, 1, tmp_path / "temp"))
