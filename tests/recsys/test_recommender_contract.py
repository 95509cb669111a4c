"""The contract every Recommender obeys: teacher, student, artifact and both baselines."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from recsys.baselines import MostPopular, Neighbours
from recsys.config import TeacherConfig
from recsys.decoder import DecoderShape
from recsys.evaluate import OnCatalog
from recsys.export import Publication, export
from recsys.histories import Cases, Catalog, Histories
from recsys.metrics import Hits, ndcg
from recsys.recommender import Recommender
from recsys.runtime import Runtime
from recsys.sequence_model import Scorer, ranking_validator
from recsys.statistics import paired_difference
from recsys.student import Student
from recsys.synthetic import shop
from recsys.teacher import fit_teacher
from recsys.training import HardLabels, Schedule, fit

USERS, ITEMS, EVENTS, LENGTH = 300, 36, 9, 8
MODELS = ["teacher", "student", "artifact", "most_popular", "neighbours", "teacher_on_later_catalog"]
LEARNING = ["teacher", "student", "artifact", "neighbours"]


def histories_of(randomness: float) -> Histories:
    """A synthetic shop: the last event of each user is for testing, the one before for validation."""
    events = shop(USERS, ITEMS, EVENTS, randomness, seed=3).events
    users = np.array(events["user_id"].to_pylist())
    order = np.argsort(users, kind="stable")
    codes = np.array([int(item_id[-5:]) + 1 for item_id in events["item_id"].to_pylist()], np.int32)
    return Histories(
        tokens=np.array([f"{user:032x}" for user in range(USERS)], "S32"),
        offsets=np.arange(USERS + 1) * EVENTS,
        items=codes[order],
        times=events["timestamp"].to_numpy()[order],
        weights=np.ones(USERS * EVENTS, np.float32),
        train_end=np.full(USERS, EVENTS - 2, np.int32),
        valid_end=np.full(USERS, EVENTS - 1, np.int32),
    )


def cases_of(histories: Histories, end: int) -> Cases:
    """The event after the first `end` of each user, whatever it is."""
    users = np.arange(USERS)
    before = [histories.until(user, end) for user in users]
    return Cases(users, before, [histories.until(user, end + 1)[end:] for user in users], exclude_seen=False)


def models_of(histories: Histories, place: Path) -> Mapping[str, Recommender]:
    """One of each, trained on the same training part."""
    validation, counts = cases_of(histories, EVENTS - 2), histories.training_counts(ITEMS)
    config = TeacherConfig(width=16, dropout=0.1, epochs=12, learning_rate=1e-2)
    teacher, _ = fit_teacher(histories, validation, ITEMS, None, config, length=LENGTH)
    student = Student.untrained(DecoderShape.of(ITEMS, 16, 1, LENGTH), 0.1, seed=0)
    validate = ranking_validator(student, validation)
    fit(student, histories, LENGTH, Schedule(12, 1e-2, seed=0), HardLabels(), validate)
    student.eval()
    nothing: list[str | None] = [None] * ITEMS
    catalog = Catalog([f"item-{code}" for code in range(1, ITEMS + 1)], nothing, nothing, nothing)
    export(student, Publication(catalog, counts, "allow", {}), 8, place)
    scorer = Scorer(teacher, LENGTH, "teacher")
    return {
        "teacher": scorer,
        "student": Scorer(student, LENGTH, "student"),
        "artifact": Runtime.open(place),
        "most_popular": MostPopular(counts),
        "neighbours": Neighbours(histories, ITEMS),
        "teacher_on_later_catalog": OnCatalog(scorer, Catalog([str(code) for code in range(ITEMS + 4)], [], [], [])),
    }


@pytest.fixture(scope="module")
def easy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Histories, Mapping[str, Recommender]]:
    histories = histories_of(randomness=0.1)
    return histories, models_of(histories, tmp_path_factory.mktemp("easy") / "artifact")


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> tuple[Histories, Mapping[str, Recommender]]:
    histories = histories_of(randomness=1.0)
    return histories, models_of(histories, tmp_path_factory.mktemp("noise") / "artifact")


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, easy: tuple[Histories, Mapping[str, Recommender]]) -> Recommender:
    return easy[1][request.param]


def some_histories() -> list[np.ndarray]:
    """Lengths from 1 to beyond what the models read."""
    rng = np.random.default_rng(0)
    return [rng.integers(1, ITEMS + 1, length, dtype=np.int32) for length in (1, 3, 2, 8, 1, 13, 5)]


def known_columns(scores: np.ndarray) -> np.ndarray:
    return scores[:, :ITEMS]


def test_it_has_a_name_and_one_column_an_item(model: Recommender):
    scores = model.scores(some_histories())
    assert model.name
    assert scores.shape == (7, model.items)
    assert scores.dtype == np.float32


def test_scores_are_finite_for_every_item_it_knows(model: Recommender):
    scores = model.scores(some_histories())
    assert np.isfinite(known_columns(scores)).all()
    assert np.isneginf(scores[:, ITEMS:]).all()


def test_the_same_question_gets_the_same_answer(model: Recommender):
    first, second = model.scores(some_histories()), model.scores(some_histories())
    assert np.array_equal(first, second)


def test_batching_does_not_change_scores(model: Recommender):
    together = model.scores(some_histories())
    alone = np.concatenate([model.scores([history]) for history in some_histories()])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)


def test_it_does_not_change_the_histories_it_is_given(model: Recommender):
    histories, before = some_histories(), some_histories()
    model.top(histories, 5, histories)
    for given, kept in zip(histories, before, strict=True):
        assert np.array_equal(given, kept)


def test_excluded_items_are_never_recommended_however_long_the_list(model: Recommender):
    histories = some_histories()
    exclude = [np.unique(history) for history in histories]
    for k in (1, 10, model.items):
        codes, scores = model.top(histories, k, exclude)
        for row, barred in zip(codes, exclude, strict=True):
            assert not np.isin(row, barred).any()
        assert np.array_equal(codes == 0, np.isneginf(scores))


def test_an_exhausted_list_ends_in_zeros(model: Recommender):
    exclude = [np.arange(3, ITEMS + 1, dtype=np.int32)]
    codes, scores = model.top([np.array([5], np.int32)], 6, exclude)
    assert sorted(codes[0, :2].tolist()) == [1, 2]
    assert codes[0, 2:].tolist() == [0] * 4
    assert np.isneginf(scores[0, 2:]).all()


def test_the_list_is_that_of_the_scores_with_ties_by_the_lower_code(model: Recommender):
    histories = some_histories()
    codes, scores = model.top(histories, 10)
    for history, row, listed in zip(histories, codes, scores, strict=True):
        expected = model.scores([history])[0]
        assert len(set(row.tolist())) == 10
        np.testing.assert_allclose(listed, expected[row - 1], rtol=1e-5, atol=1e-5)
        assert (np.diff(listed) <= 0).all()
        for better, worse in zip(range(9), range(1, 10), strict=True):
            assert listed[better] > listed[worse] or row[better] < row[worse]
        outside = np.delete(expected, row - 1)
        assert outside.max() <= listed[-1] + 1e-5


def test_a_shorter_list_is_the_head_of_a_longer_one(model: Recommender):
    histories = some_histories()
    assert np.array_equal(model.top(histories, 3)[0], model.top(histories, 10)[0][:, :3])


def test_an_empty_history_is_answered(model: Recommender):
    nothing = [np.empty(0, np.int32)]
    assert np.isfinite(known_columns(model.scores(nothing))).all()
    assert (model.top(nothing, 5)[0] > 0).all()


def test_nobody_gets_nothing(model: Recommender):
    assert model.scores([]).shape == (0, model.items)


@pytest.mark.parametrize("name", ["most_popular", "neighbours"])
def test_equal_scores_are_listed_by_code(name: str, easy: tuple[Histories, Mapping[str, Recommender]]):
    barren = {"most_popular": MostPopular(np.ones(5, np.int64)), "neighbours": easy[1]["neighbours"]}[name]
    assert barren.top([np.empty(0, np.int32)], 4)[0].tolist() == [[1, 2, 3, 4]]


def ndcg_at_10(model: Recommender, cases: Cases) -> np.ndarray:
    hits = Hits.of(model.top(cases.histories, 10)[0], cases.targets)
    return ndcg(hits.at_rank, hits.targets, 10)


@pytest.mark.parametrize("name", LEARNING)
def test_it_beats_most_popular_where_there_is_something_to_learn(
    name: str, easy: tuple[Histories, Mapping[str, Recommender]]
):
    histories, models = easy
    cases = cases_of(histories, EVENTS - 1)
    margin = paired_difference(ndcg_at_10(models[name], cases), ndcg_at_10(models["most_popular"], cases))
    assert margin.low > 0.1


@pytest.mark.parametrize("name", LEARNING)
def test_it_does_not_beat_most_popular_on_noise(name: str, noise: tuple[Histories, Mapping[str, Recommender]]):
    histories, models = noise
    cases = cases_of(histories, EVENTS - 1)
    ours, theirs = ndcg_at_10(models[name], cases), ndcg_at_10(models["most_popular"], cases)
    assert paired_difference(ours, theirs, confidence=0.999).low <= 0


def test_most_popular_is_no_better_than_chance_on_noise(noise: tuple[Histories, Mapping[str, Recommender]]):
    histories, models = noise
    reached = ndcg_at_10(models["most_popular"], cases_of(histories, EVENTS - 1))
    chance = sum(1 / np.log2(rank + 1) for rank in range(1, 11)) / ITEMS
    assert abs(reached.mean() - chance) < 4 * reached.std() / len(reached) ** 0.5
