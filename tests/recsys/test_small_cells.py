"""Which groups are withheld: the few, and who would be told by what is left."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.histories import Cases
from recsys.shared_histories import shared_histories
from recsys.small_cells import FEWEST, told, withheld


@pytest.mark.parametrize(
    ("sizes", "hidden"),
    [
        ([100, 50, 10], []),
        ([100, 50, 9], [50, 9]),
        ([100, 9, 9], [9, 9]),
        ([100, 50, 4, 4], [50, 4, 4]),
        ([100, 50, 0], [0]),
        ([100, 50, 0, 3], [50, 0, 3]),
        ([5], [5]),
        ([5, 3], [5, 3]),
    ],
)
def test_few_users_take_the_next_smallest_group_with_them(sizes, hidden):
    assert np.array(sizes)[withheld(sizes)].tolist() == hidden


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_what_is_left_never_tells_a_few(sizes):
    gone = withheld(sizes)
    left = sum(size for size, hide in zip(sizes, gone, strict=True) if hide)
    assert all(size >= FEWEST for size, hide in zip(sizes, gone, strict=True) if not hide)
    assert left == 0 or left >= FEWEST or gone.all()


def test_few_users_are_not_counted_out():
    assert [told(number) for number in (None, 1, 9)] == ["fewer than 10 users"] * 3
    assert [told(number) for number in (0, 10, 1234)] == ["0 users", "10 users", "1,234 users"]


def cases(histories, targets) -> Cases:
    return Cases(np.arange(len(histories)), [np.array(h) for h in histories], [np.array(t) for t in targets], True)


def test_a_shown_history_is_that_of_many_and_so_is_what_they_took():
    many = [[1, 2, 3 + user] for user in range(12)]  # 3 and more: everybody's own
    few = [[40, 41]] * 9
    shown = list(shared_histories(cases([*many, *few], [[50, 60 + user] for user in range(12)] + [[51]] * 9), 3))
    assert [(each.items.tolist(), each.taken.tolist()) for each in shown] == [([2, 1], [50])]


def test_where_nobody_shares_enough_nothing_is_shown():
    assert list(shared_histories(cases([[1, 2]] * 9, [[3]] * 9), 3)) == []
    assert list(shared_histories(cases([], []), 3)) == []


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=6), min_size=10, max_size=40))
def test_every_shown_history_is_shared_by_ten(histories):
    for shown in shared_histories(cases(histories, histories), 3):
        having = [set(h) for h in histories if set(shown.items.tolist()) <= set(h)]
        assert len(having) >= FEWEST
        assert all(sum(code in h for h in having) >= FEWEST for code in shown.taken.tolist())
