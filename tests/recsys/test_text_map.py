"""What a text says of a row: the map against a naive one, its norm, who is filled, and that a cold item is ranked by it."""

import numpy as np
import pytest
import torch

from recsys.decoder import DecoderShape
from recsys.errors import StoreError
from recsys.student import Student, grow
from recsys.teacher import Teacher
from recsys.text_map import FILE, STRENGTHS, TRUSTED_EVENTS, TextMap
from recsys.training import seeded
from recsys.unseen_items import fill_unseen

ITEMS, TEXT, WIDTH = 60, 12, 8
RNG = np.random.default_rng(0)
TEXTS = RNG.normal(size=(ITEMS, TEXT)).astype(np.float32)
TRUTH = RNG.normal(size=(TEXT, WIDTH)).astype(np.float32)
TABLE = (TEXTS @ TRUTH + 0.5).astype(np.float32)
READER = {"encoder": "minilm", "sha256": "ab"}
COUNTS = np.arange(ITEMS) % 7  # every seventh item was never sold


def test_a_linear_truth_is_found_up_to_the_norm():
    found = TextMap.of(TABLE, TEXTS, COUNTS, READER)
    rows = found.rows(TEXTS)
    cosine = (rows * TABLE).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(TABLE, axis=1)
    assert cosine.min() > 0.999
    trained = np.linalg.norm(TABLE[COUNTS > 0], axis=1)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.full(ITEMS, np.median(trained)), rel=1e-5)


@pytest.mark.parametrize("rows", [7, 65_536])
def test_it_is_the_ridge_regression_with_the_least_cross_validation_error(monkeypatch, rows):
    """Against leave-one-out by brute force: generalized cross-validation chooses the same penalty here."""
    monkeypatch.setattr("recsys.text_map._ROWS", rows)
    noisy = TABLE + np.random.default_rng(1).normal(size=TABLE.shape).astype(np.float32) * 2
    told = np.flatnonzero(COUNTS > 0)
    trust = np.sqrt(COUNTS[told] / (COUNTS[told] + TRUSTED_EVENTS))[:, None]
    means = [(trust**2 * values[told]).sum(0) / (trust**2).sum() for values in (TEXTS, noisy)]
    x, y = trust * (TEXTS[told] - means[0]), trust * (noisy[told] - means[1])
    largest = np.linalg.eigvalsh(x.T @ x)[-1]

    def solved(rows: np.ndarray, strength: float) -> np.ndarray:
        return np.linalg.solve(x[rows].T @ x[rows] + strength * largest * np.eye(TEXT), x[rows].T @ y[rows])

    every = np.arange(len(told))
    errors = [
        sum(((y[row] - x[row] @ solved(np.delete(every, row), strength)) ** 2).sum() for row in every)
        for strength in STRENGTHS
    ]
    expected = solved(every, STRENGTHS[int(np.argmin(errors))])
    assert TextMap.of(noisy, TEXTS, COUNTS, READER).matrix == pytest.approx(expected, abs=1e-4)


def test_without_texts_there_is_no_map_and_a_missing_text_is_a_row_of_zeros(tmp_path):
    assert TextMap.of(TABLE, np.zeros_like(TEXTS), COUNTS, READER) is None
    assert TextMap.of(TABLE, TEXTS, np.zeros(ITEMS, int), READER) is None
    found = TextMap.of(TABLE, TEXTS, COUNTS, READER)
    assert not found.rows(np.zeros((2, TEXT), np.float32)).any()
    assert TextMap.load(tmp_path) is None
    found.save(tmp_path)
    for number in range(20):  # safetensors has its notes in a hash map
        (tmp_path / str(number)).mkdir()
        TextMap.of(TABLE, TEXTS, COUNTS, dict(reversed(READER.items()))).save(tmp_path / str(number))
        assert (tmp_path / str(number) / FILE).read_bytes() == (tmp_path / FILE).read_bytes()
    loaded = TextMap.load(tmp_path)
    assert loaded.reader == READER
    assert np.array_equal(loaded.rows(TEXTS), found.rows(TEXTS))
    (tmp_path / FILE).write_bytes(b"no")
    with pytest.raises(StoreError, match="a text map cannot be read"):
        TextMap.load(tmp_path)


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_only_unsold_items_with_a_text_change_and_they_score_by_it(kind):
    shape = DecoderShape.of(ITEMS, WIDTH, 1, 5)
    with seeded(torch.device("cpu"), 0):
        model = Student(shape, 0.0) if kind == "student" else Teacher(shape, TEXTS, 0.0)
    with torch.no_grad():
        own = TABLE if kind == "student" else TABLE - TEXTS @ model.text.projection.weight.numpy().T
        model.table.weight[1:] = torch.from_numpy(own)
        model.table.weight[1:][COUNTS == 0] = 7  # noise
    before = model.item_table().detach().numpy().copy()
    texts = TEXTS.copy()
    texts[7] = 0  # never sold, and without a text
    found = fill_unseen(model, texts, COUNTS, READER)
    after = model.item_table().detach().numpy()
    filled = [item for item in range(ITEMS) if COUNTS[item] == 0 and item != 7]
    kept = np.setdiff1d(np.arange(ITEMS), filled)
    assert np.array_equal(after[1:][kept], before[1:][kept])
    assert after[1:][filled] == pytest.approx(found.rows(texts[filled]), abs=1e-5)
    nearest = (after[1:][filled] @ TABLE[COUNTS > 0].T).argmax(1)
    assert np.array_equal(nearest, (TABLE[filled] @ TABLE[COUNTS > 0].T).argmax(1))


def test_a_student_grows_by_the_text_of_new_items_and_the_old_score_as_before():
    student = Student.untrained(DecoderShape.of(40, WIDTH, 1, 5), 0.0, seed=0)
    found = TextMap.of(student.item_table().detach().numpy()[1:], TEXTS[:40], np.ones(40), READER)
    grown = grow(student, ITEMS, rows=torch.from_numpy(found.rows(TEXTS[40:])))
    history = torch.tensor([[3, 9, 12]])
    with torch.inference_mode():
        old, new = (m.states(history, m.item_table())[0, -1] @ m.item_table()[1:].T for m in (student, grown))
    assert torch.equal(old, new[:40])
    assert grown.item_table()[41:].detach().numpy() == pytest.approx(found.rows(TEXTS[40:]))
