"""Pruning, recovery and the choice among exported points, each judged by the runtime."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recsys.compress import Compression, Cut, Point, choice, compress, explained, grid, margin, too_rough
from recsys.config import CompressConfig
from recsys.decoder import DecoderShape
from recsys.errors import TrainingError
from recsys.export import Publication
from recsys.histories import Cases, Catalog, Histories
from recsys.neighbourhood import Neighbourhood, Opinion
from recsys.prune import Importance, importance, pruned
from recsys.quantize import RowTable, rounded
from recsys.recovery import Recovered, Recoverer, Recovery, Retrainer, Retraining
from recsys.runtime import Runtime
from recsys.sequence_model import Scorer, ndcg_of, ranking_validator
from recsys.statistics import Interval
from recsys.student import Student, grow
from recsys.training import Batch, HardLabels, Schedule, fit
from recsys.windows import Windows

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


def trained(epochs: int, blocks: int = 2, heads: int = 1, rows: float = 1.0) -> Student:
    """`rows`: how many times as large as usual the item vectors are that it begins with."""
    histories, cases = shop()
    shape = replace(DecoderShape.of(ITEMS, 16, blocks, LENGTH), heads=(heads,) * blocks, head_width=16 // heads)
    student = Student.untrained(shape, 0.1, seed=0)
    student.table.weight.data *= rows
    fit(student, histories, LENGTH, Schedule(epochs, 1e-2, 0, 512), HardLabels(), ranking_validator(student, cases))
    return student


@pytest.fixture(scope="module")
def student() -> Student:
    return trained(6)


@pytest.fixture(scope="module")
def shallow() -> Student:
    """Of one block, as the search makes them: there is none to drop."""
    return trained(6, blocks=1)


@pytest.fixture(scope="module")
def two_headed() -> Student:
    return trained(4, heads=2)


def publication() -> Publication:
    nothing: list[str | None] = [None] * ITEMS
    catalog = Catalog([str(code) for code in range(ITEMS)], nothing, nothing, nothing)
    return Publication(catalog, shop()[0].training_counts(ITEMS), "allow", {"student": "ab" * 32})


def recovery(learning_rate: float = 1e-2) -> Recovery:
    histories, cases = shop()
    return Recovery(histories, HardLabels(), learning_rate, cases, seed=0, distilled=False)


def recovered(
    recovery: Recovery, before: Student, cut: Student, enough: Callable[[], bool] = lambda: False, epochs: int = 1
) -> tuple[Recovered, Student]:
    """What becomes of one student that was cut."""
    recover = Recoverer(recovery, before, Retrainer(recovery, epochs).alone)
    [(place, how, student)] = recover([cut], enough)
    assert place == 0
    return how, student


def masked(student: Student, scores: Importance, units: int, heads: int) -> Student:
    """The student with all but so many units and heads of each block multiplied by zero instead of taken out."""
    other = Student(student.shape, 0.0)
    other.load_state_dict(student.state_dict())
    for block, unit, head in zip(other.blocks, scores.units, scores.heads, strict=True):
        block.down.weight.data[:, torch.argsort(unit, stable=True)[: len(unit) - units]] = 0
        for gone in torch.argsort(head, stable=True)[: len(head) - heads]:
            block.out.weight.data[:, gone * block.head_width : (gone + 1) * block.head_width] = 0
    return other.eval()


def states(student: Student) -> Tensor:
    items = torch.from_numpy(np.random.default_rng(0).integers(1, ITEMS + 1, (8, LENGTH)))
    with torch.inference_mode():
        return student.eval().states(items, student.item_table())


@pytest.mark.parametrize("keep", [0.5, 0.25, 0.01])
def test_pruned_is_masked(student: Student, keep: float) -> None:
    scores = importance(student, shop()[0], HardLabels(), seed=0)
    keep_units = max(1, int(keep * 64))
    smaller = pruned(student, scores, keep)
    assert smaller.shape == replace(student.shape, ffn=(keep_units, keep_units))
    assert torch.allclose(states(smaller), states(masked(student, scores, keep_units, 1)), rtol=0, atol=1e-6)
    assert not torch.allclose(states(smaller), states(student), atol=1e-3)  # units did go


@pytest.mark.parametrize("keep_ffn", [1.0, 0.25])
def test_a_head_that_is_pruned_is_masked(two_headed: Student, keep_ffn: float) -> None:
    scores = importance(two_headed, shop()[0], HardLabels(), seed=0)
    smaller, units = pruned(two_headed, scores, keep_ffn, 0.5), int(64 * keep_ffn)
    assert smaller.shape == replace(two_headed.shape, ffn=(units, units), heads=(1, 1))
    assert smaller.blocks[0].qkv.weight.shape == (24, 16)
    assert torch.allclose(states(smaller), states(masked(two_headed, scores, units, 1)), rtol=0, atol=1e-6)
    assert not torch.allclose(states(smaller), states(two_headed), atol=1e-3)  # heads did go
    again = Student(smaller.shape, 0.0)  # what is left is a decoder of that shape
    again.load_state_dict(smaller.state_dict())
    assert torch.equal(states(again), states(smaller))


def test_a_block_with_one_head_keeps_it(student: Student) -> None:
    scores = importance(student, shop()[0], HardLabels(), seed=0)
    assert torch.equal(states(pruned(student, scores, 1.0, 0.5)), states(student))


def test_importance_finds_the_head_that_does_nothing(two_headed: Student) -> None:
    lame = Student(two_headed.shape, 0.0)
    lame.load_state_dict(two_headed.state_dict())
    lame.blocks[0].out.weight.data[:, 8:] = 0
    lame.blocks[1].out.weight.data[:, :8] = 0
    first, second = importance(lame, shop()[0], HardLabels(), seed=0).heads
    assert (first[1], second[0]) == (0, 0)
    assert min(first[0], second[1]) > 0
    assert torch.allclose(
        states(pruned(lame, Importance([torch.ones(64)] * 2, [first, second], torch.ones(2)), 1.0, 0.5)),
        states(lame),
        atol=1e-6,
    )


def test_importance_of_a_head_is_the_squared_sum_of_weight_times_gradient() -> None:
    student = trained(1, blocks=1, heads=2)
    batches = []

    def once(states: Tensor, table: Tensor, batch: Batch) -> Tensor:
        batches.append(HardLabels()(states, table, batch))
        return batches[-1]

    (found,) = importance(student, shop()[0], once, seed=0).heads
    assert len(batches) == 1  # the shop is one batch: nothing to sum over
    parts: dict[str, nn.Parameter] = dict(student.blocks[0].named_parameters())
    histories, windows = shop()[0], Windows.of_training(shop()[0], LENGTH)
    batch = Batch.of(histories, windows, np.arange(len(windows.start)), torch.device("cpu"))
    student.zero_grad()
    HardLabels()(student.states(batch.items, student.item_table())[batch.owned], student.item_table(), batch).backward()
    with torch.no_grad():
        moved = {name: (part * part.grad).double() for name, part in parts.items()}
        for head in range(2):
            rows = [third * 16 + head * 8 + place for third in range(3) for place in range(8)]
            change = (
                moved["qkv.weight"][rows].sum() + moved["qkv.bias"][rows].sum() + moved["out.weight"][:, rows[:8]].sum()
            )
            assert found[head].item() == pytest.approx(change.item() ** 2, rel=1e-3)


@pytest.mark.parametrize("keep_ffn", [1.0, 0.25])
def test_a_block_that_is_dropped_is_masked(two_headed: Student, keep_ffn: float) -> None:
    scores, units = importance(two_headed, shop()[0], HardLabels(), seed=0), int(64 * keep_ffn)
    smaller = pruned(two_headed, scores, keep_ffn, keep_blocks=0.5)
    assert smaller.shape == replace(two_headed.shape, ffn=(units,), heads=(2,))
    silent = masked(two_headed, scores, units, 2)
    for part in (silent.blocks[int(scores.blocks.argmin())].out, silent.blocks[int(scores.blocks.argmin())].down):
        part.weight.data.zero_()
        part.bias.data.zero_()
    assert torch.allclose(states(smaller), states(silent), rtol=0, atol=1e-6)
    assert not torch.allclose(states(smaller), states(two_headed), atol=1e-3)  # a block did go
    again = Student(smaller.shape, 0.0)  # what is left is a decoder of that shape
    again.load_state_dict(smaller.state_dict())
    assert torch.equal(states(again), states(smaller))


def test_blocks_stay_in_order_and_one_stays() -> None:
    four = Student.untrained(replace(DecoderShape.of(ITEMS, 16, 4, LENGTH), ffn=(8, 9, 10, 11)), 0.0, seed=0)
    scores = Importance(
        [torch.ones(units) for units in four.shape.ffn], [torch.ones(1)] * 4, torch.tensor([2, 1, 3, 4])
    )
    kept = {share: pruned(four, scores, 1.0, keep_blocks=share).shape.ffn for share in (1, 3 / 4, 2 / 4, 1 / 4, 0.01)}
    assert list(kept.values()) == [(8, 9, 10, 11), (8, 10, 11), (10, 11), (11,), (11,)]
    assert torch.equal(pruned(four, scores, 1.0, keep_blocks=0.5).blocks[0].up.weight, four.blocks[2].up.weight)


def test_importance_of_a_block_is_the_squared_sum_over_its_weights() -> None:
    student, batches = trained(1), []

    def once(states: Tensor, table: Tensor, batch: Batch) -> Tensor:
        batches.append(HardLabels()(states, table, batch))
        return batches[-1]

    found = importance(student, shop()[0], once, seed=0).blocks
    assert len(batches) == 1  # the shop is one batch: nothing to sum over
    windows = Windows.of_training(shop()[0], LENGTH)
    batch = Batch.of(shop()[0], windows, np.arange(len(windows.start)), torch.device("cpu"))
    student.zero_grad()
    HardLabels()(student.states(batch.items, student.item_table())[batch.owned], student.item_table(), batch).backward()
    for block, score in zip(student.blocks, found, strict=True):
        change = sum((part * part.grad).double().sum().item() for part in block.parameters())
        assert score.item() == pytest.approx(change**2, rel=1e-3)


def test_importance_finds_the_block_that_does_nothing(student: Student) -> None:
    lame = Student(student.shape, 0.0)
    lame.load_state_dict(student.state_dict())
    for part in (lame.blocks[0].out, lame.blocks[0].down):
        part.weight.data.zero_()
        part.bias.data.zero_()
    scores = importance(lame, shop()[0], HardLabels(), seed=0)
    assert scores.blocks[0] == 0
    assert torch.allclose(states(pruned(lame, scores, 1.0, keep_blocks=0.5)), states(lame), rtol=0, atol=1e-6)


def test_pruning_leaves_the_student_it_is_made_from(student: Student) -> None:
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    smaller = pruned(student, importance(student, shop()[0], HardLabels(), seed=0), 0.5)
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_a_share_below_one_takes_at_least_one_unit(student: Student) -> None:
    scores = Importance([torch.arange(64.0)] * 2, [torch.ones(1)] * 2, torch.ones(2))
    assert pruned(student, scores, 0.999).shape.ffn == (63, 63)
    assert pruned(student, scores, 1).shape.ffn == (64, 64)
    smallest = pruned(student, scores, 0.001)
    assert smallest.shape.ffn == (1, 1)
    assert torch.equal(smallest.blocks[0].up.weight, student.blocks[0].up.weight[63:])
    with pytest.raises(TrainingError, match="one feed-forward unit cannot be pruned"):
        pruned(smallest, Importance([torch.ones(1)] * 2, scores.heads, torch.ones(2)), 0.5)


def test_importance_is_the_squared_sum_of_weight_times_gradient() -> None:
    # An objective that is linear in one unit's output weights has that sum in closed form.
    student = trained(1, blocks=1)
    up, down = student.blocks[0].up, student.blocks[0].down
    up.weight.data.zero_()
    down.weight.data[:, 0] = 0  # does nothing: the sum of up's part and down's part is 0

    def states_sum(states: Tensor, table: Tensor, batch: Batch) -> Tensor:
        return states.sum()

    (scores,) = importance(student, shop()[0], states_sum, seed=0).units
    assert scores[0] == 0
    assert scores.shape == (64,)
    assert (scores[1:] > 0).all()
    again = importance(student, shop()[0], states_sum, seed=0).units[0]
    assert torch.equal(scores, again)


def test_importance_finds_the_unit_that_matters(student: Student) -> None:
    scores = importance(student, shop()[0], HardLabels(), seed=0).units
    dead = Student(student.shape, 0.0)
    dead.load_state_dict(student.state_dict())
    dead.blocks[0].down.weight.data[:, int(scores[0].argmax())] = 0
    assert importance(dead, shop()[0], HardLabels(), seed=0).units[0][int(scores[0].argmax())] < scores[0].median()


@pytest.fixture(scope="module")
def compressed(shallow: Student, tmp_path_factory: pytest.TempPathFactory) -> tuple[Compression, Path]:
    out = tmp_path_factory.mktemp("compressed") / "artifact"
    config = CompressConfig(keep_ffn=(1.0, 0.25), table_bits=(8, 32), recovery_epochs=2, max_loss=0.05)
    return compress(shallow, publication(), recovery(), config, out), out


def test_every_point_is_tried_with_the_control_beside_the_pruned(compressed: tuple[Compression, Path]) -> None:
    points = compressed[0].points
    assert [(p.keep_ffn, p.table_bits, p.recovery) for p in points] == [
        (1.0, 8, ""), (1.0, 32, ""), (1.0, 8, "hard"), (1.0, 32, "hard"), (0.25, 8, "hard"), (0.25, 32, "hard")
    ]  # fmt: skip
    assert len({p.bytes for p in points}) == 4  # a recovered point is as large as the one it comes from
    assert points[4].bytes < points[0].bytes < points[1].bytes


def test_the_float_export_is_the_float_student(compressed: tuple[Compression, Path]) -> None:
    unpruned = compressed[0].points[1]
    assert (unpruned.change.value, unpruned.change.low) == (0.0, 0.0)
    assert unpruned.ndcg > 0.5  # the shop is easy: the points are compared at something


def test_the_chosen_point_is_what_was_written(compressed: tuple[Compression, Path], shallow: Student) -> None:
    compression, out = compressed
    runtime = Runtime.open(out)
    assert [p for p in compression.points if p.chosen] == [compression.chosen]
    assert (out / "model.onnx").stat().st_size == compression.chosen.bytes
    assert runtime.card.ffn == compression.student.shape.ffn
    assert runtime.card.bits == compression.chosen.table_bits
    assert runtime.card.ffn == tuple(int(compression.chosen.keep_ffn * units) for units in shallow.shape.ffn)
    runtime.check_golden()


def test_the_same_student_is_compressed_to_the_same_bytes(
    shallow: Student, compressed: tuple[Compression, Path], tmp_path: Path
) -> None:
    config = CompressConfig(keep_ffn=(1.0, 0.25), table_bits=(8, 32), recovery_epochs=2, max_loss=0.05)
    heard: list[Point] = []
    again = compress(shallow, publication(), recovery(), config, tmp_path / "again", heard.append)
    assert again.points == compressed[0].points
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (compressed[1] / "manifest.json").read_bytes()
    assert [p.bytes for p in heard] == [p.bytes for p in again.points]


def test_students_trained_side_by_side_are_the_same_to_the_bit(
    one_thread: None, rough: Student, two_headed: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.compress.SIDE_BY_SIDE", 1)
    config = CompressConfig(keep_ffn=(1.0, 0.25), table_bits=(8, 4), recovery_epochs=1, max_loss=0.05)
    for name, student in (("rough", rough), ("two_headed", two_headed)):
        heard: list[Point] = []
        alone = compress(student, publication(), recovery(), config, tmp_path / name)
        places = tmp_path / f"{name}, two", heard.append
        two = compress(student, publication(), recovery(), config, *places, workers=2)
        assert two.points == alone.points
        assert sorted(map(repr, heard)) == sorted(repr(replace(p, chosen=False, reason="")) for p in two.points)
        assert (tmp_path / f"{name}, two" / "manifest.json").read_bytes() == (
            tmp_path / name / "manifest.json"
        ).read_bytes()


def test_when_time_is_up_what_is_trained_already_is_chosen_from(shallow: Student, tmp_path: Path) -> None:
    config = CompressConfig(keep_ffn=(1.0, 0.5, 0.25), table_bits=(8,), recovery_epochs=1, max_loss=0.05)
    asked = iter([False, False])
    short = compress(shallow, publication(), recovery(), config, tmp_path, enough=lambda: next(asked, True), workers=1)
    assert [(p.keep_ffn, p.recovery) for p in short.points] == [(1.0, ""), (1.0, "hard"), (0.5, "hard")]
    assert (short.tried, short.asked) == (3, 4)


def test_without_time_it_chooses_from_what_there_is(
    shallow: Student, compressed: tuple[Compression, Path], tmp_path: Path
) -> None:
    config = CompressConfig(keep_ffn=(1.0, 0.25), table_bits=(8, 32), recovery_epochs=2, max_loss=0.05)
    short = compress(shallow, publication(), recovery(), config, tmp_path / "out", enough=lambda: True)
    assert (short.tried, short.asked) == (1, 3)
    assert [(p.keep_ffn, p.ndcg) for p in short.points] == [(p.keep_ffn, p.ndcg) for p in compressed[0].points[:2]]
    assert sum(p.chosen for p in short.points) == 1
    assert (compressed[0].tried, compressed[0].asked) == (3, 3)
    Runtime.open(tmp_path / "out").check_golden()


def test_a_forced_prune_is_a_prune(shallow: Student, tmp_path: Path) -> None:
    config = CompressConfig(keep_ffn=(0.25,), table_bits=(8,), recovery_epochs=0, max_loss=1.0)
    compression = compress(shallow, publication(), recovery(), config, tmp_path / "out")
    assert [(p.keep_ffn, p.recovery) for p in compression.points] == [(0.25, "")]
    assert Runtime.open(tmp_path / "out").card.ffn == (16,)
    assert compression.student.shape.ffn == (16,)


def test_nothing_within_the_loss_falls_back_to_float(shallow: Student, tmp_path: Path) -> None:
    # No point may lose anything, and one that equals the student does not lose less than nothing.
    config = CompressConfig(keep_ffn=(0.02,), table_bits=(8,), recovery_epochs=0, max_loss=0.0)
    compression = compress(shallow, publication(), recovery(), config, tmp_path / "out")
    pruned_point, fall_back = compression.points
    assert (fall_back.keep_ffn, fall_back.table_bits, fall_back.chosen) == (1.0, 32, True)
    assert fall_back.reason == "the student as it is: nothing smaller surely loses less than 0.0\N{NO-BREAK SPACE}%"
    assert not pruned_point.chosen
    assert pruned_point.reason.startswith("may lose ")
    assert Runtime.open(tmp_path / "out").card.bits == 32


def point(size: int, ndcg: float, low: float, **other: object) -> Point:
    made = Point(0.5, 8, "soft", size, ndcg, Interval(low + 0.01, low, low + 0.02), False, "")
    return replace(made, **other)  # type: ignore[arg-type]


def test_the_smallest_that_surely_keeps_its_quality_is_chosen() -> None:
    points = [point(100, 0.30, -0.001), point(50, 0.29, -0.03), point(60, 0.28, -0.019), point(60, 0.29, -0.015)]
    assert choice(points, 0.02) == 3
    assert [p.chosen for p in explained(points, 0.02)] == [False, False, False, True]
    assert [p.reason for p in explained(points, 0.02)] == [
        "surely loses less than 2.0\N{NO-BREAK SPACE}%, but is larger or no better than the one chosen",
        "may lose 3.0\N{NO-BREAK SPACE}%, 2.0\N{NO-BREAK SPACE}% is allowed",
        "surely loses less than 2.0\N{NO-BREAK SPACE}%, but is larger or no better than the one chosen",
        "the smallest that loses less than 2.0\N{NO-BREAK SPACE}% with 95\N{NO-BREAK SPACE}% confidence",
    ]


def test_a_bound_on_the_limit_is_not_below_it() -> None:
    assert choice([point(1, 0.3, -0.02)], 0.02) is None


def test_the_fall_back_is_the_untouched_student_in_float() -> None:
    untouched = point(100, 0.3, -0.5, keep_ffn=1.0, table_bits=32, recovery="")
    control = replace(untouched, recovery="soft")
    assert choice([point(1, 0.3, -0.5), replace(untouched, keep_heads=0.5)], 0.02) is None
    assert choice([point(1, 0.3, -0.5), control], 0.02) is None
    assert choice([point(1, 0.3, -0.5), control, untouched], 0.02) == 2


def test_recovery_is_more_training_at_a_fourth_of_the_rate(shallow: Student, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in shallow.state_dict().items()}
    config = CompressConfig(keep_ffn=(0.5,), table_bits=(32,), recovery_epochs=2, max_loss=1.0)
    found = compress(shallow, publication(), recovery(0.02), config, tmp_path / "out").student
    histories, cases = shop()
    expected = pruned(shallow, importance(shallow, histories, HardLabels(), seed=0), 0.5)
    fit(expected, histories, LENGTH, Schedule(2, 0.005, 0), HardLabels(), ranking_validator(expected, cases))
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in found.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in shallow.state_dict().items())


def test_every_point_is_judged_with_the_students_neighbours(shallow: Student, tmp_path: Path) -> None:
    histories, cases = shop()
    near = Neighbourhood.of_training(histories, ITEMS, keep=3, newest=5).as_rounded()
    blended = replace(publication(), opinion=Opinion(near, 0.4))
    config = CompressConfig(keep_ffn=(1.0,), keep_neighbours=(1.0,), recovery_epochs=0)
    made = compress(shallow, blended, recovery(), config, tmp_path)
    assert Runtime.open(tmp_path).card.neighbours_weight == 0.4
    assert made.chosen.ndcg == pytest.approx(ndcg_of(Runtime.open(tmp_path), cases).mean())
    asked = ndcg_of(Scorer(shallow, LENGTH, "student", opinion=blended.opinion), cases)
    assert made.chosen.change.value == pytest.approx(made.chosen.ndcg / asked.mean() - 1, abs=1e-6)


def test_fewer_neighbours_are_a_point_of_the_grid_and_what_is_exported(shallow: Student, tmp_path: Path) -> None:
    histories, _ = shop()
    near = Neighbourhood.of_training(histories, ITEMS, keep=4, newest=5).as_rounded()
    blended = replace(publication(), opinion=Opinion(near, 0.1))
    config = CompressConfig(
        keep_ffn=(1.0,), keep_neighbours=(0.0, 0.5, 1.0), table_bits=(8,), recovery_epochs=0, max_loss=1
    )
    made = compress(shallow, blended, recovery(), config, tmp_path)
    assert [point.keep_neighbours for point in made.points] == [1.0, 0.5, 0.0]
    assert made.points[2].bytes < made.points[1].bytes < made.points[0].bytes
    assert made.chosen.keep_neighbours == 0.0
    assert Runtime.open(tmp_path).card.neighbours == 0
    halved = config.model_copy(update={"keep_neighbours": (0.5,)})
    compress(shallow, blended, recovery(), halved, tmp_path / "halved")
    assert Runtime.open(tmp_path / "halved").card.neighbours == 2
    best = np.sort(near.near.toarray(), axis=1)[:, -2:]
    assert np.sort(near.nearest(0.5).near.toarray(), axis=1)[:, -2:] == pytest.approx(best)


def test_heads_are_tried_beside_the_fewest_units_and_only_where_there_are_several() -> None:
    config = CompressConfig(keep_ffn=(0.25, 1.0, 0.5), keep_heads=(0.5, 1.0), recovery_epochs=1)
    one, two = DecoderShape.of(ITEMS, 16, 1, LENGTH), DecoderShape.of(ITEMS, 64, 1, LENGTH)
    without = [Cut(1.0, 1.0, False), Cut(1.0, 1.0, True), Cut(0.5, 1.0, True), Cut(0.25, 1.0, True)]
    assert grid(config, one) == without
    assert grid(config, two) == [*without, Cut(0.25, 0.5, True)]
    alone = config.model_copy(update={"keep_ffn": (1.0,), "keep_heads": (0.5,)})
    assert grid(alone, two) == [Cut(1.0, 1.0, True), Cut(1.0, 0.5, True)]
    assert grid(alone, one) == [Cut(1.0, 1.0, False)]
    nothing = config.model_copy(update={"keep_ffn": (1.0,), "keep_heads": (1.0,)})
    assert grid(nothing, two) == [Cut(1.0, 1.0, False)]  # without a cut there is no control
    unrecovered = config.model_copy(update={"keep_ffn": (0.5,), "recovery_epochs": 0})
    assert grid(unrecovered, two) == [Cut(0.5, 1.0, False), Cut(0.5, 0.5, False)]


def test_blocks_are_tried_one_fewer_down_to_one_beside_the_fewest_units() -> None:
    config = CompressConfig(keep_ffn=(1.0, 0.5), keep_heads=(1.0, 0.5), recovery_epochs=1)
    three = DecoderShape.of(ITEMS, 64, 3, LENGTH)
    two_and_one = [Cut(0.5, 1.0, True, 2 / 3), Cut(0.5, 1.0, True, 1 / 3)]
    assert grid(config, three)[-2:] == two_and_one
    assert all(cut.keep_blocks == 1 for cut in grid(config, three)[:-2])
    forced = config.model_copy(update={"keep_heads": (0.5,)})
    assert {cut.keep_heads for cut in grid(forced, three) if cut.prunes} == {0.5}  # what must go always goes
    whole = config.model_copy(update={"keep_ffn": (1.0,), "keep_heads": (1.0,)})
    two = DecoderShape.of(ITEMS, 16, 2, LENGTH)
    assert grid(whole, two) == [Cut(1.0, 1.0, False), Cut(1.0, 1.0, True), Cut(1.0, 1.0, True, 0.5)]


def test_a_student_with_a_block_less_recovers_and_is_served(student: Student, tmp_path: Path) -> None:
    config = CompressConfig(keep_ffn=(1.0,), table_bits=(8,), recovery_epochs=1, max_loss=1)
    made = compress(student, publication(), recovery(), config, tmp_path)
    assert [(p.keep_blocks, p.recovery) for p in made.points] == [(1.0, ""), (1.0, "hard"), (0.5, "hard")]
    assert made.points[2].bytes < made.points[0].bytes
    assert made.chosen == made.points[2]
    assert Runtime.open(tmp_path).card.ffn == made.student.shape.ffn == (64,)
    assert not torch.equal(made.student.table.weight, student.table.weight)
    kept = pruned(student, importance(student, shop()[0], HardLabels(), seed=0), 1.0, keep_blocks=0.5)
    expected = recovered(recovery(), student, kept)[1]
    assert torch.equal(states(made.student), states(expected))


def outweighed(value: float) -> Student:
    """In four bits it loses much: each row has one value that outweighs the rest."""
    student, (histories, cases) = trained(2, blocks=1, rows=12.5), shop()
    student.table.weight.data[1:, 0] = value
    fit(student, histories, LENGTH, Schedule(8, 1e-2, 0, 512), HardLabels(), ranking_validator(student, cases))
    return student


@pytest.fixture(scope="module")
def rough() -> Student:
    return outweighed(3.0)


ROUGH = CompressConfig(keep_ffn=(1.0,), table_bits=(4, 32), recovery_epochs=6, max_loss=0.05)


def test_a_student_that_rounding_spoils_is_trained_with_rounded_weights(rough: Student, tmp_path: Path) -> None:
    made = compress(rough, publication(), recovery(), ROUGH, tmp_path / "out")
    assert [(p.table_bits, p.recovery) for p in made.points] == [(4, ""), (32, ""), (4, "rounded")]
    before, _, after = made.points
    assert before.change.high < 0  # it does lose
    assert after.ndcg > before.ndcg + 0.02
    assert after.bytes == before.bytes
    assert (made.tried, made.asked) == (2, 2)
    assert made.chosen == after
    runtime = Runtime.open(tmp_path / "out")
    assert runtime.card.bits == 4
    runtime.check_golden()
    assert ndcg_of(runtime, shop()[1]).mean() == pytest.approx(after.ndcg)
    # What was validated in training is what is served: the file rounds no weight once more.
    validated = ranking_validator(made.student, shop()[1])()
    assert after.ndcg == pytest.approx(validated, abs=0.02)
    again = compress(rough, publication(), recovery(), ROUGH, tmp_path / "again")
    assert again.points == made.points
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (tmp_path / "out" / "manifest.json").read_bytes()


def test_where_bits_spoil_a_student_rounded_training_beats_as_much_plain_training() -> None:
    student, plain, learnt = outweighed(5.0), [], []
    for seed in range(3):
        retrainer = Retrainer(replace(recovery(), seed=seed), 6)
        for bits, reached in ((32, plain), (4, learnt)):
            made, _ = retrainer.trained(Retraining(student, bits=bits))
            served = rounded(made, 4)
            table = RowTable.of(made.table.weight.detach().numpy(), 4).dequantized()
            served.table = nn.Embedding.from_pretrained(torch.from_numpy(table))
            reached.append(ranking_validator(served, shop()[1])())
    assert np.mean(learnt) > np.mean(plain) + 0.01


def test_without_time_none_is_trained_with_rounded_weights(rough: Student, tmp_path: Path) -> None:
    short = compress(rough, publication(), recovery(), ROUGH, tmp_path / "out", enough=lambda: True)
    assert [(p.table_bits, p.recovery) for p in short.points] == [(4, ""), (32, "")]
    assert (short.tried, short.asked) == (1, 2)  # one was wanted: the step is cut short and knows it
    none = compress(rough, publication(), recovery(), ROUGH.model_copy(update={"recovery_epochs": 0}), tmp_path / "0")
    assert none.points == short.points
    assert (none.tried, none.asked) == (1, 1)


def test_where_rounding_loses_nothing_none_is_trained_with_it(compressed: tuple[Compression, Path]) -> None:
    assert compressed[0].points[0].change.low > -0.025
    assert "rounded" not in {p.recovery for p in compressed[0].points}
    assert (compressed[0].tried, compressed[0].asked) == (3, 3)


def test_of_each_number_of_bits_that_is_too_rough_the_best_is_trained_again() -> None:
    def four(size: int, ndcg: float, low: float) -> Point:
        return point(size, ndcg, low, table_bits=4)

    within, whole = point(100, 0.30, -0.005), point(300, 0.30, 0.0, table_bits=32)
    assert too_rough([within, four(50, 0.20, -0.3), four(60, 0.28, -0.03), four(55, 0.28, -0.04)], 0.02) == [2]
    assert too_rough([within, four(50, 0.20, -0.3), four(60, 0.28, -0.009)], 0.02) == []
    assert too_rough([within, four(100, 0.29, -0.03)], 0.02) == []  # it could only be as large as what is there
    assert too_rough([whole, point(100, 0.2, -0.3), four(50, 0.2, -0.2)], 0.02) == [1, 2]
    assert too_rough([point(100, 0.2, -0.3), four(50, 0.2, -0.2)], 0.02) == [0, 1]
    # Few users, not few bits: on the mean it loses nothing.
    assert too_rough([within, replace(four(50, 0.31, -0.03), change=Interval(0.0, -0.03, 0.03))], 0.02) == []
    # Within all of the loss and none within half: that is the margin, and it is kept.
    assert margin([-0.015, -0.018], 0.02) == 0.02
    assert margin([-0.3, -0.009], 0.02) == 0.01
    assert too_rough([point(100, 0.3, -0.015), four(50, 0.29, -0.018)], 0.02) == []
    assert too_rough([within, four(50, 0.29, -0.018)], 0.02) == [1]


def test_trained_again_is_whose_student_is_the_best_and_not_whose_rounding_was_lucky() -> None:
    as_it_is, again = point(100, 0.30, -0.005, recovery=""), point(100, 0.28, -0.04)
    fours = [point(50, 0.270, -0.05, table_bits=4, recovery=""), point(50, 0.271, -0.05, table_bits=4)]
    assert too_rough([as_it_is, again, *fours], 0.02) == [2]
    assert too_rough(fours, 0.02) == [1], "with nothing to go by but the roundings"


def test_a_student_with_a_head_less_is_served(tmp_path: Path) -> None:
    config = CompressConfig(keep_ffn=(0.5,), keep_heads=(0.5,), table_bits=(8,), recovery_epochs=0, max_loss=1)
    made = compress(trained(2, blocks=1, heads=2), publication(), recovery(), config, tmp_path)
    assert [(p.keep_ffn, p.keep_heads) for p in made.points] == [(0.5, 0.5)]
    runtime = Runtime.open(tmp_path)
    assert (runtime.card.heads, runtime.card.ffn) == ((1,), (32,))
    found = runtime.scores([np.array([3, 4, 6], np.int32)])
    expected = Scorer(made.student, LENGTH, "student").scores([np.array([3, 4, 6], np.int32)])
    assert np.abs(found - expected).max() <= 0.02 * np.ptp(expected)


class Contrary:
    """An objective that unlearns: distillation from a teacher that is wrong."""

    def __call__(self, states: Tensor, table: Tensor, batch: Batch) -> Tensor:
        return -HardLabels()(states, table, batch)


def test_hard_labels_recover_what_distillation_did_not(student: Student) -> None:
    small = pruned(student, importance(student, shop()[0], HardLabels(), seed=0), 0.02)
    wrong = replace(recovery(), objective=Contrary(), distilled=True)
    kind, found = recovered(wrong, student, small)
    assert kind == "hard"
    expected, by_hand = recovered(recovery(), student, small)
    assert expected == "hard"
    assert torch.equal(states(found), states(by_hand))
    kind, left = recovered(wrong, student, small, lambda: True)  # no time for a second training
    assert (kind, left) == ("", small), "what training makes worse stays as it was cut"
    assert recovered(wrong, student, student)[0] == "soft", "the control is trained whatever comes of it"


def test_hard_labels_are_not_tried_where_distillation_lost_nothing(student: Student) -> None:
    """The student of before is one that anything is better than."""
    weak = Student.untrained(student.shape, 0.0, seed=1)
    asked = []

    def heard(states: Tensor, table: Tensor, batch: Batch) -> Tensor:
        asked.append(len(batch.labels))
        return HardLabels()(states, table, batch)

    soft = replace(recovery(), objective=heard, distilled=True)
    kind, found = recovered(soft, weak, student)
    assert kind == "soft"
    assert asked
    assert not torch.equal(states(found), states(student))
    heard_before = len(asked)
    recovered(replace(soft, learning_rate=0.0), student, deepcopy(student))
    assert len(asked) == 2 * heard_before, "as good as before is not worse: one training, by soft labels"


def test_a_control_that_is_better_replaces_the_student_as_it_is() -> None:
    untouched = point(100, 0.30, -0.001, keep_ffn=1.0, recovery="")
    control = replace(untouched, recovery="soft", ndcg=0.31)
    assert choice([untouched, control], 0.02) == 1
    assert choice([untouched, replace(control, ndcg=0.29)], 0.02) == 0


def test_a_row_from_a_text_is_not_pushed_away_by_recovery(student: Student) -> None:
    """The last item has no training event."""
    longer = grow(student, ITEMS + 1, rows=torch.ones(1, student.shape.width))
    _, found = recovered(recovery(), longer, longer)
    assert torch.equal(found.table.weight[-1], longer.table.weight[-1])
    assert not torch.equal(found.table.weight[:-1], longer.table.weight[:-1])
