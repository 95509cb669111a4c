"""Soft labels: what is written, what a second night adds, what is refused."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.config import LabelsConfig
from recsys.decoder import Decoder, DecoderShape
from recsys.ensemble import Ensemble
from recsys.errors import StoreError, TrainingError
from recsys.histories import Histories
from recsys.neighbourhood import Neighbourhood, Opinion
from recsys.soft_labels import (
    LABELS,
    SEGMENT,
    Labelling,
    Positions,
    Segment,
    SoftLabels,
    label_schema,
    missing,
    prefix_digest,
    write_segment,
)
from recsys.teacher import Teacher
from recsys.teacher_scores import TeacherHead
from recsys.training import Batch

ITEMS, LENGTH, K = 30, 8, 5
IDS = [f"item-{i}" for i in range(ITEMS)]


def histories_of(users: list[list[int]]) -> Histories:
    """Everything is training."""
    lengths = np.array([len(items) for items in users])
    flat = np.concatenate([np.asarray(items, np.int32) for items in users])
    return Histories(
        tokens=np.array([f"{u:032d}".encode() for u in range(len(users))]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=flat,
        times=np.arange(len(flat)),
        weights=np.ones(len(flat), np.float32),
        train_end=lengths.astype(np.int32),
        valid_end=lengths.astype(np.int32),
    )


@pytest.fixture
def users() -> list[list[int]]:
    """Sixty users with 3 to 40 events: shorter and longer than a window."""
    rng = np.random.default_rng(0)
    return [rng.integers(1, ITEMS + 1, rng.integers(3, 41)).tolist() for _ in range(60)]


@pytest.fixture
def teacher() -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderShape.of(ITEMS, 8, 1, LENGTH), dropout=0.5)


@pytest.fixture
def labelling() -> Labelling:
    return Labelling.of("teacher-1", ITEMS, IDS, LabelsConfig(top_k=K))


def read(folder) -> pa.Table:
    return pq.read_table(folder / LABELS, page_checksum_verification=True)


def joined(labels: SoftLabels, positions: Positions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row = labels.rows[positions.at]
    return labels.items[row], labels.logp[row].astype(np.float32), labels.lse[row]


def test_labels_are_the_best_items_of_the_full_distribution(tmp_path, users, teacher, labelling):
    positions = Positions.of(histories_of(users), LENGTH)
    segment = write_segment(teacher, labelling, positions, [], tmp_path)
    labels = SoftLabels.open([tmp_path], positions, labelling)
    assert segment.written == len(read(tmp_path)) == len(np.unique(positions.sight))
    teacher.eval()
    windows = positions.windows
    items, logp, lse = joined(labels, positions)
    at = 0
    for start, own, stop in zip(windows.start, windows.own, windows.stop, strict=True):
        seen = torch.from_numpy(positions.histories.items[start:stop].astype(np.int64))
        with torch.no_grad():
            logits = (teacher.states(seen[None], teacher.item_table())[0] @ teacher.item_table()[1:].T).numpy()
        for row in logits[own - start :]:
            np.testing.assert_array_equal(items[at], np.argsort(-row, kind="stable")[:K] + 1)
            total = np.log(np.exp(row.astype(np.float64)).sum())
            np.testing.assert_allclose(lse[at], total, atol=1e-5)
            np.testing.assert_allclose(logp[at], row[items[at] - 1] - total, atol=4e-3)  # half precision
            at += 1
    assert at == len(positions.at)


def test_at_gives_the_k_best_of_flat_positions_on_demand(tmp_path, users, teacher, labelling):
    positions = Positions.of(histories_of(users), LENGTH)
    write_segment(teacher, labelling, positions, [], tmp_path)
    labels = SoftLabels.open([tmp_path], positions, labelling)
    items, logp, _ = joined(labels, positions)
    got_items, got_logp = labels.at(torch.from_numpy(positions.at[[7, 2]]), 3)
    np.testing.assert_array_equal(got_items, items[[7, 2], :3])
    np.testing.assert_array_equal(got_logp.float(), logp[[7, 2], :3])


def test_a_second_night_writes_only_what_is_new_and_joins_to_the_same(tmp_path, users, teacher, labelling):
    first = Positions.of(histories_of(users), LENGTH)
    base, delta, whole = tmp_path / "base", tmp_path / "delta", tmp_path / "whole"
    write_segment(teacher, labelling, first, [], base)
    rng = np.random.default_rng(1)
    second = Positions.of(histories_of([[*items, int(rng.integers(1, ITEMS + 1))] for items in users]), LENGTH)
    new = len(second.at) - len(first.at)
    added = write_segment(teacher, labelling, second, [base], delta)
    assert new == len(users)
    assert 0 < added.written <= 1.05 * new
    assert added.forward <= new * LENGTH
    write_segment(teacher, labelling, second, [], whole)
    night = joined(SoftLabels.open([base, delta], second, labelling), second)
    scratch = joined(SoftLabels.open([whole], second, labelling), second)
    np.testing.assert_array_equal(night[0], scratch[0])
    np.testing.assert_allclose(night[1], scratch[1], atol=8e-3)  # one step of half precision
    np.testing.assert_allclose(night[2], scratch[2], atol=1e-5)


def test_a_night_without_news_writes_an_empty_segment(tmp_path, users, teacher, labelling):
    positions = Positions.of(histories_of(users), LENGTH)
    write_segment(teacher, labelling, positions, [], tmp_path / "base")
    again = write_segment(teacher, labelling, positions, [tmp_path / "base"], tmp_path / "again")
    assert (again.written, again.forward, len(read(tmp_path / "again"))) == (0, 0, 0)
    SoftLabels.open([tmp_path / "base", tmp_path / "again"], positions, labelling)


def test_what_is_seen_twice_is_labelled_once(tmp_path, teacher, labelling):
    positions = Positions.of(histories_of([[1, 2, 3], [1, 2, 4], [1, 2, 3]]), LENGTH)
    segment = write_segment(teacher, labelling, positions, [], tmp_path)
    assert (len(positions.at), segment.written) == (6, 2)  # [1] and [1, 2], each seen by three users
    assert SoftLabels.open([tmp_path], positions, labelling).rows[positions.at].tolist() in ([0, 1] * 3, [1, 0] * 3)


def test_missing_by_hand():
    sight = np.array([5, 7, 5, 9, 7], np.uint64)
    assert missing(sight, np.array([9, 1], np.uint64)).tolist() == [True, True, False, False, False]


def test_the_same_input_gives_the_same_bytes(tmp_path, users, teacher, labelling):
    positions = Positions.of(histories_of(users), LENGTH)
    for name in ("a", "b"):
        write_segment(teacher, labelling, positions, [], tmp_path / name)
    for name in (LABELS, SEGMENT):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [LABELS, SEGMENT]


def test_row_groups_are_written_as_they_are_computed(tmp_path, users, teacher, labelling, monkeypatch):
    monkeypatch.setattr("recsys.soft_labels._ROWS_A_GROUP", 64)
    monkeypatch.setattr("recsys.label_rows.BATCH_TOKENS", 64)
    positions = Positions.of(histories_of(users), LENGTH)
    heard: list[tuple[int, int]] = []
    segment = write_segment(teacher, labelling, positions, [], tmp_path, lambda *progress: heard.append(progress))
    assert pq.ParquetFile(tmp_path / LABELS).num_row_groups > 5
    assert heard[0][0] < heard[-1][0] == segment.written
    assert {total for _, total in heard} == {segment.written}
    SoftLabels.open([tmp_path], positions, labelling)


def test_equal_logits_are_sorted_by_code_also_at_the_edge(tmp_path, labelling):
    class Flat(Decoder):
        def item_table(self) -> torch.Tensor:
            table = torch.zeros(ITEMS + 1, 1)
            table[[20, 4]] = 1  # two are best, all others tie for the other three places
            return table

        def states(self, items: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
            return torch.ones(*items.shape, 1)

    positions = Positions.of(histories_of([[1, 2, 3], [4, 5]]), LENGTH)
    write_segment(Flat(DecoderShape.of(ITEMS, 8, 1, LENGTH), 0.0), labelling, positions, [], tmp_path)
    assert read(tmp_path)["items"].to_pylist() == [[4, 20, 1, 2, 3]] * 3


def test_a_teacher_of_an_earlier_catalog_reads_unknown_items_as_no_item_and_labels_only_its_own(tmp_path, teacher):
    knows = 10
    small = Decoder(DecoderShape.of(knows, 8, 1, LENGTH), 0.0)
    labelling = Labelling.of("teacher-1", knows, IDS, LabelsConfig(top_k=K))
    positions = Positions.of(histories_of([[3, 25, 4, 2], [3, 29, 4, 2]]), LENGTH)
    write_segment(small, labelling, positions, [], tmp_path)
    labels = SoftLabels.open([tmp_path], positions, labelling)
    items, _, lse = joined(labels, positions)
    assert items.max() <= knows
    with torch.no_grad():
        states = small.eval().states(torch.tensor([[3, 0, 4]]), small.item_table())[0]
        wanted = torch.logsumexp(states @ small.item_table()[1:].T, 1).numpy()
    np.testing.assert_allclose(lse, np.concatenate([wanted, wanted]), atol=1e-5)


def test_fewer_items_than_k_are_all_kept(tmp_path):
    labelling = Labelling.of("t", 3, IDS, LabelsConfig(top_k=50))
    assert labelling.top_k == 3
    positions = Positions.of(histories_of([[1, 2, 3]]), LENGTH)
    write_segment(Decoder(DecoderShape.of(3, 8, 1, LENGTH), 0.0), labelling, positions, [], tmp_path)
    _, logp, _ = joined(SoftLabels.open([tmp_path], positions, labelling), positions)
    np.testing.assert_allclose(np.exp(logp).sum(1), 1, atol=2e-3)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"teacher": "teacher-2"}, "teacher is teacher-1, teacher-2 was expected"),
        ({"top_k": 4}, "top_k is 5, 4 was expected"),
        ({"catalog": "other"}, "catalog is"),
        ({"items": 29}, "items is 30, 29"),
        ({"states": True}, "states is False, True was expected"),
        ({"teacher_bits": 8}, "teacher_bits is 32, 8 was expected"),
    ],
)
def test_labels_of_another_labelling_are_refused_by_reader_and_writer(
    tmp_path, users, teacher, labelling, changed, says
):
    positions = Positions.of(histories_of(users), LENGTH)
    write_segment(teacher, labelling, positions, [], tmp_path / "base")
    other = dataclasses.replace(labelling, **changed)
    with pytest.raises(StoreError, match=says):
        SoftLabels.open([tmp_path / "base"], positions, other)
    with pytest.raises(StoreError, match=says):
        write_segment(teacher, other, positions, [tmp_path / "base"], tmp_path / "delta")


def test_an_earlier_catalog_is_a_prefix_of_a_later_one():
    config = LabelsConfig()
    assert Labelling.of("t", ITEMS, [*IDS, "new"], config) == Labelling.of("t", ITEMS, IDS, config)
    assert prefix_digest(["ab", "c"]) != prefix_digest(["a", "bc"])


def test_a_position_without_a_label_is_named(tmp_path, teacher, labelling):
    write_segment(teacher, labelling, Positions.of(histories_of([[1, 2, 3], [4, 5]]), LENGTH), [], tmp_path)
    more = Positions.of(histories_of([[1, 2, 3], [4, 6, 5, 5]]), LENGTH)
    with pytest.raises(StoreError, match=r"2 of 5 training positions .* event 2 of user 2"):
        SoftLabels.open([tmp_path], more, labelling)


def test_a_flipped_byte_is_noticed(tmp_path, users, teacher, labelling):
    positions = Positions.of(histories_of(users), LENGTH)
    write_segment(teacher, labelling, positions, [], tmp_path)
    column = pq.ParquetFile(tmp_path / LABELS).metadata.row_group(0).column(1)
    damaged = bytearray((tmp_path / LABELS).read_bytes())
    damaged[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    (tmp_path / LABELS).write_bytes(damaged)
    with pytest.raises(StoreError, match="damaged"):
        SoftLabels.open([tmp_path], positions, labelling)


def test_a_folder_without_its_segment_file_is_no_segment(tmp_path, users, teacher, labelling):
    positions = Positions.of(histories_of(users), LENGTH)
    written = write_segment(teacher, labelling, positions, [], tmp_path)
    assert Segment.load(tmp_path) == written
    assert json.loads((tmp_path / SEGMENT).read_text())["written"] == written.written
    (tmp_path / SEGMENT).unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        SoftLabels.open([tmp_path], positions, labelling)


def test_a_teacher_that_is_not_a_number_is_refused(tmp_path, users, teacher, labelling):
    with torch.no_grad():
        teacher.norm.weight[0] = torch.nan
    with pytest.raises(TrainingError, match="not numbers"):
        write_segment(teacher, labelling, Positions.of(histories_of(users), LENGTH), [], tmp_path)
    assert not (tmp_path / SEGMENT).exists()


def test_the_file_has_the_stated_columns(tmp_path, users, teacher, labelling):
    write_segment(teacher, labelling, Positions.of(histories_of(users), LENGTH), [], tmp_path)
    assert pq.read_schema(tmp_path / LABELS).remove_metadata() == label_schema(K)


def with_states(tmp_path, users, blended: bool) -> tuple[SoftLabels, Positions]:
    """Labels with states of an ensemble that does not know the last items, opened with its head."""
    knows = ITEMS - 4
    torch.manual_seed(0)
    model = Ensemble([Teacher(DecoderShape.of(knows, width, 1, LENGTH), None, 0.3) for width in (8, 16)])
    histories = histories_of(users)
    opinion = None
    if blended:
        opinion = Opinion(Neighbourhood.of_training(histories_of(known(users, knows)), knows, 4, 5), 0.4)
    labelling = Labelling.of("teacher-1", knows, IDS, LabelsConfig(top_k=K, states=True))
    positions = Positions.of(histories, LENGTH)
    write_segment(model, labelling, positions, [], tmp_path, opinion=opinion)
    return SoftLabels.open([tmp_path], positions, labelling, TeacherHead.of(model, opinion)), positions


def known(users: list[list[int]], knows: int) -> list[list[int]]:
    return [[min(item, knows) for item in items] for items in users]


@pytest.mark.parametrize("blended", [False, True])
def test_kept_states_make_the_stored_distribution_again_from_what_a_batch_reads(tmp_path, users, blended):
    labels, positions = with_states(tmp_path, users, blended)
    assert pq.read_schema(tmp_path / LABELS).remove_metadata() == label_schema(K, 24)
    seen = 0
    for numbers in positions.windows.batches(100, np.random.default_rng(2)):
        batch = Batch.of(positions.histories, positions.windows, numbers, torch.device("cpu"))
        items, logp = labels.at(batch.positions, K)
        hidden = labels.hidden_at(batch, K, 1.0)
        made = torch.log_softmax(hidden.logits(), 1).gather(1, items.long() - 1)
        assert hidden.logits().shape[1] == ITEMS - 4
        torch.testing.assert_close(made, logp.float(), atol=8e-3, rtol=0)
        torch.testing.assert_close(hidden.listed, hidden.logits().gather(1, items.long() - 1), atol=8e-3, rtol=0)
        seen += len(items)
    assert seen == len(positions.at)


def test_states_stay_on_the_disk_where_nobody_asks_for_them(tmp_path, users):
    labels, positions = with_states(tmp_path, users, blended=False)
    without = SoftLabels.open([tmp_path], positions, labels.labelling)
    assert without.states is None
    np.testing.assert_array_equal(without.items, labels.items)


def test_without_states_and_rounding_a_segment_says_what_it_always_did(tmp_path, users, teacher, labelling):
    positions = Positions.of(histories_of(users), LENGTH)
    write_segment(teacher, labelling, positions, [], tmp_path)
    said = json.loads((tmp_path / SEGMENT).read_text())["labelling"]
    assert sorted(said) == ["catalog", "items", "teacher", "top_k"]
    assert "state" not in pq.read_schema(tmp_path / LABELS).names


def test_states_that_do_not_fit_half_precision_are_refused(tmp_path, users, teacher, labelling):
    with torch.no_grad():
        teacher.norm.weight[0] = 1e6
        teacher.table.weight[:] *= 1e-6
    kept = dataclasses.replace(labelling, states=True)
    with pytest.raises(TrainingError, match="half precision"):
        write_segment(teacher, kept, Positions.of(histories_of(users), LENGTH), [], tmp_path)
