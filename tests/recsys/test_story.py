"""A story is stored as canonical JSON and read back strictly."""

import json
from dataclasses import replace

import pytest

from recsys.errors import StoreError
from recsys.story import (
    CriterionRow,
    CurvePoint,
    DataFlow,
    Estimate,
    Example,
    FileRow,
    GridPoint,
    LineageNode,
    ModelRow,
    Pick,
    SliceRow,
    StepRow,
    Story,
    TrialRow,
)

STORY = Story(
    shop="a shop",
    as_of=1_323_435_000,
    decision="HOLD",
    sentence="It is not proven.",
    advice="Wait.",
    registry="version 12 stays",
    models=(
        ModelRow("artifact", "artifact", {"ndcg_at_10": Estimate(0.1, 0.08, 0.12)}, 0.4, 0.8, 1000, 0.3, 0.6),
        ModelRow("popular", "baseline", {"ndcg_at_10": Estimate(0.03)}),
    ),
    teacher_curve=(CurvePoint(1, 7.5, 0.05), CurvePoint(2, 7.0, 0.07)),
    trials=(
        TrialRow(0, 32, 0.0, 50, "complete", 0.08, 1.5, False, (CurvePoint(1, 6.5, 0.08),)),
        TrialRow(1, 32, 0.9, 50, "pruned", 0.07, 0.5, True),
    ),
    grid=(GridPoint(0.5, 8, 900, Estimate(-0.01, -0.02, 0.0), "chosen", False, "smallest"),),
    grid_max_loss=0.02,
    criteria=(CriterionRow("kept", "proof", 0.9, 0.9, 0.85, 0.95, "unproven", False, "s", "share"),),
    slices=(SliceRow("cold", 10, "teacher", Estimate(0.0, -0.1, 0.1), "pass"),),
    slice_max_loss=0.1,
    steps=(StepRow("build", 1.5, False, 2.5, 0.5, 0.25), StepRow("teach", None, True)),
    examples=(Example(("a",), ("b",), (Pick("b", True, "a"),), (Pick("c", False),)),),
    data=DataFlow(
        files=(FileRow("x.csv", 10, 8, 2, {"no user": 2}), FileRow("y.csv", 5, 4, 1, {"no item": 1})),
        kept=9, duplicates=1, left_out=1, repeats=1, after_as_of=0, capped=0,
        users=3, items=4, validation_users=2, test_users=2, notes=("extended",),
    ),
    lineage=(LineageNode("build", "ab" * 32, ("cd" * 32,)),),
)  # fmt: skip


def test_a_story_comes_back_equal():
    assert Story.from_json(STORY.to_json()) == STORY


def test_the_json_is_canonical():
    text = STORY.to_json()
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=1, allow_nan=False)
    assert text == Story.from_json(text).to_json()


def test_a_story_without_parts_comes_back_too():
    bare = Story("s", 0, "NO CHANGE", "Same as the champion.", "")
    assert Story.from_json(bare.to_json()) == bare
    assert bare.model("champion") is None


def test_a_number_that_is_not_finite_is_absent():
    row = ModelRow("m", "student", {"ndcg_at_10": Estimate(float("nan"), float("-inf"), 1.0)})
    read = Story.from_json(replace(STORY, models=(row,)).to_json())
    assert read.models[0].metrics == {"ndcg_at_10": Estimate(None, None, 1.0)}


def test_hostile_texts_survive():
    hostile = "<script>\x00\u202e\ud800" + "x" * 10_000
    assert Story.from_json(replace(STORY, shop=hostile).to_json()).shop == hostile


def test_sums_over_files():
    flow = STORY.data
    assert (flow.rows, flow.accepted, flow.quarantined) == (15, 12, 3)
    assert list(flow.by_rule().items()) == [("no user", 2), ("no item", 1)]
    kept_and_left = flow.kept + flow.duplicates + flow.left_out + flow.repeats + flow.after_as_of + flow.capped
    assert flow.accepted == kept_and_left


def test_roles_and_absent_metrics():
    assert STORY.model("baseline").name == "popular"
    assert STORY.model("baseline").estimate("mrr_at_1") == Estimate(None)
    assert [trial.undistilled for trial in STORY.trials] == [True, False]


def damaged(change):
    value = json.loads(STORY.to_json())
    change(value)
    return json.dumps(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(schema=2), r"its schema is 2, this version reads 1"),
        (lambda v: v.pop("schema"), r"its schema is None"),
        (lambda v: v.pop("as_of"), r"missing field as_of \(story\)"),
        (lambda v: v.update(colour="red"), r"unknown field colour \(story\)"),
        (lambda v: v.update(decision="MAYBE"), r"one of PROMOTE, HOLD, REJECT, NO CHANGE, found 'MAYBE'"),
        (lambda v: v.update(as_of="now"), r"expected int, found 'now' \(story.as_of\)"),
        (lambda v: v.update(as_of=True), r"expected int, found True"),
        (lambda v: v.update(steps={}), r"expected a list, found \{\} \(story.steps\)"),
        (lambda v: v["trials"][1].update(width=None), r"expected int, found None \(story.trials\[1\].width\)"),
        (lambda v: v["models"][0].update(metrics=[]), r"expected an object, found \[\] \(story.models\[0\]"),
        (lambda v: v["steps"][0].update(reused=1), r"expected bool, found 1 \(story.steps\[0\].reused\)"),
    ],
)
def test_a_damaged_story_is_refused_by_field(change, message):
    with pytest.raises(StoreError, match=message):
        Story.from_json(damaged(change))


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_what_is_no_story_is_refused(text):
    with pytest.raises(StoreError, match=r"a night's story cannot be read.*Run the night again\."):
        Story.from_json(text)


def test_a_story_of_before_costs_were_kept_is_read():
    value = json.loads(STORY.to_json())
    for name in ("currency", "cost_since_promotion"):
        del value[name]
    for step in value["steps"]:
        for name in ("cpu_seconds", "gpu_seconds", "cost"):
            del step[name]
    older = Story.from_json(json.dumps(value))
    assert older == replace(STORY, steps=(StepRow("build", 1.5, False), StepRow("teach", None, True)))
    assert older.cost is None
    assert STORY.cost == 0.25


def test_a_story_of_before_reasons_were_kept_is_read():
    value = json.loads(STORY.to_json())
    for pick in (*value["examples"][0]["artifact"], *value["examples"][0]["teacher"]):
        del pick["because"]
    assert Story.from_json(json.dumps(value)).examples[0].artifact == (Pick("b", True),)
