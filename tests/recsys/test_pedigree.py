"""The picture of a lineage: what is drawn, what is folded, and that it is a drawing of the page and nothing more."""

import hashlib
import json
import re
from dataclasses import replace

import pytest

from recsys.pedigree import essential, pedigree
from recsys.story import LineageNode, Story

NOW = 1_795_526_932


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def node(step: str, which: str, *parents: str, **more) -> LineageNode:
    return LineageNode(step, digest(which), tuple(digest(parent) for parent in parents), made=NOW, **more)


def story(*nodes: LineageNode) -> Story:
    return Story("shop", NOW, "PROMOTE", "Fit.", "", lineage=nodes)


def first_night(files: int = 1) -> list[LineageNode]:
    read = [
        node("validate", f"v{n}", f"f{n}", "items", name=f"day {n}.parquet", count=100 + n, of="rows")
        for n in range(files)
    ]
    return [
        node("artifact", "artifact", "grid", "student", "data", "teacher"),
        node("compress", "grid", "student", "data", "labels"),
        node("distil", "student", "data", "labels", "before"),
        node("build", "data", *(f"v{n}" for n in range(files)), "items"),
        node("teach", "teacher", "data", "encoder"),
        node("label", "labels", "teacher", "data", count=5, of="positions"),
        *read,
        node("items", "items", "f-items", name="items.parquet"),
        node("language model", "encoder"),
        *(LineageNode("input", digest(f"f{n}"), ()) for n in range(files)),
        node("distil", "before", earlier=True),
    ]


def texts(svg: str) -> list[str]:
    return [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def test_only_the_nearest_parents_are_lines():
    assert essential({"c": ("b", "a"), "b": ("a",), "a": ()}) == {"c": ("b",), "b": ("a",), "a": ()}
    assert essential({"c": ("b", "a", "elsewhere"), "b": (), "a": ()})["c"] == ("b", "a")


def test_a_thousand_nights_are_no_deeper_than_one():
    chain = {str(n): (str(n - 1),) if n else () for n in range(2000)}
    assert essential(chain)["1999"] == ("1998",)


def test_every_object_is_a_box_with_its_name_and_the_beginning_of_its_digest():
    drawn = pedigree(story(*first_night()))
    said = texts(drawn.svg)
    for name in (
        "artifact",
        "compressed",
        "student",
        "soft labels",
        "teacher",
        "dataset",
        "day 0.parquet",
        "earlier student",
    ):
        assert name in said
    assert any(digest("teacher")[:8] in text for text in said)
    assert any(digest("f0")[:8] in text for text in said), "a file is known by its own bytes"
    assert "student from earlier student and soft labels" in drawn.alt


def test_many_files_are_folded_and_counted():
    said = texts(pedigree(story(*first_night(files=30))).svg)
    assert "29 more files" in said
    assert "day 29.parquet" in said
    assert "day 3.parquet" not in said


def test_segments_of_labels_are_one_box():
    nodes = [n for n in first_night() if n.step != "label"]
    nodes += [node("label", "labels", "teacher", "data", count=5), node("label", "more", "teacher", "data", count=2)]
    said = texts(pedigree(story(*nodes)).svg)
    assert said.count("soft labels") == 1
    assert any(text.startswith("2 segments · 7") for text in said)


def test_no_two_boxes_of_a_row_overlap_and_none_leaves_the_page():
    svg = pedigree(story(*first_night(files=2))).svg
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])
    starts = [float(x) for x in re.findall(r'<path d="M ([\d.]+)', svg)]
    assert starts
    assert all(0 <= x <= width for x in starts)


def test_equal_stories_give_equal_pictures():
    assert pedigree(story(*first_night())) == pedigree(story(*first_night()))


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "$x^2$ & co", "a" * 300, "\u202egnp.exe"])
def test_a_file_name_can_do_nothing(hostile):
    nodes = [replace(n, name=hostile) if n.step == "validate" else n for n in first_night()]
    svg = pedigree(story(*nodes)).svg
    assert "<script" not in svg
    assert "\u202e" not in svg


def test_a_story_that_goes_in_circles_is_drawn_all_the_same():
    assert pedigree(story(node("build", "a", "b"), node("build", "b", "a"), node("teach", "c", "c", "a"))) is not None


def test_a_story_of_before_names_were_kept_is_still_drawn_and_one_without_lineage_is_not():
    old = story(node("artifact", "a", "b"), node("build", "b"))
    document = json.loads(old.to_json())
    for each in document["lineage"]:
        for name in ("name", "count", "of", "bytes", "made", "earlier"):
            del each[name]
    assert pedigree(Story.from_json(json.dumps(document))) is not None
    assert pedigree(story()) is None
