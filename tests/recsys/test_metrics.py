"""Metrics, computed by hand."""

from fractions import Fraction
from math import log, log2

import numpy as np
import pytest

from recsys.metrics import Hits, cross_entropy, every_metric, hit, ndcg, recall, reciprocal_rank

FIRST_AND_THIRD = np.array([[True, False, True, False, False]])
NOTHING = np.zeros((1, 5), bool)
TWO = np.array([2])


def test_hits_are_the_targets_in_the_list():
    hits = Hits.of(np.array([[3, 9, 7], [1, 2, 0]], np.int32), [np.array([7, 3]), np.array([5])])
    assert hits.at_rank.tolist() == [[True, False, True], [False, False, False]]
    assert hits.targets.tolist() == [2, 1]


def test_an_exhausted_list_hits_nothing():
    hits = Hits.of(np.zeros((1, 3), np.int32), [np.array([0, 4])])
    assert not hits.at_rank.any()


def test_ndcg_of_two_targets_at_ranks_one_and_three():
    expected = (1 + 1 / 2) / (1 + 1 / log2(3))
    assert ndcg(FIRST_AND_THIRD, TWO, 5) == pytest.approx([expected])
    assert ndcg(FIRST_AND_THIRD, TWO, 2) == pytest.approx([1 / (1 + 1 / log2(3))])


def test_ndcg_at_one_needs_one_hit_whatever_the_number_of_targets():
    assert ndcg(FIRST_AND_THIRD, np.array([40]), 1) == pytest.approx([1])


def test_ndcg_is_one_only_for_the_ideal_list():
    ideal = np.array([[True, True, False]])
    assert ndcg(ideal, TWO, 3) == pytest.approx([1])
    assert ndcg(np.array([[True, False, True]]), TWO, 3)[0] < 1


def test_a_list_shorter_than_k_is_held_against_the_ideal_of_k():
    assert ndcg(np.array([[True]]), TWO, 10) == pytest.approx([1 / (1 + 1 / log2(3))])


def test_recall_is_the_share_of_targets_found():
    assert recall(FIRST_AND_THIRD, np.array([3]), 5)[0] == pytest.approx(float(Fraction(2, 3)))
    assert recall(FIRST_AND_THIRD, np.array([3]), 2)[0] == pytest.approx(float(Fraction(1, 3)))


def test_hit_asks_for_any_target():
    assert hit(np.array([[False, True], [False, False]]), 2).tolist() == [1, 0]
    assert hit(np.array([[False, True], [False, False]]), 1).tolist() == [0, 0]


def test_reciprocal_rank_is_that_of_the_first_hit():
    third_and_fourth = np.array([[False, False, True, True]])
    assert reciprocal_rank(third_and_fourth, 4)[0] == pytest.approx(float(Fraction(1, 3)))
    assert reciprocal_rank(third_and_fourth, 2)[0] == 0
    assert reciprocal_rank(NOTHING, 5)[0] == 0


def test_every_metric_has_a_name_mlflow_accepts_and_one_value_a_user():
    values = every_metric(Hits(np.repeat(FIRST_AND_THIRD, 3, axis=0), np.array([2, 2, 2])))
    assert len(values) == 16
    assert {"ndcg_at_10", "recall_at_5", "hr_at_1", "mrr_at_20"} < set(values)
    assert all(per_user.shape == (3,) and per_user.dtype == np.float64 for per_user in values.values())


def test_cross_entropy_of_equal_scores_is_the_log_of_the_catalog():
    assert cross_entropy(np.zeros((1, 8), np.float32), [np.array([1, 5])]) == pytest.approx([log(8)])


def test_cross_entropy_is_the_mean_over_targets_in_nats():
    scores = np.log(np.array([[0.5, 0.25, 0.25]])).astype(np.float32)
    assert cross_entropy(scores, [np.array([1, 2])]) == pytest.approx([(log(2) + log(4)) / 2])


def test_excluded_items_have_no_share_in_the_normaliser():
    scores = np.array([[0, 0, -np.inf, -np.inf]], np.float32)
    assert cross_entropy(scores, [np.array([2])]) == pytest.approx([log(2)])


def test_a_target_the_model_does_not_know_is_left_out():
    scores = np.array([[0, 0, -np.inf], [0, 0, -np.inf]], np.float32)
    values = cross_entropy(scores, [np.array([1, 3]), np.array([3])])
    assert values[0] == pytest.approx(log(2))
    assert np.isnan(values[1])


def test_large_scores_do_not_overflow():
    assert cross_entropy(np.array([[1e30, 0]], np.float32), [np.array([1])]) == pytest.approx([0])


@pytest.mark.filterwarnings("error")
def test_a_user_with_nothing_left_to_recommend_has_no_cross_entropy():
    assert np.isnan(cross_entropy(np.full((1, 3), -np.inf, np.float32), [np.array([2])])).all()
