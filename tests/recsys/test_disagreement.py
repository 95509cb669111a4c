"""Where two models part, in sums over users."""

import numpy as np
import pytest

from recsys.disagreement import Disagreement, Shift


def lists(*groups: tuple[int, list[int]]) -> np.ndarray:
    """So many users with each list."""
    return np.array([row for users, row in groups for _ in range(users)])


def test_it_counts_first_items_common_items_and_audiences():
    model = lists((12, [1, 2, 3]), (8, [4, 0, 0]))
    other = lists((12, [1, 5, 2]), (8, [6, 4, 0]))
    found = Disagreement.of(model, other, 2)
    assert found.first == pytest.approx(12 / 20)
    assert found.shared == pytest.approx((12 * 2 + 8 * 1) / 20)
    assert found.more == (Shift(3, 12, 0),)
    assert found.less == (Shift(5, 0, 12),), "eight users of item 6 are too few to be told of"


def test_of_two_that_agree_nothing_is_told():
    model = lists((20, [1, 2]))
    assert Disagreement.of(model, model, 3) == Disagreement(1.0, 2.0, (), ())


def test_the_largest_differences_come_first_and_no_more_than_asked():
    model = lists((30, [1, 9]), (20, [2, 9]), (10, [3, 9]))
    other = lists((60, [4, 9]))
    found = Disagreement.of(model, other, 2)
    assert [shift.code for shift in found.more] == [1, 2]
    assert found.less == (Shift(4, 0, 60),)


def test_nothing_is_said_of_fewer_than_ten_users():
    assert Disagreement.of(lists((9, [1])), lists((9, [2])), 3) is None
