"""The neighbours a teacher is blended with, on shops small enough to compute by hand."""

import json

import numpy as np
import pytest
import torch

from recsys import neighbourhood
from recsys.errors import StoreError
from recsys.histories import Histories
from recsys.neighbourhood import FLOOR, Neighbourhood, Opinion, padded


def shop(*users: list[int], training: list[int] | None = None) -> Histories:
    """Users by their item codes, the first `training` events of each in the training part (all by default)."""
    lengths = [len(user) for user in users]
    ends = np.array(lengths if training is None else training, np.int32)
    events = sum(lengths)
    return Histories(
        tokens=np.array([f"{user:032x}" for user in range(len(users))], "S32"),
        offsets=np.cumsum([0, *lengths]),
        items=np.array([code for user in users for code in user], np.int32),
        times=np.arange(events),
        weights=np.ones(events, np.float32),
        train_end=ends,
        valid_end=ends,
    )


def of(histories: Histories, items: int, neighbours: int = 20, newest: int = 50) -> Neighbourhood:
    return Neighbourhood.of_training(histories, items, neighbours, newest)


def heard(found: Neighbourhood, *histories: list[int]) -> np.ndarray:
    items, ends = padded([np.array(history) for history in histories])
    return found.heard(items, np.arange(len(histories)), ends).toarray()


THREE = shop([1, 2], [1, 2], [1, 2, 3], [3, 2])
"""Items 1, 2, 3 have 3, 4 and 2 users; 3 have 1 and 2, 2 have 2 and 3, and 1 has 1 and 3."""


def test_one_of_the_users_who_have_both_is_not_counted():
    near = of(THREE, 3).near.toarray()
    assert near == pytest.approx(
        np.array([[0, 2 / 12**0.5, 0], [2 / 12**0.5, 0, 1 / 8**0.5], [0, 1 / 8**0.5, 0]]), rel=1e-6
    )


def test_what_one_user_did_says_nothing_about_that_user():
    """A pair that only its own user has is no evidence: the label of a training position does not know its answer."""
    assert of(shop([1, 2], [3, 4], [1, 3]), 4).near.nnz == 0


def test_only_the_training_part_is_read():
    assert of(shop([1, 2, 3], [1, 2, 3], training=[2, 2]), 3).near.toarray()[:, 2].sum() == 0


def test_a_repeated_item_counts_once():
    once, often = of(shop([1, 2], [1, 2]), 2), of(shop([1, 2, 1, 2], [1, 2, 2]), 2)
    assert np.array_equal(once.near.toarray(), often.near.toarray())


def test_only_the_nearest_are_kept_and_ties_go_to_the_lower_code():
    near = of(shop([1, 2, 3, 4], [1, 2, 3, 4], [1, 4], [1, 4]), 4, neighbours=2).near.toarray()
    assert near[0] == pytest.approx([0, 1 / 8**0.5, 0, 3 / 4])


def test_blocks_do_not_change_the_answer(monkeypatch):
    rng = np.random.default_rng(0)
    histories = shop(*(list(rng.integers(1, 41, 12)) for _ in range(60)))
    whole = of(histories, 40, neighbours=5).near
    monkeypatch.setattr(neighbourhood, "_PAIRS_AT_ONCE", 100)
    parts = of(histories, 40, neighbours=5).near
    assert whole.nnz > 100
    assert np.array_equal(whole.toarray(), parts.toarray())


def test_only_the_newest_items_of_a_user_are_paired(monkeypatch):
    monkeypatch.setattr(neighbourhood, "NEWEST_OF_A_USER", 2)
    assert of(shop([1, 2, 3], [1, 2, 3]), 3).near.toarray()[0].sum() == 0


def test_the_distinct_newest_items_are_asked():
    found = of(THREE, 3, newest=2)
    one, three = 2 / 12**0.5, 1 / 8**0.5
    asked = heard(found, [1, 3], [1, 1], [1, 3, 3], [1, 3, 1], [3, 2, 2])
    assert asked[:, 1] == pytest.approx([one + three, one, three, one + three, 0], rel=1e-6)


def test_codes_that_are_not_known_and_padding_say_nothing():
    assert np.array_equal(heard(of(THREE, 3), [9, 1, 0]), heard(of(THREE, 3), [1]))


def test_a_position_hears_what_stands_at_or_before_it_and_no_more():
    found = of(THREE, 3, newest=2)
    items = np.array([[1, 3, 2, 1, 1]])
    every = found.heard(items, np.zeros(5, np.int64), np.arange(5)).toarray()
    alone = heard(found, *([1, 3, 2, 1, 1][: end + 1] for end in range(5)))
    assert np.array_equal(every, alone)


def test_the_blend_is_the_mean_of_logits_and_leaves_unheard_items_to_the_model():
    opinion = Opinion(of(THREE, 3), 0.25)
    items, ends = padded([np.array([1])])
    logits = torch.tensor([[0.4, -0.8, 1.2]])
    found = opinion.blended(logits.clone(), opinion.neighbourhood.heard(items, np.zeros(1, np.int64), ends))
    expected = 0.75 * logits
    expected[0, 1] += 0.25 * np.log(1 + 2 / 12**0.5 / FLOOR)
    torch.testing.assert_close(found, expected)


def test_saved_and_loaded_it_is_the_same_and_data_alone(tmp_path):
    opinion = Opinion(of(THREE, 3, newest=7), 0.3)
    opinion.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["blend.json", "neighbours.safetensors"]
    loaded = Opinion.load(tmp_path)
    assert loaded is not None
    assert (loaded.weight, loaded.neighbourhood.newest) == (0.3, 7)
    assert np.array_equal(loaded.neighbourhood.near.toarray(), opinion.neighbourhood.near.toarray())


def test_a_folder_without_neighbours_has_no_opinion_and_a_damaged_one_is_refused(tmp_path):
    assert Opinion.load(tmp_path) is None
    (tmp_path / "blend.json").write_text(json.dumps({"weight": 0.3, "newest": 7}))
    with pytest.raises(StoreError, match="neighbours cannot be read"):
        Opinion.load(tmp_path)


def test_rounded_lists_say_nearly_the_same_and_rounding_again_changes_nothing():
    rng = np.random.default_rng(0)
    exact = of(shop(*[list(rng.permutation(30)[:9] + 1) for _ in range(60)]), 30, neighbours=4)
    rounded = exact.as_rounded()
    assert exact.near.nnz > 60
    assert (
        np.abs((exact.near - rounded.near).toarray()).max() <= exact.near.max() / 127
    )  # the largest: scales have sixteen bits
    again = rounded.as_rounded()
    assert (rounded.near != again.near).nnz == 0
    assert rounded.rounded().items.shape == (31, 4)


def test_items_without_neighbours_have_a_row_of_none():
    lists = of(shop([1, 2], [3, 4]), 4).rounded()
    assert lists.items.tolist() == [[0]] * 5
    assert lists.levels.sum() == 0
