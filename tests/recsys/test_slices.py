"""Who is in a slice, and that one unlucky slice among several proves nothing."""

import numpy as np
import pytest

from recsys.slices import MIN_USERS, SLICES, Slice, compare, slices_of
from recsys.statistics import p_of_loss

USERS = 200
EVERYBODY = np.ones(USERS, bool)


def test_quarters_of_the_history_length_and_the_tail():
    lengths = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9])
    tail_share = np.array([0, 0.5, 0.51, 1, 0, 0, 0, 0, 0])
    members = {part.name: lengths[part.members].tolist() for part in slices_of(lengths, tail_share)}
    assert members == {"cold": [1, 2, 3], "short": [4, 5], "long": [6], "heavy": [7, 8, 9], "tail": [3, 4]}
    assert tuple(members) == SLICES


def test_the_titles_say_how_long_a_history_is():
    titles = [part.title for part in slices_of(np.array([1, 2, 3, 4, 5, 6, 7, 8, 9]), np.zeros(9))]
    assert titles[0] == "cold users (history of at most 3)"
    assert titles[3] == "heavy users (history of at least 7)"


def unlucky() -> tuple[np.ndarray, np.ndarray]:
    """Two models of which the first loses 10 % with a p-value of about 0.03."""
    peer = np.full(USERS, 0.5)
    noise = np.random.default_rng(1).normal(0, 0.1, USERS)
    shortfall = noise - noise.mean() - 1.9 * noise.std() / USERS**0.5
    return 0.9 * peer + shortfall, peer


def test_a_slice_alone_is_judged_at_five_percent_and_in_a_family_more_carefully():
    ours, peer = unlucky()
    assert 0.01 < p_of_loss(ours, peer, 0.1) < 0.05
    (alone,) = compare([Slice("one", "one", EVERYBODY)], ours, peer, 0.1)
    assert alone.worse
    fine = np.append(ours, peer), np.append(peer, peer)
    halves = np.arange(2 * USERS) < USERS
    family = [Slice("bad", "bad", halves)] + [Slice(f"good {number}", "good", ~halves) for number in range(4)]
    assert [test.worse for test in compare(family, *fine, 0.1)] == [False] * 5


def test_slices_that_are_too_small_do_not_count_in_the_family():
    ours, peer = unlucky()
    few = np.arange(USERS) < MIN_USERS - 1
    tests = compare([Slice("few", "few", few), Slice("all", "all", EVERYBODY)], ours, peer, 0.1)
    assert [(test.users, test.tested, test.worse) for test in tests] == [(29, False, False), (USERS, True, True)]


def test_the_change_is_that_of_the_members():
    ours, peer = np.where(np.arange(USERS) < 50, 0.25, 0.5), np.full(USERS, 0.5)
    (test,) = compare([Slice("first", "first", np.arange(USERS) < 50)], ours, peer, 0.1)
    assert test.change.value == pytest.approx(-0.5)
    assert test.worse
