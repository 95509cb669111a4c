"""The student: read back as it was written, grown without touching what it knew."""

import json

import numpy as np
import pytest
import torch

from recsys.decoder import DecoderShape, Dropout
from recsys.errors import StoreError
from recsys.sequence_model import Scorer
from recsys.student import CARD, WEIGHTS, Student, grow

HISTORIES = [np.array([1, 2, 3], np.int32), np.array([9], np.int32), np.arange(1, 10, dtype=np.int32)]


@pytest.fixture
def student() -> Student:
    return Student.untrained(DecoderShape.of(300, 16, 1, 6), 0.2, seed=1)


def scores(student: Student) -> np.ndarray:
    return Scorer(student, student.length, "student").scores(HISTORIES)


def test_initial_weights_follow_from_the_seed_alone_and_leave_the_generator(student):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    again = Student.untrained(student.shape, 0.2, seed=1)
    assert torch.rand(1) == expected
    assert torch.equal(again.table.weight, student.table.weight)
    assert not torch.equal(Student.untrained(student.shape, 0.2, seed=2).table.weight, student.table.weight)


def test_it_is_read_back_as_it_was_written(tmp_path, student):
    student.save(tmp_path / "a")
    loaded = Student.load(tmp_path / "a")
    assert (loaded.shape, loaded.dropout.share, loaded.training) == (student.shape, 0.2, False)
    np.testing.assert_array_equal(scores(loaded), scores(student))
    loaded.save(tmp_path / "b")
    for name in (WEIGHTS, CARD):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [CARD, WEIGHTS]


def test_who_trains_it_further_goes_on_with_its_dropout(tmp_path, student):
    other = Student.untrained(student.shape, 0.05, seed=1)
    other.save(tmp_path)
    shares = {module.share for module in grow(Student.load(tmp_path), 317).modules() if isinstance(module, Dropout)}
    assert shares == {0.05}
    card = json.loads((tmp_path / CARD).read_text())
    del card["dropout"]
    (tmp_path / CARD).write_text(json.dumps(card))
    assert Student.load(tmp_path).dropout.share == 0.2, "of before it was kept: all had the default"


@pytest.mark.parametrize("name", [WEIGHTS, CARD])
def test_a_damaged_or_absent_file_is_a_store_error(tmp_path, student, name):
    student.save(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20])
    with pytest.raises(StoreError, match="a student cannot be read"):
        Student.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(StoreError, match="a student cannot be read"):
        Student.load(tmp_path)


def test_weights_of_another_shape_are_a_store_error(tmp_path, student):
    student.save(tmp_path)
    card = (tmp_path / CARD).read_text()
    (tmp_path / CARD).write_text(card.replace("300", "301"))
    with pytest.raises(StoreError, match="a student cannot be read"):
        Student.load(tmp_path)


def test_growing_leaves_what_it_knew_to_the_bit(student):
    before = scores(student)
    grown = grow(student, 317)
    assert grown.shape.items == 317
    assert torch.equal(grown.table.weight[:301], student.table.weight)
    assert grown.table.weight[301:].abs().max() == 0
    after = scores(grown)
    np.testing.assert_array_equal(after[:, :300], before)
    np.testing.assert_array_equal(after[:, 300:], 0)


def test_growing_copies(student):
    grown = grow(student, 300)
    with torch.no_grad():
        grown.table.weight[1] = 7
        grown.norm.bias[0] = 7
    assert student.table.weight[1, 0] != 7
    assert student.norm.bias[0] != 7
