"""Reports: what is measured, on which lists, and that a saved report is the report."""

import json
from collections.abc import Sequence
from dataclasses import replace
from math import log, log2
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.dataset import Build, Dataset
from recsys.evaluate import ModelReport, OnCatalog, evaluate, head_items, latency, relative_popularity, unseen_hits
from recsys.histories import Cases, Catalog, Histories
from recsys.membership import Membership
from recsys.recommender import History, Recommender
from recsys.statistics import Interval

ITEMS = 6
TRAINING = [[1, 1, 2], [1, 1, 3], [1, 2, 4]]  # events of items 1 to 6: 5, 2, 1, 1, 0, 0
TEST = [[4, 3], [2], [3, 6]]


def dataset() -> Dataset:
    """Three users of six items."""
    events = [before + after for before, after in zip(TRAINING, TEST, strict=True)]
    flat = np.array([code for user in events for code in user], np.int32)
    ends = np.array([len(before) for before in TRAINING], np.int32)
    histories = Histories(
        tokens=np.array([f"{user:032x}" for user in range(3)], "S32"),
        offsets=np.cumsum([0, *(len(user) for user in events)]),
        items=flat,
        times=np.arange(len(flat)),
        weights=np.ones(len(flat), np.float32),
        train_end=ends,
        valid_end=ends,
    )
    nothing: list[str | None] = [None] * ITEMS
    catalog = Catalog([f"item-{code}" for code in range(1, ITEMS + 1)], nothing, nothing, nothing)
    kept = len(flat)
    build = Build(kept, kept, 0, 0, 0, 0, 0, 3, ITEMS, 1_700_000_000, 0, 0, 3, 3, ())
    return Dataset(histories, catalog, build, "exclude")


DATASET = dataset()
CASES = DATASET.test_cases()


class Table(Recommender):
    """Scores that are known beforehand: one row for each last item of a history."""

    name = "table"

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.items = np.asarray(rows, np.float32), rows.shape[1]
        self.calls: list[int] = []

    def scores(self, histories: Sequence[History]) -> np.ndarray:
        self.calls.append(len(histories))
        last = [history[-1] - 1 if len(history) else 0 for history in histories]
        return self.rows[last].copy()


def descending(items: int = ITEMS) -> np.ndarray:
    """Everybody is told 1, 2, 3, ... in this order, but for what they have."""
    return np.tile(-np.arange(items, dtype=np.float32), (ITEMS, 1))


def test_the_lists_leave_out_what_a_user_has_and_end_in_zeros():
    report = evaluate(Table(descending()), CASES, DATASET, 10)
    assert report.top.dtype == np.int32
    assert report.top.shape == (3, 20)
    assert report.top[:, :5].tolist() == [[3, 4, 5, 6, 0], [2, 4, 5, 6, 0], [3, 5, 6, 0, 0]]


def test_metrics_are_those_of_the_lists():
    report = evaluate(Table(descending()), CASES, DATASET, 10)
    assert report.metrics["ndcg_at_10"] == pytest.approx([1, 1, (1 + 1 / log2(4)) / (1 + 1 / log2(3))])
    assert report.metrics["recall_at_1"] == pytest.approx([1 / 2, 1, 1 / 2])
    assert report.mean("hr_at_1") == 1


def test_cross_entropy_is_over_what_may_be_recommended():
    report = evaluate(Table(np.zeros((ITEMS, ITEMS))), CASES, DATASET, 10)
    assert report.cross_entropy == pytest.approx([log(4), log(4), log(3)])
    assert report.mean_cross_entropy == pytest.approx((2 * log(4) + log(3)) / 3)


def test_a_model_without_probabilities_has_no_cross_entropy():
    model = Table(descending())
    model.probabilistic = False
    report = evaluate(model, CASES, DATASET, 10)
    assert report.cross_entropy is None
    assert report.mean_cross_entropy is None


def test_what_is_known_of_the_users_is_kept_in_their_order():
    report = evaluate(Table(descending()), CASES, DATASET, 77)
    assert report.users.tolist() == DATASET.histories.tokens.tolist()
    assert report.history_lengths.tolist() == [3, 3, 3]
    assert report.tail_share == pytest.approx([0.5, 0, 0.5])  # items 1, 2 and 3 are the head
    assert (report.as_of, report.catalog_items, report.bytes) == (1_700_000_000, 6, 77)


def test_the_head_makes_four_fifths_of_the_training_events():
    assert head_items(np.array([5, 2, 1, 1, 0, 0])).tolist() == [True, True, True, False, False, False]
    assert head_items(np.array([1, 8, 1])).tolist() == [False, True, False]
    assert not head_items(np.zeros(3, np.int64)).any()


def test_the_tail_share_counts_targets_outside_the_head():
    only_the_first = replace(CASES, targets=[np.array([1, 4]), np.array([5, 6]), np.array([1])])
    assert evaluate(Table(descending()), only_the_first, DATASET, 1).tail_share == pytest.approx([0.5, 1, 0])


def test_a_hit_on_an_item_nobody_had_is_counted_for_those_who_took_one():
    counts = np.array([4, 3, 2, 1, 0, 0])
    targets = [np.array([5]), np.array([1, 6]), np.array([2, 3]), np.array([5, 6])]
    lists = np.array([[5, 1], [1, 2], [2, 3], [6, 0]])
    assert unseen_hits(lists, targets, counts) == pytest.approx([1, 0, np.nan, 1], nan_ok=True)
    report = evaluate(
        Table(descending()), replace(CASES, targets=[np.array([1]), np.array([5]), np.array([4])]), DATASET, 1
    )
    unseen = DATASET.training_counts()[[0, 4, 3]] == 0
    assert np.array_equal(np.isfinite(report.unseen_hit_at_10), unseen)


def test_popularity_is_relative_to_the_average_item():
    counts = np.array([6, 2, 1, 3])
    assert relative_popularity(counts, np.array([1, 2])) == pytest.approx(4 / 3)
    assert relative_popularity(counts, np.array([1, 1, 4])) == pytest.approx(5 / 3)
    assert relative_popularity(counts, np.array([], int)) == 0


def test_popularity_and_coverage_are_over_the_first_tens():
    report = evaluate(Table(descending()), CASES, DATASET, 1)
    counts = DATASET.training_counts()
    shown = [3, 4, 5, 6, 2, 4, 5, 6, 3, 5, 6]
    assert report.popularity_at_10 == pytest.approx(np.mean([counts[code - 1] for code in shown]) / counts.mean())
    assert report.coverage_at_10 == 5 / 6


def test_a_smaller_catalog_is_scored_minus_infinity_beyond_its_end():
    model = OnCatalog(Table(descending(4)[:, :4]), DATASET.catalog)
    assert model.scores([np.array([2, 6])])[0].tolist() == [0, -1, -2, -3, -np.inf, -np.inf]
    report = evaluate(Table(descending(4)[:, :4]), CASES, DATASET, 1)
    assert report.top[:, :3].tolist() == [[3, 4, 0], [2, 4, 0], [3, 0, 0]]
    assert report.metrics["recall_at_20"] == pytest.approx([1, 1, 1 / 2])
    assert np.isfinite(report.cross_entropy).all()


def test_a_user_whose_targets_are_all_beyond_the_catalog_has_no_cross_entropy_and_no_hit():
    report = evaluate(Table(descending(3)[:, :3]), replace(CASES, targets=[np.array([5])] * 3), DATASET, 1)
    assert np.isnan(report.cross_entropy).all()
    assert report.mean_cross_entropy is None
    assert report.mean("ndcg_at_10") == 0


class Before(Table):
    """A model of before users were forgotten: other codes, one item that is gone, and not yet the catalog's last."""

    item_ids = ("gone", "item-5", "item-4", "item-3", "item-2", "item-1")


def test_a_model_with_codes_of_its_own_is_asked_and_answers_in_the_catalogs():
    report = evaluate(Before(descending()), CASES, DATASET, 1)
    assert report.top[:, :4].tolist() == [[5, 4, 3, 0], [5, 4, 2, 0], [5, 3, 0, 0]]
    first = Before(descending())
    heard = []
    first.scores = lambda histories: heard.extend(histories) or np.zeros((len(histories), ITEMS), np.float32)
    scores = OnCatalog(first, DATASET.catalog).scores([np.array([1, 6, 5], np.int32)])
    assert [history.tolist() for history in heard] == [[6, 2]], "item 6 it does not know"
    assert np.isinf(scores[0]).tolist() == [False] * 5 + [True]


class Served(Table):
    """A model that serves other lists than its scores say."""

    def top(self, histories, k, exclude=None):
        return np.full((len(histories), 1), 6, np.int32), np.zeros((len(histories), 1), np.float32)


def test_what_is_measured_is_the_models_own_list():
    report = evaluate(Served(descending()), CASES, DATASET, 1)
    assert report.top[:, 0].tolist() == [6, 6, 6]
    assert report.metrics["hr_at_1"].tolist() == [0, 0, 1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_a_number_spoils_its_user_only(bad):
    rows = descending()
    rows[2, 4] = bad  # the second user's last item is 3
    report = evaluate(Table(rows), CASES, DATASET, 1)
    assert np.isnan(report.metrics["ndcg_at_10"]).tolist() == [False, True, False]
    assert all(np.isnan(values[1]) for values in report.metrics.values())
    assert report.top[1].tolist() == [0] * 20


def many(users: int) -> Cases:
    return Cases(
        users=np.arange(users) % 3,
        histories=[CASES.histories[user % 3] for user in range(users)],
        targets=[CASES.targets[user % 3] for user in range(users)],
        exclude_seen=True,
    )


def test_users_are_ranked_in_batches_with_progress():
    model, seen = Table(descending()), []
    model.probabilistic = False
    report = evaluate(model, many(600), DATASET, 1, lambda done, total: seen.append((done, total)))
    assert model.calls == [256, 256, 88]
    assert seen == [(256, 600), (512, 600), (600, 600)]
    assert report.metrics["hr_at_1"].tolist() == [1.0] * 600


def test_a_report_is_saved_and_loaded_whole(tmp_path: Path):
    reports = [evaluate(Table(descending()), CASES, DATASET, 10)]
    reports.append(replace(reports[0], cross_entropy=None))
    reports.append(replace(reports[0], cross_entropy=np.array([np.nan, 1, 2])))
    intervals = Interval(0.6, 0.55, 0.65), Interval(0.2, 0.1, 0.3), None, Interval(0.5, 0.4, 0.6)
    reports.append(replace(reports[0], membership=Membership(700, *intervals)))
    for number, report in enumerate(reports):
        report.save(tmp_path / str(number))
        loaded = ModelReport.load(tmp_path / str(number))
        assert set(vars(loaded)) == set(vars(report))
        assert set(loaded.metrics) == set(report.metrics)
        for name, values in vars(report).items():
            pairs = [(values, getattr(loaded, name))]
            if name == "metrics":
                pairs = [(values[metric], loaded.metrics[metric]) for metric in values]
            for ours, theirs in pairs:
                np.testing.assert_array_equal(theirs, ours)
                assert getattr(ours, "dtype", None) == getattr(theirs, "dtype", None)


def test_a_report_of_before_membership_was_measured_is_read(tmp_path: Path):
    evaluate(Table(descending()), CASES, DATASET, 10).save(tmp_path)
    old = json.loads((tmp_path / "report.json").read_text())
    del old["membership"]
    (tmp_path / "report.json").write_text(json.dumps(old))
    assert ModelReport.load(tmp_path).membership is None


def test_a_report_with_a_number_missing_can_be_saved_for_the_gate_to_see(tmp_path: Path):
    rows = descending()
    rows[2, 4] = np.nan
    evaluate(Table(rows), CASES, DATASET, 1).save(tmp_path)
    assert np.isnan(ModelReport.load(tmp_path).metrics["ndcg_at_10"]).tolist() == [False, True, False]
    assert '"ndcg_at_10": null' in (tmp_path / "report.json").read_text()


def test_the_same_report_gives_the_same_bytes(tmp_path: Path):
    for name in ("one", "two"):
        evaluate(Table(descending()), CASES, DATASET, 10).save(tmp_path / name)
    for file in ("report.json", "users.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_damaged_report_is_not_read(tmp_path: Path):
    evaluate(Table(descending()), many(600), DATASET, 10).save(tmp_path)
    file = tmp_path / "users.parquet"
    raw = bytearray(file.read_bytes())
    column = pq.ParquetFile(file).metadata.row_group(0).column(0)
    raw[column.dictionary_page_offset + column.total_compressed_size - 1] ^= 0xFF
    file.write_bytes(raw)
    with pytest.raises(OSError, match="CRC"):
        ModelReport.load(tmp_path)


def test_latency_is_of_single_requests():
    model = Table(descending())
    measured = latency(model, CASES, requests=7)
    assert 0 < measured.p50_ms <= measured.p99_ms
    assert set(model.calls) == {1}
