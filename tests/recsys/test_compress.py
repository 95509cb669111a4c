"""Pruning, recovery and the choice among exported points, each judged by the runtime."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.compress import Compression, Point, Recovery, choice, compress, explained
from recsys.config import CompressConfig
from recsys.decoder import DecoderShape
from recsys.errors import TrainingError
from recsys.export import Publication
from recsys.histories import Cases, Catalog, Histories
from recsys.neighbourhood import Neighbourhood, Opinion
from recsys.prune import importance, pruned
from recsys.runtime import Runtime
from recsys.sequence_model import Scorer, ndcg_of, ranking_validator
from recsys.statistics import Interval
from recsys.student import Student
from recsys.training import Batch, HardLabels, Schedule, fit

ITEMS, LENGTH, USERS = 24, 12, 120


def shop(seed: int = 0) -> tuple[Histories, Cases]:
    """Every user walks through the catalog in steps of one or two: the next item is easy to learn."""
    rng = np.random.default_rng(seed)
    walks = [np.cumsum(np.r_[rng.integers(0, ITEMS), rng.integers(1, 3, 9)]) % ITEMS + 1 for _ in range(USERS)]
    items = np.concatenate(walks).astype(np.int32)
    ends = np.full(USERS, 9, np.int32)
    histories = Histories(
        tokens=np.array([f"{user:032x}" for user in range(USERS)], "S32"),
        offsets=np.arange(USERS + 1, dtype=np.int64) * 10,
        items=items,
        times=np.arange(len(items), dtype=np.int64),
        weights=np.ones(len(items), np.float32),
        train_end=ends,
        valid_end=ends,
    )
    cases = Cases(
        users=np.arange(USERS),
        histories=[histories.until(user, 9) for user in range(USERS)],
        targets=[walk[9:].astype(np.int32) for walk in walks],
        exclude_seen=False,
    )
    return histories, cases


def trained(epochs: int, blocks: int = 2) -> Student:
    histories, cases = shop()
    student = Student.untrained(DecoderShape.of(ITEMS, 16, blocks, LENGTH), 0.1, seed=0)
    fit(student, histories, LENGTH, Schedule(epochs, 1e-2, 0, 512), HardLabels(), ranking_validator(student, cases))
    return student


@pytest.fixture(scope="module")
def student() -> Student:
    return trained(6)


def publication() -> Publication:
    nothing: list[str | None] = [None] * ITEMS
    catalog = Catalog([str(code) for code in range(ITEMS)], nothing, nothing, nothing)
    return Publication(catalog, shop()[0].training_counts(ITEMS), "allow", {"student": "ab" * 32})


def recovery(learning_rate: float = 1e-2) -> Recovery:
    histories, cases = shop()
    return Recovery(histories, HardLabels(), learning_rate, cases, seed=0)


def masked(student: Student, scores: list[Tensor], keep: float) -> Student:
    """The student with the units that go multiplied by zero instead of taken out."""
    other = Student(student.shape, 0.0)
    other.load_state_dict(student.state_dict())
    for block, score in zip(other.blocks, scores, strict=True):
        gone = torch.argsort(score, stable=True)[: len(score) - int(keep * len(score))]
        block.down.weight.data[:, gone] = 0
    return other.eval()


@pytest.mark.parametrize("keep", [0.5, 0.25, 0.01])
def test_pruned_is_masked(student: Student, keep: float) -> None:
    scores = importance(student, shop()[0], HardLabels(), seed=0)
    keep_units = max(1, int(keep * 64))
    smaller = pruned(student, scores, keep)
    assert smaller.shape == replace(student.shape, ffn=(keep_units, keep_units))
    items = torch.from_numpy(np.random.default_rng(0).integers(1, ITEMS + 1, (8, LENGTH)))
    zeroed = masked(student, scores, keep_units / 64)
    with torch.inference_mode():
        found = smaller.states(items, smaller.item_table())
        expected = zeroed.states(items, zeroed.item_table())
        before = student.eval().states(items, student.item_table())
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(found, before, atol=1e-3)  # units did go


def test_pruning_leaves_the_student_it_is_made_from(student: Student) -> None:
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    smaller = pruned(student, importance(student, shop()[0], HardLabels(), seed=0), 0.5)
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_a_share_below_one_takes_at_least_one_unit(student: Student) -> None:
    scores = [torch.arange(64.0)] * 2
    assert pruned(student, scores, 0.999).shape.ffn == (63, 63)
    assert pruned(student, scores, 1).shape.ffn == (64, 64)
    smallest = pruned(student, scores, 0.001)
    assert smallest.shape.ffn == (1, 1)
    assert torch.equal(smallest.blocks[0].up.weight, student.blocks[0].up.weight[63:])
    with pytest.raises(TrainingError, match="one feed-forward unit cannot be pruned"):
        pruned(smallest, [torch.ones(1)] * 2, 0.5)


def test_importance_is_the_squared_sum_of_weight_times_gradient() -> None:
    # An objective that is linear in one unit's output weights has that sum in closed form.
    student = trained(1, blocks=1)
    up, down = student.blocks[0].up, student.blocks[0].down
    up.weight.data.zero_()
    down.weight.data[:, 0] = 0  # does nothing: the sum of up's part and down's part is 0

    def states_sum(states: Tensor, table: Tensor, batch: Batch) -> Tensor:
        return states.sum()

    (scores,) = importance(student, shop()[0], states_sum, seed=0)
    assert scores[0] == 0
    assert scores.shape == (64,)
    assert (scores[1:] > 0).all()
    again = importance(student, shop()[0], states_sum, seed=0)[0]
    assert torch.equal(scores, again)


def test_importance_finds_the_unit_that_matters(student: Student) -> None:
    scores = importance(student, shop()[0], HardLabels(), seed=0)
    dead = Student(student.shape, 0.0)
    dead.load_state_dict(student.state_dict())
    dead.blocks[0].down.weight.data[:, int(scores[0].argmax())] = 0
    assert importance(dead, shop()[0], HardLabels(), seed=0)[0][int(scores[0].argmax())] < scores[0].median()


@pytest.fixture(scope="module")
def compressed(student: Student, tmp_path_factory: pytest.TempPathFactory) -> tuple[Compression, Path]:
    out = tmp_path_factory.mktemp("compressed") / "artifact"
    config = CompressConfig(keep_ffn=(1.0, 0.25), table_bits=(8, 32), recovery_epochs=2, max_loss=0.05)
    return compress(student, publication(), recovery(), config, out), out


def test_every_point_is_tried_with_the_control_beside_the_pruned(compressed: tuple[Compression, Path]) -> None:
    points = compressed[0].points
    assert [(p.keep_ffn, p.table_bits, p.recovered) for p in points] == [
        (1.0, 8, False), (1.0, 32, False), (1.0, 8, True), (1.0, 32, True), (0.25, 8, True), (0.25, 32, True)
    ]  # fmt: skip
    assert len({p.bytes for p in points}) == 4  # a recovered point is as large as the one it comes from
    assert points[4].bytes < points[0].bytes < points[1].bytes


def test_the_float_export_is_the_float_student(compressed: tuple[Compression, Path]) -> None:
    unpruned = compressed[0].points[1]
    assert (unpruned.change.value, unpruned.change.low) == (0.0, 0.0)
    assert unpruned.ndcg > 0.5  # the shop is easy: the points are compared at something


def test_the_chosen_point_is_what_was_written(compressed: tuple[Compression, Path], student: Student) -> None:
    compression, out = compressed
    runtime = Runtime.open(out)
    assert [p for p in compression.points if p.chosen] == [compression.chosen]
    assert (out / "model.onnx").stat().st_size == compression.chosen.bytes
    assert runtime.card.ffn == compression.student.shape.ffn
    assert runtime.card.bits == compression.chosen.table_bits
    assert runtime.card.ffn == tuple(int(compression.chosen.keep_ffn * units) for units in student.shape.ffn)
    runtime.check_golden()


def test_the_same_student_is_compressed_to_the_same_bytes(
    student: Student, compressed: tuple[Compression, Path], tmp_path: Path
) -> None:
    config = CompressConfig(keep_ffn=(1.0, 0.25), table_bits=(8, 32), recovery_epochs=2, max_loss=0.05)
    heard: list[Point] = []
    again = compress(student, publication(), recovery(), config, tmp_path / "again", heard.append)
    assert again.points == compressed[0].points
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (compressed[1] / "manifest.json").read_bytes()
    assert [p.bytes for p in heard] == [p.bytes for p in again.points]


def test_without_time_it_chooses_from_what_there_is(
    student: Student, compressed: tuple[Compression, Path], tmp_path: Path
) -> None:
    config = CompressConfig(keep_ffn=(1.0, 0.25), table_bits=(8, 32), recovery_epochs=2, max_loss=0.05)
    short = compress(student, publication(), recovery(), config, tmp_path / "out", enough=lambda: True)
    assert (short.tried, short.asked) == (1, 3)
    assert [(p.keep_ffn, p.ndcg) for p in short.points] == [(p.keep_ffn, p.ndcg) for p in compressed[0].points[:2]]
    assert sum(p.chosen for p in short.points) == 1
    assert (compressed[0].tried, compressed[0].asked) == (3, 3)
    Runtime.open(tmp_path / "out").check_golden()


def test_a_forced_prune_is_a_prune(student: Student, tmp_path: Path) -> None:
    config = CompressConfig(keep_ffn=(0.25,), table_bits=(8,), recovery_epochs=0, max_loss=1.0)
    compression = compress(student, publication(), recovery(), config, tmp_path / "out")
    assert [(p.keep_ffn, p.recovered) for p in compression.points] == [(0.25, False)]
    assert Runtime.open(tmp_path / "out").card.ffn == (16, 16)
    assert compression.student.shape.ffn == (16, 16)


def test_nothing_within_the_loss_falls_back_to_float(student: Student, tmp_path: Path) -> None:
    # No point may lose anything, and one that equals the student does not lose less than nothing.
    config = CompressConfig(keep_ffn=(0.02,), table_bits=(8,), recovery_epochs=0, max_loss=0.0)
    compression = compress(student, publication(), recovery(), config, tmp_path / "out")
    pruned_point, fall_back = compression.points
    assert (fall_back.keep_ffn, fall_back.table_bits, fall_back.chosen) == (1.0, 32, True)
    assert fall_back.reason == "the student as it is: nothing smaller surely loses less than 0.0%"
    assert not pruned_point.chosen
    assert pruned_point.reason.startswith("may lose ")
    assert Runtime.open(tmp_path / "out").card.bits == 32


def point(size: int, ndcg: float, low: float, **other: object) -> Point:
    made = Point(0.5, 8, True, size, ndcg, Interval(low + 0.01, low, low + 0.02), False, "")
    return replace(made, **other)  # type: ignore[arg-type]


def test_the_smallest_that_surely_keeps_its_quality_is_chosen() -> None:
    points = [point(100, 0.30, -0.001), point(50, 0.29, -0.03), point(60, 0.28, -0.019), point(60, 0.29, -0.015)]
    assert choice(points, 0.02) == 3
    assert [p.chosen for p in explained(points, 0.02)] == [False, False, False, True]
    assert [p.reason for p in explained(points, 0.02)] == [
        "surely loses less than 2.0%, but is larger or no better than the one chosen",
        "may lose 3.0%, 2.0% is allowed",
        "surely loses less than 2.0%, but is larger or no better than the one chosen",
        "the smallest that loses less than 2.0% with 95% confidence",
    ]


def test_a_bound_on_the_limit_is_not_below_it() -> None:
    assert choice([point(1, 0.3, -0.02)], 0.02) is None


def test_the_fall_back_is_the_untouched_student_in_float() -> None:
    untouched = point(100, 0.3, -0.5, keep_ffn=1.0, table_bits=32, recovered=False)
    control = replace(untouched, recovered=True)
    assert choice([point(1, 0.3, -0.5), control], 0.02) is None
    assert choice([point(1, 0.3, -0.5), control, untouched], 0.02) == 2


def test_recovery_is_more_training_at_a_fourth_of_the_rate(student: Student, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    config = CompressConfig(keep_ffn=(0.5,), table_bits=(32,), recovery_epochs=2, max_loss=1.0)
    found = compress(student, publication(), recovery(0.02), config, tmp_path / "out").student
    histories, cases = shop()
    expected = pruned(student, importance(student, histories, HardLabels(), seed=0), 0.5)
    fit(expected, histories, LENGTH, Schedule(2, 0.005, 0), HardLabels(), ranking_validator(expected, cases))
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in found.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_every_point_is_judged_with_the_students_neighbours(student: Student, tmp_path: Path) -> None:
    histories, cases = shop()
    near = Neighbourhood.of_training(histories, ITEMS, keep=3, newest=5).as_rounded()
    blended = replace(publication(), opinion=Opinion(near, 0.4))
    config = CompressConfig(keep_ffn=(1.0,), keep_neighbours=(1.0,), recovery_epochs=0)
    made = compress(student, blended, recovery(), config, tmp_path)
    assert Runtime.open(tmp_path).card.neighbours_weight == 0.4
    assert made.chosen.ndcg == pytest.approx(ndcg_of(Runtime.open(tmp_path), cases).mean())
    asked = ndcg_of(Scorer(student, LENGTH, "student", opinion=blended.opinion), cases)
    assert made.chosen.change.value == pytest.approx(made.chosen.ndcg / asked.mean() - 1, abs=1e-6)


def test_fewer_neighbours_are_a_point_of_the_grid_and_what_is_exported(student: Student, tmp_path: Path) -> None:
    histories, _ = shop()
    near = Neighbourhood.of_training(histories, ITEMS, keep=4, newest=5).as_rounded()
    blended = replace(publication(), opinion=Opinion(near, 0.1))
    config = CompressConfig(
        keep_ffn=(1.0,), keep_neighbours=(0.0, 0.5, 1.0), table_bits=(8,), recovery_epochs=0, max_loss=1
    )
    made = compress(student, blended, recovery(), config, tmp_path)
    assert [point.keep_neighbours for point in made.points] == [1.0, 0.5, 0.0]
    assert made.points[2].bytes < made.points[1].bytes < made.points[0].bytes
    assert made.chosen.keep_neighbours == 0.0
    assert Runtime.open(tmp_path).card.neighbours == 0
    halved = config.model_copy(update={"keep_neighbours": (0.5,)})
    compress(student, blended, recovery(), halved, tmp_path / "halved")
    assert Runtime.open(tmp_path / "halved").card.neighbours == 2
    best = np.sort(near.near.toarray(), axis=1)[:, -2:]
    assert np.sort(near.nearest(0.5).near.toarray(), axis=1)[:, -2:] == pytest.approx(best)
