"""The examples of the report, from what a real night left in its home."""

import numpy as np
import pytest

from recsys.dataset import Dataset
from recsys.evaluate import ModelReport
from recsys.explanation import explain
from recsys.runtime import Runtime
from tasks.adapters.store import Store
from tasks.storyteller import SHOWN, disagreement_of, examples_of


@pytest.fixture(scope="module")
def night(released_for_module):
    """Dataset, reports and runtime of the one night."""
    store = Store(released_for_module.settings.store)

    def folders(step):
        return [
            store.open(step, path.stem)
            for path in sorted((store.root / "objects" / step).iterdir())
            if path.suffix == ".json"
        ]

    reports = {report.model: report for report in map(ModelReport.load, folders("evaluate"))}
    return Dataset.load(folders("build")[0]), reports, Runtime.open(folders("artifact")[0])


def test_each_item_says_which_event_carried_it_most(night):
    dataset, _, runtime = night
    examples = list(examples_of(dataset, runtime))
    assert examples
    code_of = {title: code for code, title in enumerate(dataset.catalog.titles, start=1)}
    for example in examples:
        history = np.array([code_of[title] for title in example.history], np.int32)
        strongest = {
            item.code: dataset.catalog.titles[item.reasons[0].code - 1]
            for item in explain(runtime, history, SHOWN) if item.reasons
        }  # fmt: skip
        assert {code_of[pick.title]: pick.because for pick in example.artifact if pick.because} == strongest
        assert {pick.title for pick in example.artifact if pick.taken} <= set(example.taken)
    assert any(pick.because for example in examples for pick in example.artifact)


def test_no_example_is_of_fewer_than_ten_users(night):
    dataset, _, runtime = night
    cases, titles = dataset.test_cases(), dataset.catalog.titles
    for example in examples_of(dataset, runtime):
        having = [
            {titles[code - 1] for code in target}
            for history, target in zip(cases.histories, cases.targets, strict=True)
            if set(example.history) <= {titles[code - 1] for code in history}
        ]
        assert len(having) >= 10
        assert all(sum(title in target for target in having) >= 10 for title in example.taken)


def test_it_is_told_how_far_artifact_and_teacher_part(night):
    dataset, reports, _ = night
    parting = disagreement_of(dataset, reports["artifact"], reports["teacher"])
    same = (reports["artifact"].top[:, 0] == reports["teacher"].top[:, 0]).mean()
    assert parting.first == pytest.approx(same)
    assert parting.shared < 10
    assert all(row.artifact - row.teacher >= 10 for row in parting.more)
    alike = disagreement_of(dataset, reports["artifact"], reports["artifact"])
    assert (alike.first, alike.more, alike.less) == (1.0, (), ())
    assert alike.shared == pytest.approx((reports["artifact"].top[:, :10] > 0).sum(1).mean())
