"""The small teacher: text in the item table, folding, saving, training."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from recsys.config import TeacherConfig
from recsys.decoder import DecoderShape
from recsys.errors import StoreError
from recsys.histories import Cases, Histories
from recsys.teacher import Teacher, TextTable, fit_teacher
from recsys.teachers import load_teacher
from recsys.training import Scorer, seeded

ITEMS, GROUPS = 24, 6


def _shop(users: int = 80, length: int = 7, seed: int = 0) -> tuple[Histories, Cases]:
    """Users walk from group to group in a ring, any item of the group: only the group can be foreseen."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(users):
        start = rng.integers(GROUPS)
        groups = (start + np.arange(length)) % GROUPS
        rows.append(groups * (ITEMS // GROUPS) + rng.integers(ITEMS // GROUPS, size=length) + 1)
    items = np.concatenate(rows).astype(np.int32)
    ends = np.full(users, length - 1, np.int32)
    histories = Histories(
        tokens=np.array([f"{user:032x}" for user in range(users)], "S32"),
        offsets=np.arange(users + 1, dtype=np.int64) * length,
        items=items,
        times=np.tile(np.arange(length, dtype=np.int64), users),
        weights=np.ones(users * length, np.float32),
        train_end=ends,
        valid_end=ends + 1,
    )
    seen = [histories.until(user, length - 1) for user in range(users)]
    targets = [histories.until(user, length)[-1:] for user in range(users)]
    return histories, Cases(np.arange(users), seen, targets, exclude_seen=False)


def _group_vectors() -> np.ndarray:
    """Text that tells the group of an item and nothing else."""
    vectors = np.repeat(np.eye(GROUPS), ITEMS // GROUPS, axis=0)
    return ((vectors - vectors.mean(0)) / vectors.std(0)).astype(np.float32)


def _teacher(vectors: np.ndarray | None) -> Teacher:
    with seeded(torch.device("cpu"), 0):
        return Teacher(DecoderShape.of(ITEMS, 16, 1, 6), vectors, dropout=0.1).eval()


CONFIG = TeacherConfig(width=16, blocks=1, dropout=0.1, epochs=3, learning_rate=1e-2)


def test_the_item_vector_is_id_plus_projected_text_and_the_padding_stays_zero():
    table = TextTable(np.array([[1.0, 2.0], [0.0, 0.0]], np.float32), width=8)
    ids = torch.arange(24.0).view(3, 8)
    found = table(ids)
    weight = table.projection.weight
    torch.testing.assert_close(found[1], ids[1] + weight[:, 0] + 2 * weight[:, 1])
    assert torch.equal(found[0], ids[0])
    assert torch.equal(found[2], ids[2])  # no text, no change


def test_text_starts_with_the_spread_of_the_ids():
    vectors = np.random.default_rng(0).standard_normal((2_000, 32)).astype(np.float32)
    added = TextTable(vectors, width=64)(torch.zeros(2_001, 64))[1:]
    assert added.std().item() == pytest.approx(64**-0.5, rel=0.1)


def test_the_folded_decoder_scores_alike():
    teacher = _teacher(_group_vectors())
    histories = [np.array([3, 9, 1], np.int32), np.array([24], np.int32)]
    assert np.array_equal(
        Scorer(teacher, 6, "teacher").scores(histories), Scorer(teacher.folded(), 6, "folded").scores(histories)
    )


@pytest.mark.parametrize("vectors", [None, _group_vectors()], ids=["ids", "text"])
def test_saved_and_loaded_it_scores_the_same_to_the_bit(tmp_path, vectors):
    teacher = _teacher(vectors)
    teacher.save(tmp_path)
    loaded = load_teacher(tmp_path)
    histories = [np.array([3, 9, 1], np.int32), np.array([24], np.int32)]
    assert isinstance(loaded.model, Teacher)
    assert loaded.opinion is None
    assert (loaded.items, loaded.length) == (ITEMS, 6)
    assert np.array_equal(Scorer(teacher, 6, "saved").scores(histories), loaded.scorer("loaded").scores(histories))


def test_it_is_kept_as_data_alone(tmp_path):
    _teacher(_group_vectors()).save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["teacher.json", "teacher.safetensors"]
    assert json.loads((tmp_path / "teacher.json").read_text())["kind"] == "decoder"
    with safe_open(tmp_path / "teacher.safetensors", "pt") as opened:
        assert opened.metadata() is None  # the bytes of a header with metadata differ from run to run
        assert opened.get_slice("table.weight").get_shape() == [ITEMS + 1, 16]


def test_a_folder_without_a_known_teacher_is_refused(tmp_path):
    with pytest.raises(StoreError, match="a teacher cannot be read"):
        load_teacher(tmp_path)
    (tmp_path / "teacher.json").write_text('{"kind": "oracle"}')
    with pytest.raises(StoreError, match="kind 'oracle' is not known"):
        load_teacher(tmp_path)


def test_a_damaged_teacher_is_refused(tmp_path):
    _teacher(None).save(tmp_path)
    weights = (tmp_path / "teacher.safetensors").read_bytes()
    (tmp_path / "teacher.safetensors").write_bytes(weights[:-8])
    with pytest.raises(StoreError, match="a teacher cannot be read"):
        load_teacher(tmp_path)


def test_training_is_the_same_to_the_byte_each_time(tmp_path):
    histories, cases = _shop()
    for name, config in (("a", CONFIG), ("b", CONFIG), ("c", CONFIG.model_copy(update={"seed": 1}))):
        teacher, _ = fit_teacher(histories, cases, ITEMS, _group_vectors(), config, length=6)
        (tmp_path / name).mkdir()
        teacher.save(tmp_path / name)
    a, b, c = ((tmp_path / name / "teacher.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_text_teaches_what_ids_alone_have_not_yet_learnt():
    histories, cases = _shop()
    config, heard = CONFIG.model_copy(update={"epochs": 4}), []
    _, told = fit_teacher(histories, cases, ITEMS, _group_vectors(), config, length=6, on_epoch=heard.append)
    _, untold = fit_teacher(histories, cases, ITEMS, None, config, length=6)
    assert heard == told
    assert told[-1].loss < told[0].loss
    assert told[-1].loss < untold[-1].loss - 0.3
    assert max(e.validation_ndcg for e in told) > 1.05 * max(e.validation_ndcg for e in untold)
