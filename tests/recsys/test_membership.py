"""The membership attack: it catches a model that learnt by heart, passes one that learnt nothing, and is fooled by no drift."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recsys.dataset import Build, Dataset
from recsys.decoder import DecoderShape
from recsys.histories import Catalog, Histories
from recsys.membership import (
    LEAST_ALARMED,
    LEAST_USERS,
    Membership,
    Suspects,
    advantage,
    attack,
    auc,
    caught,
    log_probabilities,
    unexplained,
)
from recsys.recommender import Recommender
from recsys.sequence_model import Scorer
from recsys.statistics import Interval
from recsys.student import Student
from recsys.training import HardLabels, Schedule, fit

pytestmark = pytest.mark.usefixtures("one_thread")

USERS, EVENTS, ITEMS = 200, 8, 50


def dataset(rows: list[list[int]], times: list[list[int]], cut: int, items: int = ITEMS, repeats="allow") -> Dataset:
    """Users by their items and times; what comes before `cut` is learnt from, the rest is for the test."""
    flat = np.array([moment for row in times for moment in row])
    ends = np.array([sum(moment < cut for moment in row) for row in times], np.int32)
    histories = Histories(
        tokens=np.array([f"{user:032x}" for user in range(len(rows))], "S32"),
        offsets=np.cumsum([0, *(len(row) for row in rows)]),
        items=np.array([code for row in rows for code in row], np.int32),
        times=flat,
        weights=np.ones(len(flat), np.float32),
        train_end=ends,
        valid_end=ends,
    )
    nothing: list[str | None] = [None] * items
    catalog = Catalog([f"item-{code}" for code in range(1, items + 1)], nothing, nothing, nothing)
    build = Build(len(flat), len(flat), 0, 0, 0, 0, 0, len(rows), items, int(flat.max()) + 1, cut, cut, 1, 1, ())
    return Dataset(histories, catalog, build, repeats)


def shop(seed: int, before: np.ndarray, after: np.ndarray, users: int = USERS) -> Dataset:
    """Users who take items by chance: by the shares `before` (ITEMS,) until the cut, by `after` from then on."""
    rng = np.random.default_rng(seed)
    learnt, later = (rng.choice(ITEMS, (users, n), p=p) + 1 for n, p in ((EVENTS - 2, before), (2, after)))
    return dataset(np.concatenate([learnt, later], 1).tolist(), [list(range(EVENTS))] * users, cut=EVENTS - 2)


EVEN = np.full(ITEMS, 1 / ITEMS)


class Table(Recommender):
    """The same scores for everybody."""

    name = "table"

    def __init__(self, row: np.ndarray) -> None:
        self.row, self.items = row.astype(np.float32), len(row)

    def scores(self, histories):
        return np.tile(self.row, (len(histories), 1))


def untrained(width: int = 32) -> Student:
    return Student.untrained(DecoderShape.of(ITEMS, width, 1, EVENTS), 0.0, seed=0)


def test_a_student_that_learnt_by_heart_is_caught_and_an_untrained_one_is_not():
    noise = shop(0, EVEN, EVEN)  # nothing can be learnt of it but the events themselves
    suspects = Suspects.of(noise)
    student, epochs = untrained(), iter(range(1_000))
    blank = attack(Scorer(student, EVENTS, "untrained"), suspects)
    fit(student, noise.histories, EVENTS, Schedule(50, 0.02, 0), HardLabels(), lambda: float(next(epochs)))
    learnt = attack(Scorer(student, EVENTS, "overfitted"), suspects)
    assert learnt.auc.value > 0.8
    assert learnt.auc.low > 0.8 > blank.auc.high
    assert learnt.advantage.low > 0.5
    assert blank.auc.value == pytest.approx(0.5, abs=0.06)
    assert abs(blank.advantage.value) < 0.15
    assert learnt.control == blank.control
    assert learnt.control.value == pytest.approx(0.5, abs=0.06)


def test_a_shop_whose_taste_changes_at_the_cut_makes_no_member_of_anybody():
    before = 1 / np.arange(1, ITEMS + 1)
    drifting = shop(1, before / before.sum(), EVEN, users=500)
    popular = Table(np.log(before))
    suspects = Suspects.of(drifting)
    said = np.stack([log_probabilities(popular, side) for side in (suspects.members, suspects.others)])
    by_loss = auc(*said)
    assert by_loss.low > 0.7  # by its loss alone a model that knows no event in particular would be accused
    found = attack(popular, suspects)
    assert abs(found.auc.value - 0.5) < (by_loss.value - 0.5) / 3
    assert found.control.value == pytest.approx(0.5, abs=0.06)


scores = st.integers(1, 30).flatmap(
    lambda n: st.tuples(*[arrays(np.int64, n, elements=st.integers(0, 9)).map(lambda a: a / 4)] * 2)
)


@settings(max_examples=50, deadline=None)
@given(scores)
def test_the_auc_is_the_share_of_pairs_in_which_the_member_is_above(pair):
    members, others = pair
    naive = np.mean([[(m > o) + (m == o) / 2 for o in others] for m in members])
    assert auc(members, others).value == pytest.approx(naive, abs=1e-12)


def test_bounds_of_the_auc_hold_as_often_as_they_say():
    rng, inside = np.random.default_rng(0), []
    for _ in range(200):
        own = rng.normal(0, 1, 60)  # what a user's two scores share
        found = auc(own + rng.normal(0, 1, 60), own + rng.normal(0, 1, 60))
        inside.append((found.low <= 0.5, found.high >= 0.5))
    assert np.mean(inside, axis=0) == pytest.approx(0.95, abs=0.045)


def test_noise_gives_no_advantage():
    rng = np.random.default_rng(1)
    found = [advantage(*rng.normal(0, 1, (2, 100))).value for _ in range(100)]
    assert np.mean(found) == pytest.approx(0, abs=0.03)
    assert advantage(np.arange(10) + 100.0, np.arange(10.0)).value == 1


def test_those_caught_are_above_all_but_one_in_a_hundred():
    others = np.arange(1_000.0)
    members = np.where(np.arange(1_000) < 250, 989.5, 988.5)
    assert caught(members, others).value == 0.25
    assert caught(members, others).low <= 0.25 <= caught(members, others).high


def test_a_line_through_what_is_known_is_taken_out():
    known = np.array([[0.0, 1, 2], [1, 2, 5]])
    assert unexplained(3 * known - 7, known) == pytest.approx(np.zeros((2, 3)))
    assert unexplained(known, np.ones((2, 3))) == pytest.approx(known - known.mean())


def test_the_first_item_of_a_purchase_is_asked_given_what_came_before_it():
    rows = [[1, 2, 3, 4, 5, 6], [4, 3, 6], [3, 9, 7, 5], [1, 8, 5]]
    times = [[0, 1, 5, 5, 10, 10], [0, 1, 12], [0, 2, 2, 11], [0, 1, 13]]
    suspects = Suspects.of(dataset(rows, times, cut=10, items=9, repeats="exclude"))
    # User 0: item 3 opens the last purchase of the training; of the first one after it nobody else had item 5, nor 6.
    # User 1: 6 is new. User 2: nobody else has 9 or 7. User 3: nobody else has 8.
    assert len(suspects.members) == 0
    rows[3] = [5, 6, 3]
    suspects = Suspects.of(dataset(rows, times, cut=10, items=9, repeats="exclude"))
    assert suspects.members.users.tolist() == [0, 1]
    assert [case.tolist() for case in suspects.members.histories] == [[1, 2], [4]]
    assert [case.tolist() for case in suspects.members.targets] == [[3], [3]]
    assert [case.tolist() for case in suspects.others.histories] == [[1, 2, 3, 4], [4, 3]]
    assert [case.tolist() for case in suspects.others.targets] == [[5], [6]]
    # Others who have it: item 3 two, of its three; 5 and 6 one each.
    assert suspects.popularity() == pytest.approx(np.log([[3, 3], [2, 2]]))


def test_the_control_counts_the_other_users_alone():
    rows = [[1, 2, 3], [1, 2, 3], [1, 3, 2], [2, 3, 1]]
    suspects = Suspects.of(dataset(rows, [[0, 1, 9]] * 4, cut=5, items=3))
    # User 0 learnt 1 then 2: of the others user 1 has both; 2 is had by users 1 and 3, and 1 by three in all.
    assert np.exp(suspects.by_neighbours[0, 0]) == pytest.approx(1 + 100 * 1 / np.sqrt(3 * 2))
    # What came after was never learnt: 3 is had by users 2 and 3, with 1 by one of them, with 2 by the other.
    assert np.exp(suspects.by_neighbours[1, 0]) == pytest.approx(1 + 100 * 1 / np.sqrt(3 * 2))


def test_a_model_of_an_earlier_night_is_asked_about_what_it_learnt_then():
    rows = np.random.default_rng(0).integers(1, 4, (30, 6)).tolist()
    tonight = dataset(rows, [list(range(6))] * 30, cut=5, items=3)
    earlier = Suspects.of(tonight, learnt_until=3)
    assert all(len(case) == 2 for case in earlier.members.histories)
    assert all(len(case) == 3 for case in earlier.others.histories)
    assert earlier.counts.sum() == 90
    later = Suspects.of(tonight, learnt_until=99)
    assert all(len(case) == 4 for case in later.members.histories)


def test_few_users_say_nothing_and_some_say_nothing_of_one_in_a_hundred():
    few, many = (shop(2, EVEN, EVEN, users) for users in (LEAST_USERS - 1, LEAST_USERS + 20))
    model = Table(np.zeros(ITEMS))
    assert attack(model, Suspects.of(few)) is None
    assert LEAST_USERS <= attack(model, Suspects.of(many)).users < LEAST_ALARMED
    assert attack(model, Suspects.of(many)).caught is None
    assert attack(Table(np.full(ITEMS, np.nan)), Suspects.of(many)) is None


def test_what_was_found_is_kept_as_json():
    found = Membership(700, Interval(0.6, 0.55, 0.65), Interval(0.2, 0.1, 0.3), None, Interval(0.5, 0.4, 0.6))
    for one in (found, replace(found, caught=Interval(0.02, 0.01, 0.03))):
        assert Membership.from_json(json.loads(json.dumps(one.as_json()))) == one
