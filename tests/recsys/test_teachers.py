"""A teacher blended with neighbours: the weight by validation, the same scores in evaluation, labels and after a load."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from recsys import blending
from recsys.config import BlendConfig, LabelsConfig
from recsys.decoder import DecoderShape
from recsys.histories import Cases, Histories
from recsys.neighbourhood import Neighbourhood, Opinion
from recsys.sequence_model import Scorer, ndcg_of
from recsys.soft_labels import LABELS, Labelling, Positions, write_segment
from recsys.teacher import Teacher
from recsys.teachers import BlendedTeacher, load_teacher
from recsys.training import seeded

ITEMS, GROUPS, LENGTH = 24, 6, 8


def _shop(users: int = 120, length: int = 5) -> tuple[Histories, Cases]:
    """A user buys within one group of four items; the last two events are held out, the first of them to validate on."""
    rng = np.random.default_rng(0)
    each = ITEMS // GROUPS
    rows = [
        np.append(rng.permutation(each), rng.integers(each)) + rng.integers(GROUPS) * each + 1 for _ in range(users)
    ]
    histories = Histories(
        tokens=np.array([f"{user:032x}" for user in range(users)], "S32"),
        offsets=np.arange(users + 1, dtype=np.int64) * length,
        items=np.concatenate(rows).astype(np.int32),
        times=np.tile(np.arange(length, dtype=np.int64), users),
        weights=np.ones(users * length, np.float32),
        train_end=np.full(users, length - 2, np.int32),
        valid_end=np.full(users, length - 1, np.int32),
    )
    seen = [histories.until(user, length - 2) for user in range(users)]
    targets = [histories.until(user, length - 1)[-1:] for user in range(users)]
    return histories, Cases(np.arange(users), seen, targets, exclude_seen=True)


def _untaught() -> Teacher:
    with seeded(torch.device("cpu"), 0):
        return Teacher(DecoderShape.of(ITEMS, 16, 1, LENGTH), None, dropout=0.1).eval()


def test_neighbours_that_know_more_get_a_share():
    histories, cases = _shop()
    teacher = BlendedTeacher.of(_untaught(), histories, cases, BlendConfig())
    alone = ndcg_of(Scorer(teacher.model, LENGTH, "alone"), cases)
    assert teacher.weight in blending.WEIGHTS
    assert ndcg_of(teacher.scorer("blend"), cases).mean() > 2 * alone.mean()


def test_neighbours_that_know_nothing_get_none_and_the_files_are_those_of_the_model(tmp_path):
    """One user is no evidence."""
    histories, cases = _shop(users=1)
    teacher = BlendedTeacher.of(_untaught(), histories, cases, BlendConfig())
    assert teacher.weight == 0
    teacher.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["teacher.json", "teacher.safetensors"]


def test_zero_neighbours_are_no_blend():
    histories, cases = _shop()
    assert BlendedTeacher.of(_untaught(), histories, cases, BlendConfig(neighbours=0)).opinion is None


def test_the_weights_are_compared_by_what_is_served_and_blocks_do_not_matter(monkeypatch):
    histories, cases = _shop()
    model = _untaught()
    neighbours = Neighbourhood.of_training(histories, ITEMS, keep=3, newest=50)
    monkeypatch.setattr(blending, "NDCG_BLOCK", 7)
    alone, *blended = blending.ndcg_by_weight(model, neighbours, cases)
    assert np.array_equal(alone, ndcg_of(Scorer(model, LENGTH, "alone"), cases))
    for weight, values in zip(blending.WEIGHTS, blended, strict=True):
        assert values == pytest.approx(ndcg_of(BlendedTeacher(model, Opinion(neighbours, weight)).scorer("b"), cases))


def test_saved_and_loaded_it_scores_the_same_to_the_bit(tmp_path):
    histories, cases = _shop()
    teacher = BlendedTeacher.of(_untaught(), histories, cases, BlendConfig())
    teacher.save(tmp_path)
    loaded = load_teacher(tmp_path)
    assert loaded.weight == teacher.weight > 0
    assert np.array_equal(teacher.scorer("a").scores(cases.histories), loaded.scorer("b").scores(cases.histories))


def test_a_label_is_what_the_blend_says_of_what_the_position_sees(tmp_path):
    """In one window and over several, where a position sees less than the whole history."""
    rng = np.random.default_rng(1)
    histories, cases = _shop()
    teacher = BlendedTeacher.of(_untaught(), histories, cases, BlendConfig(newest=5))
    long = rng.integers(1, ITEMS + 1, 21).astype(np.int32)
    one = Histories(
        tokens=np.array([b"0"]), offsets=np.array([0, 21]), items=long, times=np.arange(21),
        weights=np.ones(21, np.float32), train_end=np.array([21], np.int32), valid_end=np.array([21], np.int32),
    )  # fmt: skip
    positions = Positions.of(one, LENGTH)
    labelling = Labelling.of("blend", ITEMS, [str(code) for code in range(ITEMS)], LabelsConfig(top_k=4))
    write_segment(teacher.model, labelling, positions, [], tmp_path, opinion=teacher.opinion)
    rows = pq.read_table(tmp_path / LABELS).to_pylist()
    start = dict(
        zip(
            positions.at.tolist(),
            np.repeat(positions.windows.start, positions.windows.stop - positions.windows.own).tolist(),
            strict=True,
        )
    )
    scorer = teacher.scorer("blend")
    assert len(rows) == 20
    for at, row in zip(positions.at, rows, strict=True):
        scores = torch.from_numpy(scorer.scores([long[start[int(at)] : at + 1]])[0])
        logp, best = torch.log_softmax(scores, 0).sort(descending=True, stable=True)
        assert row["items"] == (best[:4] + 1).tolist()
        assert row["lse"] == pytest.approx(float(torch.logsumexp(scores, 0)), rel=1e-5)
        assert row["logp"] == pytest.approx(logp[:4].tolist(), abs=5e-3)


@pytest.mark.parametrize(
    ("held", "taken"),
    [
        (None, 0.4),  # the best mean, be it of two users
        (0.3, 0.3),  # not proven worse than the lucky one
        (0.0, 0.0),  # nor is this
        (0.2, 0.5),  # proven worse than a weight that is
        (0.9, 0.4),  # no weight that is tried any more
    ],
)
def test_the_best_weight_is_taken_unless_the_one_held_is_not_proven_worse(monkeypatch, held, taken):
    histories, cases = _shop(users=100)
    lucky, sure = np.r_[1.0, 1.0, np.zeros(98)], np.full(100, 0.01)
    found = {0.0: np.zeros(100), 0.2: -sure, 0.3: sure, 0.4: lucky}
    if held == 0.2:
        found[0.5] = lucky + 2 * sure
    nothing = np.full(100, -0.1)
    monkeypatch.setattr(
        blending, "ndcg_by_weight", lambda *_: [found.get(weight, nothing) for weight in (0.0, *blending.WEIGHTS)]
    )
    neighbours = Neighbourhood.of_training(histories, ITEMS, keep=3, newest=50)
    opinion = blending.opinion_for(_untaught(), neighbours, cases, held)
    assert (opinion.weight if opinion else 0.0) == taken
