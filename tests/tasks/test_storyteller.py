"""The examples of the report, from what a real night left in its home."""

import pytest

from recsys.dataset import Dataset
from recsys.evaluate import ModelReport
from recsys.explanation import explain
from recsys.runtime import Runtime
from tasks.adapters.store import Store
from tasks.storyteller import SHOWN, examples_of


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


def test_each_item_of_the_artifact_says_which_event_carried_it_most(night):
    dataset, reports, runtime = night
    examples = list(examples_of(dataset, reports, runtime))
    assert len(examples) == 3
    cases, titles, reasons = dataset.test_cases(), dataset.catalog.titles, 0
    for example in examples:
        (user,) = [
            row for row, history in enumerate(cases.histories)
            if tuple(titles[code - 1] for code in history[-SHOWN:]) == example.history
        ]  # fmt: skip
        strongest = {
            titles[item.code - 1]: titles[item.reasons[0].code - 1]
            for item in explain(runtime, cases.histories[user], SHOWN) if item.reasons
        }  # fmt: skip
        assert {pick.title: pick.because for pick in example.artifact if pick.because} == strongest
        assert set(strongest.values()) <= {titles[code - 1] for code in cases.histories[user]}
        assert not any(pick.because for pick in example.teacher)
        reasons += len(strongest)
    assert reasons > 20


def test_it_is_said_where_teacher_and_artifact_differ_in_the_first_item(night):
    dataset, reports, runtime = night
    for example in examples_of(dataset, reports, runtime):
        assert example.disagreed == (example.artifact[0].title != example.teacher[0].title)
    same = {**reports, "teacher": reports["artifact"]}
    assert not any(example.disagreed for example in examples_of(dataset, same, runtime))
