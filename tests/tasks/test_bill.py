"""What is counted for a promoted model: every night and refresh after the last promotion, no look of the monitor."""

import pytest

from recsys.story import StepRow, Story
from tasks.adapters.settings import Settings
from tasks.adapters.tracking import OCCASION, WATCH, Tracking
from tasks.bill import bill


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Tracking(Settings.from_environment(tmp_path_factory.mktemp("home")).prepare())


def run(tracking: Tracking, name: str, metrics: dict[str, float], **tags: str) -> str:
    run_id = tracking.start_night(name, tags, {})
    tracking.log_metrics(run_id, metrics, step=0)
    tracking.log_metrics(tracking.start_child(run_id, "trial", {}), {"validation_ndcg_at_10": 0.1}, step=0)
    tracking.finish(run_id, "FINISHED")
    return run_id


def test_nights_after_a_run(tracking):
    promoted = run(tracking, "nightly 1", {"cost/validate": 1, "cost/teach": 2})
    run(tracking, "nightly 2", {"cost/validate": 3})
    run(tracking, "monitor", {"cost/validate": 4}, **{OCCASION: WATCH})
    run(tracking, "refresh", {"cost/validate": 5}, **{OCCASION: "refresh-teacher"})
    run(tracking, "died at once", {})
    later = tracking.nights_after(promoted)
    assert sorted(metrics["cost/validate"] for metrics in later) == [3, 5]
    assert len(tracking.nights_after(None)) == len(tracking.nights_after("gone")) == 3
    assert tracking.ended(promoted) is not None
    assert tracking.ended("gone") is None


def test_only_the_night_that_promotes_names_the_price_of_a_model():
    steps = (StepRow("teach", 1.0, False, 1.0, 0.0, 2.0), StepRow("judge", 1.0, False, 1.0, 0.0, 0.5))
    story = Story("a shop", 0, "HOLD", "", "", steps=steps, cost_since_promotion=7.0)
    assert bill(story) == {"cost/night": 2.5, "cost/since_promotion": 7.0}
    promoted = Story("a shop", 0, "PROMOTE", "", "", steps=steps, cost_since_promotion=7.0)
    assert bill(promoted) == {"cost/night": 2.5, "cost/since_promotion": 7.0, "cost/promoted_model": 7.0}
