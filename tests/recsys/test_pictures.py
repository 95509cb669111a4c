"""Pictures show what a story has, are equal for equal stories, and hold nothing that could harm a page."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import matplotlib
import pytest

from recsys import pictures
from recsys.story import CurvePoint, Estimate, GridPoint, ModelRow, SliceRow, Story, TrialRow

HOSTILE = "<script>$x^2$</script>\x00\u202e" + "y" * 10_000


def model(name, role, quality, size=None, p99=None):
    return ModelRow(
        name, role, {"ndcg_at_10": Estimate(quality, quality - 0.01, quality + 0.01)}, bytes=size, p99_ms=p99
    )


def curve(*values):
    return tuple(CurvePoint(epoch, 7.0, value) for epoch, value in enumerate(values, 1))


STORY = Story(
    "shop", 0, "PROMOTE", "s", "a",
    models=(
        model("teacher", "teacher", 0.10, 12_000_000, 7.4),
        model("student", "student", 0.09, 1_600_000),
        model("artifact", "artifact", 0.089, 400_000, 0.6),
        model("neighbours", "baseline", 0.07),
    ),
    teacher_curve=curve(0.05, 0.1),
    trials=(
        TrialRow(0, 64, 0.0, 50, "complete", 0.08, 1.0, False, curve(0.06, 0.08)),
        TrialRow(1, 64, 0.9, 50, "complete", 0.09, 1.0, True, curve(0.07, 0.09)),
        TrialRow(2, 32, 0.8, 20, "pruned", 0.05, 1.0, False, curve(0.05)),
    ),
    grid=(
        GridPoint(1.0, 8, 470_000, Estimate(-0.004, -0.01, 0.002), "larger", True, ""),
        GridPoint(0.25, 8, 400_000, Estimate(-0.03, -0.05, -0.01), "refused", False, ""),
    ),
    grid_max_loss=0.02,
    slices=(SliceRow("cold users", 80, "teacher", Estimate(0.03, -0.08, 0.14), "pass"),),
    slice_max_loss=0.1,
)  # fmt: skip
ALL = [
    pictures.quality_against_size,
    pictures.quality_against_latency,
    pictures.learning_curves,
    pictures.trials,
    pictures.slices,
    pictures.grid,
]


def texts(picture):
    return ["".join(e.itertext()) for e in ET.fromstring(picture.svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("draw", ALL)
def test_equal_stories_give_equal_bytes(draw):
    first, again = draw(STORY), draw(Story.from_json(STORY.to_json()))
    assert first == again
    assert first.svg.startswith("<svg")
    assert first.svg.endswith("</svg>")


@pytest.mark.parametrize("draw", ALL)
def test_a_picture_is_undated_and_needs_nothing_from_elsewhere(draw):
    svg = draw(STORY).svg
    assert not re.search(r"<metadata>.*?</metadata>|20\d\d-|<image|<script|<!DOCTYPE", svg, re.DOTALL)
    assert set(re.findall(r'(?:href="|url\()([^#"]?)', svg)) <= {""}


def test_ids_of_different_pictures_differ():
    ids = [name for draw in ALL for name in set(re.findall(r'\bid="([^"]+)"', draw(STORY).svg))]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("draw", ALL)
def test_every_reference_finds_its_id(draw):
    svg = draw(STORY).svg
    named = set(re.findall(r'\bid="([^"]+)"', svg))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)) <= {
        pair for name in named for pair in ((name, ""), ("", name))
    }


@pytest.mark.parametrize("draw", ALL)
def test_a_night_without_the_part_has_no_picture(draw):
    assert draw(Story("shop", 0, "NO CHANGE", "s", "a")) is None


def test_a_model_without_a_latency_is_left_out_of_that_picture_only():
    assert "student" in texts(pictures.quality_against_size(STORY))
    assert "student" not in texts(pictures.quality_against_latency(STORY))
    assert "neighbours" in texts(pictures.quality_against_latency(STORY))


def test_numbers_that_are_not_finite_are_not_drawn():
    broken = ModelRow("artifact", "artifact", {"ndcg_at_10": Estimate(float("nan"))}, bytes=10, p99_ms=float("nan"))
    assert pictures.quality_against_size(replace(STORY, models=(broken,))) is None
    zero = (model("artifact", "artifact", 0.0, 10),)
    assert pictures.quality_against_size(replace(STORY, models=zero)).alt.endswith("artifact 0.0000 at 10\u00a0B.")


def test_the_best_and_the_undistilled_trial_are_named():
    shown = texts(pictures.trials(STORY))
    assert "1: width 64, best" in shown
    assert "0: width 64, undistilled" in shown
    assert "0.0900" in shown
    assert "0.0800" in shown
    legend = texts(pictures.learning_curves(STORY))
    assert {"teacher", "best student", "undistilled student"} <= set(legend)


def test_of_several_undistilled_trials_each_is_marked_and_the_best_has_its_curve():
    first, second, _ = STORY.trials
    other = replace(first, number=2, dropout=0.05, validation_ndcg=0.085)
    story = replace(STORY, trials=(replace(first, dropout=0.2), replace(second, dropout=0.2), other))
    shown = texts(pictures.trials(story))
    assert {"0: width 64, dropout 0.2, undistilled", "2: width 64, dropout 0.05, undistilled"} <= set(shown)
    assert story.undistilled is other
    assert texts(pictures.learning_curves(story)).count("undistilled student") == 1


@pytest.mark.parametrize(("champion", "anchors"), [(1_700_000, ("end", "start")), (1_500_000, ("start", "end"))])
def test_labels_of_marks_that_stand_together_part(champion, anchors):
    near = replace(STORY, models=(*STORY.models, model("champion", "champion", 0.088, champion)))
    svg = ET.fromstring(pictures.quality_against_size(near).svg)
    styles = {"".join(e.itertext()): e.get("style", "") for e in svg.iter("{http://www.w3.org/2000/svg}text")}
    found = [re.search(r"text-anchor: (\w+)", styles[name]) for name in ("student", "champion")]
    assert tuple(match.group(1) if match else "start" for match in found) == anchors


def test_of_many_trials_the_best_are_drawn_and_the_undistilled_one():
    many = tuple(TrialRow(i, 32, 0.9 if i else 0.0, 20, "complete", 0.01 + i / 1000, 1.0, i == 99) for i in range(100))
    shown = [text for text in texts(pictures.trials(replace(STORY, trials=many))) if "width" in text]
    assert len(shown) == pictures.MOST_TRIALS + 1
    assert "0: width 32, undistilled" in shown
    assert any(text.startswith("88:") for text in shown)
    assert not any(text.startswith("87:") for text in shown)


def test_the_grid_shows_refused_points_and_the_limit():
    picture = pictures.grid(STORY)
    assert "limit −2\u00a0%" in texts(picture)
    assert "25\u00a0%/100\u00a0%/100\u00a0%, 8 bit: 400\u00a0kB −3.0\u00a0%" in picture.alt
    assert "100\u00a0%/100\u00a0%/100\u00a0%, 8 bit: 470\u00a0kB −0.4\u00a0%" in picture.alt


def test_hostile_names_are_clipped_and_stay_text():
    row = SliceRow(HOSTILE, 1, "teacher", Estimate(0.0, -0.1, 0.1), "fail")
    base = (*STORY.models, model(HOSTILE, "baseline", 0.05))
    for picture in (
        pictures.slices(replace(STORY, slices=(row,))),
        pictures.quality_against_size(replace(STORY, models=base)),
    ):
        assert "<script" not in picture.svg
        shown = next(text for text in texts(picture) if text.startswith("<script>$x^2$"))
        assert len(shown) <= 30


def test_drawing_leaves_the_users_settings_alone():
    with matplotlib.rc_context({"font.size": 31, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        assert pictures.grid(STORY) == pictures.grid(STORY)
        assert dict(matplotlib.rcParams) == before
        styled = pictures.grid(STORY)
    assert styled == pictures.grid(STORY)
