"""Teachers side by side: the mean of their logits, kept as data, trained one after another and resumed."""

import json

import numpy as np
import pytest
import torch

from recsys.config import BlendConfig, TeacherConfig
from recsys.ensemble import Ensemble, fit_ensemble, member_config
from recsys.errors import StoreError
from recsys.sequence_model import Scorer, ndcg_of
from recsys.teacher import Teacher, fit_teacher
from recsys.teachers import BlendedTeacher, load_teacher
from recsys.unseen_items import fill_unseen
from tests.recsys.test_teacher import ITEMS, _group_vectors, _shop

CONFIG = TeacherConfig(width=16, blocks=1, dropout=0.1, epochs=2, learning_rate=1e-2, members=3)
HISTORIES = [np.array([3, 9, 1], np.int32), np.array([24], np.int32)]


class Killed(Exception):  # noqa: N818  no error
    """As by SIGKILL, but for the test."""


def _fit(place, **named):
    histories, cases = _shop()
    return fit_ensemble(
        histories, cases, ITEMS, _group_vectors(), CONFIG, length=6, checkpoint=place / "teacher", **named
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return _fit(tmp_path_factory.mktemp("scratch"))


def _scores(model) -> np.ndarray:
    return Scorer(model, 6, "scored").scores(HISTORIES)


def test_it_scores_the_mean_of_its_members(trained):
    model, curve = trained
    assert [epoch.number for epoch in curve] == [1, 2, 3, 4, 5, 6]
    assert [len(member.shape.heads) for member in model.teachers] == [1, 2, 1]
    each = [_scores(member) for member in model.teachers]
    assert _scores(model) == pytest.approx(np.mean(each, axis=0), abs=1e-4)
    assert not np.allclose(each[0], each[2])


def test_a_member_is_the_teacher_of_its_own_configuration(trained):
    histories, cases = _shop()
    alone, epochs = fit_teacher(histories, cases, ITEMS, _group_vectors(), member_config(CONFIG, 1), length=6)
    assert np.array_equal(_scores(alone), _scores(trained[0].teachers[1]))
    assert [epoch.loss for epoch in epochs] == [epoch.loss for epoch in trained[1][2:4]]


def test_killed_in_the_second_member_it_goes_on_to_the_same_bits(trained, tmp_path):
    heard = []

    def dies(epoch):
        heard.append(epoch.number)
        if epoch.number == 3:
            raise Killed

    with pytest.raises(Killed):
        _fit(tmp_path, on_epoch=dies)
    heard.clear()
    model, curve = _fit(tmp_path, on_epoch=lambda epoch: heard.append(epoch.number))
    assert heard == [1, 2, 3, 4, 5, 6]
    assert [epoch.validation_ndcg for epoch in curve] == [epoch.validation_ndcg for epoch in trained[1]]
    assert np.array_equal(_scores(model), _scores(trained[0]))


def test_when_time_is_up_the_members_there_are_are_the_teacher(tmp_path):
    seen = []
    model, curve = _fit(tmp_path, on_epoch=seen.append, enough=lambda: len(seen) >= 2)
    assert isinstance(model, Teacher)
    assert len(curve) == 2


def test_kept_as_data_it_scores_the_same_to_the_bit_and_is_blended_as_one(trained, tmp_path):
    histories, cases = _shop()
    teacher = BlendedTeacher.of(trained[0], histories, cases, BlendConfig(newest=3))
    teacher.save(tmp_path)
    loaded = load_teacher(tmp_path)
    assert isinstance(loaded.model, Ensemble)
    assert (loaded.items, loaded.length, loaded.weight) == (ITEMS, 6, teacher.weight)
    assert np.array_equal(teacher.scorer("a").scores(HISTORIES), loaded.scorer("b").scores(HISTORIES))
    assert ndcg_of(teacher.scorer("a"), cases).mean() >= ndcg_of(Scorer(trained[0], 6, "a"), cases).mean()
    (tmp_path / "teacher.json").write_text(json.dumps({"kind": "ensemble", "shapes": [{}]}))
    with pytest.raises(StoreError, match="a teacher cannot be read"):
        load_teacher(tmp_path)


def test_an_item_nobody_bought_gets_a_row_in_every_member(trained, tmp_path):
    trained[0].save(tmp_path)
    model = Ensemble.load(tmp_path)
    counts = np.ones(ITEMS, int)
    counts[5] = 0
    before = model.item_table().detach().clone()
    for member in model.teachers:
        fill_unseen(member, _group_vectors(), counts, {})
    changed = (model.item_table() != before).reshape(ITEMS + 1, 3, 16).any(2)
    assert torch.equal(changed.all(1), torch.arange(ITEMS + 1) == 6)
