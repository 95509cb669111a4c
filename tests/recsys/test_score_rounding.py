"""An item table in four bits whose scores stay near: against plain rounding, the best there is, and what a file holds."""

from itertools import product

import numpy as np
import pytest
import torch

from recsys.histories import Histories
from recsys.quantize import RowTable
from recsys.score_rounding import INPUT_SHARE, nearest_in_scores, score_rounded, second_moment
from recsys.student import Student
from tests.recsys.test_compress import LENGTH, shop, trained

ROWS = np.random.default_rng(0).normal(size=(300, 16)) * np.geomspace(1e-3, 1e3, 300)[:, None]
DIRECTIONS = np.random.default_rng(1).normal(size=(16, 16)) * np.geomspace(3, 0.1, 16)
MOMENT = DIRECTIONS @ DIRECTIONS.T


def cost(found: np.ndarray, rows: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """(N,) what the rows are off by, in scores and, in its share, as input."""
    width = rows.shape[1]
    off = found - rows
    return np.einsum("nd,de,ne->n", off, moment + INPUT_SHARE * np.trace(moment) / width * np.eye(width), off)


def plain(rows: np.ndarray) -> np.ndarray:
    return RowTable.of(rows.astype(np.float32), 4).dequantized().astype(np.float64)


@pytest.fixture(scope="module")
def student() -> Student:
    return trained(6, blocks=1)


def test_scores_are_nearer_than_by_plain_rounding_and_the_rows_hardly_further() -> None:
    found, before = nearest_in_scores(ROWS, MOMENT).astype(np.float64), plain(ROWS)
    size = np.linalg.norm(ROWS, axis=1) ** 2
    assert np.mean(cost(found, ROWS, MOMENT) / size) < 0.8 * np.mean(cost(before, ROWS, MOMENT) / size)
    further = [np.mean(((each - ROWS) ** 2).sum(1) / size) for each in (found, before)]
    assert further[0] < 1.5 * further[1]


def test_where_all_directions_count_alike_it_is_plain_rounding() -> None:
    np.testing.assert_allclose(nearest_in_scores(ROWS, np.eye(16)), plain(ROWS), rtol=1e-6)


def test_it_is_near_the_best_there_is() -> None:
    """Of three columns all the 15 x 15 whole numbers can be tried beside a largest one of 7, with each scale."""
    rows = np.random.default_rng(2).normal(size=(40, 3))
    moment = np.array([[2.0, 1.5, 0.3], [1.5, 2.0, -0.4], [0.3, -0.4, 0.5]])
    found, best = cost(nearest_in_scores(rows, moment).astype(np.float64), rows, moment), np.full(40, np.inf)
    numbers = np.array(list(product(range(-7, 8), repeat=3)), np.float64)
    for at, row in enumerate(rows):
        for clip in np.arange(0.6, 1.001, 0.05):
            every = numbers * torch.tensor(clip * np.abs(row).max() / 7).bfloat16().item()
            best[at] = min(best[at], cost(every, np.broadcast_to(row, every.shape), moment).min())
    assert (found >= best * (1 - 1e-4)).all()
    assert found.mean() < 0.5 * (best.mean() + cost(plain(rows), rows, moment).mean())


def test_a_file_holds_it_as_it_is_and_rounding_it_again_changes_nothing(student: Student) -> None:
    histories, _ = shop()
    once = score_rounded(student, histories, 4)
    table = once.table.weight.detach().numpy()
    np.testing.assert_allclose(RowTable.of(table, 4).dequantized(), table, rtol=1e-6)
    assert not table[0].any(), "the padding stays zero"
    np.testing.assert_allclose(score_rounded(once, histories, 4).table.weight.detach().numpy(), table, rtol=1e-6)


def test_the_student_it_is_made_from_stays_and_shares_its_other_weights(student: Student) -> None:
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    made = score_rounded(student, shop()[0], 4)
    assert all(torch.equal(weight, before[name]) for name, weight in student.state_dict().items())
    others = dict(made.named_parameters())
    assert all(others[name] is weight for name, weight in student.named_parameters() if name != "table.weight")
    assert not torch.equal(made.table.weight, student.table.weight)
    for bits in (8, 32):
        assert score_rounded(student, shop()[0], bits) is student


def test_the_moment_is_that_of_the_states_after_every_training_event(student: Student) -> None:
    histories, _ = shop()
    expected, seen = np.zeros((16, 16)), 0
    with torch.inference_mode():
        for user in range(histories.users):
            read = histories.until(user, histories.train_end[user])[-LENGTH:]
            states = student.states(torch.from_numpy(read)[None], student.item_table())[0].double().numpy()
            expected += states.T @ states
            seen += len(states)
    np.testing.assert_allclose(second_moment(student, histories), expected / seen, rtol=1e-4, atol=1e-6)


def test_without_training_events_it_is_plain_rounding(student: Student) -> None:
    histories, _ = shop()
    none = Histories(**{**vars(histories), "train_end": np.zeros_like(histories.train_end)})
    assert not second_moment(student, none).any()
    table = student.table.weight.detach().numpy()
    found = score_rounded(student, none, 4).table.weight.detach().numpy()
    np.testing.assert_allclose(found, RowTable.of(table, 4).dequantized(), rtol=1e-6)
