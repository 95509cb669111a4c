"""Most-popular and neighbours on a shop small enough to compute by hand."""

import numpy as np
import pytest

from recsys import baselines
from recsys.baselines import MostPopular, Neighbours
from recsys.histories import Histories


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


def history(*codes: int) -> np.ndarray:
    return np.array(codes, np.int32)


def test_most_popular_ranks_by_training_events():
    histories = shop([1, 2, 2], [2, 3, 1], training=[3, 1])
    model = MostPopular(histories.training_counts(4))
    codes, scores = model.top([history(4)], 3)
    assert codes.tolist() == [[2, 1, 3]]
    assert scores.tolist() == [[3, 1, 0]]


def test_the_similarity_is_the_cosine_of_the_users_of_two_items():
    model = Neighbours(shop([1, 2], [1, 2], [1, 3]), 3)
    similar_to_1 = model.scores([history(1)])[0]
    assert similar_to_1 == pytest.approx([0, 2 / (3 * 2) ** 0.5, 1 / 3**0.5])


def test_a_repeated_purchase_counts_once():
    once, often = Neighbours(shop([1, 2], [1, 3]), 3), Neighbours(shop([1, 2, 1, 2, 2], [1, 3]), 3)
    assert np.array_equal(once.scores([history(1)]), often.scores([history(1)]))
    assert np.array_equal(often.scores([history(1)]), often.scores([history(1, 1, 1)]))


def test_the_score_is_the_sum_over_the_history():
    model = Neighbours(shop([1, 2], [1, 2, 4], [3, 4], [2, 3]), 4)
    one, three, both = model.scores([history(1), history(3), history(1, 3)])
    assert both == pytest.approx(one + three)


def test_only_the_training_part_is_read():
    held_out = Neighbours(shop([1, 2, 3], [1, 2, 3], training=[2, 2]), 3)
    assert held_out.scores([history(1)])[0, 2] == 0


def test_only_the_nearest_are_kept_and_ties_go_to_the_lower_code():
    model = Neighbours(shop([1, 2, 3, 4], [1, 4]), 4, keep=2)
    assert model.scores([history(1)])[0] == pytest.approx([0, 0.5**0.5, 0, 1])


def test_blocks_do_not_change_the_answer(monkeypatch):
    rng = np.random.default_rng(0)
    histories = shop(*(list(rng.integers(1, 41, 12)) for _ in range(60)))
    whole = Neighbours(histories, 40, keep=5).scores([history(*range(1, 41))])
    monkeypatch.setattr(baselines, "_BLOCK", 40 * 3)
    assert np.array_equal(whole, Neighbours(histories, 40, keep=5).scores([history(*range(1, 41))]))


def test_an_item_nobody_bought_is_nobodys_neighbour():
    model = Neighbours(shop([1, 2]), 3)
    assert model.scores([history(3)])[0].tolist() == [0, 0, 0]
