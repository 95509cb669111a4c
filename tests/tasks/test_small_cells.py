"""A group of a few users: no figure of it in the verdict, the report, the card, MLflow's metrics or Prefect's table."""

from dataclasses import replace

import numpy as np
import pytest

from recsys.artifact import Card
from recsys.config import GateConfig, LimitsConfig
from recsys.dataset import Build
from recsys.evaluate import ModelReport
from recsys.gate import Evidence, judge
from recsys.model_card import Judged, StudentFacts, TeacherFacts, student_card
from recsys.report import render
from recsys.story import Story
from recsys.wording import measured
from tasks.figures import figures
from tasks.storyteller import _criteria, _slices
from tasks.tell import _metrics

USERS = 400
LENGTHS = np.repeat([1, 2, 3, 4], [198, 4, 60, 138])  # cold, short, long, heavy
TAIL = np.arange(USERS) % 60 == 0  # 7 users
UNSEEN = np.where(np.arange(USERS) < 6, 1.0, np.nan)
QUALITY = np.random.default_rng(0).random(USERS)


class _NothingMeasured:
    def measured(self, step, digest):
        return {}


def report(model: str, ndcg: np.ndarray, **changes) -> ModelReport:
    plain = ModelReport(
        model=model,
        users=np.array([f"{user:032x}" for user in range(USERS)], "S32"),
        metrics={"ndcg_at_10": ndcg, "hr_at_10": (ndcg > 0.3).astype(float)},
        cross_entropy=None,
        coverage_at_10=0.4,
        popularity_at_10=2.5,
        top=np.zeros((USERS, 20), np.int32),
        bytes=4_000_000,
        history_lengths=LENGTHS,
        tail_share=TAIL.astype(float),
        unseen_hit_at_10=UNSEEN,
        as_of=1_700_000_000,
        catalog_items=500,
    )
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def night():
    """The verdict, the story and the card of a night whose artifact is bad to all small groups."""
    bad = QUALITY * np.where(LENGTHS == 2, 0.123, np.where(TAIL, 0.345, np.where(LENGTHS == 3, 0.9371, 1.0)))
    models = {
        "artifact": report("artifact", bad, bytes=800_000),
        "student": report("student", bad),
        "teacher": report("teacher", QUALITY),
        "most_popular": report("most_popular", np.full(USERS, 0.1)),
        "neighbours": report("neighbours", 0.9 * QUALITY),
        "champion": report("champion", QUALITY),
    }
    verdict = judge(
        Evidence(**models, latency_p99_ms=2.0), GateConfig(champion_loss=0.1, unseen_retention=0.5), LimitsConfig()
    )
    told = tuple(figures(_NothingMeasured(), role, "", model) for role, model in models.items())
    story = Story(
        "shop", 1_700_000_000, verdict.decision, verdict.sentence, verdict.advice, models=told,
        criteria=tuple(_criteria(verdict)), slices=tuple(_slices(verdict, models)),
    )  # fmt: skip
    about = Card(items=500, length=50, width=32, heads=(1,), ffn=(64,), bits=8, repeats="exclude", lineage={})
    build = Build(
        accepted=9_000, kept=8_000, duplicates=500, left_out=500, repeats=0, after_as_of=0, capped=0, users=900, items=500,
        as_of=1_700_000_000, test_start=1_699_000_000, validation_start=1_690_000_000, test_users=USERS,
        validation_users=300, notes=(),
    )  # fmt: skip
    teacher = TeacherFacts("a transformer decoder", 500, 50, 0, 0.0)
    card = student_card(Judged(verdict, told, "a shop", "ab" * 32, build), about, StudentFacts(8, 0.9, 50), teacher)
    return verdict, story, card


def changes() -> dict[str, float]:
    """What may be read nowhere, by the group it is of."""
    ours = QUALITY * np.where(LENGTHS == 2, 0.123, np.where(TAIL, 0.345, np.where(LENGTHS == 3, 0.9371, 1.0)))
    groups = {"short": LENGTHS == 2, "long": LENGTHS == 3, "tail": TAIL}
    return {name: float(ours[rows].mean() / QUALITY[rows].mean() - 1) for name, rows in groups.items()}


@pytest.mark.parametrize("group", ["short", "long", "tail"])
def test_no_figure_of_a_few_users_is_anywhere(night, group):
    verdict, story, card = night
    assert verdict.decision == "PROMOTE", verdict.sentence
    change = changes()[group]
    texts = [verdict.to_json(), story.to_json(), render(story), card]
    for text in texts:
        for written in (f"{change:.6f}"[:8], measured(change, "change"), f"{100 * change:+.1f} %"):
            assert written not in text
    assert not [name for name in _metrics(story) if f"slice_{group}" in name]
    row = next(row for row in verdict.criteria if row.name == f"slice_{group}")
    assert (row.value, row.low, row.high, row.outcome) == (None, None, None, "pass")
    assert "fewer than 10 users" in row.sentence
    assert f"slice_{group}" in card, "that it is withheld is said"


@pytest.mark.parametrize("users", ["4 users", "60 users", "7 users", "6 users"])
def test_not_even_their_number_nor_that_of_the_group_by_which_it_could_be_told(night, users):
    verdict, story, card = night
    for text in (verdict.to_json(), story.to_json(), render(story), card):
        assert f" {users}" not in text
    assert [row.users for row in story.slices] == [198, None, None, 138, None]
    assert [model.unseen_users for model in story.models] == [0] * 6
    assert not [name for name in _metrics(story) if "unseen_hr" in name]


def test_large_groups_are_told_as_before(night):
    verdict, story, _ = night
    assert "cold users (history of at most 1), 198 users" in next(
        row.sentence for row in verdict.criteria if row.name == "slice_cold"
    )
    assert "gate/slice_heavy/value" in _metrics(story)
