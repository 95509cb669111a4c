"""Where time is cut, by hand-counted users."""

import numpy as np

from recsys.split import DAY, Cuts, Window, window_before

END = 100 * DAY


def spans(*days):
    """First and last event of users, in days."""
    return np.array([first * DAY for first, _ in days]), np.array([last * DAY for _, last in days])


def test_a_user_counts_with_a_history_and_an_event_in_the_window():
    first, last = spans((0, 95), (0, 92), (95, 96), (93, 93), (92, 99))
    # The window starts at day 93: the second left before it, the third and the fourth came in it.
    assert window_before(END, first, last, 7, 1) == Window(93 * DAY, END, 2)


def test_the_window_grows_by_days_until_it_has_enough_users():
    first, last = spans((0, 99), (0, 90), (0, 85), (0, 20))
    assert window_before(END, first, last, 7, 2) == Window(90 * DAY, END, 2)
    assert window_before(END, first, last, 7, 3) == Window(85 * DAY, END, 3)


def test_it_grows_to_a_quarter_of_the_time_at_most():
    first, last = spans((0, 99), (0, 90), (0, 50))
    window = window_before(END, first, last, 7, 3)
    assert (window.days, window.users) == (10, 2)  # the shortest with the most users


def test_a_requested_window_above_a_quarter_is_kept():
    first, last = spans((0, 99), (0, 60))
    assert window_before(END, first, last, 40, 2) == Window(60 * DAY, END, 2)


def test_nobody():
    assert window_before(END, np.array([], np.int64), np.array([], np.int64), 7, 1) == Window(93 * DAY, END, 0)


def test_ends_by_time():
    times, offsets = np.array([1, 5, 9, 9, 2, 5]), np.array([0, 4, 4, 6])
    cuts = Cuts(test=Window(9, 12, 1), validation=Window(5, 9, 1))
    train_end, valid_end = cuts.ends(times, offsets)
    assert (train_end.tolist(), valid_end.tolist()) == ([1, 0, 1], [2, 0, 2])


def test_ends_leaving_one_out():
    train_end, valid_end = Cuts().ends(np.zeros(7), np.array([0, 4, 6, 6, 7]))
    assert (train_end.tolist(), valid_end.tolist()) == ([2, 2, 0, 1], [3, 2, 0, 1])
